"""Figures of a Posterior: its histories, and its spectra against the data.

Drawn with matplotlib's objects, never with pyplot's global state, so that they are safe in
threads and on machines without a display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from sfhzoo.bandplots import draw_band_points, draw_bands
from sfhzoo.histories import calc_formation_quantile, calc_mass_formed_per_bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sfhzoo.posterior import Observed, Posterior

Array = NDArray[np.float64]

BLUE, RUST, GREEN = "#2b5c8a", "#b5482f", "#2f7d5b"
INK, GREY = "#222222", "#8a8a8a"
REASON_COLOURS = ("#f2c77c", "#b9d3ea", "#d9b8dd", "#bfe0c2", "#e9b7a9", "#cfcfcf")
DPI = 150
N_DRAWN = 12
"""samples drawn as thin lines"""
SFR_DECADES = 3.5
"""a logarithmic SFR axis ends this far below its peak"""
MASS_FRACTION_SHOWN = 1e-3
"""a bin with less of the mass says nothing about its metallicity and is drawn faintly"""

FEATURES = {
    "[O II]": 3728.5,
    "Ca HK": 3952.2,
    "Hδ": 4102.9,
    "G": 4305.6,
    "Hγ": 4341.7,
    "Hβ": 4862.7,
    "[O III]": 5008.2,
    "Mg b": 5176.6,
    "Fe": 5271.0,
    "Na D": 5894.6,
    "Hα": 6564.6,
    "[S II]": 6725.5,
    "TiO": 7126.0,
    "Ca II": 8544.4,
}
"""Rest wavelengths in vacuum, Å."""


def plot_histories(posterior: Posterior) -> Figure:
    """SFR, metallicity and cumulative mass against cosmic time.

    Bands hold 68 and 95 % of the samples, bin by bin; the part after the observation is veiled.
    """
    figure = _new_figure((8.0, 8.6))
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1.5])
    now, bins = posterior.cosmic_time, posterior.bins
    _draw_sfr(axes[0], posterior)
    _draw_metallicity(axes[1], posterior)
    _draw_cumulative_mass(axes[2], posterior)
    for ax in axes:
        ax.set_xlim(0, bins.age_today)
        if bins.age_today - now > 0.02 * bins.age_today:
            ax.axvspan(now, bins.age_today, color="white", alpha=0.72, lw=0, zorder=5)
            ax.axvline(now, color=INK, lw=1, ls=(0, (4, 3)), zorder=6)
    if bins.age_today - now > 0.05 * bins.age_today:
        middle = 0.5 * (now + bins.age_today)
        axes[0].text(
            middle, 0.5, "prediction", transform=axes[0].get_xaxis_transform(), rotation=90,
            ha="center", va="center", color=GREY, style="italic", fontsize=9, zorder=7,
        )  # fmt: skip
    axes[2].set_xlabel("Age of the universe (Gyr)")
    _add_top_axis(
        axes[0], lambda time: now - time, lambda age: now - age, "Time before observation (Gyr)"
    )
    figure.align_ylabels(axes)
    _set_title(figure, posterior)
    return figure


def plot_spectrum(posterior: Posterior) -> Figure:
    """Data, posterior spectra and residuals in units of the file's errors; bands at the side."""
    if posterior.bands is not None and not posterior.observed.used.any():
        return _plot_bands_alone(posterior)
    figure = _new_figure((11.0 if posterior.bands is None else 15.0, 6.2))
    if posterior.bands is None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    else:
        (top, side), (bottom, below) = figure.subplots(
            2, 2, sharex="col", height_ratios=[3, 1], width_ratios=[2.6, 1]
        )
        draw_bands(side, below, posterior, with_spectrum=False)
        below.set_xlabel("Pivot wavelength")
    seen, redshift = posterior.observed, posterior.redshift
    top.set_xlim(*_wave_limits(seen))
    reasons = _draw_masks((top, bottom), seen)
    _draw_fluxes(top, posterior)
    _draw_residuals(bottom, posterior)
    _draw_features(top, redshift)
    handles, labels = top.get_legend_handles_labels()
    top.legend(
        handles + list(reasons.values()), labels + list(reasons), loc="lower right", fontsize=9,
        ncols=2, frameon=True, framealpha=0.9, edgecolor="none",
    )  # fmt: skip
    bottom.set_xlabel("Observed wavelength in vacuum (Å)")
    _add_top_axis(
        top, lambda w: w / (1 + redshift), lambda w: w * (1 + redshift), "Rest wavelength (Å)"
    )
    figure.align_ylabels((top, bottom))
    _set_title(figure, posterior)
    return figure


def _plot_bands_alone(posterior: Posterior) -> Figure:
    figure = _new_figure((11.0, 6.2))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    draw_bands(top, bottom, posterior, with_spectrum=True)
    bottom.set_xlabel("Observed wavelength")
    figure.align_ylabels((top, bottom))
    _set_title(figure, posterior)
    return figure


# ---- shared -------------------------------------------------------------------------------------


def _new_figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _set_title(figure: Figure, posterior: Posterior) -> None:
    prior = (posterior.provenance.get("prior") or {}).get("name")
    parts = [posterior.object_name, f"redshift {posterior.redshift:.4f}"]
    parts += [f"prior {prior}"] if prior else []
    # names come from files: a dollar sign must not start mathematics
    figure.suptitle("   ·   ".join(parts), fontsize=12, color=INK, parse_math=False)


def _add_top_axis(ax: Axes, forward: Any, inverse: Any, label: str) -> None:
    secondary = ax.secondary_xaxis("top", functions=(forward, inverse))
    secondary.set_xlabel(label, fontsize=10)
    secondary.tick_params(direction="in", labelsize=9)
    ax.tick_params(direction="in", right=True)


def _band(samples: Array, inside: float) -> tuple[Array, Array]:
    low, high = np.percentile(samples, [50 - 50 * inside, 50 + 50 * inside], axis=0)
    return low, high


def _draw_steps(ax: Axes, edges: Array, samples: Array, colour: str, fade: float = 1.0) -> None:
    """Bands, median and a few samples of [sample, bin] as steps; NaN bins are left out."""
    for inside, alpha in ((0.95, 0.16), (0.68, 0.30)):
        low, high = _band(samples, inside)
        ax.stairs(
            high, edges, baseline=low, fill=True, color=colour, alpha=alpha * fade, lw=0,
            label=f"{100 * inside:.0f} %" if fade == 1 else None,
        )  # fmt: skip
    if fade == 1:
        for one in samples[:N_DRAWN]:
            ax.stairs(one, edges, baseline=None, color=colour, lw=0.5, alpha=0.35)
    median = np.median(samples, axis=0)
    label = "median" if fade == 1 else None
    ax.stairs(median, edges, baseline=None, color=colour, lw=2, alpha=fade, label=label)


# ---- histories ----------------------------------------------------------------------------------


def _draw_sfr(ax: Axes, posterior: Posterior) -> None:
    seen = posterior.bins.overlap(posterior.cosmic_time) > 0
    median = np.median(posterior.sfr[:, seen], axis=0)
    peak = max(float(np.percentile(posterior.sfr[:, seen], 97.5, axis=0).max()), 1e-30)
    if median[1:].min() < peak / 30:
        bottom = max(peak * 10**-SFR_DECADES, 1e-30)
        samples = np.maximum(posterior.sfr, 0.1 * bottom)
        ax.set_yscale("log")
        ax.set_ylim(bottom, 2 * peak)
        ax.yaxis.set_major_formatter(FuncFormatter(_format_plain))
    else:
        samples = posterior.sfr
        ax.set_ylim(0, 1.1 * peak)
    _draw_steps(ax, posterior.bins.edges, samples, BLUE)
    ax.set_ylabel("SFR (M$_\\odot$ yr$^{-1}$)")
    # left of the observation's line, whatever the redshift
    right = posterior.cosmic_time / posterior.bins.age_today
    ax.legend(
        loc="upper right", bbox_to_anchor=(right, 1.0), fontsize=9, framealpha=0.8,
        edgecolor="none",
    )  # fmt: skip


def _format_plain(value: float, _: int) -> str:
    return f"{value:g}" if 1e-3 <= value < 1e4 else f"$10^{{{round(np.log10(value))}}}$"


def _draw_metallicity(ax: Axes, posterior: Posterior) -> None:
    now = posterior.cosmic_time
    mass = calc_mass_formed_per_bin(posterior.sfr, posterior.bins, now)
    total = mass.sum(axis=1, keepdims=True)
    fraction = np.median(mass / np.where(total > 0, total, 1.0), axis=0)
    seen = posterior.bins.overlap(now) > 0
    weak = fraction < MASS_FRACTION_SHOWN
    samples, edges = posterior.logzsol, posterior.bins.edges
    for where, fade in ((weak, 0.25), (~weak, 1.0)):
        _draw_steps(ax, edges, np.where(where, samples, np.nan), GREEN, fade)
    strong = seen & ~weak if (seen & ~weak).any() else seen
    low, high = _band(samples[:, strong], 0.98)
    ax.set_ylim(max(low.min() - 0.2, -3.1), max(high.max() + 0.2, 0.2))
    ax.axhline(0, color=GREY, lw=0.8, ls=":", zorder=0)
    if (weak & seen).any():
        ax.text(
            now - 0.1, 0.06, "faint: less than 0.1 % of the mass formed there", fontsize=8.5,
            transform=ax.get_xaxis_transform(), ha="right", color=GREY, style="italic", zorder=7,
        )  # fmt: skip
    ax.set_ylabel("log$_{10}$ Z/Z$_\\odot$")


def _draw_cumulative_mass(ax: Axes, posterior: Posterior) -> None:
    now, bins = posterior.cosmic_time, posterior.bins
    mass = calc_mass_formed_per_bin(posterior.sfr, bins, now)
    formed = np.pad(np.cumsum(mass, axis=1), ((0, 0), (1, 0)))
    fraction = formed / np.maximum(formed[:, -1:], 1e-30)
    time = np.minimum(bins.edges, now)
    for inside, alpha in ((0.95, 0.16), (0.68, 0.30)):
        ax.fill_between(time, *_band(fraction, inside), color=RUST, alpha=alpha, lw=0)
    ax.plot(time, np.median(fraction, axis=0), color=RUST, lw=2)
    for percent in (50, 90):
        t = float(np.median(calc_formation_quantile(posterior.sfr, bins, now, percent / 100)))
        if not np.isfinite(t):
            continue
        ax.plot([t, t], [0, percent / 100], color=INK, lw=0.8, ls=":")
        ax.plot([t], [percent / 100], "o", color=INK, ms=4)
        to_left = t > 0.8 * bins.age_today
        ax.annotate(
            f"t$_{{{percent}}}$ = {t:.1f} Gyr", (t, percent / 100), fontsize=9,
            textcoords="offset points", xytext=(-8, -30) if to_left else (8, -13),
            ha="right" if to_left else "left",
        )  # fmt: skip
    ax.set_ylim(0, 1.08)
    ax.set_ylabel("Mass fraction formed")


# ---- spectrum -----------------------------------------------------------------------------------


def _wave_limits(seen: Observed) -> tuple[float, float]:
    """The used pixels and 1 % beyond."""
    wave = seen.wave_obs[seen.used] if seen.used.any() else seen.wave_obs
    margin = 0.01 * (wave[-1] - wave[0])
    return float(wave[0] - margin), float(wave[-1] + margin)


def _pixel_edges(wave: Array) -> Array:
    middles = 0.5 * (wave[1:] + wave[:-1])
    return np.concatenate([[2 * wave[0] - middles[0]], middles, [2 * wave[-1] - middles[-1]]])


def _runs(where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """First and one-past-last index [run, 2] of each run of True."""
    return np.flatnonzero(np.diff(np.pad(where.astype(int), 1))).reshape(-1, 2)


def _draw_masks(axes: tuple[Axes, ...], seen: Observed) -> dict[str, Any]:
    """Shade what was left out, one colour per reason; returns the legend's handles."""
    edges = _pixel_edges(seen.wave_obs)
    handles = {}
    named = np.zeros(seen.mask.shape, bool)
    left_out = dict(seen.mask_reasons)
    for where in left_out.values():
        named |= where
    left_out["other"] = ~seen.used & ~named
    for number, (reason, where) in enumerate(left_out.items()):
        spans = [(edges[i], edges[j] - edges[i]) for i, j in _runs(where)]
        if not spans:
            continue
        for ax in axes:
            handles[f"masked: {reason}"] = ax.broken_barh(
                spans, (0, 1), transform=ax.get_xaxis_transform(), lw=0, alpha=0.55, zorder=0,
                color=REASON_COLOURS[number % len(REASON_COLOURS)],
            )  # fmt: skip
    return handles


def _draw_fluxes(ax: Axes, posterior: Posterior) -> None:
    seen, model = posterior.observed, posterior.median_flux
    used = seen.used
    exponent = _calc_exponent(seen.flux[used])
    has_data = seen.ivar > 0
    flux = np.where(has_data, seen.flux, np.nan) / 10.0**exponent
    error = np.where(has_data, seen.ivar, np.nan) ** -0.5 / 10.0**exponent
    low, high = (band / 10.0**exponent for band in _band(posterior.model_flux, 0.95))
    ax.fill_between(
        seen.wave_obs, flux - error, flux + error, color="#cccccc", lw=0, step="mid", label="error"
    )
    ax.step(seen.wave_obs, flux, where="mid", color="#777777", lw=0.6, label="data")
    ax.fill_between(seen.wave_obs, low, high, color=RUST, alpha=0.35, lw=0, label="model, 95 %")
    ax.plot(seen.wave_obs, model / 10.0**exponent, color=RUST, lw=1.0, label="model, median")
    if (bands := posterior.bands) is not None:
        left, right = ax.get_xlim()
        inside = (bands.wave_pivot > left) & (bands.wave_pivot < right)
        draw_band_points(ax, bands, inside, 10.0**exponent)
    shown = np.concatenate([flux[used], (model / 10.0**exponent)[used]])
    if shown.size:
        bottom, top = np.percentile(shown, [0.3, 99.7])
        span = max(top - bottom, 1e-3 * abs(top), 1e-30)
        # room for the features' names above and for the legend below
        ax.set_ylim(bottom - 0.28 * span, top + 0.26 * span)
    unit = "erg s$^{-1}$ cm$^{-2}$ Å$^{-1}$"
    ax.set_ylabel(f"Flux (10$^{{{exponent}}}$ {unit})")


def _calc_exponent(flux: Array) -> int:
    typical = float(np.median(np.abs(flux))) if flux.size else 1.0
    return int(np.floor(np.log10(typical))) if typical > 0 else 0


def _draw_residuals(ax: Axes, posterior: Posterior) -> None:
    seen, used = posterior.observed, posterior.observed.used
    residual = (seen.flux - posterior.median_flux) * np.sqrt(seen.ivar)
    ax.axhspan(-1, 1, color="#cccccc", alpha=0.6, lw=0, zorder=0.5)
    ax.axhline(0, color=RUST, lw=1)
    ax.plot(seen.wave_obs[used], residual[used], ".", color="#555555", ms=1.8, rasterized=True)
    largest = float(np.percentile(np.abs(residual[used]), 99.5)) if used.any() else 1.0
    limit = max(3.5, 1.3 * largest)
    ax.set_ylim(-limit, limit)
    ax.set_ylabel("Residual / error")
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    text = f"$\\chi^2$/pixel = {posterior.calc_chi2_per_pixel():.2f}"
    if "error_scale" in posterior.parameters:
        scale = float(np.median(posterior.parameters["error_scale"].values))
        text += f"   error scale = {scale:.2f}"
    ax.text(
        0.01, 0.93, text, transform=ax.transAxes, fontsize=9, va="top",
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 2},
    )  # fmt: skip


def _draw_features(ax: Axes, redshift: float) -> None:
    """Name the features in view; one too close to its neighbour is skipped."""
    left, right = ax.get_xlim()
    last = -np.inf
    for name, rest in FEATURES.items():
        wave = rest * (1 + redshift)
        if not left < wave < right or wave - last < 0.012 * (right - left):
            continue
        last = wave
        ax.axvline(wave, ymin=0.83, ymax=0.87, color=GREY, lw=0.8)
        ax.text(
            wave, 0.88, name, transform=ax.get_xaxis_transform(), rotation=90, fontsize=8,
            color=INK, ha="center", va="bottom",
        )  # fmt: skip
