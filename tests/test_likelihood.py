"""Nuisance priors against scipy; the compressed likelihood against the exact forward model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from galaxies import (
    calc_exact_flux,
    make_likelihood,
    make_observation,
    make_states,
    make_x,
)
from scipy.stats import halfnorm, kstest

from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import calc_calibration_rows
from sfhzoo.likelihood.compression import Span, span_of
from sfhzoo.likelihood.interpolation import Polynomial

WITHIN = ((0.2, 0.6), (120.0, 180.0), (-30.0, 60.0))


# ---- nuisance parameters ------------------------------------------------------------------------


def test_coordinates_lead_to_the_physical_values_and_back():
    rng = np.random.default_rng(0)
    values = [torch.from_numpy(rng.uniform(*r, 400)) for r in ((0.01, 3.9), (1, 500), (-299, 299))]
    back = nuisance.to_physical(nuisance.to_coordinates(*values))
    for expected, got in zip(values, back, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_the_ends_of_the_ranges_are_reached_and_not_passed():
    ends = [torch.tensor(v).double() for v in ([0.0, 4.0], [1.0, 500.0], [-300.0, 300.0])]
    back = nuisance.to_physical(nuisance.to_coordinates(*ends))
    torch.testing.assert_close(back.a_v, ends[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(back.sigma_v, ends[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(back.velocity, ends[2], rtol=1e-6, atol=0)
    beyond = nuisance.to_physical(torch.full((1, 3), 50.0, dtype=torch.float64))
    assert [float(v) for v in beyond] == [4.0, 500.0, 300.0]


def test_the_derivative_is_that_of_finite_differences():
    u = torch.linspace(-2.9, 2.2, 60, dtype=torch.float64)[:, None].expand(-1, 3)
    h = 1e-5
    up, down = (torch.stack(nuisance.to_physical(u + s * h), -1) for s in (1, -1))
    torch.testing.assert_close(
        nuisance.calc_derivative(u), (up - down) / (2 * h), rtol=1e-5, atol=1e-7
    )


def test_the_derivative_is_zero_where_a_parameter_sits_at_its_end():
    u = torch.tensor([[6.0, 3.0, 3.5]], dtype=torch.float64)
    assert nuisance.calc_derivative(u).tolist() == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize("column", range(3), ids=nuisance.NAMES)
def test_draws_of_the_stated_priors_have_standard_normal_coordinates(column):
    rng = np.random.default_rng(column)
    n = 20_000
    draws = (
        halfnorm.rvs(scale=1.0, size=n, random_state=rng),
        130.0 * np.exp(0.6 * rng.standard_normal(n)),
        100.0 * rng.standard_normal(n),
    )
    u = nuisance.to_coordinates(*(torch.from_numpy(d) for d in draws))[:, column].numpy()
    # the ends of the ranges cut about 1 % of the log-normal's upper tail
    assert kstest(u[np.abs(u) < 2.2], _cut_normal(2.2)).pvalue > 1e-3
    assert np.mean(u < -2.2) == pytest.approx(0.0139, abs=0.003)


def _cut_normal(limit):
    from scipy.stats import truncnorm

    return truncnorm(-limit, limit).cdf


# ---- the compressed likelihood ------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    model, truth, flux, error, y = make_observation(snr=50.0)
    return model, truth, flux, error, y, make_likelihood(model, y, error)


def _ensemble_near(truth, n, seed, scatter=0.1):
    """States around `truth` with nuisance parameters all over the span."""
    state = make_states(n, seed, *WITHIN)
    noise = torch.randn((n, 128), generator=torch.Generator().manual_seed(seed)).double()
    state[:, :128] = truth[:128] + scatter * noise
    return state


def test_compression_loses_less_than_one_in_chi2_for_a_population_at_snr_50(case):
    model, _, _, error, _, likelihood = case
    state = make_states(120, 21, *WITHIN)
    flux = calc_exact_flux(state, model)
    loss = likelihood.calc_loss(state, flux)
    # the same galaxies seen at S/N 50, however bright: the loss is quadratic in S/N
    at_50 = loss * (50 / (flux / error).median(1).values) ** 2
    assert float(at_50.median()) < 0.3
    assert float(at_50.quantile(0.9)) < 2.0


@pytest.mark.parametrize("velocity", [-290.0, 280.0])
def test_dust_stays_at_rest_in_a_galaxy_that_moves(velocity):
    """A_V 3 seen 290 km/s off its place would cost 10 in chi² at S/N 50."""
    near = ((2.9, 3.1), (140.0, 160.0), (velocity - 10, velocity + 10))
    model, truth, flux, error, y = make_observation(a_v=3.0, velocity=velocity)
    likelihood = make_likelihood(model, y, error, Span(*near))
    assert float(likelihood.calc_loss(truth[None], flux[None])) < 0.1


def test_the_loss_is_the_chi2_between_exact_and_predicted_spectra(case):
    model, truth, _, error, _, likelihood = case
    state = _ensemble_near(truth, 5, 3)
    flux = calc_exact_flux(state, model)
    predicted = (likelihood.predict(state) @ likelihood.basis) * error
    by_hand = (((flux - predicted) / error) ** 2).sum(1)
    torch.testing.assert_close(likelihood.calc_loss(state, flux), by_hand, rtol=1e-6, atol=1e-6)


def test_the_reported_loss_grows_outside_the_span(case):
    model, truth, _, _, _, likelihood = case
    state = make_states(20, 4, (1.4, 1.6), (240.0, 260.0), (180.0, 200.0))
    state[:, :128] = truth[:128]
    assert float(likelihood.calc_loss(state, calc_exact_flux(state, model)).min()) > 100


def test_chi2_is_that_of_all_pixels(case):
    model, truth, _, error, y, likelihood = case
    state = _ensemble_near(truth, 20, 8)
    exact = (((y - calc_exact_flux(state, model)) / error) ** 2).sum(1)
    loss = likelihood.calc_loss(state, calc_exact_flux(state, model))
    difference = (likelihood.calc_chi2(state) - exact).abs()
    # |a|² - |b|² <= |a - b| (2 |b| + |a - b|), and the residual is what is left of the noise
    assert bool((difference <= loss.sqrt() * (2 * exact.sqrt() + loss.sqrt())).all())
    assert float((difference / exact).max()) < 0.02


def test_chi2_at_the_truth_is_the_number_of_pixels(case):
    _, truth, flux, error, y, likelihood = case
    n = len(y)
    chi2 = float(likelihood.calc_chi2(truth[None]))
    assert abs(chi2 - n) < 4 * (2 * n) ** 0.5
    assert chi2 == pytest.approx(float((((y - flux) / error) ** 2).sum()), abs=1.0)


def test_calc_flux_is_the_forward_model(case):
    model, truth, _, _, _, likelihood = case
    state = _ensemble_near(truth, 3, 5)
    torch.testing.assert_close(
        likelihood.calc_flux(state), calc_exact_flux(state, model), rtol=1e-10, atol=0
    )


def test_the_gradient_is_that_of_finite_differences(case):
    _, truth, *_, likelihood = case
    state = _ensemble_near(truth, 3, 6)
    residual = torch.randn((3, likelihood.rank), generator=torch.Generator().manual_seed(1))
    residual = residual.double()
    gradient, _ = likelihood.linearise(state, residual)
    jacobian = _finite_differences(likelihood, state)
    numeric = (jacobian @ residual[..., None])[..., 0]
    scale = jacobian.norm(dim=2)
    # a metallicity node within the step makes the derivative one-sided: it may happen once
    wrong = (gradient - numeric).abs() > 1e-4 * scale + 1e-8
    assert int(wrong.sum()) <= 1
    assert float(scale[:, 128:131].min()) > 1.0, "the test needs data that know the nuisance"


def test_the_curvature_is_that_of_the_jacobian(case):
    """Exactly: an approximate one leads Gauss-Newton off the stiff directions."""
    _, truth, *_, likelihood = case
    state = _ensemble_near(truth, 4, 7)
    _, hessian = likelihood.linearise(state, torch.zeros(4, likelihood.rank).double())
    jacobian = _finite_differences(likelihood, state)
    exact = jacobian @ jacobian.transpose(1, 2)
    norm = exact.diagonal(dim1=1, dim2=2).sqrt()
    relative = (hessian - exact).abs() / (norm[:, :, None] * norm[:, None, :]).clamp(min=1e-6)
    # a metallicity node within the step makes one column's difference one-sided
    assert float(relative.flatten().quantile(0.98)) < 1e-4


def test_seen_through_a_transform_it_is_the_transformed_likelihood(case):
    _, truth, *_, likelihood = case
    state = _ensemble_near(truth, 3, 8)
    g = torch.Generator().manual_seed(2)
    transform = torch.randn((9, likelihood.rank), generator=g, dtype=torch.float64)
    seen = likelihood.marginal(transform)
    torch.testing.assert_close(seen.predict(state), likelihood.predict(state) @ transform.T)
    residual = torch.randn((3, 9), generator=g, dtype=torch.float64)
    gradient, hessian = seen.linearise(state, residual)
    expected, _ = likelihood.linearise(state, residual @ transform)
    torch.testing.assert_close(gradient, expected)
    jacobian = _finite_differences(likelihood, state) @ transform.T
    exact = jacobian @ jacobian.transpose(1, 2)
    assert float((hessian - exact).norm() / exact.norm()) < 1e-3


def _finite_differences(likelihood, state, h=1e-5):
    """dS/dstate [sample, n_state, component]."""
    columns = []
    for i in range(state.shape[1]):
        step = torch.zeros_like(state)
        step[:, i] = h
        columns.append((likelihood.predict(state + step) - likelihood.predict(state - step)) / 2)
    return torch.stack(columns, 1) / h


def test_a_metallicity_at_the_grids_end_has_no_slope(case):
    _, truth, *_, likelihood = case
    state = truth[None].clone()
    state[:, 64:128] = 40.0
    gradient, hessian = likelihood.linearise(state, torch.ones(1, likelihood.rank).double())
    assert float(gradient[:, 64:128].abs().max()) == 0.0
    assert float(hessian[:, 64:128].abs().max()) == 0.0


# ---- calibration --------------------------------------------------------------------------------


def test_calibration_rows_are_legendre_polynomials():
    wave = np.linspace(4000.0, 6000.0, 201)
    t = np.linspace(-1, 1, 201)
    rows = calc_calibration_rows(wave, (4000.0, 6000.0), 3)
    expected = [t, (3 * t**2 - 1) / 2, (5 * t**3 - 3 * t) / 2]
    np.testing.assert_allclose(rows, expected, atol=1e-12)


def test_the_calibration_is_linear_and_multiplies_the_reference():
    model, truth, flux, error, y = make_observation()
    likelihood = make_likelihood(model, y, error).calibrated(flux, 4)
    assert likelihood.n_state == 135
    c = torch.tensor([[0.03, -0.02, 0.01, 0.04], [0.0, 0.0, 0.0, 0.0]]).double()
    state = torch.cat([truth.expand(2, -1), c], dim=1)
    with_c, without = likelihood.predict(state)
    added = (with_c - without) @ likelihood.basis * error
    rows = calc_calibration_rows(model.wave_obs, (model.wave_obs[0], model.wave_obs[-1]), 4)
    expected = flux * (c[0] @ torch.from_numpy(rows))
    # relative to the error: the basis holds the polynomials up to its tolerance
    assert float((((added - expected) / error) ** 2).sum()) < 0.1
    gradient, _ = likelihood.linearise(state, torch.ones(2, likelihood.rank).double())
    change = likelihood.predict(torch.cat([state[:, :131], 2 * c], 1))[0] - without
    torch.testing.assert_close(change, 2 * (with_c - without), rtol=1e-9, atol=1e-9)
    assert float(gradient[0, 131:] @ c[0]) == pytest.approx(
        float((with_c - without).sum()), rel=1e-9
    )


def test_a_calibration_leaves_the_model_and_adds_its_columns(case):
    _, truth, flux, _, _, plain = case
    likelihood = plain.calibrated(flux, 3)
    eye = torch.eye(plain.rank + 3, dtype=torch.float64)
    torch.testing.assert_close(likelihood.basis @ likelihood.basis.T, eye)
    torch.testing.assert_close(likelihood.columns, likelihood.basis.T @ likelihood.calibration.T)
    without_c = torch.cat([truth, torch.zeros(3).double()])[None]
    found = likelihood.predict(without_c)
    torch.testing.assert_close(found[:, : plain.rank], plain.predict(truth[None]))
    assert float(found[:, plain.rank :].abs().max()) == 0.0
    chi2 = float(plain.calc_chi2(truth[None]))
    assert float(likelihood.calc_chi2(without_c)) == pytest.approx(chi2, rel=1e-9)
    assert float(plain.calibrated(flux, 0).calc_chi2(truth[None])) == pytest.approx(chi2, rel=1e-9)


# ---- interpolation ------------------------------------------------------------------------------


def test_lagrange_weights_reproduce_polynomials_and_their_slopes():
    poly = Polynomial.over(1.0, 3.0, 4)
    value = torch.linspace(0.9, 3.1, 7, dtype=torch.float64)
    weights, slopes = poly.weights(value)
    of = lambda t: 2 - t + 0.5 * t**2 - 0.3 * t**3  # noqa: E731
    torch.testing.assert_close(weights @ of(poly.nodes), of(value), rtol=1e-12, atol=1e-12)
    slope = -1 + value - 0.9 * value**2
    torch.testing.assert_close(slopes @ of(poly.nodes), slope, rtol=1e-11, atol=1e-11)


def test_a_range_without_width_has_one_node_and_no_slope():
    poly = Polynomial.over(0.5, 0.5, 5)
    weights, slopes = poly.weights(torch.tensor([0.5, 0.7]).double())
    assert poly.nodes.tolist() == [0.5]
    assert weights.tolist() == [[1.0], [1.0]] and slopes.tolist() == [[0.0], [0.0]]


def test_the_span_of_an_ensemble_holds_it_and_stays_in_the_priors_range():
    a_v, sigma_v, velocity = (0.02, 0.6), (120.0, 490.0), (-30.0, 60.0)
    state = make_states(200, 9, a_v, sigma_v, velocity)
    span = span_of(state[:, 128:131])
    assert span.a_v[0] == 0.0 and 0.6 < span.a_v[1] < 1.2
    assert span.sigma_v[0] < 121 and span.sigma_v[1] == 500.0
    assert span.velocity[0] < -29 and span.velocity[1] > 59
    fixed = state[:, 128:131].clone()
    fixed[:, 1] = fixed[0, 1]
    assert isinstance(span_of(fixed), Span)
    assert span_of(fixed).sigma_v[0] == span_of(fixed).sigma_v[1]


def test_histories_of_the_mocks_are_standardised():
    x = make_x(2000, 0)
    assert float(x.mean(0).abs().max()) < 1e-9
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(2, 64).double())
