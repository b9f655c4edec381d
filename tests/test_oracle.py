"""The analytic oracle's own parts, and split Gibbs on a small one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import analytic_oracle as oracle_module
from analytic_oracle import (
    Denoise,
    MixtureMoments,
    calc_accuracy,
    calc_directions,
    compare,
    make_oracle,
    make_prior,
    narrow,
    sample_pnpdm,
)


@pytest.fixture(scope="module")
def small():
    """Twelve dimensions, four overlapping components."""
    return make_oracle(3.0, seed=1, prior=make_prior(d=12))


def test_the_denoiser_is_the_gradient_of_the_noised_density():
    """Tweedie: D = x + s² grad log p_s(x), by finite differences of the mixture's density."""
    prior, s = make_prior(d=6), 0.8
    denoise = Denoise(prior)
    x = prior.sample(4, torch.Generator().manual_seed(0))
    x.requires_grad_()
    noised = prior.covariances + s**2 * torch.eye(6)
    parts = [
        torch.distributions.MultivariateNormal(m, c).log_prob(x)
        for m, c in zip(prior.means, noised, strict=True)
    ]
    log_p = torch.logsumexp(torch.stack(parts, 1) + prior.weights.log(), 1).sum()
    (score,) = torch.autograd.grad(log_p, x)
    torch.testing.assert_close(denoise(x.detach(), s), x.detach() + s**2 * score)


def test_the_posterior_is_the_prior_reweighted_by_the_likelihood(small):
    """Importance sampling with a million prior draws at weak data."""
    weak = make_oracle(2000.0, seed=1, prior=small.prior)
    x = weak.prior.sample(400_000, torch.Generator().manual_seed(1))
    log_w = -0.5 * ((weak.likelihood.y - x @ weak.likelihood.a.T) ** 2).sum(1)
    w = torch.softmax(log_w, 0)
    assert 1 / float((w**2).sum()) > 5000
    mean, covariance = weak.posterior.moments()
    std = covariance.diagonal().sqrt()
    found = w @ x
    assert float(((found - mean) / std).abs().max()) < 0.05
    spread = (w @ (x - found) ** 2).sqrt()
    np.testing.assert_allclose(spread, std, rtol=0.05)


def test_the_best_direction_is_known_to_a_thousandth_and_the_posterior_is_multimodal():
    middle = make_oracle(1.0)
    prior_width = calc_directions(middle.prior)[0]
    width, axes = calc_directions(middle.posterior)
    along = (axes[:, 0] @ middle.prior.moments()[1] @ axes[:, 0]).sqrt()
    assert float(width[0] / along) == pytest.approx(1e-3, rel=0.3)
    assert len(prior_width) == 128
    weights = make_oracle(10.0).posterior.weights
    assert float(weights.max()) < 0.8


def test_the_classifier_passes_equals_and_rejects_samples_ten_per_cent_too_narrow(small):
    g = torch.Generator().manual_seed(2)
    exact, again = small.posterior.sample(3000, g), small.posterior.sample(3000, g)
    fair = compare(small, again, exact)
    assert max(fair[:3]) < oracle_module.LIMIT
    # ten per cent in twelve dimensions
    assert compare(small, narrow(small, again), exact).everywhere > oracle_module.LIMIT
    assert calc_accuracy(exact, exact + 10.0) > 0.99


@pytest.mark.slow
def test_split_gibbs_draws_from_the_exact_posterior(small):
    g, n = torch.Generator().manual_seed(3), 2000
    draws, exact = sample_pnpdm(small, n, g), small.posterior.sample(n, g)
    found = compare(small, draws, exact)
    assert max(found[:3]) <= oracle_module.LIMIT
    assert found.mean_error < 0.13 and found.std_error < 0.1


def test_the_moments_given_a_noisy_draw_are_those_of_the_mixture():
    """The covariance is sigma² times the derivative of the mean."""
    exact, s = MixtureMoments(make_prior(d=5)), 0.7
    x = exact.prior.sample(2, torch.Generator().manual_seed(4))
    mean, covariance = exact.moments(x, s)
    torch.testing.assert_close(mean, exact(x, s))
    slope = torch.autograd.functional.jacobian(lambda v: exact(v[None], s)[0], x[1])
    torch.testing.assert_close(covariance[1], s**2 * slope)
