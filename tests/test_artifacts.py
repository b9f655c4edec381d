"""Artifacts: what is loaded is what was saved, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfhzoo.errors import (
    ArtifactError,
    HashMismatch,
    Incompatible,
    NotCached,
    SfhzooError,
    UnknownName,
)
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import HistoryScaling
from sfhzoo.priors.network import build_network
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.zoo import artifacts, disk, hub
from sfhzoo.zoo.cards import Card, FileRecord, Source

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


@pytest.mark.parametrize(
    ("architecture", "hyperparameters"),
    [
        ("ncsnpp", {"nf": 8, "ch_mult": [1, 1], "num_res_blocks": 1}),
        ("mlp", {"units": 16}),
    ],
)
def test_networks_of_score_models_come_back_as_they_were(
    prior, tmp_path, architecture, hyperparameters
):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network = build_network(architecture, hyperparameters, prior.schedule).eval()
    changes = {"architecture": architecture, "hyperparameters": hyperparameters}
    theirs = Prior(network, {**prior.config, **changes})
    loaded = artifacts.load_prior(artifacts.save_prior(theirs, tmp_path / "theirs-v1"))
    x = torch.randn((3, 2, 64), generator=torch.Generator().manual_seed(2))
    sigma_t = torch.tensor([0.01, 1.0, 8.0])
    with torch.no_grad():
        assert torch.equal(loaded.score(x, sigma_t), theirs.score(x, sigma_t))
    assert type(loaded.network) is type(network) and loaded.nfe == 1


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


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_a_newer_format_says_which_version_it_needs(saved, name):
    edit_config(saved)
    newer = {"format_version": artifacts.FORMAT_VERSION + 1, "versions": {"sfhzoo": "9.1.0"}}
    edit_json(saved / name, **newer)
    if name == "config.json":
        artifacts.write_manifest(saved)
    with pytest.raises(Incompatible, match=r"format 2 needs sfhzoo 9\.1\.0 .* --upgrade sfhzoo"):
        artifacts.load_prior(saved)


@pytest.mark.parametrize("version", [None, "1", 0, True])
def test_a_format_that_is_no_number_is_refused(saved, version):
    edit_config(saved, format_version=version)
    with pytest.raises(ArtifactError, match="whole number format_version"):
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


@pytest.mark.parametrize("name", FILES[:2])
def test_a_file_that_the_manifest_does_not_list_is_not_trusted(saved, name):
    files = json.loads((saved / "manifest.json").read_text())["files"]
    del files[name]
    edit_json(saved / "manifest.json", files=files)
    with pytest.raises(ArtifactError, match=f"an entry for {name}"):
        artifacts.load_prior(saved)


@pytest.mark.parametrize("entry", [None, {}, {"sha256": "0" * 64}, {"sha256": "0", "size": "x"}])
def test_a_manifest_entry_without_sha256_or_size_is_refused(saved, entry):
    files = json.loads((saved / "manifest.json").read_text())["files"]
    edit_json(saved / "manifest.json", files={**files, "config.json": entry})
    with pytest.raises(ArtifactError, match=r"config\.json: expected sha256 and size"):
        artifacts.load_prior(saved)


def test_a_truncated_file_says_how_many_bytes_are_there(saved):
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[:1000])
    expected = rf"model\.safetensors: expected {len(content):,} bytes, got 1,000"
    with pytest.raises(HashMismatch, match=expected):
        artifacts.load_prior(saved)


def test_weights_that_are_no_numbers_are_refused(prior, saved):
    with torch.no_grad():
        prior.network.out.bias[3] = float("nan")
    artifacts.save_prior(prior, saved)
    with pytest.raises(ArtifactError, match=r"out\.bias holds NaN"):
        artifacts.load_prior(saved)


def test_weights_of_another_type_are_refused_unread(saved):
    save_file({"a": torch.zeros(3, dtype=torch.int32)}, saved / "model.safetensors")
    artifacts.write_manifest(saved)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: expected safetensors.*'I32'"):
        artifacts.load_prior(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_bins": 32}, "a scaling of"),
        ({"hyperparameters": {"width": 60_000, "blocks": 200}}, "at least .* weights"),
        ({"hyperparameters": {"width": 16, "blocks": 1, "basis": 1.0}}, "wrong"),
        ({"hyperparameters": {"width": 16, "blocks": 1, "shape": [4, 32]}}, "shape"),
        ({"scaling": {"kind": "log", "mean": [[0.0]], "std": [[1.0]]}}, "expected mean"),
        ({"scaling": None}, "wrong"),
        ({"cosmology": "Mine15"}, "Mine15"),
        ({"architecture": "mlp", "hyperparameters": {"activation": "exec"}}, "wrong"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(saved, changes, message):
    edit_config(saved, **changes)
    with pytest.raises(Incompatible, match=message):
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
def test_a_typo_in_a_name_is_answered_with_the_closest_name(typo):
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


def test_an_artifact_of_the_wrong_kind_is_not_loaded():
    with pytest.raises(Incompatible, match=r"bc03-miles-v1\.zarr\.zip: expected a directory"):
        artifacts.load_prior("bc03-miles-v1")
    with pytest.raises(Incompatible, match=r"diffstarpop-tng-v1: expected a grid"):
        artifacts.load_grid("diffstarpop-tng-v1")


def test_a_path_wins_over_the_bundled_name(prior, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifacts.save_prior(prior, tmp_path / artifacts.DEFAULT_PRIOR)
    assert artifacts.load_prior(artifacts.DEFAULT_PRIOR).name == "small-v1"


# ---- pulled artifacts and repositories ----------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv("SFHZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "cache"


def put_in_cache(directory: Path, name: str, kind: str) -> Path:
    """What `pull` leaves behind: a snapshot in the Hub's layout, and its card."""
    files = {
        p.name: FileRecord(artifacts.sha256_of(p), p.stat().st_size) for p in directory.iterdir()
    }
    source = Source(f"org/{name}", "0123456789" * 4, files)
    place = hub.snapshot_directory(source)
    place.parent.mkdir(parents=True)
    shutil.copytree(directory, place)
    card = Card(name, kind, "x", "x", "mit", "@MISC{x}", source=source)  # type: ignore[arg-type]
    disk.record(card)
    return place


def test_a_pulled_prior_is_found_by_its_name_without_network_or_catalogue(saved, cache):
    with pytest.raises(UnknownName):
        artifacts.load_prior("small-v1")
    place = put_in_cache(saved, "small-v1", "prior")
    assert artifacts.load_prior("small-v1").sha256 == artifacts.identity_of(saved)
    (place / "model.safetensors").unlink()
    with pytest.raises(SfhzooError, match="small-v1"):
        artifacts.load_prior("small-v1")


def make_grid_directory(directory: Path) -> Path:
    wave = np.linspace(3000.0, 9000.0, 100)
    directory.mkdir()
    SSPGrid(
        directory.name, np.array([-1.0, 0.0]), np.array([1e6, 1e10]), wave,
        np.ones((2, 2, 100), np.float32), np.full((2, 2), 0.6), np.full(100, 2.5),
        np.array([True, True]),
    ).write(directory / f"{directory.name}.zarr.zip")  # fmt: skip
    artifacts.write_manifest(directory)
    return directory


def test_a_pulled_grid_is_checked_against_its_manifest(tmp_path, cache):
    directory = make_grid_directory(tmp_path / "toy-v1")
    place = put_in_cache(directory, "toy-v1", "grid")
    for where in ("toy-v1", directory, directory / "toy-v1.zarr.zip"):
        grid = artifacts.load_grid(where)
        assert grid.name == "toy-v1" and grid.sha256 == artifacts.identity_of(directory)
    content = bytearray((place / "toy-v1.zarr.zip").read_bytes())
    content[200] ^= 1
    (place / "toy-v1.zarr.zip").write_bytes(content)
    with pytest.raises(HashMismatch, match=r"toy-v1\.zarr\.zip: sha256 expected"):
        artifacts.load_grid("toy-v1")


def test_a_repository_at_a_revision_is_loaded_from_the_cache_or_the_hub(saved, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_of", lambda *a: (asked.append(a), (None, saved))[1])
    assert artifacts.load_prior("org/small@v1").name == "small-v1"
    assert asked == [("org/small", "v1")]


def test_a_mistyped_path_never_asks_the_hub(monkeypatch):
    monkeypatch.setattr(hub, "snapshot_of", lambda *a: pytest.fail("a request"))
    with pytest.raises(NotCached, match=r"no such file or directory .*org/repo@revision"):
        artifacts.load_prior("work/smal-v1")


def test_a_recipe_says_that_nothing_is_published(cache):
    with pytest.raises(NotCached, match=r"tng50-v1 is a recipe: .*diffstarpop-tng-v1"):
        artifacts.load_prior("tng50-v1")


def test_the_newest_posterior_network_that_fits_is_found_bundled_or_pulled(
    tmp_path, cache, monkeypatch
):
    bundled = tmp_path / "bundled"
    monkeypatch.setattr(artifacts, "BUNDLED", bundled)

    def make(version: int, training_set: str, grid: str) -> Path:
        directory = bundled / f"p-v1--g-v1-posterior-v{version}"
        directory.mkdir(parents=True)
        hashes = {"training_set": {"sha256": training_set}, "grid": {"sha256": grid}}
        (directory / "config.json").write_text(json.dumps(hashes))
        return directory

    assert artifacts.find_posterior_network("p-v1", "g-v1") is None
    make(2, "histories", "spectra")
    make(9, "histories", "other spectra")
    pulled = make(10, "histories", "spectra")
    place = put_in_cache(pulled, pulled.name, "posterior-network")
    shutil.rmtree(pulled)
    make(11, "other histories", "spectra")

    def version(*hashes: str) -> int:
        found = artifacts.find_posterior_network("p-v1", "g-v1", *hashes)
        assert found is not None
        return 10 if found == place else int(found.name.rpartition("-v")[2])

    assert version() == 11
    assert version("histories", "spectra") == 10
    shutil.rmtree(place)
    assert version("histories", "spectra") == 2
    assert artifacts.find_posterior_network("p-v1", "g-v1", "x", "spectra") is None
    assert artifacts.find_posterior_network("p-v1", "g-v2") is None


def test_whatever_an_artifact_is_its_own_loader_takes_it(saved, tmp_path):
    assert isinstance(artifacts.load_any(saved), Prior)
    assert isinstance(artifacts.load_any(make_grid_directory(tmp_path / "toy-v1")), SSPGrid)
    edit_config(saved, kind="posterior-network")
    with pytest.raises(Incompatible, match="missing"):
        artifacts.load_any(saved)


def test_every_artifact_error_ends_the_command_with_exit_code_4():
    for error in (ArtifactError, HashMismatch, Incompatible, NotCached, UnknownName):
        assert issubclass(error, SfhzooError) and error.exit_code == 4
