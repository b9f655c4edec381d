"""The population in a training set next to the universe and the simulation it stands for.

A set of DiffstarPop is uniform in log halo mass; here each galaxy counts with the halo mass
function,

    log10 dn/dlogM = a + b (logM - 12) - 10^(c (logM - d)),    (a, b, c, d) = HMF

a fit (within 0.03 dex for 10.3 < logM < 15) to the z = 0 mass function of host halos in the
SMDPL simulation as `diffsky` tabulates it. A set made of all galaxies in a volume (its attribute
`sampling`) is taken as it is. Stellar masses are surviving ones: the simulation's own where the
set has them, else the recipe's `surviving` (0.6 when it has none) times the mass formed. Compared
with

- TNG100 (Nelson et al. 2019, arXiv:1812.05609): t50 and quenched fraction of 1000 galaxies,
- Gallazzi et al. 2005 (doi:10.1111/j.1365-2966.2005.09321.x), table 2: stellar metallicity.
  Theirs is weighted by light, ours by SFR age^-0.7 (a proxy) and by mass.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo import histories as h
from sfhzoo.errors import DataError
from sfhzoo.simulations import trainingset
from sfhzoo.simulations.particles import format_counts
from sfhzoo.units import Z_SUN
from sfhzoo.zoo.artifacts import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

HMF = (-2.3851, -0.8907, 0.7694, 15.0634)
SURVIVING = 0.6
QUENCHED_SSFR = 1e-11
"""1/yr, of the last bin (215 Myr) over the surviving mass"""
LIGHT_AGE_SLOPE = -0.7
"""light per mass of a single-age population falls about as age^-0.7"""
MIN_GALAXIES = 20
"""bins with fewer are left empty"""

TNG_MASS_EDGES = (8.75, 9.25, 9.75, 10.25, 10.75, 11.25)
TNG_T50 = (8.0, 7.4, 6.5, 4.7, 3.7)
TNG_QUENCHED = (0.19, 0.22, 0.21, 0.69, 0.89)

GALLAZZI_MASS = (9.11, 9.51, 9.91, 10.11, 10.31, 10.51, 10.72, 10.91, 11.11, 11.31)
GALLAZZI_LOGZ = (-0.61, -0.61, -0.41, -0.23, -0.11, -0.01, 0.04, 0.07, 0.10, 0.12)
GALLAZZI_SOLAR = 0.02
GALLAZZI_HALF_WIDTH = 0.1

UNWEIGHTED = {"volume": "as in a volume", "log-mass-formed": "as drawn"}
"""`sampling` of the sets whose galaxies count alike; a classical prior's stand for no volume."""


class Population(NamedTuple):
    """One value per galaxy: log10 Msun, Msun/yr, Gyr of cosmic time, log10 Z/Z_sun."""

    log_halo_mass: Array
    log_mass_surviving: Array
    sfr: Array
    ssfr: Array
    t50: Array
    logzsol_mass: Array
    logzsol_light: Array
    weight: Array


def calc_log_halo_mass_function(log_halo_mass: Array) -> Array:
    """log10 dn/dlogM, 1/Mpc^3/dex, of host halos at z = 0 (the module's equation)."""
    a, b, c, d = HMF
    m = np.asarray(log_halo_mass, float)
    return a + b * (m - 12) - 10 ** (c * (m - d))


def calc_weighted_quantile(values: Array, weight: Array, fraction: float) -> float:
    """The value below which `fraction` of the weight of finite values lies; NaN without any."""
    good = np.isfinite(values) & (weight > 0)
    if not good.any():
        return float("nan")
    order = np.argsort(values[good])
    v, w = values[good][order], weight[good][order]
    # midpoints of the steps, so that equal weights give the ordinary median
    return float(np.interp(fraction, (np.cumsum(w) - 0.5 * w) / w.sum(), v))


def calc_population(data: trainingset.TrainingSet) -> Population:
    """What the checks need of each galaxy in a training set, today; galaxies without stars go."""
    bins, today = data.bins, data.bins.age_today
    sfr = data.sfr.astype(float)
    mass = _surviving(data) * h.calc_mass_formed(sfr, bins, today)
    if "log_mass_surviving" in data.galaxy:
        mass = np.where(mass > 0, 10.0 ** data.galaxy["log_mass_surviving"].astype(float), 0.0)
    full = mass > 0
    sfr, mass, logz = sfr[full], mass[full], data.logzsol[full].astype(float)
    light = sfr * (today - bins.centres) ** LIGHT_AGE_SLOPE
    halo = data.galaxy.get("log_halo_mass", np.full(len(full), np.nan))[full].astype(float)
    if "satellite" in data.galaxy:
        # the halo of a satellite is its host's, and says little of it
        halo = np.where(data.galaxy["satellite"][full], np.nan, halo)
    alike = data.attributes.get("sampling") in UNWEIGHTED
    return Population(
        log_halo_mass=halo,
        log_mass_surviving=np.log10(mass),
        sfr=sfr[:, -1],
        ssfr=sfr[:, -1] / mass,
        t50=h.calc_formation_quantile(sfr, bins, today, 0.5),
        logzsol_mass=h.calc_logzsol_mass_weighted(sfr, logz, bins, today),
        logzsol_light=np.log10((light * 10.0**logz).sum(axis=1) / light.sum(axis=1)),
        weight=np.ones(len(mass)) if alike else 10.0 ** calc_log_halo_mass_function(halo),
    )


def _surviving(data: trainingset.TrainingSet) -> float:
    recipe = json.loads(data.attributes["recipe"])
    return float(recipe.get("metallicity", {}).get("surviving", SURVIVING))


def _row(p: Population, inside: NDArray[np.bool_], values: dict[str, Array]) -> dict[str, Any]:
    """Count and weighted medians of the galaxies inside a bin, None where there are too few."""
    row: dict[str, Any] = {"n": int(inside.sum())}
    for name, v in values.items():
        enough = row["n"] >= MIN_GALAXIES
        q = calc_weighted_quantile(v[inside], p.weight[inside], 0.5) if enough else np.nan
        row[name] = round(q, 4) if np.isfinite(q) else None
    return row


def _quenched_fraction(p: Population, inside: NDArray[np.bool_]) -> float | None:
    if inside.sum() < MIN_GALAXIES:
        return None
    quenched = p.ssfr[inside] < QUENCHED_SSFR
    return round(float(np.average(quenched, weights=p.weight[inside])), 4)


def calc_table(p: Population) -> dict[str, list[dict[str, Any]]]:
    """Rows of `star_formation`, `metallicity`, `stellar_to_halo_mass` and `main_sequence`."""
    m = p.log_mass_surviving
    formation = []
    bounds = zip(TNG_MASS_EDGES[:-1], TNG_MASS_EDGES[1:], TNG_T50, TNG_QUENCHED, strict=True)
    for lo, hi, t50, quenched in bounds:
        inside = (m >= lo) & (m < hi)
        row = {"log_mass": f"{lo}-{hi}", **_row(p, inside, {"t50": p.t50}), "t50_tng100": t50}
        row |= {"quenched": _quenched_fraction(p, inside), "quenched_tng100": quenched}
        formation.append(row)
    metallicity = []
    offset = float(np.log10(GALLAZZI_SOLAR / Z_SUN))
    for centre, logz in zip(GALLAZZI_MASS, GALLAZZI_LOGZ, strict=True):
        medians = {"light_weighted": p.logzsol_light, "mass_weighted": p.logzsol_mass}
        row = _row(p, np.abs(m - centre) < GALLAZZI_HALF_WIDTH, medians)
        metallicity.append({"log_mass": centre, **row, "gallazzi05": round(logz + offset, 3)})
    return {
        "star_formation": formation,
        "metallicity": metallicity,
        "stellar_to_halo_mass": _binned(p, p.log_halo_mass, "log_halo_mass", {"log_mass": m}),
        "main_sequence": _main_sequence(p),
    }


def _binned(
    p: Population, axis: Array, name: str, values: dict[str, Array], step: float = 0.25
) -> list[dict[str, Any]]:
    known = axis[np.isfinite(axis)]
    if not len(known):
        return []
    edges = np.arange(np.floor(known.min() / step), np.ceil(known.max() / step) + 1) * step
    rows = []
    for lo in edges[:-1]:
        inside = (axis >= lo) & (axis < lo + step)
        rows.append({name: round(float(lo + step / 2), 3), **_row(p, inside, values)})
    return rows


def _main_sequence(p: Population) -> list[dict[str, Any]]:
    forming = p.ssfr >= QUENCHED_SSFR
    if not forming.any():
        return []
    kept = Population(*(v[forming] for v in p))
    return _binned(kept, kept.log_mass_surviving, "log_mass", {"log_sfr": np.log10(kept.sfr)})


def format_table(result: dict[str, Any]) -> str:
    """The result of `check` as Markdown."""
    lines = [
        f"# Population of {result['training_set']['name']}",
        "",
        f"{result['n']} galaxies, {result['weights']}. Masses are surviving ones, "
        f"{result['surviving']} (log10 Msun); t50 in Gyr; metallicities log10 Z/0.0142; SFRs "
        "Msun/yr over the last bin, of galaxies with sSFR >= 1e-11/yr. Columns are medians.",
    ]
    if result["checks"]:
        lines += ["", f"From particles: {format_counts(result['checks'])}."]
    for title, rows in result["tables"].items():
        if not rows:
            continue
        names = list(rows[0])
        lines += ["", f"## {title.replace('_', ' ').capitalize()}", ""]
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += [
            "| " + " | ".join("" if row[k] is None else str(row[k]) for k in names) + " |"
            for row in rows
        ]
    return "\n".join([*lines, ""])


def _column(rows: list[dict[str, Any]], name: str) -> Array:
    return np.array([np.nan if row[name] is None else row[name] for row in rows], float)


def _plot_clouds(axes: Any, p: Population, tables: dict[str, list[dict[str, Any]]]) -> None:
    from matplotlib.colors import LogNorm

    n_bins = int(np.clip(np.sqrt(len(p.sfr)), 30, 120))
    # a cell with one galaxy is grey, not white
    cloud: dict[str, Any] = {"bins": n_bins, "cmap": "Greys", "cmin": 1, "norm": LogNorm(0.3)}
    rows, known = tables["stellar_to_halo_mass"], np.isfinite(p.log_halo_mass)
    if rows:
        axes[0].hist2d(p.log_halo_mass[known], p.log_mass_surviving[known], **cloud)
        axes[0].plot(_column(rows, "log_halo_mass"), _column(rows, "log_mass"), "C0o-", ms=4)
    axes[0].set(xlabel=r"$\log\,M_{\rm halo}/M_\odot$", ylabel=r"$\log\,M_*/M_\odot$")
    # quenched galaxies go to the bottom edge, or they would stretch the axis to -20
    log_sfr = np.log10(np.maximum(p.sfr, 1e-4))
    axes[1].hist2d(p.log_mass_surviving, log_sfr, **cloud)
    rows = tables["main_sequence"]
    if rows:
        axes[1].plot(_column(rows, "log_mass"), _column(rows, "log_sfr"), "C0o-", ms=4)
    axes[1].axline((10, -1), slope=1, color="C3", ls=":", label="sSFR = 1e-11/yr")
    axes[1].set(
        xlabel=r"$\log\,M_*/M_\odot$", ylabel="log SFR(215 Myr), floored at 1e-4", ylim=(-4.1, 3)
    )
    axes[1].legend(frameon=False, loc="upper left")


def plot_population(p: Population, tables: dict[str, list[dict[str, Any]]]) -> Figure:
    """Stellar-to-halo mass, main sequence, quenched fraction, t50 and mass-metallicity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    _plot_clouds(axes.flat[:2], p, tables)
    rows, centres = tables["star_formation"], np.convolve(TNG_MASS_EDGES, [0.5, 0.5], "valid")
    for ax, name, label in (
        (axes[0, 2], "quenched", "fraction with sSFR < 1e-11/yr"),
        (axes[1, 0], "t50", r"$t_{50}$ [Gyr]"),
    ):
        ax.plot(centres, _column(rows, name), "C0o-", label="training set")
        ax.plot(centres, _column(rows, f"{name}_tng100"), "ks--", mfc="w", label="TNG100")
        ax.set(xlabel=r"$\log\,M_*/M_\odot$", ylabel=label)
        ax.legend(frameon=False)
    rows, ax = tables["metallicity"], axes[1, 1]
    mass = _column(rows, "log_mass")
    ax.plot(mass, _column(rows, "light_weighted"), "C0o-", label="light-weighted (proxy)")
    ax.plot(mass, _column(rows, "mass_weighted"), "C1o-", label="mass-weighted")
    ax.plot(mass, _column(rows, "gallazzi05"), "ks--", mfc="w", label="Gallazzi et al. 2005")
    ax.set(xlabel=r"$\log\,M_*/M_\odot$", ylabel=r"$\log\,Z/Z_\odot$")
    ax.legend(frameon=False)
    ax = axes[1, 2]
    ax.hist(p.log_mass_surviving, 60, density=True, color="0.75", label="as trained on")
    if np.ptp(p.weight) > 0:
        ax.hist(
            p.log_mass_surviving, 60, weights=p.weight, density=True, histtype="step",
            color="C0", label="weighted by the halo mass function",
        )  # fmt: skip
    ax.set(xlabel=r"$\log\,M_*/M_\odot$", yscale="log", ylim=(1e-6, 10))
    ax.legend(frameon=False, loc="upper left")
    return figure


def check(path: str | Path, out_dir: str | Path) -> dict[str, Any]:
    """Compare the population of the training set at `path` with TNG100 and Gallazzi et al. 2005.

    Writes population.json, population.md and population.png into `out_dir`; returns the content
    of the first. Raises ArtifactError when there is no training set at `path`, DataError when it
    has no halo masses.
    """
    data, out = trainingset.load(path), Path(out_dir)
    weights = UNWEIGHTED.get(str(data.attributes.get("sampling")))
    if weights is None and "log_halo_mass" not in data.galaxy:
        raise DataError(
            f"{path}: expected log_halo_mass (log10 Msun at z = 0), got {sorted(data.galaxy)}; "
            "add the column to the table and build again"
        )
    population = calc_population(data)
    tables = calc_table(population)
    result = {
        "schema": 1,
        "training_set": {"name": data.attributes.get("name", ""), "sha256": data.sha256},
        "n": len(population.sfr),
        "weights": weights or "weighted by the halo mass function at z = 0",
        "surviving": "the simulation's own"
        if "log_mass_surviving" in data.galaxy
        else f"{_surviving(data)} of the mass formed",
        "checks": data.attributes.get("checks", {}),
        "tables": tables,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "population.json", result)
    (out / "population.md").write_text(format_table(result), encoding="utf-8")
    plot_population(population, tables).savefig(out / "population.png", dpi=150)
    return result
