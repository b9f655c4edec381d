"""Classical priors on star formation histories, as populations on our bins: no simulation.

Continuity (Leja et al. 2019): between intervals of lookback time 0, 30 and 100 Myr, four equal
ratios up to 0.85 of the age of the universe, and that age,

    log10(SFR_n / SFR_n+1) ~ scale * t(nu),    nu = 2, scale = 0.3

Delayed tau (Carnall et al. 2018, 2019): with T0 = today - age, age and tau uniform,

    SFR(t) = const (t - T0) exp(-(t - T0) / tau)    for t > T0, else 0

Both: log10 of the mass formed until today uniform; log10 Z/Z_sun uniform between galaxies, and
constant in time but for an Ornstein-Uhlenbeck scatter (`logzsol_rms`), which gives each of the 64
metallicities some width of its own. The SFR of a bin is the exact mean of the model over it.

t(2) has no variance: SFRs far below 1e-4 Msun/yr occur. They are kept in the set; priors trained
with the logarithmic map see them as log10(SFR + 1e-4) and cannot tell them from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc

from sfhzoo.errors import DataError
from sfhzoo.simulations.diffstarpop import calc_ornstein_uhlenbeck
from sfhzoo.simulations.table import calc_rebinning
from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR

Array = NDArray[np.float64]

CITATIONS = {
    "continuity": "Leja et al. 2019 (doi:10.3847/1538-4357/ab133c)",
    "delayed-tau": "Carnall et al. 2018 (BAGPIPES, doi:10.1093/mnras/sty2169); "
    "Carnall et al. 2019 (doi:10.3847/1538-4357/ab04a2)",
}

COMMON = (
    "engine", "n", "n_test", "seed", "chunk", "log_mass_formed", "logzsol", "logzsol_rms",
    "logzsol_timescale",
)  # fmt: skip
OWN = {"continuity": ("intervals", "nu", "scale"), "delayed-tau": ("age", "tau")}
"""Keys of a recipe's `[simulation]` table, all needed; `citation` may be added."""

YOUNGEST = (0.0, 0.03, 0.1)
"""Gyr of lookback, edges of the two youngest intervals"""
OLDEST = 0.85
"""of the age of the universe, where the oldest interval begins"""


def calc_lookback_edges(age_today: float, n: int) -> Array:
    """Edges [n + 1] of the continuity prior's n >= 4 intervals, Gyr of lookback, youngest first.

    Raises DataError for fewer intervals.
    """
    if n < 4:
        raise DataError(f"expected at least 4 intervals, got {n}")
    middle = np.geomspace(YOUNGEST[-1], OLDEST * age_today, n - 2)
    return np.array([*YOUNGEST, *middle[1:], age_today])


def calc_continuity(
    log_ratio: Array, log_mass: Array, edges: Array, bins: TimeBins
) -> NDArray[np.float64]:
    """SFR [galaxy, bin] (Msun/yr) of the continuity model.

    Parameters
    ----------
    log_ratio : [galaxy, n - 1], log10 SFR of an interval over that of the next older one
    log_mass : [galaxy], log10 Msun formed until today
    edges : [n + 1], Gyr of lookback, youngest first
    """
    log_sfr = np.cumsum(np.pad(-log_ratio, ((0, 0), (1, 0))), axis=1)
    # relative to the largest, so that a ratio of 400 dex (they occur) underflows to zero
    shape = 10.0 ** (log_sfr - log_sfr.max(axis=1, keepdims=True))
    mass = (10.0**log_mass / (shape @ np.diff(edges)))[:, None] * shape
    shared = calc_rebinning(bins.age_today - edges[::-1], bins)
    return mass[:, ::-1] @ shared / (bins.width * YR_PER_GYR)


def calc_delayed_tau(age: Array, tau: Array, log_mass: Array, bins: TimeBins) -> Array:
    """SFR [galaxy, bin] (Msun/yr) of the delayed tau model; all arguments [galaxy].

    `age` (Gyr) is the lookback time of the first star, `tau` in Gyr, `log_mass` log10 Msun formed
    until today.
    """
    since = np.clip(bins.edges - (bins.age_today - age)[:, None], 0.0, None)
    # the integral of y exp(-y) is the incomplete gamma function of 2
    formed = gammainc(2.0, since / tau[:, None])
    scale = 10.0**log_mass / (formed[:, -1] * bins.width * YR_PER_GYR)
    return scale[:, None] * np.diff(formed, axis=1)


def _range(recipe: dict[str, Any], key: str) -> tuple[float, float]:
    given = recipe[key]
    numbers = isinstance(given, list) and [v for v in given if isinstance(v, int | float)]
    if not numbers or len(given) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise DataError(f"[simulation] {key}: expected two numbers [low, high], got {given!r}")
    return float(numbers[0]), float(numbers[1])


def _draw_continuity(
    rng: np.random.Generator, log_mass: Array, recipe: Any, bins: TimeBins
) -> Array:
    edges = calc_lookback_edges(bins.age_today, recipe["intervals"])
    ratio = recipe["scale"] * rng.standard_t(recipe["nu"], (len(log_mass), len(edges) - 2))
    return calc_continuity(ratio, log_mass, edges, bins)


def _draw_delayed_tau(
    rng: np.random.Generator, log_mass: Array, recipe: Any, bins: TimeBins
) -> Array:
    (young, old), (short, long) = _range(recipe, "age"), _range(recipe, "tau")
    age = rng.uniform(young, min(old, bins.age_today), len(log_mass))
    return calc_delayed_tau(age, rng.uniform(short, long, len(log_mass)), log_mass, bins)


_DRAW: dict[str, Callable[..., Array]] = {
    "continuity": _draw_continuity,
    "delayed-tau": _draw_delayed_tau,
}


def generate(recipe: dict[str, Any], bins: TimeBins) -> Iterator[dict[str, NDArray[Any]]]:
    """Chunks of galaxies of the recipe's `[simulation]` table, in order: `sfr` and `logzsol`.

    Arrays are [galaxy, bin], float32. The random numbers depend on the seed and the chunk size
    only. Raises DataError for keys that are missing or unknown and for ranges that are none.
    """
    engine = recipe["engine"]
    keys = {*COMMON, *OWN[engine]}
    if wrong := sorted(keys ^ (set(recipe) - {"citation"})):
        raise DataError(
            f"[simulation] of engine {engine!r}: expected the keys {sorted(keys)}; missing or "
            f"unknown: {wrong}"
        )
    size, index = int(recipe["chunk"]), 0
    (light, heavy), (poor, rich) = _range(recipe, "log_mass_formed"), _range(recipe, "logzsol")
    while True:
        rng = np.random.default_rng([recipe["seed"], index])
        log_mass = rng.uniform(light, heavy, size)
        sfr = _DRAW[engine](rng, log_mass, recipe, bins)
        level = rng.uniform(poor, rich, (size, 1))
        scatter = calc_ornstein_uhlenbeck(
            rng, (size, bins.n), bins.width, recipe["logzsol_timescale"]
        )
        index += 1
        yield {
            "sfr": sfr.astype(np.float32),
            "logzsol": (level + recipe["logzsol_rms"] * scatter).astype(np.float32),
        }
