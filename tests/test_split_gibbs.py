"""Split Gibbs where the answer is known: Gaussian priors, linear models, no data.

An untrained `SpectralMLP` is the exact denoiser of N(0, 1), so a sampler with it must return the
posterior under a standard normal prior.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from galaxies import (
    calc_exact_flux,
    make_likelihood,
    make_normal_prior,
    make_observation,
    make_scaling,
    make_states,
)
from scipy.stats import kstest

from sfhzoo.errors import SamplingError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Problem
from sfhzoo.samplers.direct import calc_noise_scale
from sfhzoo.samplers.gauss_newton import CurvedLikelihood, optimise
from sfhzoo.samplers.mmps import draw_guided
from sfhzoo.samplers.reverse import draw_denoised
from sfhzoo.samplers.split_gibbs import (
    INNER,
    SOLVER_STEPS,
    SplitGibbsSampler,
    calc_levels,
    calc_memory,
    replace_stuck,
    start_chains,
    sweep,
)


class Linear(NamedTuple):
    """S = A m; A [component, state]."""

    a: torch.Tensor
    y: torch.Tensor

    def predict(self, state):
        return state @ self.a.T

    def linearise(self, state, residual):
        return residual @ self.a, (self.a.T @ self.a).repeat(len(state), 1, 1)

    def move(self, state, step):
        return state + step


class Gaussian(NamedTuple):
    """The exact denoiser of N(0, C), C = axes diag(variance) axes^T."""

    axes: torch.Tensor
    variance: torch.Tensor

    def __call__(self, x, sigma_t):
        return (x @ self.axes * (self.variance / (self.variance + sigma_t**2))) @ self.axes.T

    @property
    def covariance(self):
        return (self.axes * self.variance) @ self.axes.T

    def draw(self, n, generator):
        z = torch.randn((n, len(self.variance)), generator=generator, dtype=torch.float64)
        return (z * self.variance.sqrt()) @ self.axes.T


def make_gaussian(d, seed=0, widest=0.8, narrowest=-2.4):
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn((d, d), generator=g, dtype=torch.float64))[0]
    return Gaussian(axes, torch.logspace(widest, narrowest, d, dtype=torch.float64))


# ---- the prior's step ---------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.01, 0.1, 0.3, 1.0, 2.0, 5.0])
def test_the_reverse_diffusion_draws_from_the_conditional_of_a_gaussian(std):
    """z at eps given x at rho: slope (s² + eps²) / (s² + rho²), variance by the same."""
    rho, n = 1.0, 200_000
    g = torch.Generator().manual_seed(0)
    epsilon = INNER * rho
    x = 1.7 * torch.ones(n, 1, dtype=torch.float64)
    z = draw_denoised(Gaussian(torch.eye(1).double(), torch.tensor([std**2]).double()),
                      x, rho, epsilon, g, SOLVER_STEPS)  # fmt: skip
    slope = (std**2 + epsilon**2) / (std**2 + rho**2)
    variance = (std**2 + epsilon**2) * (1 - slope)
    assert float(z.mean()) == pytest.approx(1.7 * slope, abs=5 * (variance / n) ** 0.5)
    assert float(z.var()) == pytest.approx(variance, rel=0.05)
    # what the next sweep inherits: the spread of z over all x
    total = slope**2 * (std**2 + rho**2) + float(z.var())
    assert total == pytest.approx(std**2 + epsilon**2, rel=0.02)


def test_levels_fall_and_stay():
    levels = calc_levels(50, 0.5, 0.05)
    assert len(levels) == 50 and levels[0] == pytest.approx(0.5)
    assert levels[-10:] == [0.05] * 10 and np.all(np.diff(levels) <= 0)


# ---- the chain ----------------------------------------------------------------------------------


def run_chain(prior, likelihood, start, levels, generator):
    d = start.shape[1]
    free = torch.ones(d, dtype=torch.bool)
    chains = start_chains(start, d, 0.0, levels[0], generator)
    for rho in levels:
        chains = sweep(prior, likelihood, chains, rho, free, generator)
    return chains.state


def start_guided(prior, likelihood, n, generator):
    """Draws of the guided diffusion, which is exact for a Gaussian prior."""
    d = len(prior.variance)

    def moments(x, sigma_t):
        inner = prior.variance * sigma_t**2 / (prior.variance + sigma_t**2)
        return prior(x, sigma_t), ((prior.axes * inner) @ prior.axes.T).expand(len(x), -1, -1)

    free = torch.ones(d, dtype=torch.bool)
    zero = torch.zeros(n, d, dtype=torch.float64)
    return draw_guided(moments, likelihood, zero, free, d, (20.0, 0.02), 40, generator)


def test_without_data_the_prior_stays():
    """p_rho in, p_rho_min out: neither sweep nor start may move a prior draw's distribution."""
    d, n, g = 10, 20_000, torch.Generator().manual_seed(1)
    prior = make_gaussian(d)
    nothing = Linear(torch.zeros(1, d).double(), torch.zeros(1).double())
    x = run_chain(prior, nothing, prior.draw(n, g), calc_levels(25, 0.5, 0.05), g)
    std = (x @ prior.axes).std(0)
    expected = (prior.variance + 0.05**2).sqrt()
    np.testing.assert_allclose(std, expected, rtol=0.04)
    assert float(((x @ prior.axes).mean(0) / expected).abs().max()) < 5 / n**0.5


def test_a_linear_model_and_a_gaussian_prior_give_the_analytic_posterior():
    """Directions known to 1e-3 of their prior width, and ones the data do not see."""
    d, n, g = 6, 3000, torch.Generator().manual_seed(2)
    prior = make_gaussian(d, widest=0.6, narrowest=-0.8)
    normal = lambda *s: torch.randn(s, generator=g, dtype=torch.float64)  # noqa: E731
    a = torch.linalg.qr(normal(d, d))[0][:4] * torch.logspace(3, -0.5, 4)[:, None].double()
    y = a @ prior.draw(1, g)[0] + normal(4)
    model = Linear(a, y)
    start = start_guided(prior, model, n, g)
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariance) + a.T @ a)
    mean = covariance @ a.T @ y
    values, axes = torch.linalg.eigh(covariance)
    assert float(values[0]) < 2e-6
    # the start has it already, and must not be spoilt
    for x in (start, run_chain(prior, model, start, calc_levels(30, 0.1, 0.02), g)):
        white = ((x - mean) @ axes) / values.sqrt()
        np.testing.assert_allclose(white.mean(0), 0.0, atol=0.08)
        np.testing.assert_allclose(white.std(0), 1.0, rtol=0.06)


def test_a_wrong_start_is_forgotten():
    d, n, g = 4, 4000, torch.Generator().manual_seed(3)
    prior = Gaussian(torch.eye(d).double(), torch.full((d,), 1.0).double())
    nothing = Linear(torch.zeros(1, d).double(), torch.zeros(1).double())
    x = run_chain(prior, nothing, prior.draw(n, g) + 3.0, calc_levels(60, 1.5, 0.2), g)
    assert float(x.mean(0).abs().max()) < 0.1


def test_memory_and_drift_tell_a_chain_that_moves_from_one_that_does_not():
    g = torch.Generator().manual_seed(4)
    fresh = torch.randn(3, 4000, 2, generator=g)
    memory, drift = calc_memory(fresh)
    assert memory < 0.06 and drift < 0.1
    stuck = fresh[:1].repeat(3, 1, 1)
    assert calc_memory(stuck)[0] == pytest.approx(1.0, abs=1e-3)
    stuck[2] += 2.0
    assert calc_memory(stuck)[1] == pytest.approx(2.0, rel=0.05)


# ---- the curved likelihood ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def curved():
    """(likelihood, states [5, 131], error): with a calibration polynomial of three orders."""
    model, _, flux, error, y = make_observation(snr=50.0)
    of = make_likelihood(model, y, error).calibrated(flux, 3)
    states = make_states(5, 21, (0.3, 0.5), (130.0, 170.0), (0.0, 40.0))
    return CurvedLikelihood(of, 0.02, calc_noise_scale(of)), states


def test_the_jacobian_is_exact_at_every_states_own_dust(curved):
    likelihood, states = curved
    r = torch.randn(len(states), len(likelihood.y), generator=torch.Generator().manual_seed(5))
    r = r.double()
    gradient, hessian = likelihood.linearise(states, r)
    g = torch.Generator().manual_seed(6)
    for _ in range(3):
        step = torch.randn(states.shape, generator=g, dtype=torch.float64)
        h = 1e-6
        ahead, behind = (likelihood.predict(states + s * step) for s in (h, -h))
        change = (ahead - behind) / (2 * h)
        np.testing.assert_allclose((change * r).sum(1), (gradient * step).sum(1), rtol=1e-4)
        square = torch.einsum("ni,nij,nj->n", step, hessian, step)
        np.testing.assert_allclose((change**2).sum(1), square, rtol=1e-4)


def test_a_move_keeps_the_spectrum_straight_where_a_plain_step_bends_it(curved):
    likelihood, states = curved
    step = torch.zeros_like(states)
    step[:, :64] = 0.05 * torch.randn(5, 64, generator=torch.Generator().manual_seed(7))
    h = 1e-6
    slope = (likelihood.predict(states + h * step) - likelihood.predict(states)) / h
    goal = likelihood.predict(states) + slope
    miss = lambda s: ((likelihood.predict(s) - goal) ** 2).sum(1)  # noqa: E731
    bent, straight = miss(states + step), miss(likelihood.move(states, step))
    assert float(bent.min()) > 3.0
    assert float(straight.max()) < 1e-2
    tiny = likelihood.move(states, 1e-5 * step) - states
    torch.testing.assert_close(tiny, 1e-5 * step, rtol=1e-3, atol=1e-8)


def test_calibration_errors_and_error_scale_are_in_the_noise(curved):
    """A data change by one standard deviation of the polynomial costs a chi² below 1."""
    likelihood, _ = curved
    assert likelihood.scale == pytest.approx(1.0, abs=0.08)
    of = likelihood.full
    pattern = 0.02 * of.calibration[0]
    noise = likelihood.scale**2 * torch.eye(of.rank) + 0.02**2 * of.calibration.T @ of.calibration
    assert float((pattern**2).sum()) > 100
    assert 0.9 < float(pattern @ torch.linalg.solve(noise, pattern)) < 1.0
    # chi² of a zero model, seen through the likelihood's own whitening
    torch.testing.assert_close((likelihood.y**2).sum(), of.y @ torch.linalg.solve(noise, of.y))


def test_the_optimum_of_a_linear_model_is_found_in_one_step():
    g = torch.Generator().manual_seed(8)
    normal = lambda *s: torch.randn(s, generator=g, dtype=torch.float64)  # noqa: E731
    a, anchor, target = 30 * normal(8, 5), normal(3, 5), normal(3, 8)
    model = Linear(a, target[0])
    o = optimise(model, anchor, anchor, torch.eye(5).double(), target, torch.arange(5), 3)
    best = torch.linalg.solve(a.T @ a + torch.eye(5), (target @ a + anchor).T).T
    torch.testing.assert_close(o.state, best, atol=1e-3, rtol=1e-3)
    assert not bool(o.unfinished.any())


# ---- the sampler --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def normal_prior():
    """A prior that is N(0, 1) in every coordinate, exactly."""
    return make_normal_prior()


def make_problem(**choices):
    model, _, _, error, y = make_observation(snr=30.0)
    return Problem(model, y, error**-2, make_scaling(), **choices)


@pytest.mark.slow
def test_the_samples_reach_the_data_and_keep_fixed_values(normal_prior):
    problem = make_problem(a_v=0.4, calibration_order=2)
    draws = SplitGibbsSampler(normal_prior, sweeps=15, start_steps=12).sample(
        problem, 24, torch.Generator().manual_seed(9)
    )
    assert draws.state.shape == (24, 133)
    assert draws.nfe > 15 * 6 + 13 * 129
    per_pixel = np.median(draws.stats["chi2"]) / len(problem.flux)
    assert 0.8 < per_pixel < 1.2
    physical = nuisance.to_physical(draws.state[:, 128:131])
    torch.testing.assert_close(physical.a_v, torch.full_like(physical.a_v, 0.4))
    assert float(physical.sigma_v.std()) > 0.1
    torch.testing.assert_close(draws.flux, calc_exact_flux(draws.state[:, :131], problem.model))
    assert set(draws.facts) >= {"memory", "drift", "unfinished", "chi2_over_noise", "replaced"}


@pytest.mark.slow
def test_errors_that_are_too_small_are_scaled_up(normal_prior):
    """Errors of half their size: the draws' factor is 2, and so are the widths."""
    problem = make_problem()
    small = replace(problem, ivar=4 * problem.ivar)
    sampler = SplitGibbsSampler(normal_prior, sweeps=5, start_steps=10)
    draws = sampler.sample(small, 12, torch.Generator().manual_seed(12))
    assert draws.facts["used_error_scale"] == pytest.approx(2.0, rel=0.08)
    assert float(draws.error_scale.median()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.slow
def test_without_data_the_sampler_returns_the_prior(normal_prior):
    problem = make_problem()
    blind = replace(problem, ivar=torch.zeros_like(problem.ivar), fit_error_scale=False)
    draws = SplitGibbsSampler(normal_prior, sweeps=10).sample(
        blind, 100, torch.Generator().manual_seed(10)
    )
    x = draws.state[:, :128].numpy() / (1 + 0.06**2) ** 0.5
    # every coordinate counts as one draw: 12 800 of them; steps that stop too early show here
    assert kstest(x.ravel(), "norm").statistic < 0.02
    assert x.mean(1).std() == pytest.approx(128**-0.5, rel=0.25)
    assert kstest(draws.state[:, 128:].numpy().ravel(), "norm").statistic < 0.1


def test_chains_that_are_stuck_are_replaced_and_too_many_are_an_error():
    n, g = 20, torch.Generator().manual_seed(11)
    state = torch.arange(float(n))[:, None].repeat(1, 2)
    chi2 = 100 + torch.arange(float(n)).double()
    chi2[3] = 1e6
    mended, count = replace_stuck(state, chi2, g)
    assert count == 1 and float(mended[3, 0]) != 3.0
    kept = [i for i in range(n) if i != 3]
    torch.testing.assert_close(mended[kept], state[kept])
    with pytest.raises(SamplingError, match="reached the data"):
        replace_stuck(state, torch.full((n,), torch.nan), g)
