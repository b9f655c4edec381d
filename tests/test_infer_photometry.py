"""Photometry in the fit: bands as further data of the likelihood, the samplers and the output."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from galaxies import (
    BINS,
    DATA,
    REDSHIFT,
    calc_exact_flux,
    load_grid,
    make_histories,
    make_normal_prior,
    make_observation,
    make_scaling,
    make_states,
)
from test_polish import Case, Linear, calc_deviations, run

from sfhzoo.cli import run as cli_run
from sfhzoo.diagnostics import mocks
from sfhzoo.errors import DataError, UsageError
from sfhzoo.forward.bands import BandModel, Filter, calc_band_fluxes, load_filters
from sfhzoo.forward.model import ForwardModel
from sfhzoo.inference import infer
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.compression import CompressedLikelihood, Span
from sfhzoo.likelihood.interpolation import Polynomial, count_exponential_nodes
from sfhzoo.likelihood.problem import Bands, Problem
from sfhzoo.likelihood.profile import fit_profile
from sfhzoo.plots import plot_spectrum
from sfhzoo.posterior import Posterior
from sfhzoo.samplers.gauss_newton import CurvedLikelihood
from sfhzoo.spectra.extinction import calc_galactic_transmission, deredden_bands
from sfhzoo.spectra.photometry import Photometry
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, find_posterior_network, load_prior

NAMES = ("galex_NUV", "sdss_u0", "sdss_g0", "sdss_r0", "sdss_i0", "sdss_z0", "twomass_J",
         "twomass_Ks")  # fmt: skip
SNR = 50.0
SPAN = Span((0.2, 0.6), (120.0, 180.0), (-30.0, 60.0))

bundled = pytest.mark.skipif(
    find_posterior_network(DEFAULT_PRIOR, DEFAULT_GRID) is None
    or not (DATA / DEFAULT_PRIOR).is_dir(),
    reason="the default prior is not bundled",
)


@cache
def make_band_model(redshift=REDSHIFT, names=NAMES):
    return BandModel(load_grid(), load_filters(names), redshift, bins=BINS)


def draw_photometry(sfr, logzsol, a_v, redshift, seed=1, names=NAMES):
    """Noisy fluxes at S/N 50 of one galaxy, its history [bin]."""
    model = make_band_model(redshift, names)
    exact = model(torch.from_numpy(sfr), torch.from_numpy(logzsol), a_v).numpy()
    noise = np.random.default_rng(seed).standard_normal(len(exact))
    return Photometry(model.filters, exact * (1 + noise / SNR), exact / SNR)


def make_bands(truth, factor=1.0):
    sfr, logzsol = make_scaling().from_x(truth[:128].view(2, 64))
    a_v = nuisance.to_physical(truth[128:131]).a_v
    exact = make_band_model()(sfr, logzsol, a_v)
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(len(exact), generator=generator, dtype=torch.float64)
    return Bands(make_band_model(), factor * exact * (1 + noise / SNR), exact / SNR)


def make_likelihood(model, y, error, bands, span=SPAN):
    sfr = torch.from_numpy(make_histories(200, 5)[0].mean(0))
    generator = torch.Generator().manual_seed(3)
    return CompressedLikelihood(model, y, error**-2, make_scaling(), span, sfr, generator, bands)


@pytest.fixture(scope="module")
def case():
    """(model, truth, error, noisy flux, bands, likelihood) of a spectrum of S/N 10 with bands."""
    model, truth, _, error, y = make_observation(snr=10.0)
    bands = make_bands(truth)
    return model, truth, error, y, bands, make_likelihood(model, y, error, bands)


def make_near(truth, n, seed):
    state = make_states(n, seed, *SPAN)
    noise = torch.randn((n, 128), generator=torch.Generator().manual_seed(seed)).double()
    state[:, :128] = truth[:128] + 0.1 * noise
    return state


# ---- the likelihood -----------------------------------------------------------------------------


def test_chi2_is_that_of_the_pixels_and_of_bands_integrated_by_brute_force(case):
    model, truth, error, y, bands, likelihood = case
    state = make_near(truth, 6, 8)
    wave = np.geomspace(1500.0, 26000.0, 30_000)
    sfr, logzsol = make_scaling().from_x(state[:, :128].view(-1, 2, 64))
    # bands know no velocities
    whole = ForwardModel(load_grid(), wave, REDSHIFT, bins=BINS)(
        sfr, logzsol, nuisance.to_physical(state[:, 128:131]).a_v, 1.0
    )
    maggies = torch.from_numpy(calc_band_fluxes(wave, whole.numpy(), bands.model.filters))
    of_bands = (((bands.maggies - maggies) / bands.error) ** 2).sum(1)
    of_pixels = (((y - calc_exact_flux(state, model)) / error) ** 2).sum(1)
    assert float(of_bands.min()) > 1.0, "the bands must matter"
    inside = likelihood.in_bands
    found = ((likelihood.y - likelihood.predict(state))[:, inside] ** 2).sum(1)
    torch.testing.assert_close(found, of_bands, rtol=1e-3, atol=0.01)
    # what the pixels lose by compression is a matter of the pixels
    exact, loss = of_pixels + of_bands, likelihood.calc_loss(state, calc_exact_flux(state, model))
    difference = (likelihood.calc_chi2(state) - exact).abs()
    assert bool((difference <= loss.sqrt() * (2 * exact.sqrt() + loss.sqrt()) + 0.02).all())


def test_the_jacobian_is_that_of_finite_differences(case):
    _, truth, *_, likelihood = case
    state, h = make_near(truth, 2, 6), 1e-5
    columns = []
    for i in range(state.shape[1]):
        step = torch.zeros_like(state)
        step[:, i] = h
        change = likelihood.predict(state + step) - likelihood.predict(state - step)
        columns.append(change / (2 * h))
    jacobian = torch.stack(columns, 1)
    in_bands = likelihood.in_bands
    residual = torch.ones(2, likelihood.rank).double() * in_bands
    gradient, hessian = likelihood.linearise(state, residual)
    wrong = (gradient - jacobian[..., in_bands].sum(2)).abs()
    # a metallicity node within the step makes a derivative one-sided: it may happen once
    assert int((wrong > 1e-4 * jacobian.norm(dim=2) + 1e-8).sum()) <= 1
    exact = jacobian @ jacobian.transpose(1, 2)
    assert float((hessian - exact).norm() / exact.norm()) < 1e-3
    dust = jacobian[:, 128, in_bands]
    assert float(dust.abs().max()) > 1.0, "the bands must know A_V"
    assert float(jacobian[:, 129:131, in_bands].abs().max()) < 1e-6, "no velocity moves a band"


def test_no_calibration_polynomial_moves_a_band(case):
    _, truth, _, y, bands, plain = case
    likelihood = plain.calibrated(y, 3)
    assert int(likelihood.in_bands.sum()) == len(bands)
    c = torch.tensor([[0.1, -0.2, 0.3]]).double()
    with_c = likelihood.predict(torch.cat([truth[None], c], 1))
    without = likelihood.predict(torch.cat([truth[None], 0 * c], 1))
    change = (with_c - without)[0]
    assert float(change[likelihood.in_bands].abs().max()) < 1e-9
    assert float(change.norm()) > 10
    eye = torch.eye(likelihood.rank, dtype=torch.float64)
    torch.testing.assert_close(likelihood.basis @ likelihood.basis.T, eye)


def test_a_factor_on_the_errors_is_the_spectrums_alone(case):
    *_, y, bands, likelihood = case
    calibrated = likelihood.calibrated(y, 2)
    one, three = (CurvedLikelihood(calibrated, 0.02, f) for f in (1.0, 3.0))
    inside = calibrated.in_bands
    torch.testing.assert_close(three.y[inside], bands.whitened)
    torch.testing.assert_close(one.y[inside], bands.whitened)
    assert float(three.y[~inside].norm()) < 0.5 * float(one.y[~inside].norm())
    problem = Problem(case[0], y, case[2] ** -2, make_scaling(), bands=bands, calibration_order=2)
    torch.testing.assert_close(problem.whiten(3.0)[-len(bands) :], bands.whitened)
    torch.testing.assert_close(problem.whiten(3.0)[: -len(bands)], y / case[2] / 3)


def test_the_loss_counts_the_bands(case):
    model, truth, _, _, bands, likelihood = case
    state = make_near(truth, 5, 3)
    flux = calc_exact_flux(state, model)
    exact = likelihood.calc_bands(state)
    predicted = likelihood.predict(state)[:, likelihood.in_bands] * bands.error
    of_bands = (((exact - predicted) / bands.error) ** 2).sum(1)
    assert float(of_bands.max()) < 0.01
    far = make_states(3, 4, (3.0, 3.1), SPAN.sigma_v, SPAN.velocity)
    far[:, :128] = truth[:128]
    before = likelihood.calc_loss(far, calc_exact_flux(far, model))
    plain = make_likelihood(case[0], case[3], case[2], None)
    alone = plain.calc_loss(far, calc_exact_flux(far, model))
    assert bool((before > alone + 1.0).all())
    assert float(likelihood.calc_loss(state, flux, 100.0).max()) < 0.1


def test_bands_with_no_weight_change_nothing(case):
    model, truth, error, y, bands, _ = case
    blind = replace(bands, error=1e9 * bands.error)
    with_bands = make_likelihood(model, y, error, blind)
    plain = make_likelihood(model, y, error, None)
    state = make_near(truth, 4, 9)
    torch.testing.assert_close(
        with_bands.calc_chi2(state), plain.calc_chi2(state), rtol=2e-3, atol=0
    )
    assert with_bands.calc_outside_rms() == pytest.approx(plain.calc_outside_rms(), rel=0.01)


def test_as_many_nodes_as_an_exponential_needs():
    for exponent in (0.5, 3.0, 10.0):
        n = count_exponential_nodes(exponent, 1e-4)
        t = torch.linspace(0, exponent, 300, dtype=torch.float64)
        errors = []
        for k in (n, n - 1):
            poly = Polynomial.over(0.0, exponent, k)
            found = poly.weights(t)[0] @ torch.exp(-poly.nodes)
            errors.append(float((found - torch.exp(-t)).abs().max()) / np.exp(-exponent / 2))
        assert errors[0] < 1.5e-4
        assert errors[1] > 1e-4 or n == 3


def test_the_best_fit_of_templates_is_one_of_the_bands_too():
    """Dust that the spectrum cannot tell from age is told by the bands."""
    model, truth, flux, _, _ = make_observation(a_v=0.9, n_pixels=200)
    problem = Problem(
        model, flux, torch.full_like(flux, float(flux.mean()) ** -2), make_scaling(),
        sigma_v=150.0, velocity=20.0, bands=make_bands(truth),
    )  # fmt: skip
    assert fit_profile(problem).a_v == pytest.approx(0.9, abs=0.25)
    assert fit_profile(problem).flux.shape == flux.shape


# ---- the update ---------------------------------------------------------------------------------


@pytest.mark.parametrize("max_snr", [0.3, 30.0])
def test_bands_that_the_network_does_not_see_come_in_exactly(max_snr):
    """Linear model, prior N(0, 1): 30 pixels with calibration noise, and 10 bands without."""
    g = torch.Generator().manual_seed(21)
    normal = lambda *shape: torch.randn(shape, generator=g, dtype=torch.float64)  # noqa: E731
    d, n, n_bands = 6, 40, 10
    a = normal(n, d) * torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1, 0.0]) / 6
    a[-n_bands:, 5] += 3.0
    seen = (torch.arange(n) < n - n_bands).double()[:, None]
    noise, view = 0.5 * normal(n, 2) * seen, (a @ normal(d, 9) + 0.3 * normal(n, 9)) * seen
    model, prior = Linear(a, normal(n)), torch.eye(d).double()
    y = (model.predict(normal(1, d)) + normal(1, n) + normal(1, 2) @ noise.T)[0]
    inverse = torch.linalg.inv(torch.eye(n) + noise @ noise.T)
    covariance = torch.linalg.inv(prior + a.T @ inverse @ a)
    mean = covariance @ (a.T @ inverse @ (y - model.b))
    linear = Case(model, y, noise, view, prior, mean, covariance)
    found = run(linear, max_snr, 6000, seed=1)
    assert float(covariance[5, 5]) < 0.2, "only the bands know this direction"
    deviation, spread = calc_deviations(linear, found)
    assert float(deviation.abs().max()) < 4.0
    assert float(spread.abs().max()) < 4.5


# ---- a spectrum and bands -----------------------------------------------------------------------


@cache
def make_mock():
    """(spectrum of S/N 10, its bands, truths)."""
    grid, prior = load_grid(), load_prior()
    mock = next(m for m in mocks.load().mocks if 9 < m.snr < 11 and m.redshift > 0.05)
    a_v = float(nuisance.to_physical(torch.from_numpy(mock.u)).a_v)
    photometry = draw_photometry(mock.sfr, mock.logzsol, a_v, mock.redshift)
    spectrum = mocks.make_spectrum(mock, grid, prior.bins)
    return spectrum, photometry, mocks.calc_truth(mock, grid, prior.bins)


@cache
def fit_mock(with_bands, factor=1.0):
    spectrum, photometry, _ = make_mock()
    scaled = replace(photometry, maggies=factor * photometry.maggies)
    return infer(
        spectrum, load_prior(), load_grid(), photometry=scaled if with_bands else None, seed=5
    )


def width(posterior, name):
    row = posterior.summary()["quantities"][name]
    return row["p84"] - row["p16"]


@bundled
def test_bands_narrow_dust_and_mass_and_the_truth_stays_inside():
    alone, joint, truth = fit_mock(False), fit_mock(True), make_mock()[2]
    for name in ("a_v", "log_mass_formed"):
        assert width(joint, name) < 0.9 * width(alone, name)
    for name in ("a_v", "log_mass_formed", "log_sfr_100myr", "age_mass_weighted"):
        values = joint.quantities()[name][0]
        assert abs(values.mean() - truth[name]) < 3.5 * values.std()
    assert float(np.mean(joint.bands.pull**2)) < 2.5
    assert joint.provenance["sampler"].startswith("amortized")
    assert joint.calc_chi2_per_pixel() == pytest.approx(alone.calc_chi2_per_pixel(), rel=0.05)


@bundled
def test_the_bands_are_in_every_output(tmp_path):
    posterior, photometry = fit_mock(True), make_mock()[1]
    out = posterior.save(tmp_path / "out")
    rows = json.loads((out / "summary.json").read_text())["photometry"]
    assert [row["filter"] for row in rows] == list(NAMES)
    middle = np.median(posterior.bands.model, axis=0)
    assert [row["median"] for row in rows] == pytest.approx(middle.tolist())
    expected = (photometry.maggies - middle) / photometry.error
    assert [row["pull"] for row in rows] == pytest.approx(expected.tolist())
    back = Posterior.load(out)
    assert back.bands.names == NAMES
    for name in ("wave_pivot", "maggies", "error", "model"):
        assert np.array_equal(getattr(back.bands, name), getattr(posterior.bands, name))
    assert back.summary()["photometry"] == rows
    assert "photometry" not in fit_mock(False).summary()


@bundled
def test_the_figure_has_the_bands_at_the_side_and_on_the_spectrum():
    figure = plot_spectrum(fit_mock(True))
    assert len(figure.axes) == 4
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert "bands" in labels
    assert len(plot_spectrum(fit_mock(False)).axes) == 2


@bundled
def test_bands_of_another_aperture_are_told():
    warnings = fit_mock(True, 1.5).summary()["warnings"]
    assert any("aperture" in w and "bands far from the model" in w for w in warnings)
    assert not any("aperture" in w for w in fit_mock(True).summary()["warnings"])


# ---- bands alone --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    """(posterior, truth's log mass and A_V) of photometry alone, the prior N(0, 1)."""
    sfr, logzsol = (h[0] for h in make_histories(1, 31))
    photometry = draw_photometry(sfr, logzsol, 0.5, REDSHIFT)
    posterior = infer(
        None, make_normal_prior(), load_grid(), photometry=photometry, redshift=REDSHIFT,
        samples=30, seed=2,
    )  # fmt: skip
    return posterior, np.log10(sfr @ BINS.overlap(BINS.age_at(REDSHIFT)) * 1e9), 0.5


def test_photometry_alone_comes_near_the_truth_and_says_it_is_not_calibrated(alone):
    posterior, log_mass, a_v = alone
    for name, true, within in (("log_mass_formed", log_mass, 0.3), ("a_v", a_v, 0.4)):
        assert abs(posterior.quantities()[name][0].mean() - true) < within
    assert any("not calibrated" in w for w in posterior.summary()["warnings"])
    assert posterior.quantities()["a_v"][0].std() > 0.02
    # nothing tells the velocities, so they are the prior's
    assert 30 < posterior.quantities()["sigma_v"][0].std() < 200
    assert np.mean(posterior.bands.pull**2) < 3
    assert posterior.provenance["sampler"] == "pnpdm"


def test_photometry_alone_has_a_summary_a_table_and_figures(alone):
    from sfhzoo.report import format_table

    summary = alone[0].summary()
    assert summary["n_pixels"] == 0 and summary["chi2_per_pixel"] is None
    assert not any("chi2_per_pixel" in w for w in summary["warnings"])
    table = format_table(summary)
    assert "8 bands" in table and "sdss_r0" in table and "pixels" not in table
    figure = plot_spectrum(alone[0])
    assert len(figure.axes) == 2
    assert figure.axes[0].get_xscale() == "log"
    assert np.isfinite(alone[0].model_flux).all()


# ---- what is refused ----------------------------------------------------------------------------


def make_flat(names):
    return Photometry(load_filters(names), np.full(len(names), 1e-8), np.full(len(names), 1e-9))


def test_a_band_beyond_the_grid_is_named():
    photometry = make_flat(("sdss_r0", "sdss_i0"))
    radio = Filter("radio", np.linspace(2e9, 3e9, 9), np.ones(9))
    photometry = replace(photometry, filters=(photometry.filters[0], radio))
    with pytest.raises(DataError, match=r"the band radio, .* leave the band out"):
        infer(None, make_normal_prior(), load_grid(), redshift=0.1, photometry=photometry)


def test_a_band_whose_light_gas_absorbs_is_told():
    from sfhzoo.likelihood.options import Options
    from sfhzoo.preparation import prepare_bands

    photometry = make_flat(("galex_FUV", "sdss_r0"))
    warnings = [
        " ".join(
            prepare_bands(photometry, z, make_normal_prior(), load_grid(), Options()).warnings
        )
        for z in (0.1, 0.5)
    ]
    assert "galex_FUV" not in warnings[0] and "consider leaving out galex_FUV" in warnings[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a spectrum, photometry or both"),
        ({"photometry": make_flat(NAMES[1:3])}, "give one with --redshift"),
        ({"photometry": make_flat(NAMES[1:3]), "sampler": "cla"}, "cla fits no photometry"),
        ({"photometry": make_flat(NAMES[1:3]), "sampler": "amortized"}, "needs a spectrum"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        infer(None, make_normal_prior(), load_grid(), **options)


def test_the_command_line_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bands.csv").write_text("filter,mag,error\nsdss_r0,17,0.1\n")
    (tmp_path / "wrong.csv").write_text("filter,mag,error\nsdss_r9,17,0.1\n")
    for args, code, text in (
        ([], 2, "SPECTRUM, --photometry TABLE or both"),
        (["--photometry", "bands.csv"], 2, "--redshift"),
        (["--photometry", "bands.csv", "--redshift", "0.1", "--air"], 2, "--air is of a spectrum"),
        (["--photometry", "none.csv", "--redshift", "0.1"], 3, "no such file"),
        (["--photometry", "wrong.csv", "--redshift", "0.1"], 3, "did you mean sdss_r0"),
    ):
        assert cli_run(["infer", *args]) == code
        assert text in capsys.readouterr().err


def test_galactic_extinction_is_taken_off_the_bands():
    photometry = make_flat(NAMES)
    found = deredden_bands(photometry, 0.1)
    wave = np.arange(1500.0, 26000.0, 1.0)
    seen, whole = (
        calc_band_fluxes(wave, flux, photometry.filters)
        for flux in (calc_galactic_transmission(wave, 0.1), np.ones_like(wave))
    )
    np.testing.assert_allclose(photometry.maggies / found.maggies, seen / whole, rtol=3e-3)
    np.testing.assert_allclose(found.maggies / found.error, 10.0)
    assert deredden_bands(found, 0.1).warnings == photometry.warnings
