"""Posterior predictive checks: does the fitted model explain the spectrum, and where not?

The residuals of the posterior-median spectrum, in units of the scaled errors, are compared with
white noise in two ways: single pixels far off, and running means over 5 to 200 pixels (structure
that no pixel shows alone). For a linear model with Gaussian noise N and posterior predictive
covariance P the residuals' covariance is N - P, so each mean is divided by the root of 1 - P / N,
read off the posterior samples: what the templates could absorb does not count as noise.

A running mean over w of n pixels exceeds z somewhere with probability

    p(z) = 2 [ (n / w) z phi(z) nu(z sqrt(2 / w)) + 1 - Phi(z) ],     nu(x) = exp(-0.583 x)

(Pickands 1969 for a triangular autocorrelation, Siegmund 1985, chapter X, for discrete steps),
which fixes the thresholds. NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr

Array = NDArray[np.float64]

WIDTHS = (5, 10, 20, 50, 100, 200)
"""Pixels of the running means."""
FALSE_ALARM = 0.01
"""Of any structure in a spectrum of white noise; shared equally by the widths."""
OUTLIER_CHI = 5.0
"""A pixel is never an outlier below this; long spectra need more."""
MAX_LISTED, MAX_WARNED = 8, 5
"""Structures and outliers in the result, and in a line for the user."""
MAX_ABSORBED = 0.3
"""Of a mean's variance that counts as absorbed by the fit. An estimate from 100 samples is good to
a fifth: more on trust would raise false alarms in wide means, which templates follow best."""


class Structure(NamedTuple):
    """A stretch whose mean residual noise does not explain.

    low, high, low_rest, high_rest : Å, observed and at rest
    significance : mean residual over its standard error, with sign (positive: data above model)
    relative : mean residual over mean model flux
    log10_false_alarm : chance of one as large at this width, anywhere in white noise
    """

    low: float
    high: float
    low_rest: float
    high_rest: float
    significance: float
    relative: float
    log10_false_alarm: float


class Outlier(NamedTuple):
    """A single pixel: observed and rest wavelength (Å), residual over error."""

    wave_obs: float
    wave_rest: float
    chi: float


@dataclass(frozen=True)
class PredictiveCheck:
    """What the residuals show; most significant first.

    Spectra of high S/N nearly always show structure: no set of templates is exact.

    n_pixels : number of pixels used
    chi2_per_pixel : of the posterior-median spectrum with the scaled errors
    structures, outliers : at most `MAX_LISTED` of each
    n_structures, n_outliers : how many there are
    """

    n_pixels: int
    chi2_per_pixel: float
    structures: tuple[Structure, ...]
    n_structures: int
    outliers: tuple[Outlier, ...]
    n_outliers: int

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dictionaries only."""
        return {
            **asdict(self),
            "structures": [s._asdict() for s in self.structures],
            "outliers": [o._asdict() for o in self.outliers],
        }

    def format_warnings(self) -> list[str]:
        """One line for structure, one for outliers; none where there is nothing to say."""
        lines = []
        if self.structures:
            where = ", ".join(
                f"{s.low:.0f}-{s.high:.0f} Å (rest {s.low_rest:.0f}-{s.high_rest:.0f}, "
                f"{100 * s.relative:+.1f} %, {s.significance:+.1f} sigma)"
                for s in self.structures[:MAX_WARNED]
            )
            lines.append(
                f"the residuals have structure beyond noise at {where}"
                f"{_more(self.n_structures)}: the model misses something there"
            )
        if self.outliers:
            where = ", ".join(
                f"{o.wave_obs:.1f} Å ({o.chi:+.1f})" for o in self.outliers[:MAX_WARNED]
            )
            noun = "pixel is" if self.n_outliers == 1 else "pixels are"
            lines.append(
                f"{self.n_outliers} {noun} far from the model in units of the error: {where}"
                f"{_more(self.n_outliers)}; mask them if they are artefacts"
            )
        return lines


def _more(total: int) -> str:
    return f" and {total - MAX_WARNED} more" if total > MAX_WARNED else ""


def calc_predictive_check(
    wave_obs: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike,
    used: ArrayLike,
    model_flux: ArrayLike,
    error_scale: ArrayLike,
    redshift: float,
    *,
    widths: Sequence[int] = WIDTHS,
    false_alarm: float = FALSE_ALARM,
) -> PredictiveCheck:
    """Check a fit's residuals.

    Parameters
    ----------
    wave_obs : [wave] observed Å, increasing
    flux, ivar : [wave] data and inverse variance, of the file's own errors
    used : [wave] bool, the pixels that were fitted
    model_flux : [sample, wave] noiseless posterior spectra; NaN outside the model's range
    error_scale : [sample] factor on the file's errors
    redshift : of the galaxy
    widths : of the running means, pixels
    false_alarm : chance that white noise shows any structure

    Raises ValueError for arrays that do not fit together or without a pixel to check.
    """
    wave, data, inverse = (np.asarray(a, np.float64) for a in (wave_obs, flux, ivar))
    model = np.atleast_2d(np.asarray(model_flux, np.float64))
    shapes = {a.shape for a in (wave, data, inverse, np.asarray(used))}
    if len(shapes) != 1 or model.shape[1:] != wave.shape:
        raise ValueError(
            f"expected four arrays [wave] and model_flux [sample, wave], got {sorted(shapes)} "
            f"and {model.shape}"
        )
    good = np.asarray(used, bool) & (inverse > 0) & np.isfinite(data) & np.isfinite(model).all(0)
    if not good.any():
        raise ValueError("expected at least one used pixel with data and model, got none")
    scale = float(np.median(np.asarray(error_scale, np.float64)))
    weight = np.sqrt(np.where(good, inverse, 0.0)) / scale
    median = np.median(np.where(good, model, 0.0), axis=0)
    residual = np.where(good, data - median, 0.0)
    scaled = np.where(good, model - median, 0.0) * weight
    raw = residual * weight
    chi = raw / np.sqrt(1 - _absorbed(scaled, good.astype(float)))

    limit = max(OUTLIER_CHI, _solve_threshold(int(good.sum()), 1, false_alarm))
    far = np.flatnonzero(np.abs(chi) > limit)
    far = far[np.argsort(-np.abs(chi[far]), kind="stable")]
    # an isolated bad pixel is an outlier, not structure: it counts no more than the limit
    found = _find_windows(np.clip(raw, -limit, limit), scaled, good, widths, false_alarm)
    structures = [
        _describe(window, wave, residual, median, good, redshift) for window in found[:MAX_LISTED]
    ]
    outliers = [
        Outlier(float(wave[i]), float(wave[i] / (1 + redshift)), float(chi[i]))
        for i in far[:MAX_LISTED]
    ]
    return PredictiveCheck(
        int(good.sum()), float((raw**2).sum() / good.sum()),
        tuple(structures), len(found), tuple(outliers), len(far),
    )  # fmt: skip


def calc_log_false_alarm(z: ArrayLike, n_pixels: int, width: int) -> Array:
    """ln of the chance that a running mean of white noise exceeds |z| anywhere in a spectrum.

    Parameters
    ----------
    z : [...] > 0, mean over its standard error
    n_pixels : in the spectrum
    width : of the mean, pixels; 1 for independent pixels

    The formula at the head of this module, an expansion for small probabilities.
    """
    z = np.asarray(z, np.float64)
    edge = log_ndtr(-z)
    if width == 1:
        return np.log(2.0 * n_pixels) + edge
    log_phi = -0.5 * z**2 - 0.5 * np.log(2 * np.pi)
    steps = max(n_pixels - width, 0) / width
    inner = np.log(np.maximum(steps * z, 1e-300)) + log_phi - 0.583 * z * (2 / width) ** 0.5
    return np.log(2.0) + np.logaddexp(inner, edge)


def _solve_threshold(n_pixels: int, width: int, false_alarm: float) -> float:
    """The |z| whose false alarm probability is `false_alarm`."""
    goal = np.log(false_alarm)
    return float(brentq(lambda z: calc_log_false_alarm(z, n_pixels, width) - goal, 1.5, 12.0))


def _running(values: Array, width: int) -> Array:
    """Sums [..., position] over `width` consecutive pixels."""
    total = np.cumsum(np.pad(values, [(0, 0)] * (values.ndim - 1) + [(1, 0)]), axis=-1)
    return total[..., width:] - total[..., :-width]


def _absorbed(sums: Array, count: Array) -> Array:
    """Share of a sum's noise variance `count` that the fit absorbs, from samples [sample, ...]."""
    if len(sums) < 2:
        return np.zeros_like(count)
    share = sums.var(axis=0, ddof=1) / np.maximum(count, 1.0)
    return np.minimum(share, MAX_ABSORBED)


class _Window(NamedTuple):
    start: int
    stop: int
    z: float
    log_p: float


def _find_windows(
    chi: Array,
    scaled: Array,
    good: NDArray[np.bool_],
    widths: Sequence[int],
    false_alarm: float,
) -> list[_Window]:
    """Windows beyond the threshold that do not touch each other, most significant first."""
    n = int(good.sum())
    usable = [w for w in widths if 4 * w <= n]
    candidates = []
    for width in usable:
        count = _running(good.astype(float), width)
        z = _running(chi, width) / np.sqrt(np.maximum(count, 1.0))
        z /= np.sqrt(1 - _absorbed(_running(scaled, width), count))
        threshold = _solve_threshold(n, width, false_alarm / len(usable))
        # half of the window must hold data, or a few pixels beside a gap pass as a wide one
        start = np.flatnonzero((np.abs(z) > threshold) & (2 * count >= width))
        log_p = calc_log_false_alarm(np.abs(z[start]), n, width)
        candidates += [_Window(int(s), int(s) + width, float(z[s]), float(p))
                       for s, p in zip(start, log_p)]  # fmt: skip
    found: list[_Window] = []
    taken = np.zeros(len(chi), dtype=bool)
    for window in sorted(candidates, key=lambda c: (c.log_p, c.start)):
        if taken[window.start : window.stop].any():
            continue
        found.append(window)
        # the flanks of a strong feature are not features of their own
        pad = (window.stop - window.start) // 2
        taken[max(window.start - pad, 0) : window.stop + pad] = True
    return found


def _describe(
    window: _Window,
    wave: Array,
    residual: Array,
    model: Array,
    good: NDArray[np.bool_],
    redshift: float,
) -> Structure:
    inside = np.arange(window.start, window.stop)
    inside = inside[good[inside]]
    low, high = float(wave[inside[0]]), float(wave[inside[-1]])
    level = float(np.abs(model[inside]).mean())
    return Structure(
        low, high, low / (1 + redshift), high / (1 + redshift), window.z,
        float(residual[inside].mean()) / max(level, 1e-300), window.log_p / float(np.log(10)),
    )  # fmt: skip
