"""Randomise-then-optimise after data fission, where the posterior is known in closed form.

Prior m ~ N(0, P), data y = A m + b + R c + e with c, e ~ N(0, 1). The network's part is played by
exact draws from p(m | t), t the blunt view of `fission`.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sfhzoo.samplers.fission import Fission, draw_views
from sfhzoo.samplers.polish import calc_precision, polish

D, N_DATA, N_VIEW = 6, 40, 9


class Linear(NamedTuple):
    """S = A m + b, with the interface of the compressed likelihood; A is [component, state]."""

    a: torch.Tensor
    b: torch.Tensor

    def predict(self, state):
        return state @ self.a.T + self.b

    def linearise(self, state, residual):
        return residual @ self.a, (self.a.T @ self.a).expand(len(state), -1, -1)

    def move(self, state, step):
        return state + step


class Case(NamedTuple):
    """A linear model, its data (unit errors and noise R), the prior's precision, the posterior."""

    model: Linear
    y: torch.Tensor
    noise: torch.Tensor
    view: torch.Tensor
    prior: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor

    def given_view(self, first, max_snr, extra):
        """Mean and covariance of p(m | t), by the textbook formula."""
        v, a = self.view, self.model.a
        m = v.T @ v
        c = (1 + extra) * m + (v.T @ self.noise) @ (self.noise.T @ v) + m @ m / max_snr**2
        gain = torch.linalg.solve(c, v.T @ a)
        covariance = torch.linalg.inv(self.prior + (v.T @ a).T @ gain)
        return covariance @ (gain.T @ (first - v.T @ self.model.b)), covariance


def _draw(mean, covariance, n, generator):
    z = torch.randn((n, len(mean)), generator=generator, dtype=torch.float64)
    return mean + z @ torch.linalg.cholesky(covariance).T


@pytest.fixture(scope="module")
def case():
    g = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    # from directions the data fix a hundred times better than the prior, to unseen ones
    a = normal(N_DATA, D) * torch.tensor([15.0, 3.0, 1.0, 0.3, 0.1, 0.0]) / N_DATA**0.5
    root = normal(D, D) * 0.3 + torch.eye(D)
    prior = root @ root.T
    noise = 0.5 * normal(N_DATA, 2)
    # the view sees the data's directions, and others, blurred to different degrees
    view = a @ normal(D, N_VIEW) + 0.3 * normal(N_DATA, N_VIEW)
    model = Linear(a, normal(N_DATA))
    truth = _draw(torch.zeros(D).double(), torch.linalg.inv(prior), 1, g)
    y = (model.predict(truth) + normal(1, N_DATA) + normal(1, 2) @ noise.T)[0]
    inverse = torch.linalg.inv(torch.eye(N_DATA) + noise @ noise.T)
    covariance = torch.linalg.inv(prior + a.T @ inverse @ a)
    mean = covariance @ (a.T @ inverse @ (y - model.b))
    return Case(model, y, noise, view, prior, mean, covariance)


def fission_of(case, max_snr, extra=0.0):
    """The split, and the model as its second part sees it."""
    rows = torch.cat([case.model.a, case.model.b[:, None], case.noise], dim=1)
    basis = torch.linalg.qr(rows)[0].T
    fission = Fission(case.view, case.noise, basis, max_snr, extra)
    through = fission.transform @ basis
    return fission, Linear(through @ case.model.a, through @ case.model.b)


def run(case, max_snr, n, seed, extra=0.0, groups=1, precision_of=None, perturb=1.0):
    """Draws [n, D]: exact p(m | t) draws for each of `groups` views, each polished."""
    g = torch.Generator().manual_seed(seed)
    fission, model = fission_of(case, max_snr, extra)
    done = []
    for first in draw_views(case.y, case.view, max_snr, extra, groups, g):
        mean, covariance = case.given_view(first, max_snr, extra)
        start = _draw(mean, covariance, n // groups, g)
        precision = torch.linalg.inv(covariance) if precision_of is None else precision_of(start)
        rest = fission.second(case.y, first[None])
        eta = torch.randn((len(start), rest.shape[1]), generator=g, dtype=torch.float64)
        free = torch.ones(D, dtype=torch.bool)
        out = polish(
            model, start, rest + perturb * eta, precision, free, iterations=200,
            tolerance=1e-9,
        )  # fmt: skip
        done.append(out.state)
    return torch.cat(done)


def calc_deviations(case, draws):
    """Whitened mean [D] in Monte-Carlo errors, and covariance minus 1 [D, D] likewise."""
    whiten = torch.linalg.inv(torch.linalg.cholesky(case.covariance))
    z = (draws - case.mean) @ whiten.T
    n = len(z)
    spread = torch.cov(z.T) - torch.eye(D).double()
    error = torch.full((D, D), n**-0.5).double() * (1 + torch.eye(D)).sqrt()
    return z.mean(0) * n**0.5, spread / error


@pytest.mark.parametrize(
    ("max_snr", "extra"), [(0.3, 0.0), (3.0, 0.0), (30.0, 0.0), (1000.0, 0.0), (30.0, 2.0)]
)
def test_polished_draws_of_a_linear_model_are_draws_of_the_posterior(case, max_snr, extra):
    mean, spread = calc_deviations(case, run(case, max_snr, 8000, 1, extra))
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 4.5


def test_the_posterior_does_not_depend_on_the_view(case):
    """Every view gives the same posterior, so a mixture of many is still it."""
    mean, spread = calc_deviations(case, run(case, 3.0, 8000, seed=2, groups=200))
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 4.5


def test_using_the_data_twice_makes_the_intervals_too_narrow(case):
    """The test that guards the tests above: draws of p(m | y) updated with y again."""
    g = torch.Generator().manual_seed(3)
    n = 4000
    start = _draw(case.mean, case.covariance, n, g)
    noise = torch.linalg.cholesky(torch.eye(N_DATA) + case.noise @ case.noise.T)
    eta = torch.randn((n, N_DATA), generator=g, dtype=torch.float64)
    whiten = torch.linalg.inv(noise)
    model = Linear(whiten @ case.model.a, whiten @ case.model.b)
    free = torch.ones(D, dtype=torch.bool)
    precision = torch.linalg.inv(case.covariance)
    out = polish(model, start, whiten @ case.y + eta, precision, free, None, 200, 1e-9)
    z = (out.state - case.mean) @ torch.linalg.inv(torch.linalg.cholesky(case.covariance)).T
    variance = torch.linalg.eigvalsh(torch.cov(z.T))
    # where the data decide, half the variance; where they say nothing, all of it
    assert float(variance[0]) == pytest.approx(0.5, abs=0.05)
    assert float(variance[-1]) == pytest.approx(1.0, abs=0.1)


def test_without_the_perturbation_of_the_data_the_intervals_are_too_narrow(case):
    _, spread = calc_deviations(case, run(case, 3.0, 2000, seed=4, perturb=0.0))
    assert float(spread.diagonal().min()) < -15


def test_the_covariance_may_come_from_the_draws_themselves(case):
    """As in the sampler, which has no other; the ensemble is not small here."""

    def from_draws(start):
        return calc_precision(start - start.mean(0), torch.ones(D, dtype=torch.bool), case.prior)

    mean, spread = calc_deviations(
        case, run(case, 3.0, 8000, 5, groups=10, precision_of=from_draws)
    )
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 5.0


def test_more_draws_than_the_tolerance_asks_for_change_nothing(case):
    """The default tolerance stops within a tenth of a chi2 unit of the optimum."""
    g = torch.Generator().manual_seed(6)
    start = _draw(case.mean, 4 * case.covariance, 200, g)
    target = case.y + torch.randn((200, N_DATA), generator=g, dtype=torch.float64)
    free = torch.ones(D, dtype=torch.bool)
    quick = polish(case.model, start, target, case.prior, free)
    full = polish(case.model, start, target, case.prior, free, None, 300, 1e-10)
    assert quick.iterations < 20
    assert float((quick.cost - full.cost).min()) > -1e-8
    assert float((quick.cost - full.cost).quantile(0.9)) < 0.2


def test_the_optimum_is_the_closed_form(case):
    g = torch.Generator().manual_seed(7)
    start = _draw(case.mean, case.covariance, 5, g)
    target = case.y + torch.randn((5, N_DATA), generator=g, dtype=torch.float64)
    free = torch.ones(D, dtype=torch.bool)
    out = polish(case.model, start, target, case.prior, free, None, 400, 1e-12)
    a = case.model.a
    h = case.prior + a.T @ a
    right = start @ case.prior + (target - case.model.b) @ a
    expected = torch.linalg.solve(h, right.T).T
    torch.testing.assert_close(out.state, expected, rtol=1e-4, atol=1e-4)
    offset = out.state - start
    residual = target - case.model.predict(out.state)
    expected = (residual**2).sum(1) + ((offset @ case.prior) * offset).sum(1)
    torch.testing.assert_close(out.cost, expected)


def test_coordinates_that_are_not_free_stay(case):
    g = torch.Generator().manual_seed(8)
    start = _draw(case.mean, case.covariance, 50, g)
    free = torch.tensor([True, False, True, True, True, False])
    target = case.y.expand(50, -1)
    out = polish(case.model, start, target, case.prior, free)
    assert torch.equal(out.state[:, ~free], start[:, ~free])
    assert float((out.state - start)[:, free].abs().max()) > 0.01


def test_no_step_makes_a_draw_worse(case):
    class Curved(NamedTuple):
        """A model whose curvature misleads Gauss-Newton."""

        linear: Linear

        def predict(self, state):
            return self.linear.predict(state + 0.8 * torch.sin(2 * state))

        def linearise(self, state, residual):
            slope = 1 + 1.6 * torch.cos(2 * state)
            gradient, hessian = self.linear.linearise(state, residual)
            return slope * gradient, slope[:, :, None] * hessian * slope[:, None, :]

        def move(self, state, step):
            return state + step

    model = Curved(case.model)
    start = _draw(case.mean, 9 * torch.eye(D).double(), 300, torch.Generator().manual_seed(9))
    target, free = case.y.expand(300, -1), torch.ones(D, dtype=torch.bool)
    before = ((target - model.predict(start)) ** 2).sum(1)
    out = polish(model, start, target, case.prior, free, iterations=40)
    assert bool((out.cost <= before + 1e-9).all())
    assert float(out.cost.median()) < 0.7 * float(before.median())


# ---- data fission -------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_snr", "extra"), [(0.3, 0.0), (3.0, 0.0), (30.0, 0.0), (30.0, 2.0)])
def test_the_two_parts_are_independent_and_have_the_noise_they_claim(case, max_snr, extra):
    g = torch.Generator().manual_seed(10)
    n = 20_000
    fission, model = fission_of(case, max_snr, extra)
    truth = torch.ones(1, D).double()
    firsts, seconds = [], []
    for _ in range(n // 100):
        y = (
            case.model.predict(truth)[0]
            + torch.randn(N_DATA, generator=g, dtype=torch.float64)
            + case.noise @ torch.randn(2, generator=g, dtype=torch.float64)
        )
        first = draw_views(y, case.view, max_snr, extra, 1, g)
        firsts.append(first[0])
        seconds.append(fission.second(y, first)[0] - model.predict(truth)[0])
    first, second = torch.stack(firsts), torch.stack(seconds)
    assert float(second.mean(0).abs().max()) < 5 * (100 / n) ** 0.5
    assert float((second.var(0) - 1).abs().max()) < 5 * (2 * 100 / n) ** 0.5
    z = (first - first.mean(0)) / first.std(0)
    assert float((z.T @ second / len(z)).abs().max()) < 5 * (100 / n) ** 0.5


def test_a_sharp_view_leaves_nothing_of_what_it_sees_and_a_blunt_one_everything(case):
    rows = torch.cat([case.model.a, case.model.b[:, None], case.noise], dim=1)
    basis = torch.linalg.qr(rows)[0].T
    everything = torch.eye(N_DATA, dtype=torch.float64)
    sharp = Fission(everything, case.noise, basis, 1e5)
    assert float((sharp.transform @ basis @ case.model.a).square().sum()) < 1e-4
    blunt = Fission(everything, case.noise, basis, 1e-3)
    inner = blunt.transform @ basis @ case.model.a
    expected = torch.linalg.inv(case.covariance) - case.prior
    torch.testing.assert_close(inner.T @ inner, expected, rtol=1e-4, atol=1e-4)


# ---- the ensemble's precision -------------------------------------------------------------------


def test_the_precision_of_a_small_ensemble_is_better_than_its_sample_covariance_gives():
    """Error of the estimated precision where the reference has the right shape or none at all."""
    d, n = 30, 80
    g = torch.Generator().manual_seed(12)
    scale = torch.logspace(-2, 2, d, dtype=torch.float64)
    free = torch.ones(d, dtype=torch.bool)

    def error_of(reference):
        total = 0.0
        for _ in range(20):
            white = torch.randn((n, d), generator=g, dtype=torch.float64)
            found = calc_precision(white / scale, free, reference) / (scale[:, None] * scale)
            total += float((found - torch.eye(d)).square().sum()) / 20
        return total

    # the inverse sample covariance of n draws in d dimensions is off by about d² / n and biased
    assert error_of(torch.diag(3.0 * scale**2)) < 0.5
    assert error_of(torch.diag(scale**2 * torch.linspace(0.5, 2, d))) < 15


def test_a_large_ensemble_overrules_the_reference():
    d = 5
    g = torch.Generator().manual_seed(14)
    draws = torch.randn((20_000, d), generator=g, dtype=torch.float64) * torch.arange(1, d + 1)
    precision = calc_precision(draws, torch.ones(d, dtype=torch.bool), torch.eye(d).double())
    expected = 1 / torch.arange(1, d + 1).double() ** 2
    torch.testing.assert_close(precision.diagonal(), expected, rtol=0.05, atol=0)


def test_fixed_coordinates_have_no_precision():
    draws = torch.randn((100, 4), generator=torch.Generator().manual_seed(13)).double()
    free = torch.tensor([True, False, True, True])
    draws[:, 1] = 0.0
    precision = calc_precision(draws - draws.mean(0), free, torch.eye(4).double())
    assert float(precision[1].abs().max()) == float(precision[:, 1].abs().max()) == 0.0
    torch.testing.assert_close(precision, precision.T)
    assert float(torch.linalg.eigvalsh(precision[free][:, free]).min()) > 0
