"""`sfhzoo.infer` from a file to a posterior, with what the package bundles."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from galaxies import DATA
from scipy.stats import halfnorm, ks_2samp, kstest, norm

from sfhzoo import inference
from sfhzoo.errors import ArtifactError, DataError, UsageError
from sfhzoo.histories import calc_mass_formed
from sfhzoo.inference import Options, infer
from sfhzoo.likelihood import nuisance
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.zoo.artifacts import (
    DEFAULT_GRID,
    DEFAULT_PRIOR,
    find_posterior_network,
    load_grid,
    load_prior,
)

pytestmark = pytest.mark.skipif(
    find_posterior_network(DEFAULT_PRIOR, DEFAULT_GRID) is None
    or not (DATA / DEFAULT_PRIOR).is_dir(),
    reason="the default prior is not bundled",
)


@cache
def partners():
    return load_prior(), load_grid()


@cache
def read_galaxy():
    return Spectrum.read(DATA / "spec-NGC3522.fits")


def fit(spectrum=None, **options):
    prior, grid = partners()
    return infer(spectrum or read_galaxy(), prior, grid, **{"samples": 100, **options})


@cache
def fit_galaxy(seed=3):
    return fit(seed=seed)


def quantities(posterior):
    return posterior.summary()["quantities"]


def median(posterior, name):
    return quantities(posterior)[name]["median"]


# ---- a real galaxy ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lowest", "highest"),
    [
        ("sigma_v", 85, 120),
        ("a_v", 0.15, 0.5),
        ("log_mass_formed", 8.9, 9.5),
        ("error_scale", 0.85, 1.2),
    ],
)
def test_ngc3522_is_the_galaxy_that_other_codes_find(name, lowest, highest):
    """BAGPIPES and pPXF on the same templates: A_V .27-.36, sigma_v 98-103, log M 9.13-9.22."""
    assert lowest < median(fit_galaxy(), name) < highest


@pytest.mark.slow
def test_the_model_describes_ngc3522_to_its_noise():
    assert 0.8 < fit_galaxy().summary()["chi2_per_pixel"] < 1.3


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_seed_does_not():
    again, other = fit(seed=3), fit_galaxy(4)
    assert quantities(again) == quantities(fit_galaxy())
    assert np.array_equal(again.sfr, fit_galaxy().sfr)
    assert not np.array_equal(other.sfr, fit_galaxy().sfr)


@pytest.mark.slow
def test_seeds_agree_within_the_posteriors_width():
    for name in ("log_mass_formed", "age_mass_weighted", "a_v", "sigma_v"):
        first, second = (quantities(p)[name] for p in (fit_galaxy(), fit_galaxy(4)))
        width = 0.5 * (first["p84"] - first["p16"])
        # 100 draws each: the medians scatter by 0.18 widths; the error scale may differ too
        assert abs(first["median"] - second["median"]) < 0.8 * width, name


@pytest.mark.slow
def test_the_posterior_is_narrower_than_the_prior_and_not_a_point():
    widths = {k: q["p84"] - q["p16"] for k, q in quantities(fit_galaxy()).items()}
    assert 0.001 < widths["log_mass_formed"] < 0.3
    assert 0.05 < widths["age_mass_weighted"] < 6.0
    assert 0.5 < widths["sigma_v"] < 20.0


@pytest.mark.slow
def test_fixed_parameters_stay_where_they_were_put():
    posterior = fit(a_v=0.25, sigma_v=110.0, redshift_offset="fixed", jitter="fixed")
    for name, value in (
        ("a_v", 0.25), ("sigma_v", 110.0), ("velocity_offset", 0.0), ("error_scale", 1.0),
    ):  # fmt: skip
        draws = posterior.parameters[name].values
        np.testing.assert_allclose(draws, value, rtol=1e-5, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_a_calibration_polynomial_frees_the_continuum():
    spectrum = read_galaxy()
    t = np.linspace(-1, 1, len(spectrum.flux))
    bent = replace(spectrum, flux=spectrum.flux * (1 + 0.04 * np.cos(3 * t)))
    free = fit(bent, calibration_order=4, seed=5)
    assert 0.8 < free.summary()["chi2_per_pixel"] < 1.3
    assert 85 < median(free, "sigma_v") < 120
    plain = quantities(fit(calibration_order=0, seed=5))["a_v"]
    wide = quantities(free)["a_v"]
    assert wide["p84"] - wide["p16"] > plain["p84"] - plain["p16"]


@pytest.mark.slow
def test_a_redshift_beyond_the_networks_is_told():
    spectrum = read_galaxy()
    stretched = replace(
        spectrum, wave_obs=spectrum.wave_obs * 2.4 / 1.004, lsf_sigma=None, redshift=None
    )
    posterior = fit(stretched, redshift=1.4, sampler="amortized")
    assert any("redshift 1.4 is outside" in w for w in posterior.provenance["warnings"])


# ---- what cannot be fitted ----------------------------------------------------------------------


def test_a_spectrum_without_redshift_is_refused():
    with pytest.raises(DataError, match=r"no redshift.*--redshift"):
        fit(replace(read_galaxy(), redshift=None))


def test_without_data_the_posterior_is_the_prior_where_that_is_asked_for():
    spectrum = read_galaxy()
    nothing = replace(spectrum, ivar=np.zeros_like(spectrum.ivar))
    with pytest.raises(DataError, match="no pixel of 3815 is left to fit; taken out by: no data"):
        fit(nothing)
    found = fit(nothing, allow_no_data=True, samples=128, seed=2)
    assert not found.observed.used.any()
    drawn = partners()[0].sample(2000, torch.Generator().manual_seed(3)).sfr.numpy()
    mass = calc_mass_formed(drawn, found.bins, found.cosmic_time)
    of = {name: values for name, (values, _) in found.quantities().items()}
    # 1.95 / sqrt(128): one sample of the prior in a thousand is further off
    assert ks_2samp(of["log_mass_formed"], np.log10(mass)).statistic < 0.18
    assert kstest(of["velocity_offset"], norm(0, 100).cdf).statistic < 0.18
    assert kstest(of["a_v"], halfnorm(0, 1).cdf).statistic < 0.18
    assert kstest(np.log(of["error_scale"]), norm(0, 0.3).cdf).statistic < 0.18


@pytest.mark.parametrize("sampler", ["amortized", "cla"])
def test_samplers_that_need_data_say_so(sampler):
    spectrum = read_galaxy()
    nothing = replace(spectrum, ivar=np.zeros_like(spectrum.ivar))
    with pytest.raises(UsageError, match="needs data"):
        fit(nothing, allow_no_data=True, sampler=sampler)


def test_samples_at_the_end_of_a_range_are_told():
    problem = SimpleNamespace(
        fixed_coordinates=lambda: torch.full((3,), torch.nan),
        to_nuisance=nuisance.to_physical, has_pixels=True, bands=None,
    )  # fmt: skip
    u = torch.zeros(10, 3, dtype=torch.float64)
    u[:3, 2] = 5.0
    draws = SimpleNamespace(error_scale=torch.ones(10), state=u)
    (told,) = inference._object_warnings(problem, draws)
    assert "velocity_offset is at the end of its range (-300 to 300) in 30%" in told
    draws.state[:, 2] = 0.0
    assert inference._object_warnings(problem, draws) == []


def test_a_spectrum_outside_the_grids_resolved_range_is_refused():
    far = replace(read_galaxy(), wave_obs=read_galaxy().wave_obs * 10, redshift=0.004)
    with pytest.raises(DataError, match=r"usable pixels.*expected at least 50"):
        fit(far)


def test_a_spectrum_that_the_network_cannot_see_is_refused():
    """Three lines' worth of pixels: fewer than a segment of the encoder."""
    with pytest.raises(DataError, match="posterior network"):
        fit(wave_range=(4420.0, 4520.0), sampler="amortized")


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UsageError, match=r"expected sampler 'auto', .*got 'nuts'"):
        fit(sampler="nuts")


def test_one_sample_is_not_a_posterior():
    with pytest.raises(UsageError, match="at least 2 samples, got 1"):
        fit(samples=1)


def test_an_unknown_prior_is_refused_with_the_closest_names():
    with pytest.raises(ArtifactError, match="did you mean diffstarpop-tng-v1"):
        infer(read_galaxy(), "diffstarpop-tgn-v1")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("a_v", 4.5),
        ("a_v", -0.1),
        ("a_v", float("nan")),
        ("sigma_v", 501.0),
        ("calibration_order", 31),
        ("calibration_order", -1),
    ],
)
def test_choices_outside_their_range_are_refused(option, value):
    with pytest.raises(UsageError, match="expected"):
        Options(**{option: value})
