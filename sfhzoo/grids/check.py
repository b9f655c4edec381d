"""Whether a grid is what it says: the checks behind `sfhzoo grid check`.

What the format demands (shapes, increasing axes, finite and non-negative values, mass fractions in
(0, 1]) is checked whenever a grid is read, and a file that fails cannot be read. These checks are
about meaning: units, zero points, light that stars can give, provenance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR, Z_SUN

PROVENANCE = (
    "engine", "version", "isochrones", "library", "imf", "z_sun", "parameters",
    "solar_luminosity", "surviving_mass", "licence", "citation",
)  # fmt: skip
"""The attributes that a grid must have."""

YOUNG_LIGHT = (300.0, 5000.0)
"""Lsun/Msun at 2 Myr: 600 (Salpeter) to 1500 (top-heavy, or metal poor), with room"""
OLD_LIGHT = (0.05, 1.5)
"""Lsun/Msun at 10 Gyr"""
OLD_MASS = (0.2, 0.9)
"""surviving per formed at 10 Gyr: Chabrier without remnants to Salpeter with them"""
YOUNGEST_AGE = 4e6
"""yr; with an older first age the light of the youngest bin is not known"""
OPTICAL = (3700.0, 9300.0)
"""Å; what an SDSS spectrum needs"""
SUN_LIGHT = (3.8e33, 3.9e33)
"""erg/s; the solar luminosities in use"""
BALMER = (4102.89, 4341.68, 4862.68, 6564.61)
"""vacuum Å"""
BALMER_AGE = 3e8
BALMER_MAX_FWHM = 5.0
"""Å; at coarser resolution the lines do not tell air from vacuum"""
BALMER_MAX_SHIFT = 0.5
"""Å; air would be 1.2 to 1.8"""


class Result(NamedTuple):
    """One check: what was expected and what was found, as text."""

    name: str
    passed: bool
    expected: str
    found: str


def check_grid(grid: SSPGrid) -> list[Result]:
    """All checks of a grid that was read; none raises."""
    light = calc_bolometric(grid)
    results = [
        _check_provenance(grid),
        _check_zero_point(grid),
        _check_ages(grid),
        _check_wavelengths(grid),
        _check_light(grid, light, "light at 2 Myr", 2e6, YOUNG_LIGHT),
        _check_light(grid, light, "light at 10 Gyr", 1e10, OLD_LIGHT),
        _check_fading(grid, light),
        _check_dark(grid),
        _check_mass(grid),
        _check_mass_order(grid),
        _check_solar_luminosity(grid),
        _check_vacuum(grid),
        _check_precision(grid),
    ]
    # NumPy's booleans are none of JSON's
    return [result._replace(passed=bool(result.passed)) for result in results]


def calc_bolometric(grid: SSPGrid) -> NDArray[np.float64]:
    """Light over all wavelengths [metallicity, age] of the valid metallicities, Lsun/Msun."""
    # one spectrum at a time: a large grid need not fit into the memory twice
    return np.array(
        [
            [np.trapezoid(spectrum.astype(np.float64), grid.wave) for spectrum in grid.flux[k]]
            for k in np.flatnonzero(grid.valid)
        ]
    )


def _calc_at(grid: SSPGrid, age: float, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values [metallicity, age] at one age (yr), linear in log age."""
    return np.array([np.interp(np.log(age), np.log(grid.age), row) for row in values])


def _check_provenance(grid: SSPGrid) -> Result:
    missing = [key for key in PROVENANCE if grid.attributes.get(key) in (None, "", {})]
    found = f"missing: {', '.join(missing)}" if missing else f"{len(PROVENANCE)} attributes"
    return Result("provenance", not missing, ", ".join(PROVENANCE), found)


def _check_zero_point(grid: SSPGrid) -> Result:
    z_sun: Any = grid.attributes.get("z_sun")
    nodes = grid.logzsol[grid.valid]
    passed = z_sun == Z_SUN and nodes[0] <= -0.5 and nodes[-1] >= 0 and nodes[-1] <= 1
    found = f"Z_sun = {z_sun}, log Z/Z_sun {nodes[0]:.3f} to {nodes[-1]:.3f}"
    return Result("metallicity zero point", passed, f"Z_sun = {Z_SUN}, -0.5 and 0 inside", found)


def _check_ages(grid: SSPGrid) -> Result:
    universe = TimeBins().edges[-1] * YR_PER_GYR
    passed = bool(grid.age[0] <= YOUNGEST_AGE and grid.age[-1] >= universe * (1 - 1e-6))
    expected = f"{YOUNGEST_AGE:.3g} yr or younger to {universe:.5g} yr or older"
    return Result("ages", passed, expected, f"{grid.age[0]:.3g} to {grid.age[-1]:.5g} yr")


def _check_wavelengths(grid: SSPGrid) -> Result:
    passed = bool(grid.wave[0] <= OPTICAL[0] and grid.wave[-1] >= OPTICAL[1])
    expected = f"{OPTICAL[0]:g} to {OPTICAL[1]:g} Å inside"
    return Result("wavelengths", passed, expected, f"{grid.wave[0]:.4g} to {grid.wave[-1]:.4g} Å")


def _check_light(
    grid: SSPGrid,
    bolometric: NDArray[np.float64],
    name: str,
    age: float,
    limits: tuple[float, float],
) -> Result:
    light = _calc_at(grid, age, bolometric)
    passed = bool(np.all((light > limits[0]) & (light < limits[1])))
    expected = f"{limits[0]:g} to {limits[1]:g} Lsun/Msun (Lsun/Å per Msun formed, over wave)"
    return Result(name, passed, expected, f"{light.min():.3g} to {light.max():.3g} Lsun/Msun")


def _check_fading(grid: SSPGrid, light: NDArray[np.float64]) -> Result:
    """Between 0.1 and 10 Gyr a population loses nine tenths of its light or more."""
    factor = _calc_at(grid, 1e8, light) / _calc_at(grid, 1e10, light)
    found = f"factor {factor.min():.3g} to {factor.max():.3g}"
    return Result("fading, 0.1 to 10 Gyr", bool(np.all(factor > 10)), "factor above 10", found)


def _check_dark(grid: SSPGrid) -> Result:
    inside = (grid.wave >= OPTICAL[0]) & (grid.wave <= OPTICAL[1])
    nodes = np.flatnonzero(grid.valid)
    dark = sum(int(np.sum(np.any(grid.flux[k][:, inside] <= 0, axis=-1))) for k in nodes)
    found = f"{dark} spectra with none somewhere"
    return Result("light in the optical", dark == 0, "light at all wavelengths", found)


def _check_mass(grid: SSPGrid) -> Result:
    mass = _calc_at(grid, 1e10, grid.surviving_mass_fraction[grid.valid])
    passed = bool(np.all((mass > OLD_MASS[0]) & (mass < OLD_MASS[1])))
    expected = f"{OLD_MASS[0]} to {OLD_MASS[1]} at 10 Gyr"
    return Result("surviving mass", passed, expected, f"{mass.min():.3f} to {mass.max():.3f}")


def _check_mass_order(grid: SSPGrid) -> Result:
    # a giant branch that moves makes steps of 0.5 %
    rise = float(np.diff(grid.surviving_mass_fraction[grid.valid], axis=1).max())
    found = f"largest rise {max(rise, 0.0):.4f}"
    return Result("mass falls with age", rise < 0.01, "no rise above 0.01", found)


def _check_solar_luminosity(grid: SSPGrid) -> Result:
    value = grid.solar_luminosity
    expected = f"{SUN_LIGHT[0]:.4g} to {SUN_LIGHT[1]:.4g} erg/s"
    found = f"{value:.4g} erg/s"
    return Result("solar luminosity", SUN_LIGHT[0] < value < SUN_LIGHT[1], expected, found)


def _check_vacuum(grid: SSPGrid) -> Result:
    """Centroids of the Balmer lines of a 300 Myr population near solar metallicity."""
    expected = f"Balmer lines within {BALMER_MAX_SHIFT} Å of vacuum (air: 1.2 to 1.8 off)"
    fwhm = np.interp(BALMER, grid.wave, grid.resolution_fwhm).max()
    if fwhm > BALMER_MAX_FWHM:
        found = f"not tested: resolution {fwhm:.0f} Å"
        return Result("vacuum wavelengths", True, expected, found)
    node = np.flatnonzero(grid.valid)[int(np.argmin(np.abs(grid.logzsol[grid.valid])))]
    spectrum = grid.flux[node, int(np.argmin(np.abs(grid.age - BALMER_AGE)))].astype(np.float64)
    shifts = [_calc_centroid(grid.wave, spectrum, line) - line for line in BALMER]
    found = "shifts " + ", ".join(f"{shift:+.2f}" for shift in shifts) + " Å"
    passed = bool(np.all(np.abs(shifts) < BALMER_MAX_SHIFT))
    return Result("vacuum wavelengths", passed, expected, found)


def _calc_centroid(wave: NDArray[np.float64], flux: NDArray[np.float64], line: float) -> float:
    window = np.abs(wave - line) < 20
    if window.sum() < 3:
        return float("nan")
    x, y = wave[window], flux[window]
    depth = np.interp(x, x[[0, -1]], y[[0, -1]]) - y
    # the tip only: metal lines blend with the wings
    weight = np.clip(depth - 0.8 * depth.max(), 0, None)
    return float(np.average(x, weights=weight)) if weight.sum() > 0 else float("nan")


def _check_precision(grid: SSPGrid) -> Result:
    """The bits below the stated error are empty: the error is what rounding to it gives."""
    stated: Any = grid.attributes.get("flux_relative_error")
    expected = "flux_relative_error = 2^-(n + 1), and n mantissa bits in use"
    if not isinstance(stated, float) or not 2.0**-23 <= stated <= 2.0**-2:
        return Result("stored precision", False, expected, f"stated {stated}")
    keep_bits = round(-np.log2(stated)) - 1
    bits = np.ascontiguousarray(grid.flux).view(np.uint32)
    used = int(np.bitwise_or.reduce(bits, axis=None)) & (2**23 - 1)
    empty = used & (2 ** (23 - keep_bits) - 1) == 0
    found = f"{stated:.2g} ({keep_bits} bits){'' if empty else ', but more bits are in use'}"
    return Result("stored precision", bool(empty), expected, found)
