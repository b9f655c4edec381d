"""Split Gibbs with a diffusion prior (PnP-DM): needs the prior's score and the likelihood only.

Wu et al. 2024 (arXiv:2405.18782); split Gibbs: Vono, Dobigeon & Chainais 2019 (arXiv:1804.05809).
The posterior under the prior smoothed by rho, p_rho = p * N(0, rho²), is the marginal in x of

    L(y | x, u) N(u; 0, 1) N(x; z, rho² - eps²) p_eps(z),      eps = `INNER` rho

because p_eps * N(0, rho² - eps²) = p_rho. In turn

    z ~ p(z | x)      a stochastic reverse diffusion from noise level rho to eps
    x, u ~ L(y | x, u) N(u; 0, 1) N(x; z, rho² - eps²)      randomise, then optimise

with rho falling to rho_min: the x satisfy the data, and their prior is smoothed by rho_min.
A direction of posterior width w moves by rho per sweep and forgets in (w / rho)² sweeps, more than
there is time for in the widest ones. So the chains start near the posterior, at draws of `mmps`,
and the sweeps correct what was taken for Gaussian there. How much of the start is left in the
result is in the facts (`memory`).

*Randomise, then optimise* (Bardsley et al. 2014, SIAM J. Sci. Comput. 36, A1895): with perturbed
data y + n and anchor a = z + noise the minimum of |y + n - S|² + |x - a|² / (rho² - eps²) is a
draw where S is linear, and approximately elsewhere; the approximation is the better the smaller
rho. Without data both steps leave the prior as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfhzoo.errors import SamplingError
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.direct import Setup, clip_scale, finish
from sfhzoo.samplers.gauss_newton import (
    MIN_DAMPING,
    CurvedLikelihood,
    Likelihood,
    is_settled,
    optimise,
)
from sfhzoo.samplers.mmps import NetworkMoments, build_scaled, draw_guided
from sfhzoo.samplers.reverse import Denoiser, draw_denoised

INNER = 0.4
"""eps / rho"""
SOLVER_STEPS = 6
"""Network calls per sweep: the variance of z | x is then right within 3 to 5 %."""
SWEEP_ITERATIONS = 6
PRIOR_STEPS = 40
MAX_DAMPING = 10.0
MAX_DRIFT = 0.5
CHUNK = 128


def calc_levels(n: int, start: float, stop: float) -> list[float]:
    """n noise levels rho, in equal ratios; the last fifth stays at `stop`."""
    n_hold = n // 5
    falling = torch.linspace(0, 1, max(n - n_hold, 1), dtype=torch.float64)
    return [*(start * (stop / start) ** falling).tolist(), *([stop] * n_hold)]


class Chains(NamedTuple):
    """Split-Gibbs chains between sweeps.

    state : (x, u) [chain, n_state]; z : [chain, d] at noise level epsilon
    damping, cost, unfinished : of the last optimisation [chain]
    """

    state: Tensor
    z: Tensor
    epsilon: float
    damping: Tensor
    cost: Tensor
    unfinished: Tensor


def start_chains(
    state: Tensor, d: int, smoothed: float, rho: float, generator: torch.Generator
) -> Chains:
    """Chains at states (x, u) [chain, n_state] whose x [chain, d] has noise level `smoothed`."""
    epsilon = INNER * rho
    more = max(epsilon**2 - smoothed**2, 0.0) ** 0.5
    x = state[:, :d]
    z = x + more * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    zero = torch.zeros(len(state), dtype=state.dtype)
    return Chains(state, z, epsilon, zero + MIN_DAMPING, zero, zero > 0)


def sweep(
    denoise: Denoiser,
    likelihood: Likelihood,
    chains: Chains,
    rho: float,
    free: Tensor,
    generator: torch.Generator,
) -> Chains:
    """x and u given z, then z given x, at smoothing rho; `free` [n_state] bool."""
    state, z = chains.state, chains.z
    d = z.shape[1]
    precision = torch.ones(state.shape[1], dtype=state.dtype)
    precision[:d] = 1 / (rho**2 - chains.epsilon**2)
    anchor = torch.randn(state.shape, generator=generator, dtype=state.dtype) * precision.rsqrt()
    anchor[:, :d] += z
    shape = (len(state), len(likelihood.y))
    target = likelihood.y + torch.randn(shape, generator=generator, dtype=state.dtype)
    o = optimise(
        likelihood, state, torch.where(free, anchor, state), precision, target,
        free.nonzero()[:, 0], SWEEP_ITERATIONS, chains.damping.clamp(max=MAX_DAMPING),
    )  # fmt: skip
    epsilon = INNER * rho
    z = draw_denoised(denoise, o.state[:, :d], rho, epsilon, generator, SOLVER_STEPS)
    return Chains(o.state, z, epsilon, o.damping, o.cost, o.unfinished)


@dataclass
class SplitGibbsSampler:
    """Posterior samples by split Gibbs (see the module's text).

    Parameters
    ----------
    prior : its score is used
    sweeps : per chain; every sample is the end of a chain of its own
    rho_start, rho_min : smoothing of the prior at the first and last sweep, in units of x
    start_steps : of the guided diffusion that the chains start from
    """

    prior: Prior
    sweeps: int = 50
    rho_start: float = 0.2
    rho_min: float = 0.06
    start_steps: int = 20
    progress: bool = False

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n samples; SamplingError when the chains do not reach the data."""
        start_nfe, setup = self.prior.nfe, Setup.of(problem)
        sizes = [min(CHUNK, n - i) for i in range(0, n, CHUNK)]
        first = build_scaled(setup, self.prior, generator)
        runs = [self._run(setup, first, b, generator) for b in sizes]
        memory, drift = calc_memory(torch.cat([r.seen for r in runs], dim=1))
        unfinished = torch.cat([r.unfinished for r in runs]).double()
        facts = {
            "sweeps": self.sweeps, "rho_start": self.rho_start, "rho_min": self.rho_min,
            "start_steps": self.start_steps, "memory": memory, "drift": drift,
            "replaced": sum(r.n_replaced for r in runs), "unfinished": float(unfinished.mean()),
        }  # fmt: skip
        warnings = []
        if drift > MAX_DRIFT:
            warnings.append(
                f"pnpdm: the chains still drift ({drift:.1f} standard deviations in the last two "
                "fifths): not converged, use more sweeps"
            )
        parts = [(r.likelihood, r.state) for r in runs]
        return finish(setup, parts, facts, self.prior.nfe - start_nfe, generator, warnings)

    def _run(
        self, setup: Setup, likelihood: CurvedLikelihood, n: int, generator: torch.Generator
    ) -> _Run:
        from tqdm import tqdm

        levels = calc_levels(self.sweeps, self.rho_start, self.rho_min)
        state = self._start(setup, likelihood, n, generator)
        state, n_replaced = replace_stuck(
            state, ((likelihood.y - likelihood.predict(state)) ** 2).sum(1), generator
        )
        seen = [_summarise(setup.problem, state)]
        chains = start_chains(state, setup.d, self.rho_min, levels[0], generator)
        rebuild = {0, len(levels) // 2, len(levels) - 1}
        for i, rho in enumerate(tqdm(levels, desc="pnpdm", disable=not self.progress)):
            if i in rebuild:
                likelihood = self._rebuild(setup, likelihood, chains.state, generator)
            chains = sweep(self._denoise, likelihood, chains, rho, setup.free, generator)
            if i == (3 * len(levels)) // 5:
                seen.append(_summarise(setup.problem, chains.state))
        seen.append(_summarise(setup.problem, chains.state))
        if not torch.isfinite(chains.state).all():
            raise SamplingError("pnpdm left the finite numbers")
        return _Run(chains.state, likelihood, chains.unfinished, n_replaced, torch.stack(seen))

    def _start(
        self, setup: Setup, likelihood: CurvedLikelihood, n: int, generator: torch.Generator
    ) -> Tensor:
        """States [chain, n_state] from the guided diffusion; from the prior where nothing guides.

        Draws of the prior cost a network call per step instead of a Jacobian.
        """
        initial = setup.initial(n)
        if not setup.has_data:
            x = self.prior.sample_x(n, generator, PRIOR_STEPS).cpu().double().flatten(1)
            x = x + self.rho_min * torch.randn(x.shape, generator=generator, dtype=x.dtype)
            u = torch.randn((n, initial.shape[1] - setup.d), generator=generator, dtype=x.dtype)
            return torch.where(setup.free, torch.cat([x, u], dim=1), initial)
        ends = (self.prior.schedule.sigma_max, self.rho_min)
        return draw_guided(
            NetworkMoments(self.prior), likelihood, initial, setup.free, setup.d, ends,
            self.start_steps, generator,
        )  # fmt: skip

    @staticmethod
    def _rebuild(
        setup: Setup, before: CurvedLikelihood, state: Tensor, generator: torch.Generator
    ) -> CurvedLikelihood:
        """S about the states' dust and kinematics; the factor on the errors given the states.

        Its conditional posterior is narrow, 1 / sqrt(2 pixels), so all chains share its centre.
        """
        scale = before.scale
        if setup.problem.fit_error_scale and setup.centre is not None:
            scale = clip_scale(scale * float(before.calc_ratio(state).median()) ** 0.5)
        return setup.build(state, generator, scale)

    @torch.no_grad()
    def _denoise(self, x: Tensor, sigma_t: float) -> Tensor:
        level = torch.full((len(x),), sigma_t, device=self.prior.device)
        shaped = x.float().view(-1, *self.prior.shape).to(self.prior.device)
        return self.prior.denoise(shaped, level).cpu().double().flatten(1)


class _Run(NamedTuple):
    """One batch: `seen` [time, chain, summary] at the start, at three fifths and at the end."""

    state: Tensor
    likelihood: CurvedLikelihood
    unfinished: Tensor
    n_replaced: int
    seen: Tensor


def replace_stuck(state: Tensor, chi2: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
    """States [chain, n_state], those far from the data put in the place of others; and how many.

    SamplingError if it is most of them.
    """
    good = is_settled(chi2)
    index = good.nonzero()[:, 0]
    if len(index) < 0.3 * len(chi2):
        raise SamplingError(
            f"pnpdm: only {len(index)} of {len(chi2)} chains reached the data; check redshift, "
            "units and mask"
        )
    source = index[torch.randint(len(index), (len(chi2),), generator=generator)]
    return state[torch.where(good, torch.arange(len(chi2)), source)], int((~good).sum())


def _summarise(problem: Problem, state: Tensor) -> Tensor:
    """log mass, mean bin and mass-weighted logzsol [chain, 3], to judge convergence by."""
    x = state[:, : 2 * problem.n_bins].view(-1, 2, problem.n_bins)
    sfr, logzsol = problem.scaling.from_x(x)
    total = sfr.sum(1).clamp(min=1e-300)
    bins = torch.arange(problem.n_bins, dtype=state.dtype)
    return torch.stack([total.log10(), sfr @ bins / total, (sfr * logzsol).sum(1) / total], 1)


def calc_memory(seen: Tensor) -> tuple[float, float]:
    """(memory, drift) of summaries [time, chain, quantity].

    memory : largest correlation between the chains' first and last values
    drift : largest change of the mean from the middle to the last, in standard deviations
    """
    if seen.shape[1] < 3:
        return float("nan"), float("nan")
    first, last = seen[0] - seen[0].mean(0), seen[2] - seen[2].mean(0)
    std = last.std(0).clamp(min=1e-12)
    memory = (first * last).mean(0) / (first.std(0).clamp(min=1e-12) * std)
    drift = (seen[2].mean(0) - seen[1].mean(0)).abs() / std
    return float(memory.max()), float(drift.max())
