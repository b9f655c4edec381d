"""What galaxies a prior draws: histories, ages, star formation and metallicity by stellar mass.

A training set has as many galaxies of each halo mass as its maker chose, mostly uniform in the
logarithm, and so has the prior. Everything here is therefore read in bins of the mass formed,
half a dex wide, in which that choice hardly counts.

Masses are those formed until today (log10 Msun), SFRs the mean of the last bin (Msun/yr), t50 is
cosmic time (Gyr), metallicities are weighted by mass (log10 Z/Z_sun). A galaxy is quenched below
an sSFR of 1e-11/yr, per surviving mass, for which 0.6 of the mass formed stands, as in
`simulation check`. The error of a median is half the distance of the quantiles
0.5 ± 0.5/sqrt(n), that of a fraction sqrt((k + 1)(n - k + 1) / ((n + 2)^2 (n + 3))), the spread of
its posterior under a flat prior, which is not zero for a fraction of zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo import histories as h
from sfhzoo.diagnostics import quality
from sfhzoo.errors import SamplingError
from sfhzoo.histories import Histories
from sfhzoo.priors.prior import Prior
from sfhzoo.simulations.checks import MIN_GALAXIES, QUENCHED_SSFR, SURVIVING
from sfhzoo.timebins import TimeBins

Array = NDArray[np.float64]

MASS_EDGES = np.arange(8.0, 12.01, 0.5)
"""log10 Msun formed"""
RELATIONS = ("t50", "log_sfr", "logzsol")
"""Each with median, 16 and 84 % by mass; log_sfr of galaxies that are not quenched"""


@dataclass(frozen=True)
class Population:
    """Draws of one prior, galaxies without stars left out.

    label : how the user called the prior
    histories : [galaxy, bin]
    log_mass, t50, log_sfr, logzsol : [galaxy], in the units at the module's head
    quenched : [galaxy]
    n_empty : draws without stars
    """

    label: str
    bins: TimeBins
    histories: Histories
    log_mass: Array
    t50: Array
    log_sfr: Array
    logzsol: Array
    quenched: NDArray[np.bool_]
    n_empty: int = 0

    def take(self, rows: NDArray[np.int64]) -> Population:
        """The galaxies of these rows."""
        return replace(
            self,
            histories=Histories(*(v[rows] for v in self.histories)),
            log_mass=self.log_mass[rows],
            t50=self.t50[rows],
            log_sfr=self.log_sfr[rows],
            logzsol=self.logzsol[rows],
            quenched=self.quenched[rows],
        )


def calc_seed(seed: int, prior: Prior) -> int:
    """A seed of each prior's own: equal noise would make draws of related networks alike."""
    digest = hashlib.sha256(f"{seed} {prior.name} {prior.sha256}".encode()).digest()
    return int.from_bytes(digest[:4])


def draw_population(
    prior: Prior, label: str, n: int, seed: int = 0, progress: bool = False
) -> Population:
    """n draws of a prior; SamplingError where they are not finite or none has stars."""
    drawn = quality.draw_histories(prior, n, calc_seed(seed, prior), progress)
    return make_population(label, drawn, prior.bins)


def make_population(label: str, drawn: Histories, bins: TimeBins) -> Population:
    """The population of histories [galaxy, bin]; SamplingError where none has stars."""
    mass = h.calc_mass_formed(drawn.sfr, bins, bins.age_today)
    full = mass > 0
    if not full.any():
        raise SamplingError(f"expected draws of {label} with stars, got none; train it again")
    sfr, logzsol, mass = drawn.sfr[full], drawn.logzsol[full], mass[full]
    last = sfr[:, -1]
    return Population(
        label=label,
        bins=bins,
        histories=Histories(sfr, logzsol),
        log_mass=np.log10(mass),
        t50=h.calc_formation_quantile(sfr, bins, bins.age_today, 0.5),
        log_sfr=np.log10(np.maximum(last, h.SFR_FLOOR)),
        logzsol=h.calc_logzsol_mass_weighted(sfr, logzsol, bins, bins.age_today),
        quenched=last < QUENCHED_SSFR * SURVIVING * mass,
        n_empty=int((~full).sum()),
    )


def calc_table(population: Population) -> list[dict[str, Any]]:
    """One row per bin of `MASS_EDGES`: `n` and, with at least 20 galaxies, the relations.

    `t50`, `log_sfr` and `logzsol` hold median, error of the median, p16 and p84, `quenched` value
    and error, `log_sfr_history` and `logzsol_history` median, p16 and p84 [bin]; None without.
    """
    rows = []
    for low, high in pairwise(MASS_EDGES):
        inside = (population.log_mass >= low) & (population.log_mass < high)
        part = population.take(np.flatnonzero(inside))
        row: dict[str, Any] = {"log_mass": [float(low), float(high)], "n": len(part.log_mass)}
        rows.append({**row, **_calc_row(part)})
    return rows


def _calc_row(part: Population) -> dict[str, Any]:
    forming = ~part.quenched
    values = {"t50": part.t50, "log_sfr": part.log_sfr[forming], "logzsol": part.logzsol}
    enough = len(part.log_mass) >= MIN_GALAXIES
    tracks = {
        "log_sfr_history": quality.calc_log_sfr(part.histories.sfr),
        "logzsol_history": np.asarray(part.histories.logzsol, float),
    }
    return {
        **{k: calc_median(v) if len(v) >= MIN_GALAXIES else None for k, v in values.items()},
        "quenched": calc_fraction(part.quenched) if enough else None,
        **{k: _calc_track(v) if enough else None for k, v in tracks.items()},
    }


def calc_median(values: Array) -> dict[str, float]:
    """Median of values [n], its error, and the 16 and 84 % quantiles."""
    half = min(0.5 / np.sqrt(len(values)), 0.5)
    below, p16, median, p84, above = np.quantile(values, [0.5 - half, 0.16, 0.5, 0.84, 0.5 + half])
    numbers = (median, 0.5 * (above - below), p16, p84)
    return dict(zip(("median", "error", "p16", "p84"), map(float, numbers)))


def calc_fraction(where: NDArray[np.bool_]) -> dict[str, float]:
    """Share of True and its error (the module's formula)."""
    n, k = len(where), int(where.sum())
    error = np.sqrt((k + 1) * (n - k + 1) / ((n + 2) ** 2 * (n + 3)))
    return {"value": k / n, "error": float(error)}


def _calc_track(values: Array) -> dict[str, list[float]]:
    levels = np.percentile(values, [50, 16, 84], axis=0)
    return {name: v.round(4).tolist() for name, v in zip(("median", "p16", "p84"), levels)}
