"""The evidence: the integral against closed forms, the misfit, and a whole estimate."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from galaxies import DATA

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from analytic_oracle import Linear, Mixture, Oracle, calc_posterior, make_oracle, make_prior
from evidence_oracle import calc_exact, estimate, sample_exact

from sfhzoo import evidence, massprior
from sfhzoo.diagnostics import mocks
from sfhzoo.engines import Engine
from sfhzoo.errors import DataError, UsageError
from sfhzoo.evidence import estimate_evidence
from sfhzoo.likelihood.options import Options
from sfhzoo.likelihood.problem import Draws
from sfhzoo.preparation import prepare_spectrum
from sfhzoo.tempering import (
    Misfit,
    Node,
    calc_importance,
    calc_quadrature_weights,
    integrate,
    place_nodes,
)


def make_linear(seed):
    """A Gaussian prior in 6 dimensions, 20 data, one draw of it observed."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *s: torch.randn(s, generator=g, dtype=torch.float64)  # noqa: E731
    root = normal(6, 6)
    prior = Mixture(torch.ones(1).double(), normal(1, 6), (root @ root.T + torch.eye(6))[None])
    a = 5 * normal(20, 6)
    y = a @ prior.sample(1, g)[0] + normal(20)
    return Oracle(prior, Linear(a, y), calc_posterior(prior, a, y), 1.0)


@pytest.fixture(scope="module")
def pulls():
    """(estimate - exact) / error of 40 linear-Gaussian problems, and the errors."""
    found = []
    for seed in range(40):
        oracle, g = make_linear(seed), torch.Generator().manual_seed(1000 + seed)
        e = estimate(oracle, sample_exact, 225, g, n_prior=3000, effective=100)
        found.append(((e.value - calc_exact(oracle)) / e.error, e.error))
    return np.array(found)


def test_a_linear_gaussian_evidence_is_right_within_its_error(pulls):
    pull, error = pulls.T
    assert error.max() < 0.4
    assert abs(pull.mean()) < 3 / len(pull) ** 0.5
    # 40 standard normal numbers have a mean square of 1 +- 0.22
    assert 0.5 < (pull**2).mean() < 1.7


@pytest.mark.parametrize("noise", [10.0, 1.0, 0.1])
def test_a_mixtures_evidence_is_right_to_three_tenths(noise):
    oracle = make_oracle(noise, prior=make_prior(d=12))
    e = estimate(oracle, sample_exact, 6000, torch.Generator().manual_seed(0))
    assert e.error < 0.12
    assert abs(e.value - calc_exact(oracle)) < 0.3


def test_draws_with_too_much_misfit_lower_the_evidence():
    """What the check above can see: a sampler whose chi² is too high by a tenth."""
    oracle = make_oracle(1.0, prior=make_prior(d=12))

    def wrong(tempered, n, generator):
        x = sample_exact(tempered, n, generator)
        mean = tempered.posterior.moments()[0]
        return mean + 1.2 * (x - mean)

    e = estimate(oracle, wrong, 1000, torch.Generator().manual_seed(0))
    assert e.value - calc_exact(oracle) < -1.0


@pytest.mark.parametrize("n", [5, 9, 13])
def test_the_quadrature_is_exact_for_cubics(n):
    t = np.linspace(0.0, n - 1.0, n)
    for power in range(4 if n == 5 else 3):
        value = calc_quadrature_weights(n) @ t**power
        assert value == pytest.approx((n - 1.0) ** (power + 1) / (power + 1))


def test_noiseless_energies_leave_a_quadrature_error_that_covers_the_true_one():
    """<chi²> = m + sum 1 / (beta + s): a Gaussian's, whose integral is known."""
    soft = np.array([1e-3, 1e-2, 0.1, 3.0])
    ln_beta = place_nodes(-7.0)
    nodes = []
    for value in ln_beta:
        mean = 3000.0 + (1 / (np.exp(value) + soft)).sum()
        # the least and the most of two draws: no noise in their mean
        nodes.append(Node(value, np.array([mean, mean]), 2.0))
    start = math.exp(-7.0)
    exact = -0.5 * (3000 * (1 - start) + np.log((1 + soft) / (start + soft)).sum())
    found = integrate(nodes)
    assert found.sampling == 0.0
    assert abs(found.value - exact) < 0.02
    assert abs(found.value - exact) < 5 * found.quadrature + 2e-3


def test_nodes_that_are_not_even_are_refused():
    nodes = [Node(t, np.array([1.0, 2.0]), 2.0) for t in (-3.0, -2.0, -1.5, -1.0, 0.0)]
    with pytest.raises(ValueError, match="evenly spaced ln beta"):
        integrate(nodes)


def test_nodes_lie_close_enough_and_end_at_the_posterior():
    for start in (-0.1, -5.0, -13.0):
        nodes = place_nodes(start)
        assert nodes[0] == start and nodes[-1] == 0.0
        assert (len(nodes) - 1) % 4 == 0
        assert np.diff(nodes).max() <= 1.2 + 1e-12


def test_importance_counts_its_draws():
    equal = calc_importance(np.full(100, -3.0))
    assert equal == pytest.approx((-3.0, 0.0, 100.0))
    one = calc_importance(np.array([0.0, *[-800.0] * 99]))
    assert one.value == pytest.approx(-math.log(100))
    assert one.effective == pytest.approx(1.0)


# ---- the misfit ---------------------------------------------------------------------------------


def make_problem(order):
    """What a misfit needs of a problem: 40 pixels, a flat flux near 1."""
    rng = np.random.default_rng(0)
    flux, ivar = 1 + 0.1 * rng.standard_normal(40), rng.uniform(20, 50, 40)
    return SimpleNamespace(
        model=SimpleNamespace(wave_obs=np.linspace(4000, 7000, 40)),
        flux=torch.from_numpy(flux), ivar=torch.from_numpy(ivar),
        calibration_order=order, calibration_rms=0.1,
    )  # fmt: skip


def test_calibration_is_integrated_out_as_by_brute_force():
    from sfhzoo.likelihood.calibration import calc_calibration_rows

    problem, beta = make_problem(2), 0.7
    flux = torch.from_numpy(np.stack([np.ones(40), np.linspace(0.8, 1.2, 40)]))
    misfit = Misfit(problem, flux)
    c = np.random.default_rng(1).standard_normal((50_000, 2))
    rows = calc_calibration_rows(problem.model.wave_obs, (4000.0, 7000.0), 2)
    for i in range(2):
        model = flux[i].numpy() * (1 + 0.1 * c @ rows)
        chi2 = ((problem.flux.numpy() - model) ** 2 * problem.ivar.numpy()).sum(1)
        weight = np.exp(-0.5 * beta * (chi2 - chi2.min()))
        log_l = np.log(weight.mean()) - 0.5 * beta * chi2.min()
        assert misfit.calc_log_likelihood(beta)[i] == pytest.approx(log_l, abs=0.02)
        expected = (weight @ chi2) / weight.sum()
        assert misfit.calc_expected(beta)[i] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("order", [0, 3])
def test_the_expected_misfit_is_the_slope_of_the_likelihood(order):
    problem = make_problem(order)
    misfit = Misfit(problem, torch.from_numpy(np.stack([np.ones(40), np.full(40, 1.1)])))
    slope = (misfit.calc_log_likelihood(0.3001) - misfit.calc_log_likelihood(0.2999)) / 2e-4
    np.testing.assert_allclose(misfit.calc_expected(0.3), -2 * slope, rtol=1e-6)


# ---- a whole estimate ---------------------------------------------------------------------------


class Reweighted:
    """Draws of the prior resampled by their likelihood: a sampler for spectra of little S/N."""

    def __init__(self, prior, drawn):
        self.prior, self.drawn = prior, drawn

    def sample(self, problem, n, generator):
        flux = self.drawn.flux
        log_weight = torch.from_numpy(Misfit(problem, flux).calc_log_likelihood(1.0))
        weight = torch.softmax(log_weight, 0)
        index = torch.multinomial(weight, n, replacement=True, generator=generator)
        return replace(self.drawn.pick(index), stats={})


@pytest.fixture(scope="module")
def faint():
    """Prior, grid, a mock of a total S/N of 4, its options, problem and draws of the prior."""
    if not mocks.BUNDLED_MOCKS.is_file() or not (DATA / "diffstarpop-tng-v1").is_dir():
        pytest.skip("the default prior is not bundled")
    from sfhzoo.zoo.artifacts import load_grid, load_prior

    prior, grid = load_prior(), load_grid()
    mock = replace(mocks.load().mocks[213], snr=0.15, error_scale=1.0)
    spectrum = mocks.make_spectrum(mock, grid, prior.bins)
    options = {"wave_range": (4500.0, 5400.0), "redshift_offset": "fixed", "sigma_v": 150.0}
    problem = prepare_spectrum(spectrum, prior, grid, Options(**options), False).problem
    histories = massprior.draw_histories(prior, 500, seed=3)
    x = torch.from_numpy(prior.scaling.to_x(*histories)).flatten(1)
    g = torch.Generator().manual_seed(5)
    a_v = torch.randn(500, generator=g, dtype=torch.float64).abs().clamp(max=4.0)
    flux = problem.model(*histories, a_v, 150.0)
    state = torch.cat([x, torch.zeros(500, 3 + problem.calibration_order)], 1)
    drawn = Draws(state, flux, torch.ones(500), 0)
    return prior, grid, spectrum, options, problem, drawn


@pytest.fixture
def by_reweighting(faint, monkeypatch):
    """`estimate_evidence` of the faint mock with that sampler, and few draws of the prior."""
    prior, grid, spectrum, options, _, drawn = faint
    few = massprior.draw_histories(prior, 500, seed=3)
    sampler = Reweighted(prior, drawn)
    monkeypatch.setattr(evidence, "choose_engine", lambda *a: Engine(sampler, "-", "cpu", ()))
    monkeypatch.setattr(evidence, "draw_histories", lambda prior: few)
    monkeypatch.setattr(massprior, "draw_histories", lambda prior: few)
    monkeypatch.setattr(evidence, "MIN_EFFECTIVE", 250)

    def estimate(spectrum=spectrum, **more):
        return estimate_evidence(spectrum, prior, grid, **{"samples": 400, **options, **more})

    return estimate


def test_a_faint_spectrums_evidence_is_that_of_brute_force(faint, by_reweighting):
    """ln of the mean likelihood over draws of the prior, at once and by temperatures."""
    problem, drawn = faint[4:]
    log_weight = Misfit(problem, drawn.flux).calc_log_likelihood(1.0)
    direct = calc_importance(log_weight)
    constant = 0.5 * float((problem.ivar / (2 * math.pi)).log().sum())
    assert direct.effective > 30
    found = by_reweighting(mass_prior="flat", seed=2)
    assert found.ln_beta[0] < -0.5
    error = math.hypot(found.error, direct.error)
    assert error < 0.4
    assert abs(found.log_evidence - constant - direct.value) < 3 * error
    assert found.n_pixels == len(problem.flux)
    # the prior's masses are spread as widely as the flat prior's: not much can change
    assert abs(found.log_evidence_common - found.log_evidence) < 2.0
    assert found.error_common >= found.error


def test_what_compression_misstates_is_taken_off_in_the_tempered_units(faint):
    problem, drawn = faint[4:]
    lossy = replace(drawn, stats={"compression_loss": np.full(500, 0.5)})
    plain = evidence.calc_energies(problem, drawn, 0.1)
    np.testing.assert_allclose(evidence.calc_energies(problem, lossy, 0.1), plain - 5.0)


def test_a_factor_on_the_errors_is_the_errors(faint, by_reweighting):
    spectrum = faint[2]
    sharper = replace(spectrum, ivar=4 * spectrum.ivar)
    plain, scaled = by_reweighting(), by_reweighting(sharper, error_scale=2.0)
    assert scaled.log_evidence == pytest.approx(plain.log_evidence, abs=1e-6)
    assert plain.log_evidence_common is None


def test_few_draws_of_the_prior_that_count_are_told(by_reweighting, faint, monkeypatch):
    monkeypatch.setattr(evidence, "MIN_EFFECTIVE", 2)
    bright = replace(faint[2], ivar=900 * faint[2].ivar)
    found = by_reweighting(bright, samples=20)
    assert any("draws of the prior count at the first node" in w for w in found.warnings)
    assert any("take more samples" in w for w in found.warnings)


def test_wrong_use_is_told_before_anything_is_drawn(faint):
    prior, grid, spectrum, *_ = faint
    with pytest.raises(UsageError, match="fixed errors; give their factor as error_scale"):
        estimate_evidence(spectrum, prior, grid, jitter="free")
    with pytest.raises(UsageError, match="positive factor on the errors"):
        estimate_evidence(spectrum, prior, grid, error_scale=0.0)
    with pytest.raises(UsageError, match="expected the mass prior"):
        estimate_evidence(spectrum, prior, grid, mass_prior="round")
    with pytest.raises(DataError, match="no redshift"):
        estimate_evidence(replace(spectrum, redshift=None), prior, grid)
