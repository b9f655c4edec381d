"""Band fluxes: closed forms, brute force, and sedpy's own integration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakegrid import make_grid
from galaxies import load_grid

from sfhzoo.errors import DataError
from sfhzoo.forward.attenuation import Calzetti, Salim
from sfhzoo.forward.bands import AB_ZERO, BandModel, Filter, calc_band_fluxes, load_filters
from sfhzoo.forward.csp import calc_bin_templates, calc_metallicity_weights
from sfhzoo.forward.dust_emission import DustEmission
from sfhzoo.forward.integrals import Response, calc_response_matrix
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.units import SPEED_OF_LIGHT

NAMES = ("galex_FUV", "sdss_u0", "sdss_r0", "twomass_Ks", "wise_w1", "wise_w4")
REDSHIFT = 0.0873
CLIGHT = SPEED_OF_LIGHT * 1e13
"""Å/s"""


@pytest.fixture(scope="module")
def filters():
    return load_filters(NAMES)


@pytest.fixture(scope="module")
def model(filters) -> BandModel:
    return BandModel(load_grid(), filters, REDSHIFT)


def make_histories(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    sfr = torch.rand(n, 64, generator=generator, dtype=torch.float64)
    return sfr, 1.4 * torch.rand(n, 64, generator=generator, dtype=torch.float64) - 1.0


def make_flat(maggies: float):
    """(wave, f_λ) of a source of constant f_ν."""
    wave = np.geomspace(900.0, 5e5, 100_000)
    return wave, maggies * AB_ZERO * CLIGHT / wave**2


# ---- fluxes of given spectra


def test_a_source_of_constant_f_nu_has_its_magnitude_in_every_band(filters) -> None:
    wave, flux = make_flat(2.5e-7)
    assert calc_band_fluxes(wave, flux, filters) == pytest.approx(2.5e-7, rel=1e-6)


def test_a_band_counts_photons() -> None:
    box = Filter("box", np.array([4000.0, 6000.0]), np.array([1.0, 1.0]))
    wave = np.linspace(3900.0, 6100.0, 50)
    # constant f_λ: ∫ λ dλ / (c f_0 ∫ dλ/λ)
    expected = 1e-16 * 0.5 * (6000**2 - 4000**2) / (CLIGHT * AB_ZERO * np.log(1.5))
    flux = np.full((3, 50), 1e-16) * [[1], [2], [3]]
    assert calc_band_fluxes(wave, flux, [box])[:, 0] == pytest.approx(
        expected * np.array([1, 2, 3]), rel=1e-7
    )
    assert box.wave_pivot == pytest.approx(
        np.sqrt(0.5 * (6000**2 - 4000**2) / np.log(1.5)), rel=1e-7
    )


def test_magnitudes_are_those_of_sedpy(filters) -> None:
    from sedpy import observate

    wave = np.geomspace(900.0, 5e5, 50_000)
    flux = 1e-16 * (wave / 5000) ** -1.3 * (1 + 0.5 * np.sin(20 * np.log(wave)))
    theirs = [observate.Filter(name).ab_mag(wave, flux) for name in NAMES]
    ours = -2.5 * np.log10(calc_band_fluxes(wave, flux, filters))
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_the_integral_is_exact_for_linear_pieces() -> None:
    rng = np.random.default_rng(3)
    wave = np.sort(rng.uniform(1.0, 9.0, 12))
    spectrum = rng.random(12)
    response = Response(np.array([2.0, 3.5, 7.0]), np.array([0.0, 1.0, 0.3]), 1)
    fine = np.linspace(2.0, 7.0, 2_000_001)
    brute = np.trapezoid(
        np.interp(fine, wave, spectrum)
        * np.interp(fine, response.wave, response.value)
        * fine
        * ((fine >= wave[0]) & (fine <= wave[-1])),
        fine,
    )
    assert calc_response_matrix(wave, [response])[0] @ spectrum == pytest.approx(brute, rel=1e-6)


def test_a_spectrum_that_does_not_cover_a_band_is_refused(filters) -> None:
    wave, flux = make_flat(1e-7)
    half = wave > 3500
    with pytest.raises(DataError, match=r"expected the band galex_FUV.*leave the band out"):
        calc_band_fluxes(wave[half], flux[half], filters)


# ---- filters


def test_an_unknown_filter_is_refused_with_the_closest_names() -> None:
    with pytest.raises(DataError, match=r"got 'sdss_r'; did you mean .*sdss_r0"):
        load_filters(["sdss_r"])
    with pytest.raises(DataError, match=r"got '\.\./\.\./secret'"):
        load_filters(["../../secret"])


@pytest.mark.parametrize(
    ("wave", "value"),
    [
        ([5000.0], [1.0]),
        ([5000.0, 4000.0], [1.0, 1.0]),
        ([4000.0, 5000.0], [0.0, 0.0]),
        ([4000.0, 5000.0], [1.0, -1.0]),
        ([4000.0, np.nan], [1.0, 1.0]),
        ([0.0, 5000.0], [1.0, 1.0]),
    ],
)
def test_arrays_that_are_no_response_are_refused(wave, value) -> None:
    with pytest.raises(DataError, match="filter 'mine'"):
        Filter("mine", np.array(wave), np.array(value))


# ---- fluxes of histories


@pytest.mark.parametrize("law", [Calzetti(), Salim(-0.5, 3.0)])
def test_bands_of_histories_equal_brute_force_integration(filters, law) -> None:
    grid, emission = load_grid(), DustEmission(2.0, 3.0, 0.05)
    model = BandModel(grid, filters, REDSHIFT, law=law, dust_emission=emission)
    sfr, logzsol = (v[0] for v in make_histories(1))
    mix = calc_metallicity_weights(logzsol, model.nodes).numpy()
    distance = model.bins.luminosity_distance_cm(REDSHIFT)
    templates = calc_bin_templates(grid, model.bins, model.cosmic_time)
    light = np.einsum("b,bz,bzw->w", sfr.numpy(), mix, templates)
    light *= calc_flux_factor(REDSHIFT, distance, grid.solar_luminosity)
    axis = np.union1d(grid.wave, np.geomspace(90, 1e8, 50_001))
    clear = np.interp(axis, grid.wave, light)
    for a_v, tolerance in ((0.0, 1e-6), (0.3, 3e-4), (1.0, 3e-4), (3.0, 5e-4), (6.0, 2e-3)):
        seen = clear * 10 ** (-0.4 * a_v * law(axis))
        seen = seen + np.trapezoid(clear - seen, axis) * emission(axis)
        expected = calc_band_fluxes(axis * (1 + REDSHIFT), seen, filters)
        assert model(sfr, logzsol, a_v).numpy() == pytest.approx(expected, rel=tolerance)


def test_templates_times_star_formation_rates_are_the_bands(model: BandModel) -> None:
    sfr, logzsol = make_histories()
    a_v = torch.tensor([0.2, 1.5], dtype=torch.float64)
    templates = model.at(a_v)
    assert templates.shape == (2, 64, 6, len(NAMES))
    mix = calc_metallicity_weights(logzsol, model.nodes)
    summed = torch.einsum("nb,nbz,nbzf->nf", sfr, mix, templates)
    assert torch.allclose(summed, model(sfr, logzsol, a_v), rtol=1e-10, atol=0)
    assert torch.allclose(templates[1], model.at(1.5), rtol=1e-12, atol=0)


def test_dust_dims_the_ultraviolet_and_lights_up_the_infrared(model: BandModel) -> None:
    sfr, logzsol = make_histories()
    clear, dusty = model(sfr, logzsol, 0.0), model(sfr, logzsol, 1.0)
    assert torch.all(dusty[:, :4] < clear[:, :4])
    assert torch.all(dusty[:, -1] > 10 * clear[:, -1])
    ratio = -2.5 * torch.log10(dusty / clear)[:, 2]
    # the r band, 5670 Å at rest, loses A(r)/A_V = 0.97
    assert torch.all((ratio > 0.9) & (ratio < 1.0))


def test_bands_have_gradients(model: BandModel) -> None:
    sfr, logzsol = make_histories(1)
    inputs = [sfr[0], 0.3 * logzsol[0] - 0.1, torch.tensor(0.4, dtype=torch.float64)]
    inputs = [v.clone().requires_grad_() for v in inputs]
    scale = 1 / model(*inputs).detach()
    assert torch.autograd.gradcheck(
        lambda *v: model(*v) * scale, inputs, eps=1e-6, atol=1e-6, rtol=1e-3
    )


def test_optical_bands_need_no_energy_balance() -> None:
    box = Filter("box", np.array([5000.0, 6000.0]), np.array([1.0, 1.0]))
    model = BandModel(make_grid(), [box], 0.05)
    assert model.emission is None
    assert model.at(0.3).shape == (64, 4, 1)


def test_a_band_outside_the_grid_is_refused(filters) -> None:
    with pytest.raises(DataError, match=r"the band galex_FUV.*the grid fake-v1"):
        BandModel(make_grid(), filters, 0.05)
    with pytest.raises(DataError, match="redshift > 0"):
        BandModel(load_grid(), filters, 0.0)
