"""Whether intervals hold the truth as often as they say: ranks, coverage, TARP.

    rank = (r + v) / (n + 1)

of a truth among n samples, r of which lie below it, v uniform in [0, 1); ties are broken at
random. Where truth and samples come from one distribution the rank is exactly uniform (Talts et
al. 2018, arXiv:1804.06788), and a central interval of level L holds the truth where
|rank - 1/2| <= L / 2. TARP (Lemos et al. 2023, arXiv:2302.03026) ranks distances from a reference
point in all quantities at once.

A fit that failed has NaN ranks: no interval of it holds the truth.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

LEVELS = (0.50, 0.68, 0.90, 0.95)
N_REFERENCES = 32
REFERENCE_SPREAD = 2.0
"""Reference points of TARP lie this far from the samples' mean, in their standard deviations."""
TIE = 1e-9
"""Relative difference below which two values are the same, as at a floor."""
MAX_HISTOGRAM_BINS = 10
LEAST_PER_BIN = 5
N_BOOTSTRAP = 2000


def calc_rank(samples: ArrayLike, truth: float, rng: np.random.Generator) -> float:
    """Normalised rank in (0, 1) of `truth` among `samples` [sample].

    An undefined sample (NaN) counts as a tie: it tells nothing.
    """
    drawn = np.asarray(samples, float)
    tied = np.isnan(drawn) | np.isclose(drawn, truth, rtol=TIE, atol=TIE)
    below = int(np.sum((drawn < truth) & ~tied))
    r = below + int(rng.integers(0, int(tied.sum()) + 1))
    return (r + float(rng.random())) / (len(drawn) + 1)


def is_covered(ranks: ArrayLike, levels: ArrayLike = LEVELS) -> NDArray[np.bool_]:
    """Whether central intervals hold the truth [..., level], for ranks [...]."""
    distance = np.abs(np.asarray(ranks, float)[..., None] - 0.5)
    # NaN compares as False
    return distance <= 0.5 * np.asarray(levels, float)


def calc_coverage(ranks: ArrayLike, levels: ArrayLike = LEVELS) -> Array:
    """Fraction of truths held [level], of ranks [mock]."""
    return is_covered(ranks, levels).mean(axis=0)


def calc_binomial_error(level: ArrayLike, n: int) -> Array:
    """Standard error of an empirical fraction whose expectation is `level` [...]."""
    expected = np.asarray(level, float)
    return np.sqrt(expected * (1 - expected) / n)


def calc_binomial_band(levels: ArrayLike, n: int, inside: float = 0.95) -> tuple[Array, Array]:
    """The central `inside` of the fractions that n calibrated mocks would show, per level."""
    from scipy.stats import binom

    expected, tail = np.asarray(levels, float), 0.5 * (1 - inside)
    return binom.ppf(tail, n, expected) / n, binom.ppf(1 - tail, n, expected) / n


def calc_n_histogram_bins(n: int) -> int:
    """Bins of a rank histogram of n mocks."""
    return max(2, min(MAX_HISTOGRAM_BINS, n // LEAST_PER_BIN))


def calc_histogram_p(ranks: ArrayLike) -> float:
    """p-value of Pearson's chi² test that finite ranks [mock] are uniform; 1 without ranks."""
    from scipy.stats import chi2

    known = np.asarray(ranks, float)
    known = known[np.isfinite(known)]
    if not len(known):
        return 1.0
    n_bins = calc_n_histogram_bins(len(known))
    counts = np.histogram(known, np.linspace(0, 1, n_bins + 1))[0]
    expected = len(known) / n_bins
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), n_bins - 1))


def calc_tarp_ranks(
    samples: ArrayLike, truth: ArrayLike, rng: np.random.Generator, n: int = N_REFERENCES
) -> Array:
    """Ranks [reference] of the truth's distance from random points among the samples' distances.

    `samples` [sample, quantity], `truth` [quantity]. Quantities are scaled, and the reference
    points placed, by the mean and the standard deviation of samples and truth together: the truth
    then enters as each sample does, and the ranks stay exactly uniform for a right posterior.
    Many points on all sides make the test quiet and keen on widths and correlations; a bias
    common to all mocks shows in it weakly, and in the quantities' own ranks at once.
    Samples that are not finite are left out.
    """
    drawn, true = np.asarray(samples, float), np.asarray(truth, float)
    both = np.concatenate([drawn[np.isfinite(drawn).all(axis=1)], true[None]])
    spread = both.std(axis=0)
    both = (both - both.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    references = REFERENCE_SPREAD * rng.standard_normal((n, len(true)))
    distance = np.linalg.norm(both[None] - references[:, None], axis=2)
    return np.array([calc_rank(d[:-1], float(d[-1]), rng) for d in distance])


def calc_tarp_coverage(tarp_ranks: ArrayLike, alphas: ArrayLike) -> Array:
    """Expected coverage [alpha] of the regions of credibility alpha, of ranks [mock, reference].

    A failed mock (NaN) is in no region.
    """
    ranks = np.asarray(tarp_ranks, float)
    return (ranks[..., None] < np.asarray(alphas, float)).mean(axis=(0, 1))


def calc_tarp_deviation(tarp_ranks: ArrayLike) -> float:
    """Largest |expected coverage - credibility| over all credibilities; ranks [mock, reference].

    The largest deviation of an empirical distribution function from the diagonal (a
    Kolmogorov-Smirnov distance), NaN ranks beyond 1.
    """
    flat = np.sort(np.nan_to_num(np.asarray(tarp_ranks, float), nan=1.0), axis=None)
    n = len(flat)
    after, before = np.arange(1, n + 1) / n, np.arange(n) / n
    return float(max((after - flat).max(), (flat - before).max()))


def bootstrap(values: ArrayLike, rng: np.random.Generator, n: int = N_BOOTSTRAP) -> float:
    """Standard error of the mean of values [mock], by drawing mocks with replacement."""
    of_mock = np.asarray(values, float)
    pick = rng.integers(0, len(of_mock), (n, len(of_mock)))
    return float(of_mock[pick].mean(axis=1).std())


def calc_signed_deviation(
    ranks: ArrayLike, rng: np.random.Generator, level: float = 0.68
) -> tuple[float, float]:
    """Coverage - level pooled over ranks [mock, quantity], and its standard error over mocks.

    Negative: over-confident. The quantities of a mock are correlated, so mocks are drawn whole.
    """
    held = is_covered(ranks, [level])[..., 0].mean(axis=1) - level
    return float(held.mean()), bootstrap(held, rng)


def calc_slope(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Least-squares slope of y against x [mock], and its standard error; NaN below 3 mocks."""
    pairs = np.stack([np.asarray(x, float), np.asarray(y, float)])
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or np.ptp(pairs[0]) == 0:
        return math.nan, math.nan
    dx, dy = pairs - pairs.mean(axis=1, keepdims=True)
    slope = float((dx * dy).sum() / (dx**2).sum())
    # errors that differ from mock to mock (White 1980, Econometrica 48, 817)
    residual = dy - slope * dx
    return slope, float(np.sqrt(((dx * residual) ** 2).sum()) / (dx**2).sum())
