"""Another prior of the mass: densities, weights, and what a fit makes of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from galaxies import DATA

from sfhzoo import inference, massprior, reweighting
from sfhzoo.cli.infer import infer_command
from sfhzoo.errors import UsageError
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood.nuisance import NAMES, calc_derivative, calc_log_prior, to_physical
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.massprior import MassDensity, calc_weights, parse_mass_prior
from sfhzoo.reweighting import OtherPriors
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.timebins import TimeBins
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, find_posterior_network


def integrate(density, at):
    return np.trapezoid(np.exp(density(at)), at)


@pytest.mark.parametrize("name", ["flat", "flat:9,11", "schechter", "normal:10.5,0.3"])
def test_every_mass_prior_is_a_density(name):
    density = parse_mass_prior(name)
    assert integrate(density, density.at) == pytest.approx(1.0, rel=1e-3)


def test_as_trained_is_no_mass_prior():
    assert parse_mass_prior("as-trained") is None


@pytest.mark.parametrize(
    "name",
    ["flatt", "flat:", "flat:9", "flat:11,9", "flat:8,nan", "normal", "normal:10", "normal:10,-1",
     "normal:a,b", "schechter:3", "as-trained:1", ""],
)  # fmt: skip
def test_anything_else_is_refused_with_the_choices(name):
    with pytest.raises(UsageError, match="expected the mass prior as-trained, flat"):
        parse_mass_prior(name)


def test_the_mass_function_is_that_of_baldry_et_al():
    """Slopes at both ends of the double Schechter function, and its knee."""
    prior = parse_mass_prior("schechter")
    slope = lambda m: (prior(m + 0.05) - prior(m - 0.05)) / 0.1 / np.log(10)  # noqa: E731
    assert slope(8.3) == pytest.approx(-0.47, abs=0.02)
    # far above the knee exp(-M / M*) rules, M* being 10.66 + 0.23 of mass formed
    far = 10 ** (12.0 - 10.89)
    assert slope(12.0) == pytest.approx(0.65 - far, abs=0.15)
    assert prior(12.6) == -np.inf


def test_the_density_of_draws_is_theirs():
    rng = np.random.default_rng(0)
    density = MassDensity.of(rng.normal(10.3, 0.6, 4000))
    assert integrate(density, density.log_mass) == pytest.approx(1.0, abs=0.02)
    at = np.array([9.5, 10.3, 11.2])
    exact = -0.5 * ((at - 10.3) / 0.6) ** 2 - np.log(0.6 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density(at), exact, atol=0.12)
    assert density.is_supported([10.0, 14.0]).tolist() == [True, False]


def test_weighted_draws_of_a_prior_follow_the_mass_prior():
    """Draws of the prior itself: after resampling their masses are those asked for."""
    rng = np.random.default_rng(1)
    log_mass = rng.uniform(8.5, 12, 6000)
    weights = calc_weights(log_mass, MassDensity.of(log_mass), parse_mass_prior("normal:10.5,0.2"))
    index = weights.resample(2000, torch.Generator().manual_seed(0)).numpy()
    assert log_mass[index].mean() == pytest.approx(10.5, abs=0.02)
    assert log_mass[index].std() == pytest.approx(0.2, abs=0.02)
    # the share of draws that a normal of this width lets count: 2 sqrt(pi) sigma / 3.5 dex
    assert weights.effective / len(log_mass) == pytest.approx(2 * np.pi**0.5 * 0.2 / 3.5, rel=0.1)
    # under the prior itself the mean of pi / p_M is 1: the evidence of no data
    gain, error = weights.log_mean
    assert abs(gain) < 5 * error + 0.02


def test_equal_weights_keep_every_draw_once():
    log_mass = np.full(50, 10.0)
    density = MassDensity.of(np.random.default_rng(2).uniform(8, 12, 4000))
    weights = calc_weights(log_mass, density, parse_mass_prior("flat"))
    index = weights.resample(50, torch.Generator().manual_seed(3))
    assert sorted(index.tolist()) == list(range(50))
    assert weights.log_mean[1] < 1e-6


def test_masses_the_prior_never_has_are_told_and_do_not_rule():
    density = MassDensity.of(np.random.default_rng(4).normal(10, 0.3, 4000))
    weights = calc_weights(np.array([10.0, 10.1, 12.4]), density, parse_mass_prior("flat"))
    assert weights.unsupported > 0.9
    assert np.isfinite(weights.log_weight).all()
    assert np.exp(weights.log_weight.max()) <= 1 / 4.5 / density.lowest * 1.001


def test_a_mass_prior_without_the_posterior_is_refused():
    density = MassDensity.of(np.random.default_rng(5).uniform(8, 12, 4000))
    with pytest.raises(UsageError, match=r"ends at log masses 8\.00 and 9\.00, the posterior has"):
        calc_weights(np.array([10.9, 11.1]), density, parse_mass_prior("flat:8,9"))


def test_picking_draws_picks_all_that_belongs_to_them():
    state = torch.arange(12.0).view(4, 3)
    draws = Draws(state, 10 * state, state[:, 0], 7, {"chi2": np.arange(4.0)}, {"rank": 3})
    picked = draws.pick(torch.tensor([2, 0, 2]))
    assert picked.state[:, 0].tolist() == [6.0, 0.0, 6.0]
    assert picked.flux[:, 0].tolist() == [60.0, 0.0, 60.0]
    assert picked.error_scale.tolist() == [6.0, 0.0, 6.0]
    assert picked.stats["chi2"].tolist() == [2.0, 0.0, 2.0]
    assert picked.facts == {"rank": 3}


# ---- in a fit -----------------------------------------------------------------------------------


class Fit(NamedTuple):
    """What `reweight` needs: 400 draws of flat histories, log masses 10 +- 0.1 in all."""

    problem: Problem
    draws: Draws
    prior: SimpleNamespace


@pytest.fixture
def fit(monkeypatch):
    bins, rng = TimeBins(), np.random.default_rng(6)
    log_mass = 10 + 0.1 * rng.standard_normal(400)
    scaling = HistoryScaling("log", np.zeros((2, bins.n)), np.ones((2, bins.n)))
    sfr = np.repeat(10 ** (log_mass - 9)[:, None] / bins.age_at(0.0), bins.n, 1)
    x = torch.from_numpy(scaling.to_x(sfr, np.zeros_like(sfr))).flatten(1)
    x = torch.cat([x, torch.from_numpy(rng.standard_normal((400, 3)))], dim=1)
    draws = Draws(x, x, x[:, 0], 1, {"chi2": log_mass}, {}, ("first",))
    model = SimpleNamespace(cosmic_time=bins.age_at(0.0), templates=np.zeros((bins.n, 1)))
    problem = Problem(model, x[0], x[0], scaling)
    even = MassDensity.of(rng.uniform(8, 12, 4000))
    monkeypatch.setattr(massprior, "calc_mass_density", lambda prior, now: even)
    return Fit(problem, draws, SimpleNamespace(bins=bins, name="a prior"))


def reweight(fit, name, **of_nuisance):
    wanted = OtherPriors.parse(name, of_nuisance)
    return reweighting.reweight(*fit, wanted, 100, torch.Generator().manual_seed(0))


def test_a_fit_moves_towards_the_mass_prior_by_as_much_as_bayes_says(fit):
    draws, recorded = reweight(fit, "normal:10.2,0.1")
    # two Gaussians of one width: half-way, narrower by sqrt(2)
    assert draws.stats["chi2"].mean() == pytest.approx(10.1, abs=0.03)
    assert draws.stats["chi2"].std() == pytest.approx(0.1 / 2**0.5, abs=0.02)
    assert len(draws.state) == 100
    assert draws.warnings == ("first",)
    assert recorded["mass_prior"]["name"] == "normal:10.2,0.1"
    assert 50 < recorded["mass_prior"]["effective"] < 400


def test_few_effective_samples_are_told(fit):
    draws, _ = reweight(fit, "normal:10.5,0.03")
    assert "effective samples of 400: take more samples" in draws.warnings[-1]


def test_masses_without_support_are_told(fit, monkeypatch):
    narrow = MassDensity.of(np.random.default_rng(7).normal(8.5, 0.1, 4000))
    monkeypatch.setattr(massprior, "calc_mass_density", lambda prior, now: narrow)
    assert any("practically no galaxies" in w for w in reweight(fit, "flat")[0].warnings)


@pytest.mark.parametrize(
    ("name", "text", "mean", "std"),
    [
        ("a_v", "flat:0.2,1.0", 0.6, 0.8 / 12**0.5),
        ("a_v", "normal:0.5,0.1", 0.5, 0.1),
        ("sigma_v", "normal:150,30", 150.0, 30.0),
        ("velocity_offset", "normal:50,60", 50.0, 60.0),
    ],
)
def test_draws_of_the_prior_follow_the_nuisance_prior_that_was_given(fit, name, text, mean, std):
    draws, recorded = reweight(fit, "as-trained", **{name: text})
    values = dict(zip(NAMES, fit.problem.to_nuisance(draws.state), strict=True))[name]
    effective = recorded["nuisance_priors"]["effective"]
    assert 30 < effective < 400
    assert float(values.mean()) == pytest.approx(mean, abs=4 * std / effective**0.5)
    assert float(values.std()) == pytest.approx(std, rel=4 / (2 * effective) ** 0.5)
    assert recorded["nuisance_priors"][name] == text


def test_what_the_range_cut_off_gets_no_weight(fit):
    state = fit.draws.state.clone()
    state[:40, -2] = 4.0  # sigma_v far above its range: cut at 500
    cut = fit._replace(draws=replace(fit.draws, state=state))
    draws, _ = reweight(cut, "as-trained", sigma_v="flat:1,500")
    assert float(fit.problem.to_nuisance(draws.state).sigma_v.max()) < 500


def test_the_factor_on_the_errors_takes_a_prior(fit):
    scale = torch.exp(0.3 * torch.randn(400, generator=torch.Generator().manual_seed(1)).double())
    free = fit._replace(draws=replace(fit.draws, error_scale=scale))
    draws, _ = reweight(free, "as-trained", error_scale="normal:1.2,0.1")
    assert float(draws.error_scale.mean()) == pytest.approx(1.2, abs=0.04)
    assert float(draws.error_scale.std()) == pytest.approx(0.1, abs=0.03)
    known = fit._replace(draws=replace(fit.draws, error_scale=torch.ones(400).double()))
    with pytest.raises(UsageError, match="error_scale is fixed"):
        reweight(known, "as-trained", error_scale="flat:0.5,2")


def test_priors_of_mass_and_nuisance_join(fit):
    draws, recorded = reweight(fit, "normal:10.2,0.1", velocity_offset="normal:50,100")
    velocity = fit.problem.to_nuisance(draws.state).velocity
    assert draws.stats["chi2"].mean() == pytest.approx(10.1, abs=0.04)
    assert float(velocity.mean()) == pytest.approx(50, abs=35)
    assert recorded["mass_prior"]["effective"] == recorded["nuisance_priors"]["effective"]


@pytest.mark.parametrize(
    ("of_nuisance", "says"),
    [
        ({"a_v": "flat:3.9,4"}, "no draw lies inside"),
        ({"a_v": "flat:5,6"}, "outside 0 to 4"),
        ({"a_v": "schechter"}, "the prior of a_v: expected flat:LOW,HIGH"),
        ({"sigma_v": "normal:100,0"}, "the prior of sigma_v: expected"),
        ({"dust": "flat:0,1"}, "expected a prior of a_v, sigma_v, velocity_offset, error_scale"),
    ],
)
def test_impossible_nuisance_priors_are_refused(fit, of_nuisance, says):
    with pytest.raises(UsageError, match=says):
        reweight(fit, "as-trained", **of_nuisance)


def test_a_fixed_parameter_takes_no_prior(fit):
    fixed = fit._replace(problem=replace(fit.problem, a_v=0.3))
    with pytest.raises(UsageError, match="a_v is fixed"):
        reweight(fixed, "as-trained", a_v="flat:0,1")


@pytest.mark.parametrize(
    ("text", "says"), [("a_v", "expected NAME=DENSITY"), ("a_v=flat", "the prior of a_v")]
)
def test_a_wrong_nuisance_prior_is_wrong_usage_on_the_command_line(text, says):
    result = CliRunner().invoke(infer_command, ["a.fits", "--nuisance-prior", text])
    assert result.exit_code == 2
    assert says in result.output


def test_the_own_densities_are_those_that_the_coordinates_stand_for():
    u = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None].expand(7, 3)
    slopes, values = calc_derivative(u), to_physical(u)
    for i, name in enumerate(NAMES):
        # p(theta) = p(u) / |d theta / d u|
        expected = -0.5 * u[:, i] ** 2 - slopes[:, i].log()
        found = calc_log_prior(name, values[i])
        assert torch.allclose(found - found[3], expected - expected[3], atol=1e-9)


def test_an_unknown_mass_prior_is_wrong_usage_on_the_command_line():
    result = CliRunner().invoke(infer_command, ["a.fits", "--mass-prior", "flatt"])
    assert result.exit_code == 2
    assert "expected the mass prior as-trained, flat" in result.output


def test_infer_records_the_mass_prior_and_refuses_a_wrong_one(fit):
    if find_posterior_network(DEFAULT_PRIOR, DEFAULT_GRID) is None:
        pytest.skip("the default prior is not bundled")
    galaxy = Spectrum.read(DATA / "spec-NGC3522.fits")
    with pytest.raises(UsageError, match="expected the mass prior"):
        inference.infer(galaxy, mass_prior="round")
    posterior = inference.infer(
        galaxy, samples=5, mass_prior="flat", seed=1, nuisance_priors={"a_v": "flat:0,4"}
    )
    assert posterior.n_samples == 5
    recorded = posterior.summary()["prior"]["mass_prior"]
    assert recorded["name"] == "flat"
    assert recorded["of"] == 20
    # a spectrum fixes the mass: a flat prior for an even one changes next to nothing
    assert recorded["effective"] > 15
    assert posterior.summary()["prior"]["nuisance_priors"]["a_v"] == "flat:0,4"
