"""The recipe of tng50-v1 from files to a prior, by the command line, on a small simulation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tngtree import random_groups, random_stars, write_tree

from sfhzoo.cli import run
from sfhzoo.errors import Incompatible
from sfhzoo.simulations import trainingset
from sfhzoo.zoo.artifacts import load_prior, verify

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "tng50-v1.toml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A simulation, and the published recipe with a smaller test split, network and batch."""
    where = tmp_path_factory.mktemp("tng50")
    rng = np.random.default_rng(3)
    write_tree(where / "sim", random_groups(rng, 90), random_stars(rng, 9), [2000, 2500])
    text = RECIPE.read_text(encoding="utf-8")
    for old, new in (
        ("n_test = 23596", "n_test = 20"),
        ("work/tng50-v1.zarr", f"{where}/tng50-v1.zarr"),
        ("nf = 64, ch_mult = [1, 2, 2, 4]", "nf = 8, ch_mult = [1, 1]"),
        ("batch = 256", "batch = 8"),
    ):
        assert old in text
        text = text.replace(old, new)
    (where / "tng50-v1.toml").write_text(text, encoding="utf-8")
    return where


@pytest.fixture(scope="module")
def built(place):
    """The training set's path, after `sfhzoo simulation build`."""
    out = place / "tng50-v1.zarr"
    command = ["simulation", "build", place / "tng50-v1.toml", "--out", out, "--workers", 1]
    assert run([str(a) for a in [*command, "--source", place / "sim" / "output"]]) == 0
    return out


def test_build_follows_the_published_recipe_and_says_what_it_dropped(place, built, capsys):
    out = place / "again.zarr"
    command = ["simulation", "build", place / "tng50-v1.toml", "--out", out, "--quiet"]
    source = ["--source", place / "sim" / "output", "--workers", 1]
    assert run([str(a) for a in [*command, *source]]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout.strip() == str(out)
    data = trainingset.load(out)
    counts = data.attributes["checks"]["galaxies"]
    assert f"kept {counts['kept']} of {counts['found']} galaxies (published: 117968)" in stderr
    assert f"{counts['flagged as no galaxy']} flagged as no galaxy" in stderr
    assert data.n_test == 20 and data.sha256 == trainingset.load(built).sha256


def test_check_prints_the_population_of_the_simulation(built, tmp_path, capsys):
    assert run(["simulation", "check", str(built), "--out", str(tmp_path / "check")]) == 0
    stdout, stderr = capsys.readouterr()
    assert stdout == (tmp_path / "check" / "population.md").read_text(encoding="utf-8")
    n = len(trainingset.load(built).sfr)
    assert f"{n} galaxies, as in a volume" in stdout and "the simulation's own" in stdout
    assert "flagged as no galaxy" in stdout and str(tmp_path) in stderr
    assert (tmp_path / "check" / "population.png").stat().st_size > 10_000
    assert run(["simulation", "check", str(built), "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == n


def test_train_makes_the_published_kind_of_prior_of_it(place, built):
    command = ["train", place / "tng50-v1.toml", "--out", place / "prior", "--steps", 3, "--quiet"]
    assert run([str(a) for a in command]) == 0
    verify(place / "prior")
    prior = load_prior(place / "prior")
    config = prior.config
    assert config["architecture"] == "ncsnpp" and config["scaling"]["kind"] == "linear"
    assert config["training_set"]["sha256"] == trainingset.load(built).sha256
    assert config["simulation"]["engine"] == "tng"
    assert config["sde"]["sigma_max"] == 16.0


def test_a_missing_file_is_one_line_and_exit_code_3(place, tmp_path, capsys):
    command = ["simulation", "build", place / "tng50-v1.toml", "--out", tmp_path / "x.zarr"]
    assert run([str(a) for a in [*command, "--source", tmp_path]]) == 3
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "fof_subhalo_tab_099.0.hdf5 is missing" in error
    assert "\n" not in error


def test_a_training_set_of_a_later_format_is_refused(built, tmp_path):
    import shutil

    import zarr

    later = shutil.copytree(built, tmp_path / "later.zarr")
    zarr.open_group(str(later), mode="r+").attrs["format_version"] = 2
    with pytest.raises(Incompatible, match="format 2, this sfhzoo reads up to 1"):
        trainingset.load(later)
