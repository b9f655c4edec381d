"""Gauss-Newton steps for many chains at once, each to its own optimum."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sfhzoo.likelihood.compression import CompressedLikelihood

STEP_LIMIT = 1.5
"""Largest change of one coordinate per iteration, in prior standard deviations."""
MIN_DAMPING = 1e-3
TOLERANCE = 0.01
"""In units of chi². The path of a step bends downwards in log SFR: what is left over drags the
unconstrained bins down, a little in every sweep (0.5 moved them by 0.1 in ten)."""


class Likelihood(Protocol):
    """Whitened data y [component] and model S with chi² = |y - S|² + constant."""

    y: Tensor

    def predict(self, state: Tensor) -> Tensor:
        """S [chain, component]."""

    def linearise(self, state: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """J r [chain, n_state] and J J^T [chain, n_state, n_state], J = dS/dstate.

        J J^T may be [1, n_state, n_state] where it is the same everywhere.
        """

    def move(self, state: Tensor, step: Tensor) -> Tensor:
        """States `step` away, to first order state + step, on a path along which S is straight."""


class CurvedLikelihood:
    """A compressed likelihood with calibration errors in its noise; states are (x, u).

    With noise N = f² + R R^T (1 for bands) and its Cholesky factor L, data and S are multiplied
    by L^-1.

    Parameters
    ----------
    of : its `columns`, times their standard deviation, are R
    calibration_rms : that standard deviation
    scale : factor f on the errors
    """

    def __init__(self, of: CompressedLikelihood, calibration_rms: float, scale: float) -> None:
        self.scale, self.columns = scale, calibration_rms * of.columns
        seen = of.basis @ self.columns
        noise = torch.diag(of.per_component(self.scale**2)) + seen @ seen.T
        transform = torch.linalg.inv(torch.linalg.cholesky(noise))
        self.full, self._of = of, of.marginal(transform)
        self.y = transform @ of.y

    def calc_ratio(self, state: Tensor) -> Tensor:
        """chi² per pixel [chain], calibration errors marginalised: about 1 if f is right."""
        # L mixes no band with the spectrum
        spectrum = ~self.full.in_bands
        chi2 = ((self.y - self.predict(state))[:, spectrum] ** 2).sum(1)
        return (chi2 + self.full.outside / self.scale**2) / len(self.full.ivar)

    def predict(self, state: Tensor) -> Tensor:
        """S [chain, component]."""
        return self._of.predict(state)

    def linearise(self, state: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """J r [chain, n_state] and J J^T [chain, n_state, n_state]."""
        return self._of.linearise(state, residual)

    def move(self, state: Tensor, step: Tensor) -> Tensor:
        """As the compressed likelihood's."""
        return self._of.move(state, step)


class Optimum(NamedTuple):
    """`state` [chain, n_state]; per chain its cost and damping, which were still gaining, and what
    the last step that gained did."""

    state: Tensor
    cost: Tensor
    damping: Tensor
    unfinished: Tensor
    gain: Tensor
    iterations: int


def optimise(
    likelihood: Likelihood,
    initial: Tensor,
    anchor: Tensor,
    precision: Tensor,
    target: Tensor,
    free: Tensor,
    iterations: int,
    damping: Tensor | None = None,
    tolerance: float = TOLERANCE,
) -> Optimum:
    """Levenberg-Marquardt on |target - S(m)|² + (m - anchor)^T P (m - anchor) for every chain.

    Parameters
    ----------
    initial, anchor : [chain, n_state]
    precision : P [n_state, n_state], or its diagonal [n_state]
    target : [chain, component]
    free : indices of the coordinates that move
    damping : to start with [chain]
    tolerance : a chain is done when a step gains what was predicted up to this
    """
    p = precision[free] if precision.ndim == 1 else precision[free][:, free]
    m, every = initial.clone(), len(free) == initial.shape[1]

    def weigh(offset: Tensor) -> Tensor:
        return offset * p if p.ndim == 1 else offset @ p

    def cost_of(state: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        residual = target[k] - likelihood.predict(state)
        offset = (state - anchor[k])[:, free]
        return (residual**2).sum(1) + (weigh(offset) * offset).sum(1), residual

    damping = (
        torch.full((len(m),), MIN_DAMPING, dtype=m.dtype) if damping is None else damping.clone()
    )
    cost, residual = cost_of(m, torch.arange(len(m)))
    active, last_gain = torch.ones(len(m), dtype=torch.bool), torch.zeros_like(cost)
    n_done = 0
    while n_done < iterations:
        k = active.nonzero()[:, 0]
        if len(k) == 0:
            break
        n_done += 1
        gradient, inner = likelihood.linearise(m[k], residual[k])
        gradient = gradient[:, free] - weigh((m[k] - anchor[k])[:, free])
        inner = inner if every else inner[:, free][:, :, free]
        step = torch.zeros_like(m[k])
        step[:, free] = _solve(inner, p, gradient, damping[k])
        predicted = (step[:, free] * gradient).sum(1)
        trial = likelihood.move(m[k], step)
        new_cost, new_residual = cost_of(trial, k)
        gain = cost[k] - new_cost
        better = gain > 0
        moved = k[better]
        m[moved], residual[moved] = trial[better], new_residual[better]
        cost[moved], last_gain[moved] = new_cost[better], gain[better]
        damping[k] = (damping[k] * torch.where(better, 0.1, 8.0)).clamp(MIN_DAMPING, 1e8)
        # a full step on a straight S gains what its gradient predicts and leaves nothing to gain
        active[k] = (~better & (damping[k] < 1e7)) | ((gain - predicted).abs() > tolerance)
    return Optimum(m, cost, damping, active, last_gain, n_done)


def _solve(inner: Tensor, p: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """(J J^T + (1 + damping) P)^-1 g [chain, n], bounded; 0 where rounding leaves it indefinite.

    Damping by the diagonal of J J^T, as is usual, would hold the soft directions, which no
    coordinate axis follows.
    """
    shared = len(inner) == 1
    damping = damping.max()[None] if shared else damping
    if p.ndim == 1:
        hessian = inner.clone()
        hessian.diagonal(dim1=1, dim2=2).add_((1 + damping[:, None]) * p)
    else:
        hessian = inner + (1 + damping[:, None, None]) * p
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if shared:
        step = torch.cholesky_solve(gradient.T, factor[0]).T
    else:
        step = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    step = torch.where((failed[:, None] > 0) | ~torch.isfinite(step), 0.0, step)
    return step * (STEP_LIMIT / step.abs().amax(1).clamp(min=STEP_LIMIT))[:, None]


def is_settled(cost: Tensor) -> Tensor:
    """Which chains [chain] ended near the others' objective; the rest are stuck elsewhere."""
    middle = cost.median()
    spread = 1.4826 * (cost - middle).abs().median() + 1.0
    return (cost < middle + 8 * spread) & torch.isfinite(cost)
