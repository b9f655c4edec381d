"""How far apart two priors are, next to what chance alone gives.

Histories are compared in one space for all priors: log10(SFR + 1e-4) and log Z of every bin, each
of the 2 x 64 columns shifted and scaled to mean 0 and variance 1 over the draws of all priors
together (each prior has a scaling of its own, which says nothing of galaxies).

- Sliced Wasserstein distance (Rabin et al. 2012, doi:10.1007/978-3-642-24785-9_37; Bonneel et al.
  2015, doi:10.1007/s10851-014-0506-3):

      SW2^2 = mean over u of W2^2(a.u, b.u),     W2^2 = mean over i of (a_(i) - b_(i))^2

  over random unit vectors u; a_(i) are sorted. Populations that differ by one standard deviation
  in every column are at a distance of 1.
- Accuracy of boosted trees that tell the draws apart (`diagnostics.quality`), on all columns and
  on five derived quantities; 0.5 means that they cannot.

Both are positive, or above 0.5, by chance too: `null` is the same between two halves of one
prior's draws, the mean over both priors. The distance itself is the mean of those of the first
halves and of the second halves, so that it carries the noise of its null. Errors: bootstrap for
the distance, binomial for the accuracy.

Each is given twice: for the draws as they are, and at matched masses, where in every 0.1 dex of
mass formed as many galaxies of either prior are kept as the rarer one has. Nothing is drawn twice,
or a classifier would recognise what it was trained on.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sfhzoo.comparison.populations import Population
from sfhzoo.diagnostics import quality

Array = NDArray[np.float64]

N_DIRECTIONS = 256
N_BOOTSTRAP = 40
MASS_STEP = 0.1
"""dex"""
MIN_MATCHED = 200
"""Galaxies of each prior below which matched distances are not worth their errors."""


def calc_sliced_wasserstein(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """SW2 from projections [direction, galaxy] of two sets of equal size."""
    difference = np.sort(a, axis=1) - np.sort(b, axis=1)
    return float(np.sqrt(np.mean(difference**2)))


def draw_directions(d: int, rng: np.random.Generator, n: int = N_DIRECTIONS) -> Array:
    """Unit vectors [d, n], uniform over directions."""
    u = rng.standard_normal((d, n))
    return np.asarray(u / np.linalg.norm(u, axis=0))


def match_masses(
    a: Array, b: Array, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of log masses a and b [galaxy] with the same histogram in steps of 0.1 dex."""
    step_a, step_b = (np.floor(m / MASS_STEP).astype(int) for m in (a, b))
    kept: tuple[list[Array], list[Array]] = ([], [])
    for step in np.intersect1d(step_a, step_b):
        here = np.flatnonzero(step_a == step), np.flatnonzero(step_b == step)
        n = min(map(len, here))
        for rows, of in zip(kept, here):
            rows.append(rng.permutation(of)[:n])
    none = np.zeros(0, int)
    first, second = (rng.permutation(np.concatenate([none, *rows]).astype(int)) for rows in kept)
    return first, second


def calc_distances(
    populations: list[Population], seed: int = 0, progress: bool = False
) -> list[dict[str, Any]]:
    """Every pair's distances, `as_trained` and `matched_mass`; the latter None without overlap."""
    columns = np.concatenate([quality.calc_columns(p.histories) for p in populations])
    mean, std = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-6)
    pairs = list(combinations(populations, 2))
    found = []
    for k, (a, b) in enumerate(tqdm(pairs, unit="pair", disable=not progress)):
        rng = np.random.default_rng([seed, k])
        rows = match_masses(a.log_mass, b.log_mass, rng)
        enough = len(rows[0]) >= MIN_MATCHED
        matched = _compare(a.take(rows[0]), b.take(rows[1]), (mean, std), rng) if enough else None
        found.append({
            "first": a.label,
            "second": b.label,
            "as_trained": _compare(a, b, (mean, std), rng),
            "matched_mass": matched,
        })  # fmt: skip
    return found


def _compare(
    a: Population, b: Population, scale: tuple[Array, Array], rng: np.random.Generator
) -> dict[str, Any]:
    n = min(len(a.log_mass), len(b.log_mass)) // 2 * 2
    a, b = a.take(np.arange(n)), b.take(np.arange(n))
    classifier_seed = int(rng.integers(2**31))
    ours, theirs = (quality.calc_features(p.histories, p.bins) for p in (a, b))
    return {
        "n": n,
        "sliced_wasserstein": _calc_wasserstein(a, b, scale, rng),
        **{f"classifier_{k}": _classify(ours[k], theirs[k], classifier_seed) for k in ours},
    }


def _calc_wasserstein(
    a: Population, b: Population, scale: tuple[Array, Array], rng: np.random.Generator
) -> dict[str, float]:
    mean, std = scale
    x = [(quality.calc_columns(p.histories) - mean) / std for p in (a, b)]
    directions = draw_directions(x[0].shape[1], rng)
    # float32: sorting is all of the cost
    first, second = (np.ascontiguousarray((v @ directions).T.astype(np.float32)) for v in x)
    half = first.shape[1] // 2

    def calc(rows: NDArray[np.int64]) -> float:
        """Mean of both halves; rows [4, half] say which galaxies of each half."""
        p, q = first[:, :half], second[:, :half]
        r, s = first[:, half:], second[:, half:]
        return 0.5 * (
            calc_sliced_wasserstein(p[:, rows[0]], q[:, rows[1]])
            + calc_sliced_wasserstein(r[:, rows[2]], s[:, rows[3]])
        )

    boots = [calc(rng.integers(half, size=(4, half))) for _ in range(N_BOOTSTRAP)]
    nulls = [calc_sliced_wasserstein(v[:, :half], v[:, half:]) for v in (first, second)]
    value = calc(np.tile(np.arange(half), (4, 1)))
    return {"value": value, "error": float(np.std(boots, ddof=1)), "null": float(np.mean(nulls))}


def _classify(a: Array, b: Array, seed: int) -> dict[str, float]:
    half = len(a) // 2
    accuracy, error = quality.calc_classifier_accuracy(a, b, seed)
    nulls = [quality.calc_classifier_accuracy(v[:half], v[half:], seed) for v in (a, b)]
    return {
        "accuracy": accuracy,
        "error": error,
        "null": float(np.mean([n[0] for n in nulls])),
        "null_error": float(np.hypot(nulls[0][1], nulls[1][1]) / 2),
    }
