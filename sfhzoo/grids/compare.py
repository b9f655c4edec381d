"""Two grids side by side: spectra, colours, mass to light, D4000 and Hδ_A against age.

Lines and breaks are measured after both spectra were brought to the coarser resolution of the two
at 4000 Å, else a difference in sampling looks like one in stars. Colours and magnitudes are AB in
the SDSS and 2MASS bands of `sedpy`, M/L is surviving mass over light in r relative to the Sun.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.grids.indices import calc_ab_magnitude, calc_d4000, calc_hdelta_a, calc_smoothed
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.zoo.artifacts import write_json

Array = NDArray[np.float64]

AGES = (1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 5e9, 1e10, 1.3e10)
"""yr, of the table"""
CURVE_AGES = np.geomspace(1e6, 1.35e10, 60)
"""yr, of the figure's curves"""
SPECTRUM_AGES = (1e7, 1e9, 1e10)
"""yr, of the figure's spectra"""
BANDS = ("sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "twomass_J", "twomass_Ks")
"""As `sedpy` calls them"""
SUN_R = 4.65
"""AB mag of the Sun in SDSS r (Willmer 2018, ApJS 236, 47)"""
INDEX_RANGE = (3700.0, 4300.0)
"""Å; around D4000 and Hδ, with room for the smoothing"""
INDEX_WAVE = 4000.0

QUANTITIES = {
    "u_g": "u - g, AB mag",
    "g_r": "g - r, AB mag",
    "r_i": "r - i, AB mag",
    "j_k": "J - Ks, AB mag",
    "mass_to_light_r": "surviving mass / L_r, Msun/Lsun",
    "surviving_fraction": "surviving mass / mass formed",
    "d4000": "D4000",
    "hdelta_a": "Hδ_A, Å",
}

TABLE = {
    "g_r": "g - r",
    "j_k": "J - Ks",
    "mass_to_light_r": "M/L_r",
    "surviving_fraction": "M/M_formed",
    "d4000": "D4000",
    "hdelta_a": "Hδ_A",
}
"""Those that are printed"""


@dataclass(frozen=True)
class Comparison:
    """What two grids say at one metallicity.

    `quantities[grid][name]` [age] at `AGES`, names and units in `QUANTITIES`; `fwhm` is the
    resolution (Å at 4000 Å) of the indices.
    """

    grids: tuple[SSPGrid, SSPGrid]
    logzsol: float
    fwhm: float
    quantities: tuple[dict[str, Array], dict[str, Array]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the table, with names, hashes and units."""
        return {
            "schema": 1,
            "grids": [{"name": g.name, "sha256": g.sha256} for g in self.grids],
            "logzsol": self.logzsol,
            "index_fwhm": self.fwhm,
            "units": QUANTITIES,
            "age": list(AGES),
            "quantities": [{k: v.tolist() for k, v in q.items()} for q in self.quantities],
        }

    def as_lines(self) -> list[str]:
        """The table: first grid, second grid, for each age."""
        first, second = (g.name for g in self.grids)
        lines = [
            f"{first} | {second}, log Z/Z_sun = {self.logzsol:g}, indices at {self.fwhm:.1f} Å",
            "age, Gyr" + "".join(f"{label:>17s}" for label in TABLE.values()),
        ]
        for i, age in enumerate(AGES):
            pairs = [(self.quantities[0][name][i], self.quantities[1][name][i]) for name in TABLE]
            cells = "".join(f"{a:8.2f} |{b:7.2f}" for a, b in pairs)
            lines.append(f"{age / 1e9:8.3f}{cells}")
        return lines

    def write(self, directory: Path, overwrite: bool = False) -> Path:
        """Write `compare.json` and `compare.png`; returns the figure's path.

        Raises FileExistsError where they are there and are not to be replaced.
        """
        from sfhzoo.grids.figures import draw_comparison

        figure, table = directory / "compare.png", directory / "compare.json"
        if not overwrite and (figure.exists() or table.exists()):
            raise FileExistsError(f"{directory} exists: use --overwrite or another --out")
        directory.mkdir(parents=True, exist_ok=True)
        part = directory / f".compare-{os.getpid()}.png"
        draw_comparison(self, part)
        os.replace(part, figure)
        write_json(table, self.as_dict())
        return figure


def compare_grids(first: SSPGrid, second: SSPGrid, logzsol: float = 0.0) -> Comparison:
    """Measure both grids at `logzsol`; GridError where one does not reach it."""
    for grid in (first, second):
        nodes = grid.logzsol[grid.valid]
        if not nodes[0] <= logzsol <= nodes[-1]:
            raise GridError(
                f"grid {grid.name!r}: expected a log Z/Z_sun of {nodes[0]:.2f} to "
                f"{nodes[-1]:.2f}, got {logzsol:g}; choose another --logzsol"
            )
    fwhm = max(
        float(np.interp(INDEX_WAVE, grid.wave, grid.resolution_fwhm)) for grid in (first, second)
    )
    quantities = tuple(calc_quantities(g, logzsol, np.array(AGES), fwhm) for g in (first, second))
    return Comparison((first, second), logzsol, fwhm, (quantities[0], quantities[1]))


def calc_spectra(grid: SSPGrid, logzsol: float, ages: Array) -> Array:
    """Flux [age, wave], Lsun/Å per Msun formed, linear in log age and log Z (valid nodes)."""
    return np.asarray(_interpolate(grid, logzsol, ages, grid.flux), dtype=np.float64)


def calc_quantities(grid: SSPGrid, logzsol: float, ages: Array, fwhm: float) -> dict[str, Array]:
    """The `QUANTITIES` [age] of a grid; indices at a resolution of `fwhm` (Å)."""
    from sedpy import observate

    spectra = calc_spectra(grid, logzsol, ages)
    u, g, r, i, j, k = (
        calc_ab_magnitude(grid.wave, spectra, band, grid.solar_luminosity)
        for band in observate.load_filters(list(BANDS))
    )
    mass = _interpolate(grid, logzsol, ages, grid.surviving_mass_fraction)
    near = (grid.wave > INDEX_RANGE[0]) & (grid.wave < INDEX_RANGE[1])
    wave = grid.wave[near]
    smooth = calc_smoothed(wave, spectra[:, near], grid.resolution_fwhm[near], fwhm)
    return {
        "u_g": u - g,
        "g_r": g - r,
        "r_i": r - i,
        "j_k": j - k,
        "mass_to_light_r": mass * 10 ** (0.4 * (r - SUN_R)),
        "surviving_fraction": np.asarray(mass, dtype=np.float64),
        "d4000": calc_d4000(wave, smooth),
        "hdelta_a": calc_hdelta_a(wave, smooth),
    }


def _interpolate(grid: SSPGrid, logzsol: float, ages: Array, values: NDArray[Any]) -> Array:
    """Values [metallicity, age, ...] at one metallicity and at ages [n]."""
    valid = np.flatnonzero(grid.valid)
    k, z_share = _find(grid.logzsol[valid], np.array([logzsol]))
    low, high = valid[k[0]], valid[k[0] + 1]
    row = values[low] * (1 - z_share[0]) + values[high] * z_share[0]
    i, share = _find(np.log(grid.age), np.log(ages))
    share = share.reshape(-1, *[1] * (row.ndim - 1))
    return np.asarray(row[i] * (1 - share) + row[i + 1] * share)


def _find(nodes: Array, at: Array) -> tuple[NDArray[np.int64], Array]:
    """The node below and the share of the node above, clamped to the ends."""
    below = np.clip(np.searchsorted(nodes, at, side="right") - 1, 0, len(nodes) - 2)
    share = (at - nodes[below]) / (nodes[below + 1] - nodes[below])
    return below, np.clip(share, 0.0, 1.0)
