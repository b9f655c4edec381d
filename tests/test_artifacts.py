"""Artifacts: what is loaded is what was saved, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sfhzoo.errors import (
    ArtifactError,
    HashMismatch,
    Incompatible,
    NotCached,
    SfhzooError,
    UnknownName,
)
from sfhzoo.histories import HistoryScaling
from sfhzoo.priors.network import build_network
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.zoo import artifacts

FILES = ("config.json", "model.safetensors", "manifest.json")


@pytest.fixture
def prior() -> Prior:
    """A small network with weights that are not those of its initialisation."""
    schedule, shape = NoiseSchedule(sigma_max=8.0), {"width": 16, "blocks": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = build_network("spectral-mlp", shape, schedule).eval()
        torch.nn.init.normal_(network.out.weight, std=0.1)
        network.eigenvalues.uniform_(0.1, 9.0)
    rng = np.random.default_rng(1)
    scaling = HistoryScaling("log", rng.normal(size=(2, 64)), rng.uniform(1, 2, (2, 64)))
    config = {
        "name": "small-v1",
        "kind": "prior",
        "architecture": "spectral-mlp",
        "hyperparameters": shape,
        "sde": schedule.to_dict(),
        "scaling": scaling.to_dict(),
        "cosmology": "Planck15",
        "n_bins": 64,
    }
    return Prior(network, config)


@pytest.fixture
def saved(prior, tmp_path) -> Path:
    return artifacts.save_prior(prior, tmp_path / "small-v1")


def edit_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


def edit_config(directory: Path, **changes: object) -> None:
    edit_json(directory / "config.json", **changes)
    artifacts.write_manifest(directory)


# ---- what is loaded is what was saved -----------------------------------------------------------


def test_a_loaded_prior_gives_the_same_numbers_as_the_saved_one(prior, saved):
    loaded = artifacts.load_prior(saved)
    x = torch.randn((3, 2, 64), generator=torch.Generator().manual_seed(2))
    sigma_t = torch.tensor([0.01, 1.0, 8.0])
    with torch.no_grad():
        assert torch.equal(loaded.score(x, sigma_t), prior.score(x, sigma_t))
    ours, theirs = (p.sample(4, torch.Generator().manual_seed(7), 6) for p in (loaded, prior))
    assert torch.equal(ours.sfr, theirs.sfr) and torch.equal(ours.logzsol, theirs.logzsol)
    assert loaded.schedule == prior.schedule and loaded.name == "small-v1"


def test_an_artifact_is_three_files_that_say_their_format_and_their_hashes(saved):
    assert sorted(p.name for p in saved.iterdir()) == sorted(FILES)
    config = json.loads((saved / "config.json").read_text())
    assert config["format_version"] == artifacts.FORMAT_VERSION
    manifest = json.loads((saved / "manifest.json").read_text())["files"]
    for name in FILES[:2]:
        assert manifest[name]["sha256"] == artifacts.sha256_of(saved / name)
        assert manifest[name]["size"] == (saved / name).stat().st_size


def test_the_identity_changes_with_weights_and_config_but_not_with_the_directory(
    prior, saved, tmp_path
):
    identity = artifacts.load_prior(saved).sha256
    assert len(identity) == 64
    elsewhere = artifacts.save_prior(prior, tmp_path / "elsewhere")
    assert artifacts.load_prior(elsewhere).sha256 == identity
    edit_config(elsewhere, comment="hello")
    assert artifacts.load_prior(elsewhere).sha256 != identity
    with torch.no_grad():
        prior.network.out.bias.add_(1e-3)
    nudged = artifacts.save_prior(prior, tmp_path / "nudged")
    assert artifacts.load_prior(nudged).sha256 != identity


def test_the_sha256_of_a_file_is_the_published_one_of_abc(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert artifacts.sha256_of(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


# ---- and nothing else is ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES[:2])
def test_one_flipped_bit_is_a_hash_mismatch_that_names_the_file(saved, name):
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    with pytest.raises(
        HashMismatch, match=rf"{name}: sha256 expected [0-9a-f]{{64}}, got [0-9a-f]"
    ):
        artifacts.load_prior(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        artifacts.load_prior(saved)


def test_a_newer_format_asks_for_an_upgrade(saved):
    edit_config(saved, format_version=artifacts.FORMAT_VERSION + 1)
    with pytest.raises(Incompatible, match="upgrade"):
        artifacts.load_prior(saved)


def test_an_artifact_of_another_kind_is_not_a_prior(saved):
    edit_config(saved, kind="posterior-network")
    with pytest.raises(Incompatible, match="expected a prior, got 'posterior-network'"):
        artifacts.load_prior(saved)


def test_weights_that_do_not_fit_the_config_are_refused(saved):
    edit_config(saved, hyperparameters={"width": 32, "blocks": 1})
    with pytest.raises(Incompatible, match="do not fit"):
        artifacts.load_prior(saved)


def test_a_config_without_its_scaling_says_what_is_missing(saved):
    config = json.loads((saved / "config.json").read_text())
    del config["scaling"]
    (saved / "config.json").write_text(json.dumps(config))
    artifacts.write_manifest(saved)
    with pytest.raises(Incompatible, match="scaling"):
        artifacts.load_prior(saved)


def test_weights_that_are_not_safetensors_are_refused(saved):
    (saved / "model.safetensors").write_bytes(b"\x80\x04K\x01.")
    artifacts.write_manifest(saved)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        artifacts.load_prior(saved)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/hostname", "a/b.json"])
def test_a_manifest_cannot_point_outside_its_directory(saved, name):
    edit_json(saved / "manifest.json", files={name: {"sha256": "0" * 64, "size": 1}})
    with pytest.raises(ArtifactError, match="plain file name"):
        artifacts.load_prior(saved)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "\x00"])
def test_json_that_is_no_object_is_refused_by_its_path(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        artifacts.read_json(tmp_path / "config.json")


def test_json_without_nan_is_written_whole_or_not_at_all(tmp_path):
    artifacts.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        artifacts.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert artifacts.read_json(tmp_path / "a.json") == {"x": 1}


# ---- names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("typo", ["diffstarpop-tgn-v1", "Diffstarpop-tng", "diffstarpop_tng_v1"])
def test_a_typo_in_a_name_is_answered_with_the_closest_name(tmp_path, monkeypatch, typo):
    for name in ("diffstarpop-tng-v1", "unrelated-v1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    monkeypatch.setattr(artifacts, "BUNDLED", tmp_path)
    with pytest.raises(UnknownName, match=rf"'{typo}'; did you mean diffstarpop-tng-v1"):
        artifacts.load_prior(typo)


def test_a_typo_in_a_grids_name_is_answered_with_the_bundled_grid():
    with pytest.raises(UnknownName, match="bc03-miles-v1"):
        artifacts.load_grid("bc03-mile-v1")


@pytest.mark.parametrize("path", ["nowhere/prior", "./prior", "/nowhere/prior"])
def test_a_path_that_does_not_exist_is_not_cached_rather_than_unknown(path):
    with pytest.raises(NotCached, match="no such file"):
        artifacts.load_prior(path)


def test_a_bundled_name_is_found_where_the_package_keeps_it(prior, tmp_path, monkeypatch):
    artifacts.save_prior(prior, tmp_path / "small-v1")
    monkeypatch.setattr(artifacts, "BUNDLED", tmp_path)
    assert artifacts.load_prior("small-v1").name == "small-v1"


def test_every_artifact_error_ends_the_command_with_exit_code_4():
    for error in (ArtifactError, HashMismatch, Incompatible, NotCached, UnknownName):
        assert issubclass(error, SfhzooError) and error.exit_code == 4
