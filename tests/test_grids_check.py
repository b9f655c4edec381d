"""What one measures on grids: indices against closed forms, checks that notice, comparisons."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sfhzoo.cli.grid import grid_group
from sfhzoo.errors import GridError
from sfhzoo.grids.check import check_grid
from sfhzoo.grids.compare import AGES, QUANTITIES, calc_spectra, compare_grids
from sfhzoo.grids.indices import calc_ab_magnitude, calc_d4000, calc_hdelta_a, calc_smoothed
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.wavelengths import calc_vacuum_from_air
from sfhzoo.zoo.artifacts import load_grid


@pytest.fixture(scope="module")
def bundled() -> SSPGrid:
    return load_grid()


# ---- indices


def test_a_spectrum_flat_in_frequency_has_d4000_one() -> None:
    wave = np.linspace(3700, 4300, 3001)
    assert calc_d4000(wave, wave**-2.0) == pytest.approx(1, abs=1e-4)


def test_d4000_is_the_height_of_a_step() -> None:
    wave = np.linspace(3700, 4300, 6001)
    flux = np.where(wave > 3980, 1.7, 1.0) / wave**2
    assert calc_d4000(wave, np.stack([flux, 3 * flux])) == pytest.approx([1.7, 1.7], rel=1e-3)


def test_hdelta_is_the_equivalent_width_of_a_line_on_a_sloping_continuum() -> None:
    wave = np.linspace(3900, 4300, 20_001)
    centre, sigma, depth = calc_vacuum_from_air(np.array(4101.7)), 3.0, 0.4
    line = 1 - depth * np.exp(-0.5 * ((wave - centre) / sigma) ** 2)
    expected = depth * sigma * np.sqrt(2 * np.pi)
    continuum = 1 + 0.002 * (wave - 4100)
    assert calc_hdelta_a(wave, continuum * line) == pytest.approx(expected, rel=2e-3)
    assert calc_hdelta_a(wave, continuum) == pytest.approx(0, abs=1e-9)


def test_a_flat_source_of_3631_jansky_has_magnitude_zero() -> None:
    wave = np.linspace(3000, 8000, 5001)
    parsec10 = 4 * np.pi * (3.0856775814913673e19) ** 2
    luminosity = 10 ** (-48.6 / 2.5) * 2.99792458e18 / wave**2 * parsec10 / 3.828e33
    band = SimpleNamespace(
        wavelength=np.array([4000.0, 4500, 5500, 6000]), transmission=np.array([0.0, 0.7, 0.9, 0])
    )
    assert calc_ab_magnitude(wave, luminosity, band, 3.828e33) == pytest.approx(0, abs=1e-4)
    fainter = calc_ab_magnitude(wave, luminosity / 100, band, 3.828e33)
    assert fainter == pytest.approx(5, abs=1e-4)


def test_smoothing_makes_a_line_as_wide_as_asked_and_keeps_its_flux() -> None:
    wave = np.linspace(4000, 4400, 1601)
    narrow = np.exp(-0.5 * ((wave - 4200) / (5 / 2.3548)) ** 2)
    wide = calc_smoothed(wave, narrow, 5.0, 13.0)
    expected = 5 / 13 * np.exp(-0.5 * ((wave - 4200) / (13 / 2.3548)) ** 2)
    assert np.abs(wide - expected).max() < 2e-3
    assert np.array_equal(calc_smoothed(wave, narrow, 5.0, 4.0), narrow)


# ---- checks


def test_the_bundled_grid_passes_every_check(bundled: SSPGrid) -> None:
    assert [result for result in check_grid(bundled) if not result.passed] == []


def spoil(grid: SSPGrid, **attributes: Any) -> SSPGrid:
    return replace(grid, attributes={**grid.attributes, **attributes})


BREAKERS = {
    "provenance": lambda g: spoil(g, licence=""),
    "metallicity zero point": lambda g: spoil(g, z_sun=0.02),
    "ages": lambda g: replace(g, age=g.age * 0.5),
    "wavelengths": lambda g: replace(g, wave=g.wave * 1000),
    "light at 2 Myr": lambda g: replace(g, flux=g.flux * np.float32(10)),
    "light at 10 Gyr": lambda g: replace(g, flux=g.flux * np.float32(0.1)),
    "fading, 0.1 to 10 Gyr": lambda g: replace(g, flux=np.repeat(g.flux[:, :1], len(g.age), 1)),
    "light in the optical": lambda g: replace(g, flux=np.where(g.wave > 9e3, 0, g.flux)),
    "surviving mass": lambda g: replace(
        g, surviving_mass_fraction=g.surviving_mass_fraction * 0.3
    ),
    "mass falls with age": lambda g: replace(
        g, surviving_mass_fraction=g.surviving_mass_fraction[:, ::-1].copy()
    ),
    "solar luminosity": lambda g: spoil(g, solar_luminosity=3.828e26),
    "vacuum wavelengths": lambda g: replace(g, wave=g.wave / 1.00028),
    "stored precision": lambda g: spoil(g, flux_relative_error=2.0**-9),
}


@pytest.fixture(scope="module")
def part(bundled: SSPGrid) -> SSPGrid:
    """The bundled grid with every sixth age and two metallicities: enough for every check."""
    pick = np.unique(np.r_[0 : len(bundled.age) : 6, len(bundled.age) - 1])
    nodes = [2, 4]
    return replace(
        bundled,
        age=bundled.age[pick],
        logzsol=bundled.logzsol[nodes],
        valid=bundled.valid[nodes],
        flux=bundled.flux[nodes][:, pick],
        surviving_mass_fraction=bundled.surviving_mass_fraction[nodes][:, pick],
    )


@pytest.mark.parametrize("name", BREAKERS)
def test_each_check_notices_what_it_is_for(part: SSPGrid, name: str) -> None:
    good = {result.name: result.passed for result in check_grid(part)}
    assert all(good.values()) and set(BREAKERS) == set(good)
    found = {result.name: result.passed for result in check_grid(BREAKERS[name](part))}
    assert not found[name]


def test_the_command_prints_each_check_and_exits_with_1_when_one_fails(
    part: SSPGrid, tmp_path: Path
) -> None:
    good = part.write(tmp_path / "good-v1.zarr.zip")
    bad = spoil(part, z_sun=0.02).write(tmp_path / "bad-v1.zarr.zip")
    result = CliRunner().invoke(grid_group, ["check", str(good), "--json"])
    assert result.exit_code == 0 and json.loads(result.stdout)["passed"] is True
    result = CliRunner().invoke(grid_group, ["check", str(bad)])
    assert result.exit_code == 1
    assert "FAIL metallicity zero point" in result.stdout and "expected Z_sun" in result.stdout
    result = CliRunner().invoke(grid_group, ["show", str(good), "--json"])
    content = json.loads(result.stdout)
    assert content["name"] == "bc03-miles-v1" and content["wave"]["n"] == len(part.wave)
    assert "vacuum" in CliRunner().invoke(grid_group, ["show", str(good)]).stdout


# ---- comparison


def test_spectra_between_nodes_are_linear_in_log_age_and_log_metallicity(part: SSPGrid) -> None:
    ages = np.sqrt(part.age[10:12].prod()), part.age[15]
    found = calc_spectra(part, float(part.logzsol.mean()), np.array(ages))
    corners = part.flux[:, [10, 11]].astype(float)
    assert found[0] == pytest.approx(corners.mean(axis=(0, 1)), rel=1e-5)
    assert found[1] == pytest.approx(part.flux[:, 15].astype(float).mean(axis=0), rel=1e-5)


def test_a_grid_compared_with_itself_differs_in_nothing(part: SSPGrid) -> None:
    comparison = compare_grids(part, replace(part, name="other-v1"))
    for name in QUANTITIES:
        first, second = (q[name] for q in comparison.quantities)
        assert np.array_equal(first, second) and len(first) == len(AGES)
    old = comparison.quantities[0]
    # an elliptical galaxy: g - r 0.75, D4000 2, M/L_r 2 to 3 (Kroupa)
    assert old["g_r"][-2] == pytest.approx(0.75, abs=0.08)
    assert old["d4000"][-2] == pytest.approx(1.95, abs=0.15)
    assert old["mass_to_light_r"][-2] == pytest.approx(2.5, abs=0.5)


def test_twice_the_light_is_half_the_mass_to_light(part: SSPGrid) -> None:
    bright = replace(part, flux=part.flux * np.float32(2))
    first, second = compare_grids(part, bright).quantities
    assert second["mass_to_light_r"] == pytest.approx(first["mass_to_light_r"] / 2)
    assert second["g_r"] == pytest.approx(first["g_r"])


def test_a_metallicity_that_a_grid_does_not_reach_is_refused(part: SSPGrid) -> None:
    with pytest.raises(GridError, match=r"-0\.55 to 0\.15, got 0\.4"):
        compare_grids(part, part, logzsol=0.4)


def test_the_command_writes_figure_and_table_and_keeps_what_is_there(
    part: SSPGrid, tmp_path: Path
) -> None:
    paths = [
        str(replace(part, name=name).write(tmp_path / f"{name}.zarr.zip"))
        for name in ("one-v1", "two-v1")
    ]
    out = tmp_path / "out"
    command = ["compare", *paths, "--out", str(out)]
    result = CliRunner().invoke(grid_group, [*command, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads((out / "compare.json").read_text())
    assert json.loads(result.stdout) == content
    assert [grid["name"] for grid in content["grids"]] == ["one-v1", "two-v1"]
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in out.iterdir()) == ["compare.json", "compare.png"]
    again = CliRunner().invoke(grid_group, command)
    assert isinstance(again.exception, FileExistsError) and "--overwrite" in str(again.exception)
