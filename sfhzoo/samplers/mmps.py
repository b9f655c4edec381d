"""Moment matching posterior sampling (MMPS): guidance with the denoiser's own covariance.

Rozet et al. 2024 (arXiv:2405.13712); Boys et al. 2023 (arXiv:2310.06721, TMPD). Given x_t the
history is taken to be Gaussian with the denoiser's mean and covariance (Tweedie),

    p(x | x_t) ~ N(x_hat, V),   x_hat = D(x_t),   V = sigma_t² dD/dx_t

so that with S linearised (Jacobian A) and unit noise the posterior mean of x given x_t and y is

    x_y = x_hat + V A^T (1 + A V A^T)^-1 (y - S(x_hat)) = x_hat + (1 + V A^T A)^-1 V A^T r

and the reverse diffusion runs with x_y in place of x_hat. Exact for a Gaussian prior and linear S.
A_V, sigma_v and the velocity offset join x as coordinates u with prior N(0, 1) that are not
diffused: their block of V is 1. Calibration errors are part of the noise.

Approximated here: p(x | x_t) as a Gaussian; S, linearised at x_y itself (an iterated Kalman update
from the previous step's, as the logarithmic SFR is far from linear over V at large sigma_t). The
covariance is the full Jacobian where the paper solves with vector products: 128 numbers each way
are few, and the data too sharp for a few conjugate gradients. The last step draws x and u from
N(x_hat, sigma_end²) N(0, 1) L(y | x, u) by `gauss_newton.optimise`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfhzoo.errors import SamplingError
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.direct import Setup, clip_scale, finish
from sfhzoo.samplers.gauss_newton import STEP_LIMIT, CurvedLikelihood, Likelihood, optimise
from sfhzoo.samplers.reverse import draw_denoised

LAST_ITERATIONS = 20
PILOTS, PILOT_CHAINS, PILOT_STEPS, PILOT_END = 3, 8, 12, 0.1
SETTLED = 1e-3
UPDATES = 3
"""At most, per step. S is straight along a step, x is not: one alone drags empty bins down."""


class Moments(Protocol):
    """Mean [chain, d] and covariance [chain, d, d] of x given x_t at noise level sigma_t."""

    def __call__(self, x: Tensor, sigma_t: float) -> tuple[Tensor, Tensor]: ...


class NetworkMoments:
    """Moments of a prior's network, by forward-mode differentiation."""

    def __init__(self, prior: Prior) -> None:
        self.prior = prior

    def __call__(self, x: Tensor, sigma_t: float) -> tuple[Tensor, Tensor]:
        """V is symmetrised: a learned denoiser is no exact gradient."""
        prior, d = self.prior, x.shape[1]
        prior.nfe += 1 + d
        t = prior.schedule.time_of(torch.tensor([sigma_t], device=prior.device))

        def denoise(one: Tensor) -> tuple[Tensor, Tensor]:
            f = prior.network(t, one.view(1, *prior.shape)).flatten()
            x_hat = one + sigma_t * f
            return x_hat, x_hat

        jacobian = torch.func.vmap(torch.func.jacfwd(denoise, has_aux=True), chunk_size=25)
        with torch.no_grad():
            slope, x_hat = jacobian(x.float().to(prior.device))
        covariance = sigma_t**2 * slope.cpu().double()
        return x_hat.cpu().double(), 0.5 * (covariance + covariance.transpose(1, 2))


def draw_guided(
    moments: Moments,
    likelihood: Likelihood,
    initial: Tensor,
    free: Tensor,
    d: int,
    levels: tuple[float, float],
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Posterior states (x, u) [chain, n_state] at smoothing sigma_end.

    Parameters
    ----------
    initial : where S is linearised first, and the fixed coordinates' values [chain, n_state]
    free : [n_state] bool
    d : coordinates of x; the rest are u
    levels : sigma_max, sigma_end
    """
    state, (top, end) = initial, levels
    normal = lambda *s: torch.randn(s, generator=generator, dtype=torch.float64)  # noqa: E731

    def guided(x: Tensor, sigma_t: float) -> Tensor:
        nonlocal state
        if not torch.isfinite(x).all():
            raise SamplingError(f"mmps left the finite numbers at sigma_t = {sigma_t:.3g}")
        x_hat, covariance = moments(x, sigma_t)
        for _ in range(UPDATES):
            before, state = state, _update(likelihood, state, x_hat, covariance, free)
            if float((state - before).abs().max()) < SETTLED:
                break
        return state[:, :d]

    x = draw_denoised(guided, top * normal(len(state), d), top, end, generator, steps)
    x_hat, _ = moments(x, end)
    precision = torch.ones(state.shape[1], dtype=torch.float64)
    precision[:d] = end**-2
    anchor = normal(*state.shape) * precision.rsqrt()
    anchor[:, :d] += x_hat
    anchor = torch.where(free, anchor, state)
    target = likelihood.y + normal(len(state), len(likelihood.y))
    return optimise(
        likelihood, state, anchor, precision, target, free.nonzero()[:, 0], LAST_ITERATIONS
    ).state


def _update(
    likelihood: Likelihood, at: Tensor, x_hat: Tensor, covariance: Tensor, free: Tensor
) -> Tensor:
    """States (x_y, u_y), S linearised at states `at`."""
    n, d = x_hat.shape
    v = torch.zeros(n, len(free), len(free), dtype=at.dtype)
    v[:, :d, :d] = covariance
    v[:, range(d, len(free)), range(d, len(free))] = free[d:].to(at)
    gradient, inner = likelihood.linearise(at, likelihood.y - likelihood.predict(at))
    offset = torch.cat([x_hat, torch.where(free[d:], 0.0, at[:, d:])], dim=1) - at
    # A^T (y - S(at) - A (x_hat - at))
    right = gradient[..., None] - inner @ offset[..., None]
    moved = torch.linalg.solve(torch.eye(len(free), dtype=at.dtype) + v @ inner, v @ right)
    step = offset + moved[..., 0]
    largest = step.abs().amax(1).clamp(min=STEP_LIMIT)
    return likelihood.move(at, step * (STEP_LIMIT / largest)[:, None])


def build_scaled(setup: Setup, prior: Prior, generator: torch.Generator) -> CurvedLikelihood:
    """The likelihood to begin with, the factor on its errors such that a few draws have chi² 1.

    Noise is not all that keeps a spectrum from its model: with errors of the noise alone the
    posterior of a real galaxy would be too narrow.
    """
    likelihood = setup.build(setup.spread(), generator)
    if not setup.problem.fit_error_scale or setup.centre is None:
        return likelihood
    for _ in range(PILOTS):
        state = draw_guided(
            NetworkMoments(prior), likelihood, setup.initial(PILOT_CHAINS), setup.free, setup.d,
            (prior.schedule.sigma_max, PILOT_END), PILOT_STEPS, generator,
        )  # fmt: skip
        ratio = float(likelihood.calc_ratio(state).median())
        if abs(ratio - 1) < 0.1:
            break
        scale = clip_scale(likelihood.scale * ratio**0.5)
        likelihood = setup.curve(likelihood.full, scale)
    return likelihood


@dataclass
class MmpsSampler:
    """Posterior samples by moment matching.

    Parameters
    ----------
    prior : its denoiser and the denoiser's Jacobian are used
    steps : of the reverse diffusion
    sigma_end : noise level of the last step, in units of x
    batch : samples per pass
    """

    prior: Prior
    steps: int = 24
    sigma_end: float = 0.05
    batch: int = 100
    progress: bool = False

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n samples; SamplingError when they do not reach the data."""
        from tqdm import tqdm

        start_nfe, setup = self.prior.nfe, Setup.of(problem)
        likelihood = build_scaled(setup, self.prior, generator)
        sizes = [min(self.batch, n - i) for i in range(0, n, self.batch)]
        bar = tqdm(sizes, desc="mmps", disable=not self.progress)
        parts = [
            draw_guided(
                NetworkMoments(self.prior), likelihood, setup.initial(b), setup.free, setup.d,
                (self.prior.schedule.sigma_max, self.sigma_end), self.steps, generator,
            )
            for b in bar
        ]  # fmt: skip
        facts = {"steps": self.steps, "sigma_end": self.sigma_end}
        nfe = self.prior.nfe - start_nfe
        return finish(setup, [(likelihood, p) for p in parts], facts, nfe, generator)
