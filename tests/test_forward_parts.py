"""The parts of the forward model against closed forms and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakegrid import REDSHIFT, WAVE_OBS, make_grid

from sfhzoo.errors import DataError
from sfhzoo.forward.csp import (
    calc_age_weights,
    calc_bin_templates,
    calc_metallicity_weights,
    calc_surviving_fraction,
)
from sfhzoo.forward.kinematics import (
    calc_broadened,
    calc_broadening_matrix,
    calc_lsf_difference,
    calc_resolution_sigma,
)
from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.pixels import calc_pixel_edges, calc_pixel_matrix
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import SPEED_OF_LIGHT


@pytest.fixture(scope="module")
def grid() -> SSPGrid:
    return make_grid()


@pytest.fixture(scope="module")
def model(grid: SSPGrid) -> ForwardModel:
    return ForwardModel(grid, WAVE_OBS, REDSHIFT)


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
