"""The samplers on mocks with known truth, and with networks that know nothing.

An untrained `SpectralMLP` or `ConditionalMLP` is exact: it is the denoiser of N(0, 1). So these
tests judge the likelihood's side alone: whatever the network, the draws must reach the data, or
the sampler must say that they did not.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from galaxies import (
    BINS,
    REDSHIFT,
    calc_exact_flux,
    load_grid,
    make_normal_prior,
    make_observation,
    make_scaling,
    make_states,
    make_x,
)
from scipy.stats import kstest

from sfhzoo.errors import DataError, SamplingError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import (
    calc_calibration_columns,
    calc_smooth_flux,
    choose_order,
    draw_calibration,
)
from sfhzoo.likelihood.nuisance import ERROR_SCALE_SPREAD
from sfhzoo.likelihood.problem import Problem, draw_error_scale
from sfhzoo.likelihood.profile import fit_profile
from sfhzoo.samplers import amortized as amortized_module
from sfhzoo.samplers import simulator as simulator_module
from sfhzoo.samplers import update as update_module
from sfhzoo.samplers.amortized import (
    AmortizedSampler,
    _impose,
    calc_span_scale,
    calc_view_dependence,
)
from sfhzoo.samplers.cla import ClaSampler
from sfhzoo.samplers.encoding import Encoder
from sfhzoo.samplers.posterior_network import SCHEDULE, ConditionalMLP, PosteriorNetwork


def make_problem(noisy=True, **choices):
    """(problem, truth [131]) of a galaxy at S/N 50 with A_V .4, 150 km/s and 20 km/s."""
    model, truth, flux, error, y = make_observation(snr=50.0)
    return Problem(model, y if noisy else flux, error**-2, make_scaling(), **choices), truth


# ---- the problem --------------------------------------------------------------------------------


def test_fixed_coordinates_are_those_of_the_fixed_values_and_nan_elsewhere():
    problem, _ = make_problem(a_v=0.3, velocity=0.0)
    u = problem.fixed_coordinates()
    assert u.isnan().tolist() == [False, True, False]
    physical = nuisance.to_physical(torch.nan_to_num(u))
    assert float(physical.a_v) == pytest.approx(0.3, abs=1e-9)
    assert float(physical.velocity) == 0.0


@pytest.mark.parametrize("sigma_v", [1.0, 5.0, 60.0, 499.0])
def test_any_fixed_sigma_v_comes_back(sigma_v):
    problem, _ = make_problem(sigma_v=sigma_v)
    u = torch.nan_to_num(problem.fixed_coordinates())
    assert float(nuisance.to_physical(u).sigma_v) == pytest.approx(sigma_v, rel=1e-9)


@pytest.mark.parametrize("n_pixels", [60, 3000])
def test_the_error_scale_is_drawn_from_its_conditional_posterior(n_pixels):
    """p(ln f | chi²) ~ f^-N exp(-chi² / 2 f²) times the normal prior of ln f."""
    n, chi2 = 20_000, 1.5 * n_pixels
    f = draw_error_scale(
        torch.full((n,), chi2).double(), n_pixels, True, torch.Generator().manual_seed(0)
    )
    grid = np.linspace(np.log(0.6), np.log(2.4), 8001)
    log_p = -n_pixels * grid - 0.5 * chi2 * np.exp(-2 * grid)
    log_p -= 0.5 * (grid / ERROR_SCALE_SPREAD) ** 2
    p = np.exp(log_p - log_p.max())
    total = (np.cumsum(p) - 0.5 * p) / p.sum()
    assert kstest(np.log(f.numpy()), lambda v: np.interp(v, grid, total)).pvalue > 1e-3


def test_a_fixed_error_scale_is_one():
    f = draw_error_scale(torch.tensor([3.0, 900.0]), 10, False, torch.Generator())
    assert f.tolist() == [1.0, 1.0]


# ---- fixed parameters and smooth flux -----------------------------------------------------------


def test_imposing_a_value_conditions_a_gaussian_ensemble():
    g = torch.Generator().manual_seed(1)
    root = torch.eye(131).double()
    root[130, 5], root[5, 130] = 0.0, 0.8
    draws = torch.randn((20_000, 131), generator=g, dtype=torch.float64) @ root.T
    fixed = torch.tensor([torch.nan, torch.nan, 1.0]).double()
    moved = _impose(draws, fixed)
    assert float((moved[:, 130] - 1.0).abs().max()) == 0.0
    # x_5 = n + 0.8 u given u = 1: mean 0.8, variance 1
    assert float(moved[:, 5].mean()) == pytest.approx(0.8, abs=0.03)
    assert float(moved[:, 5].var()) == pytest.approx(1.0, abs=0.05)
    assert float(moved[:, 7].mean()) == pytest.approx(0.0, abs=0.04)


def test_nothing_is_imposed_where_everything_is_free():
    state = torch.randn(5, 131)
    assert _impose(state, torch.full((3,), torch.nan)) is state


def test_the_smooth_flux_ignores_bad_pixels_and_keeps_a_constant():
    flux = torch.full((300,), 2.0).double()
    ivar = torch.ones(300).double()
    flux[100], ivar[100] = 1e9, 1e-30
    torch.testing.assert_close(calc_smooth_flux(flux, ivar), torch.full((300,), 2.0).double())


# ---- the profile fit and CLA --------------------------------------------------------------------


def test_the_profile_fit_finds_dust_and_kinematics_of_a_noiseless_mock():
    problem, _ = make_problem(noisy=False)
    profile = fit_profile(problem)
    assert profile.a_v == pytest.approx(0.4, abs=0.03)
    assert profile.sigma_v == pytest.approx(150.0, abs=3.0)
    assert profile.velocity == pytest.approx(20.0, abs=2.0)
    assert profile.chi2 < 1.0


def test_the_profile_fit_keeps_fixed_values():
    problem, _ = make_problem(a_v=0.7, sigma_v=100.0)
    profile = fit_profile(problem)
    assert (profile.a_v, profile.sigma_v) == (0.7, 100.0)
    assert profile.chi2 > fit_profile(make_problem()[0]).chi2 + 20
    all_fixed, _ = make_problem(a_v=0.4, sigma_v=150.0, velocity=20.0)
    assert fit_profile(all_fixed)[:3] == (0.4, 150.0, 20.0)


@pytest.fixture(scope="module")
def normal_prior():
    """A prior that is N(0, 1) in every coordinate, exactly."""
    return make_normal_prior()


def test_cla_leads_prior_draws_onto_the_data(normal_prior):
    problem, truth = make_problem()
    draws = ClaSampler(normal_prior, steps=120).sample(
        problem, 16, torch.Generator().manual_seed(2)
    )
    x = normal_prior.sample_x(16, torch.Generator().manual_seed(3), steps=20).double()
    before = calc_chi2(problem, torch.cat([x.flatten(1), truth[128:].expand(16, 3)], 1))
    assert float(before.median()) > 1e5
    assert float(np.median(draws.stats["chi2"])) < 2 * len(problem.flux)
    assert draws.nfe == 120
    torch.testing.assert_close(
        calc_chi2(problem, draws.state), torch.from_numpy(draws.stats["chi2"]), rtol=1e-3, atol=0
    )
    assert any("fixed" in w for w in draws.warnings)


def test_cla_refuses_samples_far_from_the_data(normal_prior):
    problem, _ = make_problem()
    with pytest.raises(SamplingError, match=r"did not reach|left the finite"):
        ClaSampler(normal_prior, steps=3).sample(problem, 4, torch.Generator().manual_seed(4))


def calc_chi2(problem, state):
    flux = calc_exact_flux(state, problem.model)
    return ((problem.flux - flux) ** 2 * problem.ivar).sum(1)


# ---- the amortised sampler ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler():
    """With a network that draws from N(0, 1), whatever it is shown."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulator_module, "N_REDSHIFTS", 6)
        domain = simulator_module.Domain()
        simulator = simulator_module.Simulator(load_grid(), BINS, make_scaling(), domain)
    g = torch.Generator().manual_seed(5)
    node = torch.randint(0, 6, (200,), generator=g)
    u = torch.randn(200, 3, generator=g)
    extra = 100 * torch.rand(200, generator=g)
    encoder = Encoder.fit(simulator.spectra(make_x(200, 1).float(), node, u, extra), 20)
    network = ConditionalMLP(131, encoder.n_features, width=16, blocks=1, condition=16)
    config = {
        "name": "untrained", "sde": SCHEDULE.to_dict(), "scaling": make_scaling().to_dict(),
        "domain": asdict(domain),
    }  # fmt: skip
    factor = calc_flux_factor(
        REDSHIFT, BINS.luminosity_distance_cm(REDSHIFT), load_grid().solar_luminosity
    )
    return AmortizedSampler(PosteriorNetwork(network, encoder, config), 0.0, 1 / factor)


def test_an_untrained_network_draws_from_the_standard_normal(sampler):
    features = torch.zeros(1, sampler.network.encoder.n_features)
    state = sampler.network.draw(features.expand(3000, -1), torch.Generator().manual_seed(6), 24)
    z = state.flatten().numpy()
    assert abs(z.mean()) < 0.01
    # 24 steps of the ODE from sigma 80 keep 105 % of the variance; of ancestral sampling 66 %
    assert z.var() == pytest.approx(1.0, abs=0.07)
    more = sampler.network.draw(features.expand(3000, -1), torch.Generator().manual_seed(6), 60)
    assert float(more.var()) == pytest.approx(1.0, abs=0.015)


FIXED = {"a_v": 0.4, "sigma_v": 150.0, "velocity": 20.0}


@pytest.mark.slow
def test_the_exact_likelihood_corrects_an_untrained_network(sampler):
    """Draws that start at chi² 1e8 end at the noise: the state of the network does not matter."""
    problem, _ = make_problem(fit_error_scale=False, **FIXED)
    draws = sampler.sample(problem, 30, torch.Generator().manual_seed(7))
    per_pixel = np.median(draws.stats["chi2"]) / len(problem.flux)
    assert 0.85 < per_pixel < 1.15
    assert draws.state.shape == (30, 131)
    torch.testing.assert_close(
        calc_chi2(problem, draws.state), torch.from_numpy(draws.stats["chi2"]), rtol=1e-9, atol=0
    )
    physical = nuisance.to_physical(draws.state[:, 128:])
    for value, fixed in zip(physical, FIXED.values(), strict=True):
        torch.testing.assert_close(value, torch.full_like(value, fixed), rtol=1e-7, atol=1e-7)
    assert bool((draws.error_scale == 1).all())


@pytest.mark.slow
def test_errors_that_no_history_can_meet_are_enlarged_after_a_trial(sampler):
    problem, _ = make_problem(**FIXED)
    # a step of 10 % in the flux: no mix of old and young stars has one
    flux = problem.flux.clone()
    flux[len(flux) // 2 :] *= 1.1
    draws = sampler.sample(replace(problem, flux=flux), 20, torch.Generator().manual_seed(11))
    assert 2 <= draws.facts["rounds"] <= amortized_module.MAX_ROUNDS
    assert float(draws.error_scale.median()) > 1.2
    easy = sampler.sample(problem, 20, torch.Generator().manual_seed(11))
    assert easy.facts["rounds"] == 1


@pytest.mark.slow
def test_the_better_the_data_the_less_of_them_the_network_sees(sampler):
    problem, _ = make_problem(fit_error_scale=False, **FIXED)
    view, g = sampler._view(problem), torch.Generator().manual_seed(12)
    for factor in (1.0, 4.0):
        seen = sampler._look(problem, view, factor, 10, g).extra
        assert seen == pytest.approx(float(view.snr) / factor / 40)
        chosen = replace(sampler, extra_noise=2.0)
        assert chosen._look(problem, view, factor, 10, g).extra == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("fit_error_scale", [False, True])
def test_draws_that_cannot_reach_the_data_are_refused(sampler, monkeypatch, fit_error_scale):
    polish = update_module.polish
    monkeypatch.setattr(update_module, "polish", lambda *a: polish(*a[:5], iterations=1))
    problem, _ = make_problem(fit_error_scale=fit_error_scale, **FIXED)
    with pytest.raises(SamplingError, match="draws reached the data"):
        sampler.sample(problem, 10, torch.Generator().manual_seed(8))


def test_a_spectrum_that_fills_no_segment_is_refused(sampler):
    wave = 4600 * 10.0 ** (1e-4 * np.arange(100))
    model = ForwardModel(load_grid(), wave, REDSHIFT, bins=BINS)
    _, truth = make_problem()
    flux = calc_exact_flux(truth[None], model)[0]
    problem = Problem(model, flux, (flux / 50) ** -2, make_scaling())
    with pytest.raises(DataError, match="posterior network sees"):
        sampler.sample(problem, 10, torch.Generator().manual_seed(9))


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.0])
def test_wrong_errors_are_found_outside_the_span(sampler, factor):
    model, _, flux, error, y = make_observation(snr=50.0)
    noisy = flux + factor * (y - flux)
    problem = Problem(model, noisy, error**-2, make_scaling())
    columns = calc_calibration_columns(problem)
    found = calc_span_scale(problem, sampler._view(problem).functionals, columns)
    # the small basis of this test leaves some of the model outside; 600 pixels know f to 3 %
    assert found == pytest.approx(factor, rel=0.15)


def test_the_calibration_multiplies_lines_with_little_of_the_noise():
    """Its reference: the data smoothed by what the draws allow."""
    problem, truth = make_problem(calibration_order=3)
    clean = make_problem(noisy=False)[0].flux
    draws = make_states(300, 31, (0.2, 0.6), (130.0, 170.0), (0.0, 40.0))
    generator = torch.Generator().manual_seed(3)
    draws[:, :128] = truth[:128] + 0.2 * torch.randn((300, 128), generator=generator).double()
    likelihood = update_module._build_likelihood(problem, 1.0, draws, generator)
    reference = update_module._calc_expected_flux(problem, likelihood, draws)
    rms = lambda flux: float(((flux - clean) ** 2 * problem.ivar).mean().sqrt())  # noqa: E731
    assert rms(problem.flux) == pytest.approx(1.0, abs=0.1)
    assert rms(calc_smooth_flux(problem.flux, problem.ivar)) > 1.0
    assert rms(reference) < 0.3


# ---- diagnostics --------------------------------------------------------------------------------


def test_draws_that_do_not_depend_on_their_view_count_in_full():
    g = torch.Generator().manual_seed(10)
    values = torch.randn((400, 4), generator=g, dtype=torch.float64)
    ess, rhat = calc_view_dependence(values, torch.arange(400) // 8)
    assert ess > 250 and rhat < 1.06


def test_draws_of_one_view_that_agree_count_once():
    """Variance r between and 1 - r within views: R-hat (1 - r)^-1/2, size n / (1 + 7 r)."""
    g = torch.Generator().manual_seed(11)
    view = torch.arange(4000) // 8
    common = torch.randn((500, 1), generator=g, dtype=torch.float64)[view]
    own = torch.randn((4000, 1), generator=g, dtype=torch.float64)
    r = 0.6
    ess, rhat = calc_view_dependence(r**0.5 * common + (1 - r) ** 0.5 * own, view)
    assert rhat == pytest.approx((1 - r) ** -0.5, rel=0.05)
    assert ess == pytest.approx(4000 / (1 + 7 * r), rel=0.05)


def test_one_view_tells_nothing():
    values = torch.randn(20, 2, dtype=torch.float64)
    assert calc_view_dependence(values, torch.zeros(20)) == (20.0, 1.0)
    assert calc_view_dependence(values, torch.arange(20)) == (20.0, 1.0)
    # nor do 20 draws, of which three share a view with another
    assert calc_view_dependence(values, torch.arange(20) % 17) == (20.0, 1.0)


# ---- calibration --------------------------------------------------------------------------------


def test_the_calibration_is_drawn_from_its_conditional_posterior():
    g = torch.Generator().manual_seed(12)
    columns = torch.randn((50, 3), generator=g, dtype=torch.float64)
    residual = columns @ torch.tensor([1.0, -2.0, 0.5]).double()
    draws = draw_calibration(residual.expand(20_000, -1), columns, g)
    covariance = torch.linalg.inv(torch.eye(3) + columns.T @ columns)
    mean = covariance @ columns.T @ residual
    torch.testing.assert_close(torch.cov(draws.T), covariance, rtol=0.05, atol=6e-4)
    assert float(((draws.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max()) < 0.04


@pytest.mark.parametrize(
    ("low", "high", "order"), [(3800, 9200, 8), (6300, 8800, 4), (5000, 5200, 1), (2000, 20000, 8)]
)
def test_the_order_follows_the_range(low, high, order):
    assert choose_order(np.linspace(low, high, 100)) == order


def test_a_problem_without_calibration_has_no_columns():
    problem, _ = make_problem()
    assert calc_calibration_columns(problem).shape == (len(problem.flux), 0)
    some, _ = make_problem(calibration_order=3)
    columns = calc_calibration_columns(some)
    # 2 % of a spectrum of S/N 50 is one sigma, at the ends of the range
    assert columns.shape == (len(problem.flux), 3)
    assert 0.5 < float(columns[-1].abs().mean()) < 2.0


def test_a_spectrum_shorter_than_the_smoothing_keeps_its_length():
    flux = torch.linspace(1, 2, 30, dtype=torch.float64)
    assert calc_smooth_flux(flux, torch.ones_like(flux)).shape == flux.shape
