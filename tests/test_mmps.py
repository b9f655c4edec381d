"""MMPS where it is exact: the prior N(0, 1) of an untrained `SpectralMLP` and a linear model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from galaxies import calc_exact_flux, make_normal_prior, make_observation, make_scaling
from scipy.stats import kstest

from sfhzoo.errors import SamplingError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Problem
from sfhzoo.samplers import mmps
from sfhzoo.samplers.mmps import MmpsSampler, NetworkMoments, draw_guided

FREE = torch.ones(131, dtype=torch.bool)


class Linear:
    """S = A m; A [component, state]."""

    def __init__(self, a, y):
        self.a, self.y = a, y

    def predict(self, state):
        return state @ self.a.T

    def linearise(self, state, residual):
        return residual @ self.a, (self.a.T @ self.a).repeat(len(state), 1, 1)

    def move(self, state, step):
        return state + step


@pytest.fixture(scope="module")
def prior():
    return make_normal_prior()


def make_linear(seed=0, n_data=6):
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(s, generator=g, dtype=torch.float64)  # noqa: E731
    rows = torch.linalg.qr(normal(131, n_data))[0].T
    a = rows * torch.logspace(2, -0.5, n_data, dtype=torch.float64)[:, None]
    return Linear(a, a @ normal(131) + normal(n_data)), rows


def draw(prior, model, n, seed):
    return draw_guided(
        NetworkMoments(prior), model, torch.zeros(n, 131).double(), FREE, 128, (16.0, 0.05), 24,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_the_moments_of_a_standard_normal_are_those_of_its_denoiser(prior):
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).double()
    x_hat, covariance = NetworkMoments(prior)(x, 0.7)
    shrink = 1 / (1 + 0.7**2)
    torch.testing.assert_close(x_hat, x * shrink, atol=1e-5, rtol=1e-4)
    expected = (0.7**2 * shrink * torch.eye(128).double()).expand(3, -1, -1)
    torch.testing.assert_close(covariance, expected, atol=1e-5, rtol=1e-4)


def test_an_update_is_the_posterior_mean_wherever_it_is_linearised():
    model, _ = make_linear()
    g = torch.Generator().manual_seed(2)
    root = 0.1 * torch.randn(128, 128, generator=g, dtype=torch.float64)
    v = root @ root.T + 0.2 * torch.eye(128)
    x_hat = 0.05 * torch.randn(1, 128, generator=g, dtype=torch.float64)
    at = 0.05 * torch.randn(1, 131, generator=g, dtype=torch.float64)
    full = torch.eye(131, dtype=torch.float64)
    full[:128, :128] = v
    mean = torch.cat([x_hat[0], torch.zeros(3).double()])
    precision = torch.linalg.inv(full) + model.a.T @ model.a
    expected = mean + torch.linalg.solve(precision, model.a.T @ (model.y - model.a @ mean))
    found = at
    for _ in range(8):  # steps are bounded
        found = mmps._update(model, found, x_hat, v[None], FREE)
    torch.testing.assert_close(found[0], expected, atol=1e-8, rtol=1e-6)


@pytest.mark.slow
def test_a_linear_model_gives_the_analytic_posterior(prior):
    model, rows = make_linear()
    state = draw(prior, model, 160, 3)
    precision = torch.eye(131, dtype=torch.float64) + model.a.T @ model.a
    mean = torch.linalg.solve(precision, model.a.T @ model.y)
    strength = (model.a**2).sum(1)
    white = ((state - mean) @ rows.T) * (1 + strength).sqrt()
    np.testing.assert_allclose(white.mean(0), 0.0, atol=0.3)
    np.testing.assert_allclose(white.std(0), 1.0, atol=0.22)
    # every direction, most of them unseen
    assert float((state - mean).std(0).mean()) == pytest.approx(1.0, abs=0.03)


@pytest.mark.slow
def test_without_data_the_prior_comes_back(prior):
    nothing = Linear(torch.zeros(1, 131).double(), torch.zeros(1).double())
    state = draw(prior, nothing, 80, 4)
    assert kstest(state.numpy().ravel(), "norm").statistic < 0.03


def test_the_samples_reach_the_data_and_keep_fixed_values(prior):
    model, _, _, error, y = make_observation(snr=30.0)
    problem = Problem(model, y, error**-2, make_scaling(), a_v=0.4, calibration_order=2)
    draws = MmpsSampler(prior, steps=12).sample(problem, 12, torch.Generator().manual_seed(5))
    assert draws.state.shape == (12, 133)
    assert 0.8 < np.median(draws.stats["chi2"]) / len(problem.flux) < 1.2
    physical = nuisance.to_physical(draws.state[:, 128:131])
    torch.testing.assert_close(physical.a_v, torch.full_like(physical.a_v, 0.4))
    assert float(physical.sigma_v.std()) > 0.1
    torch.testing.assert_close(draws.flux, calc_exact_flux(draws.state[:, :131], model))


def test_samples_far_from_the_data_are_refused(prior, monkeypatch):
    monkeypatch.setattr(mmps, "LAST_ITERATIONS", 0)
    monkeypatch.setattr(mmps, "_update", lambda likelihood, at, *_: at + 0.1)
    model, _, _, error, y = make_observation(snr=30.0)
    problem = Problem(model, y, error**-2, make_scaling(), fit_error_scale=False)
    with pytest.raises(SamplingError, match="did not reach"):
        MmpsSampler(prior, steps=3).sample(problem, 4, torch.Generator().manual_seed(6))
