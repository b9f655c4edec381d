"""The forward model: closed forms, published values, and mocks made by BAGPIPES.

`data/bagpipes_mocks.npz` holds two galaxies made with BAGPIPES 1.3.6 (R_spec 20000,
FlatLambdaCDM(70, 0.3)), each with sigma_v = 0 and 150 km/s: rest wavelengths (air Å, of which
`wave` = (1 + z) times), noiseless fluxes integrated over all 221 ages (erg/s/cm²/Å), the mass
formed in our 64 bins (Msun), and (redshift, A_V, Z).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from astropy.cosmology import FlatLambdaCDM
from numpy.typing import NDArray

import sfhzoo
from sfhzoo.errors import DataError
from sfhzoo.forward.csp import (
    calc_age_weights,
    calc_bin_templates,
    calc_metallicity_weights,
    calc_surviving_fraction,
)
from sfhzoo.forward.dust import calc_attenuation, calc_calzetti_curve
from sfhzoo.forward.kinematics import (
    calc_broadened,
    calc_broadening_matrix,
    calc_lsf_difference,
    calc_resolution_sigma,
)
from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.forward.pixels import calc_pixel_edges, calc_pixel_matrix
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import SPEED_OF_LIGHT
from sfhzoo.wavelengths import calc_vacuum_from_air

BUNDLED = Path(sfhzoo.__file__).parent / "data" / "bc03-miles-v1.zarr.zip"
MOCKS = Path(__file__).parent / "data" / "bagpipes_mocks.npz"
LINE = 5000.0
LINE_SIGMA = 50.0


def make_grid(flux_of: Callable[..., Any] | None = None) -> SSPGrid:
    """An absorption line of 50 km/s at 5000 Å on a continuum that depends on age and Z."""
    wave = np.geomspace(3000.0, 9000.0, 20_000)
    logzsol = np.array([-1.5, -0.5, 0.0, 0.4, 0.8])
    age = np.geomspace(1e5, 1.4e10, 40)
    velocity = SPEED_OF_LIGHT * np.log(wave / LINE)
    line = 1 - 0.8 * np.exp(-0.5 * (velocity / LINE_SIGMA) ** 2)
    level = (1 + 0.3 * logzsol[:, None]) * (age / 1e9) ** -0.7
    return SSPGrid(
        name="fake-v1",
        logzsol=logzsol,
        age=age,
        wave=wave,
        flux=(level[..., None] * line * (wave / 5000) ** -0.5).astype(np.float32),
        surviving_mass_fraction=np.broadcast_to(1 - 0.05 * np.log10(age / 1e5), (5, 40)).copy(),
        resolution_fwhm=LINE_SIGMA / SPEED_OF_LIGHT * wave * 2.3548200450309493,
        valid=np.array([True, True, True, True, False]),
        attributes={"solar_luminosity": 3.826e33},
    )


WAVE_OBS = np.geomspace(4500.0, 6500.0, 1600)
REDSHIFT = 0.08


@pytest.fixture(scope="module")
def grid() -> SSPGrid:
    return make_grid()


@pytest.fixture(scope="module")
def model(grid: SSPGrid) -> ForwardModel:
    return ForwardModel(grid, WAVE_OBS, REDSHIFT)


def make_histories(n: int = 3, seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sfr = 10 * torch.rand(n, 64, generator=generator, dtype=torch.float64)
    logzsol = 2.4 * torch.rand(n, 64, generator=generator, dtype=torch.float64) - 1.9
    return sfr, logzsol


def measure_line(wave: NDArray[np.float64], flux: NDArray[np.float64]) -> tuple[float, float]:
    """Centre and sigma (km/s about 5000 Å) of the absorption line, by moments."""
    velocity = SPEED_OF_LIGHT * np.log(wave / LINE)
    # narrow, so that the curvature of the continuum does not count
    near = np.abs(velocity) < 1500
    continuum = np.interp(wave, wave[near][[0, -1]], flux[near][[0, -1]])
    depth = (1 - flux / continuum)[near]
    centre = np.average(velocity[near], weights=depth)
    return centre, np.sqrt(np.average((velocity[near] - centre) ** 2, weights=depth))


# ---- composite populations


def test_age_weights_equal_brute_force_integration() -> None:
    nodes = np.geomspace(1e5, 1.4e10, 60)
    light = nodes**-0.8 * (1 + 0.3 * np.sin(3 * np.log(nodes)))
    bins = TimeBins()
    lookback = bins.lookback_edges(bins.age_at(0.1))
    weights = calc_age_weights(nodes, lookback)
    for j in (0, 20, 56, 57, 58):
        young, old = max(lookback[j + 1] * 1e9, 1.0), lookback[j] * 1e9
        if old <= young:
            assert np.all(weights[j] == 0)
            continue
        # steps even in log age resolve the youngest stars
        edges = np.geomspace(young, old, 100_001)
        middle = np.sqrt(edges[1:] * edges[:-1])
        ssp = np.interp(np.log10(middle), np.log10(nodes), light)
        assert weights[j] @ light == pytest.approx(np.sum(ssp * np.diff(edges)), rel=1e-5)


def test_a_bins_age_weights_sum_to_its_time_before_the_observation() -> None:
    bins = TimeBins()
    cosmic_time = bins.age_at(0.3)
    weights = calc_age_weights(np.array([1e7, 1e9, 5e9]), bins.lookback_edges(cosmic_time))
    assert weights.sum(axis=1) == pytest.approx(1e9 * bins.overlap(cosmic_time), rel=1e-12)
    assert np.all(weights >= -1e-6)
    assert np.all(weights[bins.edges[:-1] > cosmic_time] == 0)


def test_stars_outside_the_grids_ages_shine_like_the_nearest_node() -> None:
    weights = calc_age_weights([1e8, 1e9], [12.0, 2.0, 0.05, 0.0])
    assert weights[0] == pytest.approx([0, 1e10], abs=1e-3)
    assert weights[2] == pytest.approx([5e7, 0], abs=1e-3)


def test_templates_use_valid_metallicities_and_bins_in_the_past_only(grid: SSPGrid) -> None:
    bins = TimeBins()
    cosmic_time = bins.age_at(1.0)
    templates = calc_bin_templates(grid, bins, cosmic_time)
    assert templates.shape == (64, 4, len(grid.wave))
    dark = bins.edges[:-1] >= cosmic_time
    assert dark.sum() > 30
    assert np.all(templates[dark] == 0) and np.all(templates[~dark] > 0)


def test_the_surviving_fraction_of_a_bin_lies_between_those_of_its_ages(grid: SSPGrid) -> None:
    bins = TimeBins()
    fraction = calc_surviving_fraction(grid, bins, bins.age_today)
    lookback = np.clip(bins.lookback_edges(bins.age_today), 1e-4, None) * 1e9
    expected = 1 - 0.05 * np.log10(lookback / 1e5)
    assert np.all(fraction[:, 0] >= expected[:-1] - 1e-12)
    assert np.all(fraction[:, 0] <= expected[1:] + 1e-12)
    assert np.all(calc_surviving_fraction(grid, bins, 1.0)[10:] == 0)


# ---- metallicity


@pytest.mark.parametrize("interpolation", ["log", "linear"])
def test_metallicity_weights_sum_to_one_and_give_the_metallicity_back(interpolation: Any) -> None:
    nodes = torch.tensor([-2.15, -1.55, -0.55, -0.25, 0.15, 0.55], dtype=torch.float64)
    logzsol = torch.linspace(-2.15, 0.55, 301, dtype=torch.float64).reshape(7, 43)
    weights = calc_metallicity_weights(logzsol, nodes, interpolation)
    assert weights.shape == (7, 43, 6)
    assert torch.allclose(weights.sum(-1), torch.ones(7, 43, dtype=torch.float64))
    assert weights.min() >= 0
    scale = (lambda v: v) if interpolation == "log" else (lambda v: 10**v)
    assert torch.allclose(weights @ scale(nodes), scale(logzsol))


def test_metallicities_beyond_the_nodes_are_clamped() -> None:
    nodes = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    weights = calc_metallicity_weights(torch.tensor([-9.0, 3.0], dtype=torch.float64), nodes)
    assert weights.tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="cubic"):
        calc_metallicity_weights(nodes, nodes, "cubic")  # type: ignore[arg-type]


# ---- dust


def test_the_calzetti_curve_has_its_published_values() -> None:
    # k(λ) as tabulated in the literature for Calzetti et al. (2000)
    published = {1600.0: 9.97, 4862.7: 4.60, 6564.6: 3.33, 22000.0: 0.37}
    curve = 4.05 * calc_calzetti_curve(list(published))
    assert curve == pytest.approx(list(published.values()), abs=0.01)
    assert calc_calzetti_curve(5500.0) == pytest.approx(1, abs=0.005)


def test_the_calzetti_curve_goes_on_smoothly_beyond_its_ends() -> None:
    curve = calc_calzetti_curve(np.linspace(900.0, 40_000.0, 400_000))
    jumps = np.abs(np.diff(curve))
    assert np.sort(jumps)[-2] < 1e-3 and jumps.max() < 7e-3
    assert np.all(curve >= 0) and curve[-1] == 0
    slope = np.diff(calc_calzetti_curve([1190.0, 1199.99, 1200.01, 1201.0])) / [9.99, 0.02, 0.99]
    assert slope[0] == pytest.approx(slope[2], rel=0.01)


def test_one_magnitude_dims_the_v_band_by_one_magnitude() -> None:
    curve = torch.tensor([1.0, 0.5], dtype=torch.float64)
    transmitted = calc_attenuation(torch.tensor([0.0, 1.0], dtype=torch.float64), curve)
    assert torch.allclose(transmitted[0], torch.ones(2, dtype=torch.float64))
    assert transmitted[1].tolist() == pytest.approx([10**-0.4, 10**-0.2])


# ---- redshift


def test_energy_is_conserved_under_redshift(grid: SSPGrid, model: ForwardModel) -> None:
    rest = model.wave_fine / (1 + REDSHIFT)
    distance = model.bins.luminosity_distance_cm(REDSHIFT)
    received = np.trapezoid(model.templates[:, 1].numpy(), model.wave_fine)
    templates = calc_bin_templates(grid, model.bins, model.cosmic_time)[:, 1]
    inside = (grid.wave > rest[0]) & (grid.wave < rest[-1])
    axis = np.concatenate([rest[:1], grid.wave[inside], rest[-1:]])
    emitted = [np.trapezoid(np.interp(axis, grid.wave, t), axis) * 3.826e33 for t in templates]
    assert 4 * np.pi * distance**2 * received == pytest.approx(np.array(emitted), rel=1e-4)


@pytest.mark.parametrize("redshift", [0.0, -0.01, float("nan")])
def test_a_redshift_without_a_distance_is_refused(grid: SSPGrid, redshift: float) -> None:
    with pytest.raises(DataError, match="redshift > 0"):
        ForwardModel(grid, WAVE_OBS, redshift)
    with pytest.raises(DataError, match="redshift > 0"):
        calc_flux_factor(redshift, 1e26)


# ---- kinematics


def test_a_broadened_delta_has_the_gaussians_width_and_place() -> None:
    step = 30.0
    delta = torch.zeros(801, dtype=torch.float64)
    delta[400] = 1
    sigma, velocity = torch.tensor([40.0, 150.0, 300.0]), torch.tensor([0.0, 75.0, -120.0])
    seen = calc_broadened(delta, sigma.double(), velocity.double(), step).numpy()
    axis = step * (np.arange(801) - 400)
    centre = seen @ axis
    shift = SPEED_OF_LIGHT * np.log1p(velocity.numpy() / SPEED_OF_LIGHT)
    assert seen.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert centre == pytest.approx(shift, abs=0.1)
    width = np.sqrt((seen * (axis - centre[:, None]) ** 2).sum(axis=1))
    assert width == pytest.approx(sigma.numpy(), rel=2e-3)


def test_without_motion_a_spectrum_is_unchanged_and_its_ends_do_not_mix() -> None:
    spectrum = torch.linspace(1, 5, 500, dtype=torch.float64).repeat(2, 1)
    zero = torch.zeros((), dtype=torch.float64)
    assert torch.allclose(calc_broadened(spectrum, zero, zero, 35.0), spectrum)
    seen = calc_broadened(spectrum, zero + 300.0, zero, 35.0)
    # the bridge is steep but only five sigma see it
    assert torch.allclose(seen[:, 60:-60], spectrum[:, 60:-60], rtol=1e-6)


def test_the_lsf_matrix_broadens_a_delta_to_the_local_width() -> None:
    sigma = np.linspace(60.0, 240.0, 400)
    matrix = calc_broadening_matrix(sigma, 30.0)
    assert matrix.sum(axis=1) == pytest.approx(1)
    offset = 30.0 * (np.arange(400) - 200)
    row = matrix[[200]].toarray()[0]
    assert np.sqrt(row @ offset**2) == pytest.approx(sigma[200], rel=1e-3)
    assert (calc_broadening_matrix(np.zeros(5), 30.0).toarray() == np.eye(5)).all()


def test_resolutions_subtract_in_quadrature_and_never_below_zero() -> None:
    sigma, clipped = calc_lsf_difference([100.0, 50.0], [60.0, 60.0])
    assert sigma == pytest.approx([80, 0])
    assert clipped.tolist() == [False, True]
    # 2.5 Å at 5000 Å is 63.7 km/s, the resolution of MILES
    assert calc_resolution_sigma(2.5, 5000.0) == pytest.approx(63.65, abs=0.05)


def test_the_models_lines_get_the_instruments_width_then_the_stars(grid: SSPGrid) -> None:
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=120.0)
    templates = model.at(0.0, 200.0, 60.0).numpy()
    rest = WAVE_OBS / (1 + REDSHIFT)
    centre, width = measure_line(rest, templates[10, 1])
    pixel = SPEED_OF_LIGHT * np.log(WAVE_OBS[1] / WAVE_OBS[0])
    expected = np.sqrt(120.0**2 + 200.0**2 + pixel**2 / 12)
    assert width == pytest.approx(expected, rel=0.01)
    assert centre == pytest.approx(60, abs=1.5)
    assert model.lsf_clipped_fraction == 0


def test_an_instrument_sharper_than_the_grid_is_counted_and_keeps_the_grids_lines(
    grid: SSPGrid,
) -> None:
    lsf = np.where(WAVE_OBS < 5000, 20.0, 90.0)
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=lsf)
    assert model.lsf_clipped_fraction == pytest.approx(np.mean(WAVE_OBS < 5000))
    sharp = ForwardModel(grid, WAVE_OBS, REDSHIFT, lsf_sigma=0.0)
    own = ForwardModel(grid, WAVE_OBS, REDSHIFT)
    assert sharp.lsf_clipped_fraction == 1
    assert torch.allclose(sharp.templates, own.templates, rtol=1e-12, atol=0)


# ---- pixels


def test_pixel_integration_conserves_flux() -> None:
    rng = np.random.default_rng(11)
    fine = np.geomspace(4000.0, 5000.0, 1500)
    flux = rng.random(1500)
    edges = calc_pixel_edges(np.linspace(4100.0, 4900.0, 173))
    pixels = calc_pixel_matrix(fine, edges) @ flux
    total = np.sum(pixels * np.diff(edges, axis=1)[:, 0])
    axis = np.union1d(fine, edges[[0, -1], [0, 1]])
    inside = (axis >= edges[0, 0]) & (axis <= edges[-1, 1])
    expected = np.trapezoid(np.interp(axis, fine, flux)[inside], axis[inside])
    assert total == pytest.approx(expected, rel=1e-12)


def test_a_pixel_is_the_mean_over_its_width_not_the_value_at_its_centre() -> None:
    fine = np.linspace(0.9, 11.1, 103)
    edges = calc_pixel_edges([2.0, 4.0, 6.0, 8.0])
    assert edges.tolist() == [[1, 3], [3, 5], [5, 7], [7, 9]]
    mean = calc_pixel_matrix(fine, edges) @ fine**2
    assert mean == pytest.approx([4 + 1 / 3, 16 + 1 / 3, 36 + 1 / 3, 64 + 1 / 3], abs=2e-3)


def test_a_gap_between_pixels_does_not_widen_its_neighbours() -> None:
    edges = calc_pixel_edges([1.0, 2.0, 3.0, 13.0, 14.0])
    assert edges.tolist() == [[0.5, 1.5], [1.5, 2.5], [2.5, 3.5], [12.5, 13.5], [13.5, 14.5]]
    fine = np.linspace(0.0, 20.0, 201)
    assert calc_pixel_matrix(fine, edges) @ fine == pytest.approx([1, 2, 3, 13, 14])


# ---- the whole model


def test_the_spectrum_is_linear_in_the_star_formation_rate(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    whole = model(sfr, logzsol, 0.3, 150.0)
    part = torch.rand(3, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = model(sfr * part, logzsol, 0.3, 150.0) + model(sfr * (1 - part), logzsol, 0.3, 150.0)
    assert whole.shape == (3, len(WAVE_OBS))
    assert torch.allclose(whole, parts, rtol=1e-9, atol=0)


def test_the_fast_path_gives_the_models_spectrum(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    fast = calc_spectrum(sfr, logzsol, model.at(0.4, 180.0, 20.0), model.nodes)
    assert torch.allclose(fast, model(sfr, logzsol, 0.4, 180.0, 20.0), rtol=1e-9, atol=0)


def test_a_batch_gives_what_its_members_give(model: ForwardModel) -> None:
    sfr, logzsol = make_histories()
    a_v, sigma_v = (
        torch.tensor([0.1, 0.8, 0.0], dtype=torch.float64),
        torch.tensor([80.0, 0.0, 250.0]),
    )
    batch = model(sfr, logzsol, a_v, sigma_v, sigma_v / 10)
    for i in range(3):
        one = model(sfr[i], logzsol[i], float(a_v[i]), float(sigma_v[i]), float(sigma_v[i]) / 10)
        assert torch.allclose(batch[i], one, rtol=1e-9, atol=0)
    assert torch.allclose(model.at(a_v, sigma_v)[1], model.at(0.8, 0.0), rtol=1e-9, atol=0)


def test_gradients_agree_with_finite_differences(model: ForwardModel) -> None:
    sfr, logzsol = make_histories(1)
    logzsol = 0.3 * logzsol - 0.2
    inputs = [
        sfr[0],
        logzsol[0],
        torch.tensor(0.3).double(),
        torch.tensor(150.0).double(),
        torch.tensor(30.0).double(),
    ]
    inputs = [v.clone().requires_grad_() for v in inputs]
    flux = model(*inputs)
    scale = 1 / flux.detach()

    def few(*arguments: torch.Tensor) -> torch.Tensor:
        return (model(*arguments) * scale)[[200, 700, 701, 710, 1300]]

    assert torch.autograd.gradcheck(few, inputs, eps=1e-5, atol=1e-7, rtol=1e-4, fast_mode=False)


def test_the_future_does_not_shine(grid: SSPGrid) -> None:
    model = ForwardModel(grid, 2 * WAVE_OBS, 1.2)
    sfr, logzsol = make_histories(1)
    changed = sfr.clone()
    changed[:, model.bins.edges[:-1] > model.cosmic_time] *= 100
    assert torch.equal(model(sfr, logzsol, 0.0, 100.0), model(changed, logzsol, 0.0, 100.0))


def test_single_precision_is_good_to_a_part_in_ten_thousand(
    grid: SSPGrid, model: ForwardModel
) -> None:
    sfr, logzsol = make_histories()
    single = ForwardModel(grid, WAVE_OBS, REDSHIFT, dtype=torch.float32)
    flux = single(sfr, logzsol, 0.3, 150.0)
    assert flux.dtype == torch.float32
    assert torch.allclose(flux.double(), model(sfr, logzsol, 0.3, 150.0), rtol=1e-4, atol=0)


def test_pixels_outside_the_grid_or_without_lines_are_reported() -> None:
    bundled = SSPGrid.read(BUNDLED)
    wave = np.geomspace(8000.0, 10_000.0, 500)
    model = ForwardModel(bundled, wave, 0.004)
    assert model.covered.all()
    assert np.array_equal(model.coarse, wave / 1.004 > wave[model.coarse][0] / 1.004 - 1e-6)
    assert 8740 < wave[model.coarse][0] / 1.004 < 8775
    outside = ForwardModel(make_grid(), np.geomspace(2500.0, 5000.0, 300), 0.01)
    assert not outside.covered[0] and outside.covered[-1]
    with pytest.raises(DataError, match="wavelength units"):
        ForwardModel(make_grid(), np.linspace(0.4, 0.9, 300), 0.01)


@pytest.mark.parametrize(
    ("wave", "lsf"),
    [
        ([5000.0], None),
        ([5000.0, np.nan], None),
        ([5001.0, 5000.0], None),
        ([-1.0, 5000.0], None),
        (WAVE_OBS, -5.0),
        (WAVE_OBS, np.nan),
        (WAVE_OBS, [70.0, 70.0]),
    ],
)
def test_pixels_and_lsf_that_make_no_sense_are_refused(grid: SSPGrid, wave: Any, lsf: Any) -> None:
    with pytest.raises(DataError, match="expected"):
        ForwardModel(grid, wave, REDSHIFT, lsf_sigma=lsf)


def test_age_and_distance_come_from_one_cosmology(grid: SSPGrid) -> None:
    flat = FlatLambdaCDM(70, 0.3)
    model = ForwardModel(grid, WAVE_OBS, REDSHIFT, cosmology=flat)
    assert model.cosmic_time == pytest.approx(flat.age(REDSHIFT).value)
    planck = ForwardModel(grid, WAVE_OBS, REDSHIFT)
    assert planck.cosmic_time == pytest.approx(12.71, abs=0.05)
    with pytest.raises(ValueError, match="one cosmology"):
        ForwardModel(grid, WAVE_OBS, REDSHIFT, bins=TimeBins(flat), cosmology="Planck15")


# ---- parity with BAGPIPES


@pytest.mark.parametrize("sigma_v", [0, 150])
@pytest.mark.parametrize("galaxy", ["delayedtau", "constant"])
@pytest.mark.parametrize(
    ("interpolation", "shape", "level"), [("linear", 0.004, 0.005), ("log", 0.01, 0.03)]
)
def test_bagpipes_mocks_are_reproduced_at_their_true_parameters(
    galaxy: str, sigma_v: int, interpolation: Any, shape: float, level: float
) -> None:
    with np.load(MOCKS) as file:
        mock = {k.removeprefix(f"{galaxy}_"): file[k] for k in file if k.startswith(galaxy)}
    redshift, a_v, metals = mock["truth"]
    rest_air = mock["wave_rest_air"]
    bins = TimeBins(FlatLambdaCDM(70, 0.3))
    model = ForwardModel(
        SSPGrid.read(BUNDLED, wave_range=(3000.0, 8000.0)),
        calc_vacuum_from_air(rest_air) * (1 + redshift),
        redshift,
        bins=bins,
        interpolation=interpolation,
    )
    overlap = 1e9 * bins.overlap(model.cosmic_time)
    sfr = np.divide(mock["mass_formed"], overlap, out=np.zeros(64), where=overlap > 0)
    logzsol = torch.full((64,), float(np.log10(metals / 0.0142)), dtype=torch.float64)
    flux = model(torch.as_tensor(sfr), logzsol, float(a_v), float(sigma_v)).numpy()
    use = (rest_air > 3600) & (rest_air < 7300)
    ratio = (flux / mock[f"flux_{sigma_v}"])[use]
    assert ratio.mean() == pytest.approx(1, abs=level)
    assert ratio.std() / ratio.mean() < shape


@pytest.mark.parametrize("galaxy", ["delayedtau", "constant"])
def test_bagpipes_living_stellar_mass_is_reproduced(galaxy: str) -> None:
    with np.load(MOCKS) as file:
        redshift, _, metals = file[f"{galaxy}_truth"]
        mass, living = file[f"{galaxy}_mass_formed"], file[f"{galaxy}_log_mass_living"]
    grid = SSPGrid.read(BUNDLED, wave_range=(5000.0, 5100.0))
    bins = TimeBins(FlatLambdaCDM(70, 0.3))
    fraction = calc_surviving_fraction(grid, bins, bins.age_at(redshift))
    nodes = torch.as_tensor(grid.logzsol[grid.valid])
    weights = calc_metallicity_weights(torch.as_tensor(np.log10(metals / 0.0142)), nodes)
    assert np.log10(mass @ fraction @ weights.numpy()) == pytest.approx(float(living), abs=0.01)
