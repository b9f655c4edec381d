"""A checkpoint that score_models wrote becomes a prior with the same score, and no code runs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from galaxies import make_observation, make_scaling
from torch.utils.data import TensorDataset

from sfhzoo.cli import run
from sfhzoo.errors import ArtifactError, DataError, Incompatible, UsageError
from sfhzoo.likelihood.problem import Problem
from sfhzoo.samplers.split_gibbs import SplitGibbsSampler
from sfhzoo.zoo import artifacts, checkpoints
from sfhzoo.zoo.about import TEMPLATE, read_about
from sfhzoo.zoo.cards import read_card

SIGMA_MIN, SIGMA_MAX = 0.02, 12.0


def fit(network: torch.nn.Module, x: torch.Tensor, directory: Path) -> Path:
    """Train with score_models itself: six epochs, the last two checkpoints kept."""
    from score_models import ScoreModel

    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with quiet[0], quiet[1], warnings.catch_warnings(action="ignore"):
        model = ScoreModel(network, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, device="cpu")
        model.fit(
            TensorDataset(x), epochs=6, batch_size=16, checkpoints=2, models_to_keep=2,
            learning_rate=1e-3, ema_decay=0.9, checkpoints_directory=str(directory),
        )  # fmt: skip
    return directory


def make_network(architecture: str) -> torch.nn.Module:
    from score_models import MLP, NCSNpp

    if architecture == "mlp":
        return MLP(dimensions=128, units=16)
    return NCSNpp(channels=2, dimensions=1, nf=8, ch_mult=[1, 1], num_res_blocks=1)


@pytest.fixture(scope="module", params=["ncsnpp", "mlp"])
def trained(request, tmp_path_factory) -> tuple[str, Path]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        x = torch.randn(64, 128) if request.param == "mlp" else torch.randn(64, 2, 64)
        directory = tmp_path_factory.mktemp("checkpoints") / request.param
        return request.param, fit(make_network(request.param), x, directory)


@pytest.fixture
def about(tmp_path) -> Path:
    """The template, filled in."""
    text = TEMPLATE
    for empty, filled in {
        "mean = [] ": "mean = [0.2, -0.5] ",
        "std = []": "std = [1.5, 0.4]",
        'origin = ""': 'origin = "TNG50-1"',
        'summary = ""': 'summary = "Centrals above 1e9 Msun."',
        'license = ""': 'license = "mit"',
        "citation = ''''''": "citation = '@MISC{key, title={A title}}'",
    }.items():
        assert empty in text
        text = text.replace(empty, filled)
    path = tmp_path / "about.toml"
    path.write_text(text)
    return path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


# ---- what comes out is what went in -------------------------------------------------------------


def test_the_prior_has_the_score_that_score_models_loads(trained, about, tmp_path):
    from score_models import ScoreModel

    architecture, directory = trained
    found = checkpoints.import_checkpoint(directory, "mine-v1", tmp_path / "a", read_about(about))
    prior = artifacts.load_prior(tmp_path / "a")
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = ScoreModel(checkpoints_directory=str(directory), device="cpu")
    assert found.number == theirs.loaded_checkpoint == 3
    x = 3 * torch.randn((4, 2, 64), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.0, 0.3, 0.6, 1.0])
    flat = x.flatten(1) if architecture == "mlp" else x
    with torch.no_grad():
        expected = theirs.eval().score(t, flat).view(4, 2, 64)
        got = prior.score(x, SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** t)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_the_artifact_says_where_it_comes_from_and_has_a_card(trained, about, tmp_path):
    _, directory = trained
    found = checkpoints.import_checkpoint(directory, "mine-v1", tmp_path / "a", read_about(about))
    artifacts.verify(tmp_path / "a")
    prior = artifacts.load_prior(tmp_path / "a")
    assert prior.config["training"]["sha256"] == artifacts.sha256_of(found.path)
    assert prior.config["training"]["file"] == found.path.name
    assert prior.config["training_set"]["origin"] == "TNG50-1"
    assert prior.scaling.mean[:, 7].tolist() == [0.2, -0.5]
    assert prior.scaling.std.shape == (2, 64) and prior.scaling.sfr_floor == 1e-4
    card = read_card(tmp_path / "a" / "README.md")
    assert (card.name, card.kind, card.origin) == ("mine-v1", "prior", "TNG50-1")
    assert card.citation == "@MISC{key, title={A title}}" and card.license == "mit"
    listed = json.loads((tmp_path / "a" / "manifest.json").read_text())["files"]
    assert "README.md" in listed


def test_last_best_and_a_number_choose_a_checkpoint(trained, tmp_path):
    directory = shutil.copytree(trained[1], tmp_path / "c")
    numbers = sorted(int(p.stem.rpartition("_")[2]) for p in directory.glob("checkpoint*"))
    assert numbers == [2, 3]
    (directory / "score_sheet.txt").write_text("1 0.1\n2 5.0\n3 7.0\nnot a line\n")
    assert checkpoints.find_checkpoint(directory).number == 3
    best = checkpoints.find_checkpoint(directory, "best")
    assert (best.number, best.loss) == (2, 5.0)
    assert checkpoints.find_checkpoint(directory, "2").number == 2
    with pytest.raises(UsageError, match="last, best or one of 2, 3, got '1'"):
        checkpoints.find_checkpoint(directory, "1")
    with pytest.raises(ArtifactError, match="expected checkpoint_<loss>_<number>"):
        checkpoints.find_checkpoint(tmp_path)


def test_weights_saved_from_the_score_model_are_those_of_its_network(trained, tmp_path):
    directory = shutil.copytree(trained[1], tmp_path / "c")
    path = checkpoints.find_checkpoint(directory).path
    plain = checkpoints.read_weights(path)
    torch.save({f"model.{k}": v for k, v in plain.items()}, path)
    wrapped = checkpoints.read_weights(path)
    assert list(wrapped) == list(plain)
    assert all(torch.equal(wrapped[k], plain[k]) for k in plain)


def test_means_and_deviations_of_every_bin_come_from_a_numpy_file(about, tmp_path):
    mean, std = np.arange(128.0).reshape(2, 64), np.full((2, 64), 2.0)
    np.savez(tmp_path / "scaling.npz", mean=mean, std=std)
    scaling = read_about(about, tmp_path / "scaling.npz").scaling
    assert np.array_equal(scaling.mean, mean) and np.array_equal(scaling.std, std)
    np.savez(tmp_path / "evil.npz", mean=np.array([{"a": 1}], object), std=std)
    with pytest.raises(DataError, match="allow_pickle"):
        read_about(about, tmp_path / "evil.npz")
    np.savez(tmp_path / "other.npz", mean=mean)
    with pytest.raises(DataError, match="std"):
        read_about(about, tmp_path / "other.npz")


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["ncsnpp"], indirect=True)
def test_split_gibbs_samples_with_an_imported_prior(trained, about, tmp_path):
    checkpoints.import_checkpoint(trained[1], "mine-v1", tmp_path / "a", read_about(about))
    prior = artifacts.load_prior(tmp_path / "a")
    model, _, _, error, y = make_observation(snr=30.0, n_pixels=200)
    problem = Problem(model, y, error**-2, make_scaling(), a_v=0.4, sigma_v=150.0)
    draws = SplitGibbsSampler(prior, sweeps=2, start_steps=4).sample(
        problem, 4, torch.Generator().manual_seed(9)
    )
    assert draws.state.shape[0] == 4 and bool(draws.state.isfinite().all())
    assert prior.nfe > 0


# ---- what is refused ----------------------------------------------------------------------------


class Evil:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path):
    path = tmp_path / "checkpoint_1.0000e+00_001.pt"
    torch.save({"weights": torch.zeros(2), "evil": Evil(tmp_path / "ran")}, path)
    with pytest.raises(ArtifactError, match="refused: expected a state dict of tensors") as caught:
        checkpoints.read_weights(path)
    assert not (tmp_path / "ran").exists() and "\n" not in str(caught.value)
    # it is armed: PyTorch's other reader would have run it
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "expected a state dict, got list"),
        ({}, "expected a state dict"),
        ({"a": "text"}, "expected tensors by name"),
        ({1: torch.zeros(2)}, "expected tensors by name"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "expected real numbers"),
    ],
)
def test_a_file_of_other_things_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(ArtifactError, match=message):
        checkpoints.read_weights(tmp_path / "c.pt")


@pytest.mark.parametrize("keep", [0, 10, 5000, -100])
def test_a_truncated_file_is_refused(tmp_path, keep):
    torch.save({"a": torch.zeros(3000)}, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"c\.pt") as caught:
        checkpoints.read_weights(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


NCSNPP = {
    "model_architecture": "NCSNpp", "sde": "ve", "T": 1.0, "sigma_min": 0.1, "sigma_max": 5.0,
    "channels": 2, "dimensions": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sde": "vp"}, "sde: expected ve, got 'vp'"),
        ({"T": 2.0}, "T: expected 1, got 2"),
        ({"model_architecture": "DDPM"}, "expected NCSNpp or MLP, got 'DDPM'"),
        ({"model_architecture": "mlp", "nn_is_energy": True}, "nn_is_energy"),
        ({"channels": 1}, "channels: expected 2"),
        ({"dimensions": 2}, "dimensions: expected 1"),
        ({"sigma_min": None}, "sigma_min: expected a number"),
        ({"nf": 10**9}, "`nf` = 1000000000"),
        ({"nf": 1024}, "weights file"),
        ({"sigma_min": 50}, "noise levels"),
    ],
)
@pytest.mark.parametrize("trained", ["ncsnpp"], indirect=True)
def test_a_model_that_cannot_be_a_prior_is_refused(trained, about, tmp_path, changes, message):
    directory = shutil.copytree(trained[1], tmp_path / "c")
    (directory / "model_hparams.json").write_text(json.dumps({**NCSNPP, **changes}))
    with pytest.raises(Incompatible, match=message):
        checkpoints.import_checkpoint(directory, "mine-v1", tmp_path / "a", read_about(about))


def test_bins_that_are_not_the_networks_are_refused(trained, about, tmp_path):
    change(about, "n_bins = 64", "n_bins = 63")
    with pytest.raises(Incompatible, match=r"wrong|do not fit"):
        checkpoints.import_checkpoint(trained[1], "mine-v1", tmp_path / "a", read_about(about))


def test_what_is_missing_is_named_all_at_once(tmp_path, about):
    for line in ("n_bins = 64", "sfr_floor = 1e-4", 'license = "mit"'):
        change(about, line, "")
    expected = r"missing \[histories\] n_bins, \[training_set\] license, \[scaling\] sfr_floor"
    with pytest.raises(DataError, match=expected):
        read_about(about)
    about.write_text("")
    with pytest.raises(DataError, match=r"\[scaling\] mean.*--template"):
        read_about(about)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n_bins = 64", 'n_bins = "64"', "expected int"),
        ("std = [1.5, 0.4]", "std = [1.5, 0.0]", "positive standard deviations"),
        ("std = [1.5, 0.4]", "std = [1.5, 0.4, 1.0]", r"shape \[2\] or \[2, 64\]"),
        ("std = [1.5, 0.4]", "stdev = [1.5, 0.4]", r"unknown \[scaling\] stdev"),
        ('kind = "log"', 'kind = "cubic"', "'log' or 'linear'"),
        ('"Planck15"', '"Planck1815"', "Planck1815"),
        ('origin = "TNG50-1"', 'origin = ""', r"\[training_set\] origin: expected str, got ''"),
        ("[scaling]", "[scalings]", r"\[scalings\]"),
        ("[scaling]", "[[scaling]]", "scaling"),
        ("[histories]", "histories", "expected TOML"),
    ],
)
def test_a_wrong_value_is_named(about, old, new, message):
    change(about, old, new)
    with pytest.raises(DataError, match=message) as caught:
        read_about(about)
    assert str(about) in str(caught.value)


def test_the_template_must_be_filled_in(tmp_path):
    (tmp_path / "about.toml").write_text(TEMPLATE)
    with pytest.raises(DataError, match=r"\[scaling\] mean: expected list, got \[\]"):
        read_about(tmp_path / "about.toml")


# ---- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["mlp"], indirect=True)
def test_the_command_writes_whole_or_not_at_all(trained, about, tmp_path, capsys):
    out = tmp_path / "mine-v1"
    arguments = ["import-checkpoint", str(trained[1]), "--about", str(about), "--out", str(out)]
    assert run([*arguments, "--name", "Mine"]) == 2
    assert "expected a name like tng50-v1" in capsys.readouterr().err
    assert run([*arguments, "--name", "mine-v1", "--checkpoint", "77"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["about.toml"]
    assert run([*arguments, "--name", "mine-v1"]) == 0
    assert "_003.pt" in capsys.readouterr().out
    assert artifacts.load_prior(out).name == "mine-v1"
    assert run([*arguments, "--name", "mine-v1"]) == 2
    assert "exists" in capsys.readouterr().err
    about.write_text("")
    assert run([*arguments[:-1], str(tmp_path / "b"), "--name", "mine-v1"]) == 3


@pytest.mark.parametrize("trained", ["mlp"], indirect=True)
def test_a_checkpoint_with_code_is_exit_code_4_and_one_line(trained, about, tmp_path, capsys):
    directory = shutil.copytree(trained[1], tmp_path / "c")
    path = checkpoints.find_checkpoint(directory).path
    torch.save({"evil": Evil(tmp_path / "ran")}, path)
    arguments = ["import-checkpoint", str(directory), "--about", str(about), "--name", "mine-v1"]
    assert run([*arguments, "--out", str(tmp_path / "a")]) == 4
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "it could run code" in error
    assert not (tmp_path / "ran").exists() and not (tmp_path / "a").exists()


def test_the_template_is_printed_without_other_arguments(capsys):
    assert run(["import-checkpoint", "--template"]) == 0
    assert capsys.readouterr().out == TEMPLATE
