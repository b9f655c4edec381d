"""The figure of two grids side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo.grids.compare import (
    CURVE_AGES,
    QUANTITIES,
    SPECTRUM_AGES,
    Comparison,
    calc_quantities,
    calc_spectra,
)
from sfhzoo.grids.ssp import SSPGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1b6ca8", "#d1495b")
CURVES = ("g_r", "j_k", "mass_to_light_r", "d4000", "hdelta_a")
LABELS = {
    "mass_to_light_r": "surviving M / L$_r$, M$_\\odot$/L$_\\odot$",
    "hdelta_a": "Hδ$_A$, Å",
}
METALLICITY_STEP = 0.5
"""dex, of the dashed curves below and above"""
SPECTRUM_RANGE = (1200.0, 2.4e4)
"""Å"""
LABEL_WAVE = 1.5e4
"""Å"""


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Write the figure (PNG) of a comparison: spectra, then curves against age."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 10.5), layout="constrained", dpi=110)
    rows = figure.add_gridspec(3, 6, height_ratios=(1.35, 1, 1))
    for place, step in ((rows[0, :3], -METALLICITY_STEP), (rows[0, 3:], 0.0)):
        _draw_spectra(figure.add_subplot(place), comparison, comparison.logzsol + step)
    places = [rows[1, 0:2], rows[1, 2:4], rows[1, 4:6], rows[2, 0:3], rows[2, 3:6]]
    curves = _calc_curves(comparison)
    for name, place in zip(CURVES, places, strict=True):
        _draw_curves(figure.add_subplot(place), curves, name)
    names = [grid.name for grid in comparison.grids]
    figure.suptitle(
        f"{names[0]} (blue) and {names[1]} (red); curves at log Z/Z$_\\odot$ = "
        f"{comparison.logzsol:g}; D4000 and Hδ$_A$ at {comparison.fwhm:.0f} Å resolution",
        fontsize=11,
    )
    figure.savefig(path)


def _draw_spectra(ax: Axes, comparison: Comparison, logzsol: float) -> None:
    for grid, colour in zip(comparison.grids, COLOURS, strict=True):
        if not _reaches(grid, logzsol):
            continue
        seen = (grid.wave > SPECTRUM_RANGE[0]) & (grid.wave < SPECTRUM_RANGE[1])
        wave, spectra = grid.wave[seen], calc_spectra(grid, logzsol, np.array(SPECTRUM_AGES))
        for age, flux in zip(SPECTRUM_AGES, spectra[:, seen], strict=True):
            ax.plot(wave, wave * flux, color=colour, lw=0.7, alpha=0.85)
            if grid is comparison.grids[0]:
                level = 1.7 * LABEL_WAVE * np.interp(LABEL_WAVE, wave, flux)
                ax.annotate(f"{age / 1e9:g} Gyr", (LABEL_WAVE, level), fontsize=9, ha="center")
    ax.set(xscale="log", yscale="log", xlim=SPECTRUM_RANGE, ylim=(2e-4, 4e2))
    ax.set(xlabel="wavelength (vacuum), Å", ylabel="λ L$_λ$, L$_\\odot$ per M$_\\odot$ formed")
    ax.set_title(f"log Z/Z$_\\odot$ = {logzsol:g}", fontsize=10)
    ticks = [1500, 2000, 3000, 4000, 6000, 10_000, 20_000]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.minorticks_off()


class _Curve(NamedTuple):
    colour: str
    style: str
    logzsol: float
    values: dict[str, NDArray[np.float64]]


def _calc_curves(comparison: Comparison) -> list[_Curve]:
    steps = ((-METALLICITY_STEP, "--"), (0.0, "-"), (METALLICITY_STEP, ":"))
    return [
        _Curve(colour, style, z, calc_quantities(grid, z, CURVE_AGES, comparison.fwhm))
        for grid, colour in zip(comparison.grids, COLOURS, strict=True)
        for z, style in ((comparison.logzsol + step, style) for step, style in steps)
        if _reaches(grid, z)
    ]


def _draw_curves(ax: Axes, curves: list[_Curve], name: str) -> None:
    for curve in curves:
        label = f"log Z/Z$_\\odot$ = {curve.logzsol:g}" if curve.colour == COLOURS[0] else None
        values = curve.values[name]
        ax.plot(CURVE_AGES / 1e9, values, curve.style, color=curve.colour, lw=1.2, label=label)
    ax.set(xscale="log", xlabel="age, Gyr", ylabel=LABELS.get(name, QUANTITIES[name]))
    if name == "mass_to_light_r":
        ax.set_yscale("log")
    if name == CURVES[0]:
        ax.legend(fontsize=8, frameon=False)


def _reaches(grid: SSPGrid, logzsol: float) -> bool:
    nodes = grid.logzsol[grid.valid]
    return bool(nodes[0] <= logzsol <= nodes[-1])
