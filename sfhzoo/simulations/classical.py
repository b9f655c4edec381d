"""Classical priors on star formation histories, as populations on our bins: no simulation.

Both have constant rates in intervals of lookback time: 0, 30 and 100 Myr, four equal ratios up to
0.85 of the age of the universe, and that age. Continuity (Leja et al. 2019):

    log10(SFR_n / SFR_n+1) ~ scale * t(nu),    nu = 2, scale = 0.3

Dirichlet (Leja et al. 2017, 2019), with the same concentration for all intervals:

    SFR_n / sum of SFR_m ~ Dirichlet(concentration),    concentration = 1

log10 of the mass formed until today is uniform; log10 Z/Z_sun uniform between galaxies, and
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

from sfhzoo.errors import DataError
from sfhzoo.simulations.diffstarpop import calc_ornstein_uhlenbeck
from sfhzoo.simulations.table import calc_rebinning
from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR

Array = NDArray[np.float64]

LEJA2019 = "Leja et al. 2019 (doi:10.3847/1538-4357/ab133c)"
CITATIONS = {
    "continuity": LEJA2019,
    "dirichlet": f"Leja et al. 2017 (doi:10.3847/1538-4357/aa5ffe); {LEJA2019}",
}

COMMON = (
    "engine", "n", "n_test", "seed", "chunk", "log_mass_formed", "intervals", "logzsol",
    "logzsol_rms", "logzsol_timescale",
)  # fmt: skip
OWN = {"continuity": ("nu", "scale"), "dirichlet": ("concentration",)}
"""Keys of a recipe's `[simulation]` table, all needed; `citation` may be added."""

YOUNGEST = (0.0, 0.03, 0.1)
"""Gyr of lookback, edges of the two youngest intervals"""
OLDEST = 0.85
"""of the age of the universe, where the oldest interval begins"""


def calc_lookback_edges(age_today: float, n: int) -> Array:
    """Edges [n + 1] of n >= 4 intervals, Gyr of lookback, youngest first.

    Raises DataError for fewer intervals.
    """
    if n < 4:
        raise DataError(f"expected at least 4 intervals, got {n}")
    middle = np.geomspace(YOUNGEST[-1], OLDEST * age_today, n - 2)
    return np.array([*YOUNGEST, *middle[1:], age_today])


def calc_steps(rate: Array, log_mass: Array, edges: Array, bins: TimeBins) -> Array:
    """SFR [galaxy, bin] (Msun/yr) of histories with constant rates in intervals.

    Parameters
    ----------
    rate : [galaxy, n], SFR in each interval but for a factor
    log_mass : [galaxy], log10 Msun formed until today
    edges : [n + 1], Gyr of lookback, youngest first
    """
    mass = (10.0**log_mass / (rate @ np.diff(edges)))[:, None] * rate
    shared = calc_rebinning(bins.age_today - edges[::-1], bins)
    return mass[:, ::-1] @ shared / (bins.width * YR_PER_GYR)


def _range(recipe: dict[str, Any], key: str) -> tuple[float, float]:
    given = recipe[key]
    numbers = isinstance(given, list) and [v for v in given if isinstance(v, int | float)]
    if not numbers or len(given) != 2 or len(numbers) != 2 or numbers[0] > numbers[1]:
        raise DataError(f"[simulation] {key}: expected two numbers [low, high], got {given!r}")
    return float(numbers[0]), float(numbers[1])


def draw_continuity(rng: np.random.Generator, shape: tuple[int, int], recipe: Any) -> Array:
    """SFR [galaxy, interval], youngest first, over the largest of each galaxy."""
    galaxies, intervals = shape
    ratio = recipe["scale"] * rng.standard_t(recipe["nu"], (galaxies, intervals - 1))
    log_sfr = np.cumsum(np.pad(-ratio, ((0, 0), (1, 0))), axis=1)
    # ratios of 400 dex occur, and underflow to zero
    return 10.0 ** (log_sfr - log_sfr.max(axis=1, keepdims=True))


def draw_dirichlet(rng: np.random.Generator, shape: tuple[int, int], recipe: Any) -> Array:
    """SFR [galaxy, interval] over the sum of each galaxy. Raises DataError."""
    galaxies, intervals = shape
    concentration = recipe["concentration"]
    if not concentration > 0:
        raise DataError(f"[simulation] concentration: expected more than 0, got {concentration!r}")
    return rng.dirichlet([concentration] * intervals, galaxies)


_DRAW: dict[str, Callable[..., Array]] = {
    "continuity": draw_continuity,
    "dirichlet": draw_dirichlet,
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
    edges = calc_lookback_edges(bins.age_today, recipe["intervals"])
    while True:
        rng = np.random.default_rng([recipe["seed"], index])
        log_mass = rng.uniform(light, heavy, size)
        rate = _DRAW[engine](rng, (size, recipe["intervals"]), recipe)
        sfr = calc_steps(rate, log_mass, edges, bins)
        level = rng.uniform(poor, rich, (size, 1))
        scatter = calc_ornstein_uhlenbeck(
            rng, (size, bins.n), bins.width, recipe["logzsol_timescale"]
        )
        index += 1
        yield {
            "sfr": sfr.astype(np.float32),
            "logzsol": (level + recipe["logzsol_rms"] * scatter).astype(np.float32),
        }
