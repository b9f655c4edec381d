"""Grids from FSPS: the real Fortran engine on a made-up SPS_HOME (`sps_home.py`)."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sps_home import make_home

from sfhzoo.errors import GridError
from sfhzoo.grids import fsps as builder
from sfhzoo.grids.build import ENGINES, BuildOptions, read_recipe
from sfhzoo.grids.fsps import FSPSRecipe, build_fsps
from sfhzoo.grids.fsps_data import check_data
from sfhzoo.grids.indices import calc_d4000
from sfhzoo.grids.partial import PartialGrid
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins

PUBLISHED = Path(__file__).parents[1] / "grids" / "mist-miles-v1.toml"

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 30976992\n"
SPECTRA = "SPECTRA/MILES/imiles_z0.0097.spectra.bin"
ISOCHRONES = "ISOCHRONES/MIST/isoc_zm0.50.dat"

needs_fsps = pytest.mark.skipif(
    importlib.util.find_spec("fsps") is None,
    reason="FSPS IS NOT INSTALLED, its builder was not tested: pip install 'sfhzoo[grids]'",
)


def make_recipe(**parameters: Any) -> dict[str, Any]:
    """The published recipe at 9 metallicities, two of them outside the engine's range, and 30
    ages; without pinned files, since the stars are made up."""
    recipe = read_recipe(PUBLISHED)
    recipe["name"] = "toy-v1"
    del recipe["parameters"]["files"]
    axis = {"first": -3.0, "last": 1.0, "count": 9}
    recipe["parameters"] |= {"logzsol": axis, "ages": 30, **parameters}
    return recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("sps_home"))


@pytest.fixture
def sps_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPS_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def built(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPS_HOME", str(home))
        path = tmp_path_factory.mktemp("built") / "toy-v1.zarr.zip"
        return ENGINES["fsps"](make_recipe(), path, BuildOptions(workers=2))


@pytest.fixture(scope="module")
def grid(built: Path) -> SSPGrid:
    return SSPGrid.read(built)


@pytest.fixture(scope="module")
def native(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What python-fsps itself gives at its own ages at log Z/Z_sun = -0.5, in its own process."""
    out = tmp_path_factory.mktemp("native") / "native.npz"
    code = (
        "import fsps, numpy as np, sys\n"
        "sp = fsps.StellarPopulation(zcontinuous=1, sfh=0, logzsol=-0.5)\n"
        "wave, flux = sp.get_spectrum(tage=0, peraa=True)\n"
        "np.savez(sys.argv[1], wave=wave, flux=flux, mass=sp.stellar_mass, log_age=sp.ssp_ages)\n"
    )
    env = {**os.environ, "SPS_HOME": str(home)}
    subprocess.run([sys.executable, "-c", code, str(out)], env=env, check=True, timeout=120)
    with np.load(out) as content:
        return dict(content)


def make_variant(home: Path, directory: Path, name: str, content: bytes | None) -> Path:
    """A copy of `home` (by links) in which one file is another, or missing."""
    for path in home.rglob("*"):
        link = directory / path.relative_to(home)
        if path.is_dir():
            link.mkdir(parents=True)
        else:
            link.symlink_to(path)
    (directory / name).unlink()
    if content is not None:
        (directory / name).write_bytes(content)
    return directory


# ---- what is built


@needs_fsps
def test_the_grid_has_the_recipes_nodes_and_the_engines_wavelengths(
    grid: SSPGrid, native: dict[str, np.ndarray]
) -> None:
    assert grid.logzsol == pytest.approx(np.linspace(-3, 1, 9))
    assert np.array_equal(grid.wave, native["wave"]) and len(grid.wave) == 5994
    assert grid.flux.shape == (9, 30, 5994)
    today = TimeBins().age_today * 1e9
    assert grid.age[1:] == pytest.approx(np.linspace(0, today, 30)[1:], rel=1e-12)


@needs_fsps
def test_spectra_and_masses_are_the_engines_linear_in_log_age(
    grid: SSPGrid, native: dict[str, np.ndarray]
) -> None:
    node = int(np.flatnonzero(np.isclose(grid.logzsol, -0.5))[0])
    log_age = np.log10(grid.age)
    bright = np.searchsorted(grid.wave, np.geomspace(1500, 5e4, 40))
    for i in bright:
        expected = np.interp(log_age, native["log_age"], native["flux"][:, i])
        found = grid.flux[node, :, i]
        assert found == pytest.approx(expected, rel=grid.attributes["flux_relative_error"] * 1.001)
    mass = np.interp(log_age, native["log_age"], native["mass"])
    assert grid.surviving_mass_fraction[node] == pytest.approx(mass, rel=1e-9)


@needs_fsps
def test_age_0_is_the_engines_youngest(grid: SSPGrid, native: dict[str, np.ndarray]) -> None:
    assert grid.age[0] == pytest.approx(10 ** native["log_age"][0])
    node = int(np.flatnonzero(np.isclose(grid.logzsol, -0.5))[0])
    optical = (grid.wave > 3000) & (grid.wave < 10_000)
    youngest = native["flux"][0, optical]
    assert grid.flux[node, 0, optical] == pytest.approx(youngest, rel=5e-4)


@needs_fsps
def test_outside_its_range_the_engine_is_asked_for_the_limit_and_the_node_is_marked(
    grid: SSPGrid,
) -> None:
    assert grid.valid.tolist() == [False] + [True] * 7 + [False]
    assert np.array_equal(grid.flux[0], grid.flux[1])
    assert np.array_equal(grid.flux[-1], grid.flux[-2])
    assert not np.array_equal(grid.flux[1], grid.flux[2])


@needs_fsps
def test_populations_fade_and_redden_with_age_and_metallicity(grid: SSPGrid) -> None:
    light = np.trapezoid(grid.flux[grid.valid].astype(float), grid.wave, axis=-1)
    assert np.all(np.diff(light[:, [0, 1, 3, 8]], axis=1) < 0)
    assert np.all(light[:, 0] > 100 * light[:, -1])
    # the Sun gives 0.5 Lsun/Msun and a billion-year-old population about 1
    assert np.all((light[:, 3] > 0.1) & (light[:, 3] < 30))
    break_ = calc_d4000(grid.wave, grid.flux[grid.valid].astype(float))
    assert np.all(np.diff(break_[:, [1, 4, 10, 29]], axis=1) > 0)
    assert np.all(np.diff(break_[:, 20]) > 0)


@needs_fsps
def test_surviving_masses_are_fractions_that_fall(grid: SSPGrid) -> None:
    mass = grid.surviving_mass_fraction
    assert np.all((mass > 0.3) & (mass <= 1)) and np.all(np.diff(mass, axis=1) <= 0)


@needs_fsps
def test_the_grid_says_what_it_was_made_with(grid: SSPGrid) -> None:
    found = grid.attributes
    assert found["libraries"] == ["mist", "miles", "DL07"]
    assert found["version"].startswith("python-fsps ")
    assert (found["z_sun"], found["engine_z_sun"]) == (0.0142, 0.0142)
    assert len(found["data_sha256"]) == 64
    assert grid.solar_luminosity == 3.839e33
    fwhm = np.interp([2000, 5000, 9000], grid.wave, grid.resolution_fwhm)
    # made up as 2.54 Å where MILES has spectra and 500 km/s elsewhere
    assert fwhm == pytest.approx([7.85, 2.54, 35.3], rel=0.01)


@needs_fsps
def test_a_build_that_was_killed_goes_on_and_ends_equal(
    sps_home: Path, tmp_path: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy-v1.zarr.zip"
    code = (
        "import sys\nfrom pathlib import Path\nfrom test_grids_fsps import make_recipe\n"
        "from sfhzoo.grids.fsps import build_fsps\n"
        "build_fsps(make_recipe(), Path(sys.argv[1]), workers=1)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        cwd=Path(__file__).parent,
        start_new_session=True,
    )
    partial = PartialGrid(tmp_path / "toy-v1.partial")
    deadline = time.monotonic() + 120
    while len(partial.done()) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = partial.done()
    assert 3 <= len(done) < 9 and not path.exists()

    asked: list[int] = []
    run = builder._run_workers

    def record(partial: Any, shares: list[list[int]], *rest: Any) -> None:
        asked.extend(k for share in shares for k in share)
        run(partial, shares, *rest)

    monkeypatch.setattr(builder, "_run_workers", record)
    build_fsps(make_recipe(), path, workers=1)
    assert set(asked) == set(range(9)) - done
    assert path.read_bytes() == built.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["toy-v1.zarr.zip"]


# ---- what is refused


@needs_fsps
def test_a_library_set_other_than_the_recipes_is_refused(sps_home: Path, tmp_path: Path) -> None:
    recipe = make_recipe(libraries=["mist", "miles", "THEMIS"])
    with pytest.raises(GridError, match=r"THEMIS.*got \('mist', 'miles', 'DL07'\)"):
        build_fsps(recipe, tmp_path / "toy-v1.zarr.zip")


@needs_fsps
def test_a_process_that_the_engine_ends_is_an_error_with_its_last_words(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whole to the eye, but the first age is missing: FSPS stops, with exit code 0
    blocks = (home / ISOCHRONES).read_bytes().split(b"# one age\n")
    variant = make_variant(home, tmp_path / "home", ISOCHRONES, b"# one age\n".join(blocks[2:]))
    monkeypatch.setenv("SPS_HOME", str(variant))
    with pytest.raises(GridError, match=r"ended with code 0; .*number of isochrones NE nt"):
        build_fsps(make_recipe(), tmp_path / "toy-v1.zarr.zip", workers=1)


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        (SPECTRA, None, "No such file"),
        (SPECTRA, 1_000_000, "expected 30,976,992 bytes, got 1,000,000"),
        (SPECTRA, POINTER, "lfs pull"),
        (SPECTRA, 0, "got nothing"),
        (ISOCHRONES, None, "No such file"),
        (ISOCHRONES, 200_000, "cut short"),
        (ISOCHRONES, -1, "cut short"),
        (ISOCHRONES, POINTER, "lfs pull"),
        ("dust/dusty/Orich_dusty.spec", None, "No such file"),
        ("nebular/ZAU_ND_mist.cont", POINTER, "lfs pull"),
    ],
)
def test_a_data_file_that_is_not_whole_is_named(
    home: Path, tmp_path: Path, name: str, keep: int | bytes | None, message: str
) -> None:
    whole = (home / name).read_bytes()
    content = whole[:keep] if isinstance(keep, int) else keep
    variant = make_variant(home, tmp_path / "home", name, content)
    with pytest.raises(GridError, match=message) as caught:
        check_data(variant, "mist", "miles", {})
    assert str(variant / name) in str(caught.value)


def test_a_file_that_is_not_the_one_pinned_is_named(home: Path) -> None:
    pinned = read_recipe(PUBLISHED)["parameters"]["files"]
    assert len(pinned) == 18
    with pytest.raises(GridError, match=r"isoc_zm0\.25\.dat: expected the git blob 6901b4e0"):
        check_data(home, "mist", "miles", pinned)


def test_pins_are_git_blob_ids(home: Path) -> None:
    # the blob of "what is up, doc?" in the book Pro Git
    (home / "data" / "doc").write_bytes(b"what is up, doc?")
    blob = {"data/doc": "bd9dbf5aae1a3862dd1526723246b20206e5fc37"}
    assert check_data(home, "mist", "miles", blob) != check_data(home, "mist", "miles", {})


def test_without_the_data_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPS_HOME", raising=False)
    monkeypatch.setattr(builder, "_require_engine", lambda: None)
    with pytest.raises(GridError, match="SPS_HOME, got nothing"):
        build_fsps(make_recipe(), Path("never.zarr.zip"))


def test_libraries_without_a_list_of_files_are_refused(home: Path) -> None:
    with pytest.raises(GridError, match="no file list yet"):
        check_data(home, "bpss", "miles", {})


# ---- the recipe


def test_the_published_recipe_has_the_published_axes() -> None:
    recipe = FSPSRecipe.parse(read_recipe(PUBLISHED))
    log_ages = np.arange(5.0, 10.31, 0.05)
    ages = recipe.calc_ages(log_ages)
    assert len(ages) == 512 and len(recipe.logzsol) == 64
    assert ages[0] == 1e5 and ages[-1] == pytest.approx(TimeBins().age_today * 1e9)
    assert np.diff(ages)[1:] == pytest.approx(ages[2] - ages[1])
    assert (recipe.logzsol[0], recipe.logzsol[-1]) == (-2.5, 0.5)
    asked, valid = recipe.calc_engine_logzsol()
    assert valid.all() and asked == pytest.approx(recipe.logzsol)


def test_metallicities_go_to_the_engine_relative_to_its_own_sun() -> None:
    recipe = make_recipe(z_sun=0.0185)
    asked, valid = FSPSRecipe.parse(recipe).calc_engine_logzsol()
    assert asked[4] == pytest.approx(-1.0 + np.log10(0.0142 / 0.0185))
    # -2.5 of the grid is -2.61 of the engine, which ends at -2.5
    assert valid.tolist() == [False, False] + [True] * 6 + [False]


def test_the_engines_own_ages_end_above_the_age_of_the_universe() -> None:
    ages = FSPSRecipe.parse(make_recipe(ages="engine")).calc_ages(np.arange(5.0, 10.31, 0.05))
    assert ages[0] == 1e5 and ages[-2] < 13.8e9 < ages[-1] < 14.2e9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"logzsol": 0.0}}, "builder sets them"),
        ({"engine": {"imf_type": 1}}, "Chabrier"),
        ({"ages": 1}, "number >= 2"),
        ({"ages": "some"}, "number >= 2"),
        ({"age_max": 2e10}, "age_max"),
        ({"libraries": ["mist"]}, "three libraries"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        FSPSRecipe.parse(make_recipe(**change))


@pytest.mark.parametrize(
    "path", sorted(PUBLISHED.parent.glob("mist-*.toml")), ids=lambda p: p.stem
)
def test_every_recipe_of_this_engine_can_be_parsed(path: Path) -> None:
    recipe = read_recipe(path)
    FSPSRecipe.parse(recipe)
    assert recipe["name"] == path.stem
