"""Randomise-then-optimise after data fission, where the posterior is known in closed form.

Prior m ~ N(0, P), data y = A m + e with e ~ N(0, 1). With H = P^-1 + A^T A the posterior is
N(H^-1 A^T y, H^-1). The network's part is played by exact draws from p(m | y1).
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from sfhzoo.samplers.polish import calc_precision, polish, split_data

D, N_DATA = 6, 40


class Linear(NamedTuple):
    """S = A m + b, with the interface of the compressed likelihood; A is [component, state]."""

    a: torch.Tensor
    b: torch.Tensor

    def predict(self, state):
        return state @ self.a.T + self.b

    def linearise(self, state, residual):
        return residual @ self.a, (self.a.T @ self.a).expand(len(state), -1, -1)


class Case(NamedTuple):
    """A linear model, its data (unit errors), the prior's precision, and the posterior."""

    model: Linear
    y: torch.Tensor
    prior: torch.Tensor
    mean: torch.Tensor
    covariance: torch.Tensor

    def part(self, y1, fraction):
        """Mean and covariance of p(m | y1), y1 of precision `fraction`."""
        a = self.model.a
        covariance = torch.linalg.inv(self.prior + fraction * a.T @ a)
        return covariance @ (fraction * a.T @ (y1 - self.model.b)), covariance


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
    model = Linear(a, normal(N_DATA))
    truth = _draw(torch.zeros(D).double(), torch.linalg.inv(prior), 1, g)
    y = (model.predict(truth) + normal(1, N_DATA))[0]
    covariance = torch.linalg.inv(prior + a.T @ a)
    return Case(model, y, prior, covariance @ (a.T @ (y - model.b)), covariance)


def run(case, fraction, n, seed, groups=1, centred=None):
    """Draws [n, D]: exact p(m | y1) draws for each of `groups` fissions, each polished with y2."""
    g = torch.Generator().manual_seed(seed)
    done = []
    for _ in range(groups):
        split = split_data(case.y, torch.ones(N_DATA).double(), fraction, g)
        mean, covariance = case.part(split.first, fraction)
        start = _draw(mean, covariance, n // groups, g)
        precision = torch.linalg.inv(covariance) if centred is None else centred(start)
        weight = 1 - fraction
        eta = torch.randn((len(start), N_DATA), generator=g, dtype=torch.float64) / weight**0.5
        free = torch.ones(D, dtype=torch.bool)
        out = polish(
            case.model, start, split.second + eta, precision, free, weight,
            max_iterations=200, tolerance=1e-9,
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


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_polished_draws_of_a_linear_model_are_draws_of_the_posterior(case, fraction):
    mean, spread = calc_deviations(case, run(case, fraction, 8000, seed=1))
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 4.5


def test_the_posterior_does_not_depend_on_how_the_data_were_split(case):
    """Every fission gives the same posterior, so a mixture of many is still it."""
    mean, spread = calc_deviations(case, run(case, 0.3, 8000, seed=2, groups=200))
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 4.5


def test_using_the_data_twice_makes_the_intervals_too_narrow(case):
    """The test that guards the tests above: draws of p(m | y) updated with y again."""
    g = torch.Generator().manual_seed(3)
    n = 4000
    start = _draw(case.mean, case.covariance, n, g)
    eta = torch.randn((n, N_DATA), generator=g, dtype=torch.float64)
    free = torch.ones(D, dtype=torch.bool)
    precision = torch.linalg.inv(case.covariance)
    out = polish(case.model, start, case.y + eta, precision, free, 1.0, None, 200, 1e-9)
    z = (out.state - case.mean) @ torch.linalg.inv(torch.linalg.cholesky(case.covariance)).T
    variance = torch.linalg.eigvalsh(torch.cov(z.T))
    # where the data decide, half the variance; where they say nothing, all of it
    assert float(variance[0]) == pytest.approx(0.5, abs=0.05)
    assert float(variance[-1]) == pytest.approx(1.0, abs=0.1)


def test_without_the_perturbation_of_the_data_the_intervals_are_too_narrow(case):
    g = torch.Generator().manual_seed(4)
    split = split_data(case.y, torch.ones(N_DATA).double(), 0.3, g)
    mean, covariance = case.part(split.first, 0.3)
    start = _draw(mean, covariance, 2000, g)
    free = torch.ones(D, dtype=torch.bool)
    target = split.second.expand(2000, -1)
    out = polish(
        case.model, start, target, torch.linalg.inv(covariance), free, 0.7, None, 200, 1e-9
    )
    _, spread = calc_deviations(case, out.state)
    assert float(spread.diagonal().min()) < -15


def test_the_covariance_may_come_from_the_draws_themselves(case):
    """As in the sampler, which has no other; the ensemble is not small here."""

    def from_draws(start):
        return calc_precision(start - start.mean(0), torch.ones(D, dtype=torch.bool))

    mean, spread = calc_deviations(case, run(case, 0.3, 8000, 5, groups=2, centred=from_draws))
    assert float(mean.abs().max()) < 4.0
    assert float(spread.abs().max()) < 5.0


def test_more_draws_than_the_tolerance_asks_for_change_nothing(case):
    """The default tolerance stops within a tenth of a chi2 unit of the optimum."""
    g = torch.Generator().manual_seed(6)
    start = _draw(case.mean, 4 * case.covariance, 200, g)
    target = case.y + torch.randn((200, N_DATA), generator=g, dtype=torch.float64)
    free = torch.ones(D, dtype=torch.bool)
    quick = polish(case.model, start, target, case.prior, free, 0.7)
    full = polish(case.model, start, target, case.prior, free, 0.7, None, 300, 1e-10)
    assert quick.iterations < 20
    assert float((quick.cost - full.cost).min()) > -1e-8
    assert float((quick.cost - full.cost).quantile(0.9)) < 0.2


def test_the_optimum_is_the_closed_form(case):
    g = torch.Generator().manual_seed(7)
    start = _draw(case.mean, case.covariance, 5, g)
    target = case.y + torch.randn((5, N_DATA), generator=g, dtype=torch.float64)
    free = torch.ones(D, dtype=torch.bool)
    out = polish(case.model, start, target, case.prior, free, 0.7, None, 400, 1e-12)
    a = case.model.a
    h = case.prior + 0.7 * a.T @ a
    right = start @ case.prior + 0.7 * (target - case.model.b) @ a
    expected = torch.linalg.solve(h, right.T).T
    torch.testing.assert_close(out.state, expected, rtol=1e-4, atol=1e-4)
    offset = out.state - start
    torch.testing.assert_close(out.shift, ((offset @ case.prior) * offset).sum(1))
    residual = target - case.model.predict(out.state)
    torch.testing.assert_close(out.cost, 0.7 * (residual**2).sum(1) + out.shift)


def test_coordinates_that_are_not_free_stay(case):
    g = torch.Generator().manual_seed(8)
    start = _draw(case.mean, case.covariance, 50, g)
    free = torch.tensor([True, False, True, True, True, False])
    target = case.y.expand(50, -1)
    out = polish(case.model, start, target, case.prior, free, 1.0)
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

    model = Curved(case.model)
    start = _draw(case.mean, 9 * torch.eye(D).double(), 300, torch.Generator().manual_seed(9))
    target, free = case.y.expand(300, -1), torch.ones(D, dtype=torch.bool)
    before = ((target - model.predict(start)) ** 2).sum(1)
    out = polish(model, start, target, case.prior, free, 1.0, max_iterations=40)
    assert bool((out.cost <= before + 1e-9).all())
    assert float(out.cost.median()) < 0.2 * float(before.median())


# ---- data fission -------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6])
def test_the_two_parts_are_independent_and_share_the_information(fraction):
    g = torch.Generator().manual_seed(10)
    n = 200_000
    error = torch.full((n,), 2.5).double()
    flux = 7.0 + error * torch.randn(n, generator=g, dtype=torch.float64)
    split = split_data(flux, error, fraction, g)
    first, second = (split.first - 7.0) / error, (split.second - 7.0) / error
    # standard errors: of a variance v sqrt(2 / n), of a covariance sqrt(v1 v2 / n)
    for part, share in ((first, fraction), (second, 1 - fraction)):
        assert float(part.var() * share) == pytest.approx(1.0, abs=5 * (2 / n) ** 0.5)
        assert float(part.mean() * share**0.5) == pytest.approx(0.0, abs=5 / n**0.5)
    correlation = float((first * second).mean() * (fraction * (1 - fraction)) ** 0.5)
    assert correlation == pytest.approx(0.0, abs=5 / n**0.5)


def test_the_two_parts_recombine_to_the_data():
    g = torch.Generator().manual_seed(11)
    flux = torch.linspace(1, 5, 50, dtype=torch.float64)
    error = torch.linspace(0.1, 3, 50, dtype=torch.float64)
    split = split_data(flux, error, 0.3, g)
    together = 0.3 * split.first + 0.7 * split.second
    torch.testing.assert_close(together, flux, rtol=1e-13, atol=1e-13)
    assert float((split.first - flux).abs().min()) > 0


def test_equal_generators_split_equally_and_others_do_not():
    flux = torch.zeros(20).double()
    first = [split_data(flux, flux + 1, 0.3, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(first[0].first, first[1].first)
    assert not torch.equal(first[0].first, first[2].first)


# ---- the ensemble's precision -------------------------------------------------------------------


def test_the_precision_is_unbiased_for_a_small_ensemble():
    d, n = 30, 80
    g = torch.Generator().manual_seed(12)
    free = torch.ones(d, dtype=torch.bool)
    total = torch.zeros(d, d).double()
    for _ in range(300):
        draws = torch.randn((n, d), generator=g, dtype=torch.float64)
        total += calc_precision(draws - draws.mean(0), free) / 300
    assert float(total.diagonal().mean()) == pytest.approx(1.0, abs=0.02)


def test_fixed_coordinates_have_no_precision():
    draws = torch.randn((100, 4), generator=torch.Generator().manual_seed(13)).double()
    free = torch.tensor([True, False, True, True])
    draws[:, 1] = 0.0
    precision = calc_precision(draws - draws.mean(0), free)
    assert float(precision[1].abs().max()) == float(precision[:, 1].abs().max()) == 0.0
    torch.testing.assert_close(precision, precision.T)
    assert float(torch.linalg.eigvalsh(precision[free][:, free]).min()) > 0
