"""Randomise, then optimise: from draws given part of the data to draws given all of it.

*Data fission* (Rasines & Young 2023, Biometrika 110, 597; Leiner et al. 2023, arXiv:2112.11079).
For Gaussian noise, y with precision 1 is split into two independent observations

    y1 = y + sqrt((1 - a) / a) e     precision a
    y2 = y - sqrt(a / (1 - a)) e     precision 1 - a,      e ~ N(0, 1)

so that p(x | y) is p(x | y1) updated with y2, and nothing is used twice. A posterior network draws
x_k from p(x | y1); each draw is moved to

    argmin_m (1 - a) | y2 + eta_k - S(m) |² + (m - x_k)^T C^-1 (m - x_k),   eta ~ N(0, 1 / (1 - a))

with C the covariance of the draws. For a linear S and a Gaussian p(x | y1) the result is a draw
from p(x | y) exactly (Bardsley et al. 2014, SIAM J. Sci. Comput. 36, A1895); otherwise it is an
approximation whose error shrinks with the update's size along curved directions. Directions in
which the network is too wide are set by y2 alone, with 1 - a of the information.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfhzoo.likelihood.compression import CompressedLikelihood

MAX_ITERATIONS = 100
"""A draw near the data needs ten; one from a poor network sixty. Draws that are done drop out."""
STEP_LIMIT = 1.5
"""Largest change of one coordinate per iteration, in prior standard deviations."""


class Split(NamedTuple):
    """Two independent observations of one flux: y1 (precision `fraction`) and y2 (the rest)."""

    first: Tensor
    second: Tensor
    fraction: float


def split_data(flux: Tensor, error: Tensor, fraction: float, generator: torch.Generator) -> Split:
    """Fission of a flux [wave] with errors [wave]; `fraction` of the information goes to y1."""
    noise = torch.randn(flux.shape, generator=generator, dtype=flux.dtype) * error
    if fraction >= 1.0:
        return Split(flux, flux, 1.0)
    ratio = ((1 - fraction) / fraction) ** 0.5
    return Split(flux + ratio * noise, flux - noise / ratio, fraction)


def calc_precision(draws: Tensor, free: Tensor, floor: float = 1e-8) -> Tensor:
    """C^-1 [state, state] of centred draws [sample, state] on the `free` coordinates, 0 elsewhere.

    The inverse of a sample covariance is too large by (n - 1) / (n - d - 2) (Hartlap et al. 2007).
    """
    n, d = len(draws), int(free.sum())
    c = draws[:, free].T @ draws[:, free] / (n - 1)
    c = c + torch.diag(floor + 1e-6 * c.diagonal())
    inverse = torch.linalg.inv(c) * max((n - d - 2) / (n - 1), 0.1)
    precision = torch.zeros(draws.shape[1], draws.shape[1], dtype=draws.dtype)
    precision[free.nonzero(), free.nonzero().T] = inverse
    return precision


class Polished(NamedTuple):
    """`state` [sample, n_state]; `cost` [sample], the objective, and `shift`, its anchor term.

    `unfinished` [sample]: still gaining when the iterations ran out.
    """

    state: Tensor
    cost: Tensor
    shift: Tensor
    iterations: int
    unfinished: Tensor


def join(parts: list[Polished]) -> Polished:
    """Draws moved in parts, as one."""
    return Polished(
        state=torch.cat([p.state for p in parts]),
        cost=torch.cat([p.cost for p in parts]),
        shift=torch.cat([p.shift for p in parts]),
        iterations=max(p.iterations for p in parts),
        unfinished=torch.cat([p.unfinished for p in parts]),
    )


def polish(
    likelihood: CompressedLikelihood,
    start: Tensor,
    target: Tensor,
    precision: Tensor,
    free: Tensor,
    weight: float,
    initial: Tensor | None = None,
    max_iterations: int = MAX_ITERATIONS,
    tolerance: float = 0.1,
) -> Polished:
    """Levenberg-Marquardt from each draw to its own optimum.

    Parameters
    ----------
    start : draws, also the anchors [sample, n_state]
    target : perturbed, compressed data [sample, component]
    precision : C^-1 [n_state, n_state]
    free : [n_state] bool; other coordinates stay
    weight : of the data term, 1 - a
    initial : where to begin, if not at the anchors
    max_iterations, tolerance : a draw is done when a step gains less than `tolerance` in the
        objective, which has the scale of chi²
    """
    index = free.nonzero()[:, 0]
    p = precision[index][:, index]
    m = (start if initial is None else initial).clone()

    def cost_of(state: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        residual = target[k] - likelihood.predict(state)
        offset = (state - start[k])[:, index]
        shift = ((offset @ p) * offset).sum(1)
        return weight * (residual**2).sum(1) + shift, shift, residual

    cost, shift, residual = cost_of(m, torch.arange(len(m)))
    damping = torch.full((len(m),), 1e-2, dtype=m.dtype)
    growth = torch.full_like(damping, 2.0)
    active = torch.ones(len(m), dtype=torch.bool)
    iterations = 0
    while active.any() and iterations < max_iterations:
        iterations += 1
        k = active.nonzero()[:, 0]
        gradient, hessian = likelihood.linearise(m[k], residual[k])
        gradient = weight * gradient[:, index] - (m[k] - start[k])[:, index] @ p
        hessian = weight * hessian[:, index][:, :, index] + p
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        extra = diagonal * damping[k, None]
        diagonal += extra
        factor, failed = torch.linalg.cholesky_ex(hessian)
        step = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        # rounding in J J^T can outweigh C^-1: such a draw waits for more damping
        step = torch.where(failed[:, None] > 0, 0.0, step)
        step = step * (STEP_LIMIT / step.abs().amax(1).clamp(min=STEP_LIMIT))[:, None]
        trial = m[k]
        trial[:, index] += step
        new_cost, new_shift, new_residual = cost_of(trial, k)
        gain = cost[k] - new_cost
        better = gain > 0
        moved = k[better]
        m[moved], residual[moved] = trial[better], new_residual[better]
        cost[moved], shift[moved] = new_cost[better], new_shift[better]
        # Nielsen 1999 (IMM-REP-1999-05): damping follows how well the step was predicted
        ratio = gain / (step * (gradient + extra * step)).sum(1).clamp(min=1e-12)
        softer = (1 - (2 * ratio - 1).clamp(-1, 1) ** 3).clamp(min=0.2)
        damping[k] = (damping[k] * torch.where(better, softer, growth[k])).clamp(1e-9, 1e8)
        growth[k] = torch.where(better, 2.0, growth[k] * 2)
        active[k] = (~better | (gain > tolerance)) & (damping[k] < 1e5)
    return Polished(m, cost, shift, iterations, active)
