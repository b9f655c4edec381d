"""Figures of a comparison: populations by mass, relations, and each spectrum's histories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sfhzoo.comparison.populations import MASS_EDGES, Population
from sfhzoo.diagnostics.quality import calc_log_sfr
from sfhzoo.histories import SFR_FLOOR, calc_mass_formed_per_bin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sfhzoo.posterior import Posterior

Array = NDArray[np.float64]
Tables = dict[str, list[dict[str, Any]]]

COLOURS = ("#2b5c8a", "#b5482f", "#2f7d5b", "#8a5a9e", "#c29a2e", "#5b5b5b")
LINES = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1)), (0, (8, 3)), (0, (2, 3)))
INK, GREY = "#222222", "#8f8f8f"
DPI = 130
SHOWN_MASSES = slice(1, 7)
"""Bins of `MASS_EDGES` whose histories are drawn: 10^8.5 to 10^11.5"""
DECADES = 4.0
"""of SFR below the peak that are drawn"""


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "ls": LINES[number // len(COLOURS) % 6]}


def _new_figure(size: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(figure: Figure, axes: Axes, title: str = "") -> None:
    """One legend above all panels; labels come from files and must not be read as mathematics."""
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(
        handles, labels, loc="outside upper center", ncols=3, frameon=False, title=title,
        title_fontsize=12,
    )  # fmt: skip
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)


# ---- populations --------------------------------------------------------------------------------


def plot_histories(populations: list[Population], tables: Tables) -> Figure:
    """log SFR against cosmic time by mass formed: median and the 68 % of galaxies around it."""
    figure = _new_figure((12.0, 7.0))
    axes = figure.subplots(2, 3, sharex=True)
    bins = populations[0].bins
    for ax, k in zip(axes.flat, range(*SHOWN_MASSES.indices(len(MASS_EDGES)))):
        peak = -np.inf
        for number, p in enumerate(populations):
            row = tables[p.label][k]
            # an empty entry keeps the prior in the legend
            track = row["log_sfr_history"] or dict.fromkeys(
                ("median", "p16", "p84"), np.full(bins.n, np.nan)
            )
            style = _style(number)
            ax.plot(bins.centres, track["median"], lw=2, label=p.label, **style)
            ax.fill_between(
                bins.centres, track["p16"], track["p84"], color=style["color"], alpha=0.16, lw=0
            )
            peak = max(peak, np.nanmax([*track["p84"], -4.0]))
        low, high = MASS_EDGES[k : k + 2]
        counts = " / ".join(str(tables[p.label][k]["n"]) for p in populations)
        ax.set_title(rf"$\log\,M_{{\rm formed}}/M_\odot$ {low:g} to {high:g}  (n {counts})",
                     fontsize=10)  # fmt: skip
        ax.set_ylim(max(peak - DECADES, -4.1), peak + 0.3)
        ax.set_xlim(0, bins.age_today)
    for ax in axes[-1]:
        ax.set_xlabel("Age of the universe (Gyr)")
    for ax in axes[:, 0]:
        ax.set_ylabel(r"log (SFR + $10^{-4}$) (M$_\odot$ yr$^{-1}$)")
    _legend(figure, axes.flat[0])
    return figure


def plot_relations(
    populations: list[Population], tables: Tables, distances: list[dict[str, Any]]
) -> Figure:
    """Mass distribution, t50, main sequence, quenched fraction, metallicity, and distances."""
    figure = _new_figure((13.0, 7.5))
    axes = figure.subplots(2, 3)
    _draw_masses(axes[0, 0], populations)
    for ax, name, label in (
        (axes[0, 1], "t50", r"$t_{50}$ (Gyr)"),
        (axes[0, 2], "log_sfr", "log SFR of galaxies that are not quenched"),
        (axes[1, 0], "quenched", "fraction with sSFR < 1e-11/yr"),
        (axes[1, 1], "logzsol", r"$\log\,\langle Z\rangle_M/Z_\odot$"),
    ):
        for number, p in enumerate(populations):
            _draw_relation(ax, tables[p.label], name, number, len(populations))
        ax.set(xlabel=r"$\log\,M_{\rm formed}/M_\odot$", ylabel=label)
    _draw_distances(axes[1, 2], distances)
    _legend(figure, axes[0, 0])
    return figure


def _draw_masses(ax: Axes, populations: list[Population]) -> None:
    lows = min(float(np.percentile(p.log_mass, 0.5)) for p in populations)
    edges = np.arange(np.floor(4 * max(lows, 5.0)) / 4, 13.01, 0.25)
    for number, p in enumerate(populations):
        share = np.histogram(p.log_mass, edges)[0] / len(p.log_mass) / 0.25
        ax.stairs(share, edges, lw=2, label=p.label, **_style(number))
    ax.set(
        xlabel=r"$\log\,M_{\rm formed}/M_\odot$", ylabel="density of galaxies as trained (1/dex)"
    )


def _draw_relation(
    ax: Axes, rows: list[dict[str, Any]], name: str, number: int, n_populations: int
) -> None:
    known = [row for row in rows if row[name] is not None]
    # beside each other, or bars of the same bin hide one another
    shift = 0.05 * (number - 0.5 * (n_populations - 1))
    x = np.array([np.mean(row["log_mass"]) + shift for row in known])
    style = _style(number)
    middle = "value" if name == "quenched" else "median"
    y = np.array([row[name][middle] for row in known])
    error = np.array([row[name]["error"] for row in known])
    ax.errorbar(x, y, error, marker="o", ms=4, lw=1.8, capsize=2, **style)
    if name != "quenched":
        low, high = (np.array([row[name][k] for row in known]) for k in ("p16", "p84"))
        ax.vlines(x, low, high, color=style["color"], alpha=0.3, lw=3)


def _draw_distances(ax: Axes, distances: list[dict[str, Any]]) -> None:
    """Sliced Wasserstein distances with their nulls, one row per pair."""
    for k, pair in enumerate(distances):
        ax.text(0.02, k - 0.26, f"{pair['first']} / {pair['second']}", fontsize=8,
                transform=ax.get_yaxis_transform(), parse_math=False)  # fmt: skip
        for shift, key, colour in ((0, "as_trained", INK), (0.25, "matched_mass", GREY)):
            if pair[key] is None:
                continue
            found, y = pair[key]["sliced_wasserstein"], k + shift
            labels = (key.replace("_", " "), "halves of one prior") if k == 0 else (None, None)
            ax.errorbar(found["value"], y, xerr=found["error"], fmt="o", color=colour, capsize=3,
                        label=labels[0])  # fmt: skip
            ax.plot(found["null"], y, "|", color=colour, ms=10, mew=2,
                    label=labels[1] if key == "as_trained" else None)  # fmt: skip
    # room for the legend above the first row
    ax.set(ylim=(len(distances) - 0.4, -1.0), yticks=[],
           xlabel="sliced Wasserstein distance (std per column)")  # fmt: skip
    ax.set_xlim(0, 1.08 * ax.get_xlim()[1])
    ax.legend(fontsize=8, frameon=False, loc="upper right", ncols=3, columnspacing=1)


# ---- one spectrum -------------------------------------------------------------------------------


def plot_posteriors(posteriors: dict[str, Posterior]) -> Figure:
    """SFR, metallicity and mass fraction of one galaxy under each prior: median and 68 %."""
    figure = _new_figure((8.5, 9.0))
    axes = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 2])
    one = next(iter(posteriors.values()))
    now, bins = one.cosmic_time, one.bins
    seen = bins.overlap(now) > 0
    for number, (label, posterior) in enumerate(posteriors.items()):
        formed = calc_mass_formed_per_bin(posterior.sfr, bins, now)
        share = np.cumsum(formed, axis=1) / np.maximum(formed.sum(axis=1, keepdims=True), 1e-30)
        tracks = (calc_log_sfr(posterior.sfr), posterior.logzsol, share)
        for ax, track in zip(axes, tracks):
            _draw_track(ax, bins.edges[: seen.sum() + 1], track[:, seen], label, number)
    peak = max(float(calc_log_sfr(p.sfr[:, seen]).max()) for p in posteriors.values())
    axes[0].set(ylim=(max(peak - DECADES, np.log10(SFR_FLOOR)), peak + 0.2),
                ylabel=r"log (SFR + $10^{-4}$) (M$_\odot$ yr$^{-1}$)")  # fmt: skip
    axes[1].set(ylabel=r"$\log\,Z/Z_\odot$")
    axes[2].set(ylabel="Mass fraction formed", ylim=(0, 1.03), xlim=(0, now),
                xlabel="Age of the universe (Gyr)")  # fmt: skip
    _legend(figure, axes[0], f"{one.object_name}   ·   redshift {one.redshift:.4f}")
    return figure


def _draw_track(ax: Axes, edges: Array, track: Array, label: str, number: int) -> None:
    style = _style(number)
    low, median, high = np.percentile(track, [16, 50, 84], axis=0)
    ax.stairs(median, edges, baseline=None, lw=2, label=label, **style)
    ax.stairs(high, edges, baseline=low, fill=True, color=style["color"], alpha=0.2, lw=0)
