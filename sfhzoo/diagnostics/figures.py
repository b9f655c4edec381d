"""Figures of a validation, from its results alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sfhzoo.diagnostics import coverage
from sfhzoo.diagnostics.mocks import BANDS
from sfhzoo.diagnostics.scorecard import QUANTITIES, SIGNED_LEVEL, Results, Thresholds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

COLOURS = ("#d98c3f", "#2f7d5b", "#2b5c8a")
"""of the S/N bands, low to high"""
GREY, INK = "#cfcfcf", "#222222"
DPI = 130
FINE = np.linspace(0.0, 1.0, 101)
N_GROUPS = 5
LEAST_PER_GROUP = 8


def plot_all(results: Results) -> dict[str, Figure]:
    """File stem -> figure, of the mocks of the three S/N bands."""
    bands = results.of_set(*BANDS)
    return {
        "coverage": plot_coverage(bands),
        "ranks": plot_ranks(bands),
        "tarp": plot_tarp(bands),
        "recovery": plot_recovery(bands),
        "conditional": plot_conditional(bands),
    }


def plot_coverage(bands: Results) -> Figure:
    """Empirical minus nominal coverage against level, per quantity; 95 % band of the binomial."""
    figure, axes = _new_grid("Coverage of central intervals")
    inner = FINE[1:-1]
    for k, (ax, label) in enumerate(_quantities(axes)):
        _draw_difference_band(ax, _band_size(bands))
        for of_band, style in _bands(bands):
            ax.plot(inner, coverage.calc_coverage(of_band.rank[:, k], inner) - inner, **style)
        ax.set(title=label, xlim=(0, 1))
    _finish(figure, axes, "nominal coverage", "empirical − nominal")
    _same_limits(axes, 0.15)
    return figure


def plot_ranks(bands: Results) -> Figure:
    """Histograms of normalised ranks; the band holds 95 % of the counts of uniform ranks."""
    figure, axes = _new_grid("Ranks of the truths: flat if calibrated")
    for k, (ax, label) in enumerate(_quantities(axes)):
        n_bins = coverage.calc_n_histogram_bins(_band_size(bands))
        edges = np.linspace(0, 1, n_bins + 1)
        low, high = coverage.calc_binomial_band(1 / n_bins, _band_size(bands))
        ax.axhspan(
            float(low) * n_bins, float(high) * n_bins, color=GREY, alpha=0.6, lw=0,
            label=f"95 % of {_band_size(bands)} calibrated mocks",
        )  # fmt: skip
        ax.axhline(1, color=INK, lw=0.7)
        for of_band, style in _bands(bands):
            ranks = of_band.rank[:, k]
            counts = np.histogram(ranks[np.isfinite(ranks)], edges)[0]
            ax.stairs(counts / max(counts.sum(), 1) * n_bins, edges, baseline=None, **style)
        ax.set(title=label, xlim=(0, 1), ylim=(0, None))
    _finish(figure, axes, "normalised rank", "density")
    return figure


def plot_tarp(bands: Results) -> Figure:
    """Expected coverage minus credibility of TARP's regions, all quantities at once.

    The band is the threshold: with many reference points a mock, noise is below the binomial's.
    """
    figure = _new_figure((5.6, 4.4))
    ax = figure.subplots()
    limit = Thresholds().widened(_band_size(bands)).tarp_deviation
    ax.axhspan(-limit, limit, color=GREY, alpha=0.6, lw=0, label=f"threshold, ±{limit:.2g}")
    ax.axhline(0, color=INK, lw=0.7)
    for of_band, style in _bands(bands):
        ax.plot(FINE, coverage.calc_tarp_coverage(of_band.tarp, FINE) - FINE, **style)
    ax.set(xlim=(0, 1), xlabel="credibility", ylabel="expected coverage − credibility",
           title="TARP, eight quantities together")  # fmt: skip
    ax.legend(frameon=False, fontsize=9, loc="upper right")
    _same_limits(np.array([ax]), 0.15)
    return figure


def plot_recovery(bands: Results) -> Figure:
    """Posterior median and 68 % interval against the truth."""
    figure, axes = _new_grid("Truth and estimate (median, 68 %)")
    for k, (ax, label) in enumerate(_quantities(axes)):
        for of_band, style in _bands(bands):
            x, y = of_band.truth[:, k], of_band.median[:, k]
            error = np.abs(np.stack([y - of_band.p16[:, k], of_band.p84[:, k] - y]))
            ax.errorbar(
                x, y, error, fmt="o", ms=2, lw=0.5, alpha=0.6, color=style["color"],
                label=style["label"],
            )  # fmt: skip
        ends = np.nanpercentile(bands.truth[:, k], [0, 100])
        ax.plot(ends, ends, color=INK, lw=0.8, zorder=5)
        ax.set_title(label)
    _finish(figure, axes, "truth", "estimate")
    return figure


def plot_conditional(bands: Results) -> Figure:
    """Coverage of the 68 % intervals, all quantities pooled, by estimated mass, S/N and age.

    Groups by estimates, not by truths: given the data a calibrated interval holds the truth as
    often as it says, given the truth it does not.
    """
    figure = _new_figure((10.5, 3.8))
    axes = figure.subplots(1, 3, sharey=True)
    by = {
        "estimated log mass formed": bands.median[:, bands.column("log_mass_formed")],
        "S/N per pixel": bands.snr,
        "estimated mass-weighted age (Gyr)": bands.median[:, bands.column("age_mass_weighted")],
    }
    for ax, (label, values) in zip(axes, by.items(), strict=True):
        _draw_conditional(ax, values, bands.rank)
        ax.set_xlabel(label)
    axes[1].set_xscale("log")
    axes[1].set_xticks([5, 10, 20, 50, 100], minor=False)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.set_minor_formatter("")
    axes[1].set_xlim(5, 100)
    axes[0].set_ylabel(f"coverage at {100 * SIGNED_LEVEL:.0f} %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle("Where intervals hold the truth: mean over the eight quantities, and each")
    return figure


def _draw_conditional(ax: Axes, values: Array, ranks: Array) -> None:
    """Coverage in groups of equal numbers of mocks; bootstrapped errors over mocks."""
    held = coverage.is_covered(ranks, [SIGNED_LEVEL])[..., 0]
    order = np.argsort(values, kind="stable")
    order = order[np.isfinite(values[order])]
    n_groups = max(1, min(N_GROUPS, len(order) // LEAST_PER_GROUP))
    groups = np.array_split(order, n_groups)
    rng = np.random.default_rng(0)
    middle = [np.median(values[g]) for g in groups]
    per_quantity = np.array([held[g].mean(axis=0) for g in groups])
    error = [coverage.bootstrap(held[g].mean(axis=1), rng) for g in groups]
    ax.plot(middle, per_quantity, color=GREY, lw=0.8)
    ax.errorbar(middle, per_quantity.mean(axis=1), error, fmt="o-", color=COLOURS[2], ms=4,
                capsize=2, label="mean and standard error")  # fmt: skip
    ax.axhline(SIGNED_LEVEL, color=INK, lw=0.8)


# ---- shared -------------------------------------------------------------------------------------


def _new_figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _new_grid(title: str) -> tuple[Figure, Any]:
    figure = _new_figure((11.5, 5.8))
    figure.suptitle(title)
    return figure, figure.subplots(2, 4)


def _quantities(axes: Any) -> Iterator[tuple[Axes, str]]:
    for ax, (label, unit) in zip(axes.flat, QUANTITIES.values(), strict=True):
        written = label.replace("A_V", "$A_V$").replace("sigma_v", "$\\sigma_v$")
        yield ax, f"{written} ({unit})"


def _bands(bands: Results) -> Iterator[tuple[Results, dict[str, Any]]]:
    for name, colour in zip(BANDS, COLOURS, strict=True):
        yield bands.of_set(name), {"color": colour, "lw": 1.3, "label": name}


def _band_size(bands: Results) -> int:
    return min(len(bands.of_set(name)) for name in BANDS)


def _draw_difference_band(ax: Axes, n: int) -> None:
    low, high = coverage.calc_binomial_band(FINE, n)
    label = f"95 % of {n} calibrated mocks"
    ax.fill_between(FINE, low - FINE, high - FINE, color=GREY, alpha=0.6, lw=0, label=label)
    ax.axhline(0, color=INK, lw=0.7)


def _same_limits(axes: Any, least: float) -> None:
    """Symmetric limits, the same in every panel: deviations are compared by eye."""
    top = max(least, *(max(np.abs(ax.get_ylim())) for ax in axes.flat))
    for ax in axes.flat:
        ax.set_ylim(-top, top)


def _finish(figure: Figure, axes: Any, xlabel: str, ylabel: str) -> None:
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for ax in axes[:, 0]:
        ax.set_ylabel(ylabel)
    for ax in axes.flat:
        ax.title.set_fontsize(10)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9,
                  markerscale=3)  # fmt: skip
