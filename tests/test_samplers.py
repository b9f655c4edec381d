"""The samplers on mocks with known truth, and with networks that know nothing.

An untrained `SpectralMLP` or `ConditionalMLP` is exact: it is the denoiser of N(0, 1). So these
tests judge the likelihood's side alone: whatever the network, the draws must reach the data, or
the sampler must say that they did not.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
import torch
from galaxies import (
    BINS,
    REDSHIFT,
    calc_exact_flux,
    load_grid,
    make_model,
    make_observation,
    make_scaling,
    make_x,
)
from scipy.stats import chi2 as chi_squared
from scipy.stats import kstest

from sfhzoo.errors import DataError, SamplingError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Problem, draw_error_scale
from sfhzoo.likelihood.profile import fit_profile
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.samplers import simulator as simulator_module
from sfhzoo.samplers.amortized import AmortizedSampler, _impose, calc_smooth_flux
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


def test_the_error_scale_is_drawn_from_its_conditional_posterior():
    """p(f | chi²) ~ f^-(N + 1) exp(-chi² / 2 f²): chi² / f² is chi-squared with N degrees."""
    n_pixels, n = 300, 20_000
    chi2 = torch.full((n,), 450.0).double()
    f = draw_error_scale(chi2, n_pixels, True, torch.Generator().manual_seed(0))
    assert kstest((chi2 / f**2).numpy(), chi_squared(n_pixels).cdf).pvalue > 1e-3
    grid = np.linspace(0.9, 1.7, 4001)
    log_p = -(n_pixels + 1) * np.log(grid) - 0.5 * 450.0 / grid**2
    p = np.exp(log_p - log_p.max())
    mean = (p * grid).sum() / p.sum()
    spread = ((p * (grid - mean) ** 2).sum() / p.sum()) ** 0.5
    assert float(f.mean()) == pytest.approx(mean, abs=5 * spread / n**0.5)
    assert float(f.std()) == pytest.approx(spread, rel=0.03)


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
    schedule = NoiseSchedule()
    config = {
        "name": "normal", "sde": schedule.to_dict(), "scaling": make_scaling().to_dict(),
        "cosmology": "Planck15", "n_bins": 64,
    }  # fmt: skip
    return Prior(SpectralMLP(width=16, blocks=1, schedule=schedule), config)


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
def test_draws_that_cannot_reach_the_data_are_refused(sampler, monkeypatch):
    monkeypatch.setattr("sfhzoo.samplers.amortized.FIRST_ITERATIONS", 1)
    monkeypatch.setattr("sfhzoo.samplers.amortized.MAX_ITERATIONS", 1)
    problem, _ = make_problem(fit_error_scale=False, **FIXED)
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


def test_more_signal_leaves_the_network_less_of_it(sampler):
    """Its share stays within the S/N it was trained on, 2 to 200 per 138 km/s."""
    shares = []
    for snr in (1.0, 50.0, 2000.0):
        model, _, _, error, y = make_observation(snr=snr)
        problem = Problem(model, y, error**-2, make_scaling())
        shares.append(sampler._fraction(problem, error))
    assert shares[0] > 0.5 and shares[1] == 0.3 and shares[2] < 0.01
    assert make_model().wave_obs.size == 600
