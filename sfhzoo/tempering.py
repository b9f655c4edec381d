"""Tempered misfits, and the integral over them that is the evidence (`evidence`).

ln Z(1) - ln Z(beta_0) = -1/2 ∫_beta_0^1 <chi²>_beta dbeta
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.likelihood.calibration import calc_calibration_rows
from sfhzoo.likelihood.problem import Problem

Array = NDArray[np.float64]

MAX_STEP = 1.2
"""Of ln beta, between nodes."""


class Node(NamedTuple):
    """chi² [sample] of draws of p_beta, as many as `effective` independent ones."""

    ln_beta: float
    chi2: Array
    effective: float

    @property
    def error(self) -> float:
        """Of the mean of chi²."""
        return float(self.chi2.std(ddof=1)) / self.effective**0.5


class Integral(NamedTuple):
    """-1/2 ∫ <chi²> dbeta, and its errors by sampling and by quadrature."""

    value: float
    sampling: float
    quadrature: float


def integrate(nodes: Sequence[Node]) -> Integral:
    """Over ln beta; nodes rising and evenly spaced, a multiple of 4 intervals.

    The lowest chi² is taken off and integrated exactly. Quadrature of fourth order; its error is
    a 15th of the change without every second node (Richardson), which the draws' noise enlarges.
    """
    ln_beta = np.array([n.ln_beta for n in nodes])
    step = np.diff(ln_beta)
    if len(step) == 0 or len(step) % 4 or not np.allclose(step, step[0]) or step[0] <= 0:
        raise ValueError(
            f"expected rising, evenly spaced ln beta, a multiple of 4 intervals; got {ln_beta}"
        )
    beta, h = np.exp(ln_beta), float(step[0])
    lowest = min(float(n.chi2.min()) for n in nodes)
    mean = np.array([n.chi2.mean() - lowest for n in nodes])
    weight = h * calc_quadrature_weights(len(nodes)) * beta
    coarse = 2 * h * calc_quadrature_weights(len(nodes[::2])) * beta[::2]
    value = float(weight @ mean)
    sampling = float(((weight * [n.error for n in nodes]) ** 2).sum() ** 0.5)
    exact = lowest * (beta[-1] - beta[0])
    quadrature = abs(value - float(coarse @ mean[::2])) / 15
    return Integral(-0.5 * (value + exact), 0.5 * sampling, 0.5 * quadrature)


def calc_quadrature_weights(n: int) -> Array:
    """Of n evenly spaced nodes, for step 1: Gregory's rule from 6 on, else Simpson's (odd n).

    Press et al. 2007, Numerical Recipes, eqs. 4.1.13 and 4.1.14.
    """
    if n >= 6:
        ends = np.array([3 / 8, 7 / 6, 23 / 24])
        weights = np.ones(n)
        weights[:3] -= 1 - ends
        weights[-3:] -= 1 - ends[::-1]
        return weights
    weights = np.where(np.arange(n) % 2, 4.0, 2.0)
    weights[[0, -1]] = 1.0
    return weights / 3


class Importance(NamedTuple):
    """ln of a mean weight, its error, and the effective number of draws."""

    value: float
    error: float
    effective: float


def calc_importance(log_weight: Array) -> Importance:
    """From ln weights [sample] of independent draws."""
    top = float(log_weight.max())
    weight = np.exp(log_weight - top)
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    error = max(1 / effective - 1 / len(weight), 0.0) ** 0.5
    return Importance(top + math.log(weight.mean()), error, effective)


class Misfit:
    """chi² of model spectra [sample, wave], calibration coefficients integrated out.

    With whitened residuals r and columns R of the calibration, chi²(c) = |r - R c|², c ~ N(0, 1).
    """

    def __init__(self, problem: Problem, flux: Tensor) -> None:
        wave, order = problem.model.wave_obs, problem.calibration_order
        rows = torch.zeros(0, len(wave), dtype=flux.dtype)
        if order:
            rows = torch.from_numpy(calc_calibration_rows(wave, (wave[0], wave[-1]), order))
        root = problem.ivar.sqrt()
        residual, model = (problem.flux - flux) * root, problem.calibration_rms * flux * root
        self._square = (residual**2).sum(1)
        self._cross = (residual * model) @ rows.T
        pairs = (rows[:, None] * rows[None]).flatten(0, 1)
        self._inner = (model**2 @ pairs.T).view(len(flux), order, order)

    def _factor(self, beta: float) -> Tensor:
        """Cholesky factor [sample, order, order] of 1 + beta R^T R."""
        eye = torch.eye(self._inner.shape[1], dtype=self._inner.dtype)
        return torch.linalg.cholesky(eye + beta * self._inner)

    def calc_expected(self, beta: float) -> Array:
        """<chi²> [sample] over c given a spectrum, under p_beta."""
        if self._inner.shape[1] == 0:
            return self._square.numpy()
        factor = self._factor(beta)
        mean = beta * torch.cholesky_solve(self._cross[..., None], factor)[..., 0]
        fitted = (self._inner @ mean[..., None])[..., 0]
        chi2 = self._square - 2 * (mean * self._cross).sum(1) + (mean * fitted).sum(1)
        spread = torch.cholesky_solve(self._inner, factor).diagonal(dim1=1, dim2=2).sum(1)
        return (chi2 + spread).numpy()

    def calc_log_likelihood(self, beta: float) -> Array:
        """ln <exp(-beta chi² / 2)> [sample] over p(c); its slope is -<chi²> / 2."""
        if self._inner.shape[1] == 0:
            return (-0.5 * beta * self._square).numpy()
        factor = self._factor(beta)
        seen = torch.linalg.solve_triangular(factor, self._cross[..., None], upper=False)[..., 0]
        gain = beta**2 * (seen**2).sum(1)
        log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return (0.5 * (gain - beta * self._square - log_det)).numpy()


def place_nodes(ln_start: float) -> list[float]:
    """ln beta from `ln_start` to 0, evenly spaced, a multiple of 4 intervals."""
    n = 4 * max(math.ceil(-ln_start / (4 * MAX_STEP)), 1)
    return np.linspace(ln_start, 0.0, n + 1).tolist()


class Likelihood(Protocol):
    """Of draws of a prior."""

    def calc_log_likelihood(self, beta: float) -> Array:
        """ln of the tempered likelihood [sample]."""


def find_start(misfit: Likelihood, effective: float) -> float:
    """The largest ln beta <= -0.1 at which so many draws of the prior count; by bisection."""
    low, high = -60.0, -0.1
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        found = calc_importance(misfit.calc_log_likelihood(math.exp(middle))).effective
        low, high = (middle, high) if found >= effective else (low, middle)
    return low
