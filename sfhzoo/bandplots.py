"""Band fluxes in the spectrum's figure: data, model and residuals against wavelength."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from numpy.typing import NDArray

from sfhzoo.units import AB_ZERO, ANGSTROM_PER_KM, SPEED_OF_LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sfhzoo.posterior import BandFit, Posterior

BLUE, RUST = "#2b5c8a", "#b5482f"
LIMIT = 2.0
"""Errors below which a flux is drawn as an upper limit, and where the limit stands."""
UNIT = "erg s$^{-1}$ cm$^{-2}$ Å$^{-1}$"


def calc_flux_density(bands: BandFit, maggies: NDArray[np.float64]) -> NDArray[np.float64]:
    """f_λ [..., band] (erg/s/cm²/Å) at the pivot wavelengths of `maggies` [..., band]."""
    return maggies * AB_ZERO * SPEED_OF_LIGHT * ANGSTROM_PER_KM / bands.wave_pivot**2


def draw_band_points(
    ax: Axes, bands: BandFit, where: NDArray[np.bool_] | None = None, unit: float = 1.0
) -> None:
    """The observed fluxes of the bands `where`, in units of `unit` erg/s/cm²/Å."""
    shown = np.ones(len(bands.names), bool) if where is None else where
    seen = shown & (bands.maggies > LIMIT * bands.error)
    flux, error = (calc_flux_density(bands, v) / unit for v in (bands.maggies, bands.error))
    wave = bands.wave_pivot
    ax.errorbar(
        wave[seen], flux[seen], error[seen], fmt="o", color=BLUE, ms=5, mec="white", mew=0.6,
        elinewidth=1.2, label="bands", zorder=8,
    )  # fmt: skip
    faint = shown & ~seen
    if faint.any():
        top = np.maximum(flux, 0.0) + LIMIT * error
        ax.plot(wave[faint], top[faint], "v", color=BLUE, ms=6, label=f"{LIMIT:.0f} σ limits")


def draw_bands(top: Axes, bottom: Axes, posterior: Posterior, with_spectrum: bool) -> None:
    """Fluxes on logarithmic axes, and residuals; the posterior's spectrum if asked for."""
    bands = posterior.bands
    assert bands is not None
    top.set_xscale("log")
    top.set_yscale("log")
    low, high = np.percentile(calc_flux_density(bands, bands.model), [2.5, 97.5], axis=0)
    if with_spectrum:
        _draw_model(top, posterior)
    draw_band_points(top, bands)
    wide = 1.05
    top.bar(
        bands.wave_pivot / wide, high - low, bands.wave_pivot * (wide - 1 / wide), low,
        align="edge", color=RUST, alpha=0.55, lw=0, label=None if with_spectrum else "model, 95 %",
        zorder=7,
    )  # fmt: skip
    top.set_xlim(0.8 * bands.wave_pivot.min(), 1.25 * bands.wave_pivot.max())
    shown = np.concatenate([low, high, calc_flux_density(bands, bands.maggies)])
    shown = shown[shown > 0]
    top.set_ylim(0.35 * shown.min(), 3.0 * shown.max())
    top.set_ylabel(f"Flux ({UNIT})")
    top.legend(loc="lower left", fontsize=9, framealpha=0.9, edgecolor="none")
    _draw_pulls(bottom, bands)
    for ax in (top, bottom):
        _label_wavelengths(ax)


def _draw_model(ax: Axes, posterior: Posterior) -> None:
    wave = posterior.observed.wave_obs
    low, high = np.percentile(posterior.model_flux, [2.5, 97.5], axis=0)
    ax.fill_between(wave, low, high, color=RUST, alpha=0.3, lw=0, label="model, 95 %")
    ax.plot(wave, posterior.median_flux, color=RUST, lw=0.8, label="model, median")


def _draw_pulls(ax: Axes, bands: BandFit) -> None:
    ax.axhspan(-1, 1, color="#cccccc", alpha=0.6, lw=0, zorder=0.5)
    ax.axhline(0, color=RUST, lw=1)
    ax.plot(bands.wave_pivot, bands.pull, "o", color=BLUE, ms=5, mec="white", mew=0.6)
    limit = max(3.5, 1.3 * float(np.abs(bands.pull).max()))
    ax.set_ylim(-limit, limit)
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_ylabel("Residual / error")
    text = f"$\\chi^2$/band = {float(np.mean(bands.pull**2)):.2f}"
    ax.text(
        0.03, 0.93, text, transform=ax.transAxes, fontsize=9, va="top",
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 2},
    )  # fmt: skip


def _label_wavelengths(ax: Axes) -> None:
    """Ticks at 1, 2 and 5 times a power of ten, in Å or µm as one would say them."""
    low, high = ax.get_xlim()
    few = high / low < 30
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0, 3.0)))
    ax.xaxis.set_major_formatter(
        FuncFormatter(lambda w, _: f"{w:.0f} Å" if w < 1e4 else f"{w / 1e4:.3g} µm")
    )
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(direction="in", right=True)
