"""Histories: both parametrisations, and derived quantities against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sfhzoo.histories import (
    SSFR_FLOOR,
    HistoryScaling,
    calc_age_mass_weighted,
    calc_formation_quantile,
    calc_logzsol_mass_weighted,
    calc_mass_formed,
    calc_mass_formed_per_bin,
    calc_sfr_recent,
    calc_ssfr,
    fill_empty_metallicity,
)
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
TODAY = BINS.age_today
CUT = 40.3 * BINS.width
"""a cosmic time that cuts bin 40"""


@pytest.fixture
def population():
    rng = np.random.default_rng(3)
    sfr = 10 ** rng.normal(0, 0.6, (50, 64))
    sfr[:, :2] = 0
    return sfr, rng.uniform(-2.9, 0.5, (50, 64))


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_histories_survive_the_round_trip_through_x(kind, population):
    sfr, logzsol = population
    scaling = HistoryScaling.fit(sfr, logzsol, kind)
    x = scaling.to_x(sfr, logzsol)
    assert x.shape == (50, 2, 64)
    back = scaling.from_x(torch.from_numpy(x))
    np.testing.assert_allclose(back.sfr, sfr, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(back.logzsol, logzsol, rtol=1e-10)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_the_fitted_x_has_zero_mean_and_unit_variance_in_every_bin_that_varies(kind, population):
    x = HistoryScaling.fit(*population, kind).to_x(*population)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-10)
    # bins 0 and 1 formed nothing in any galaxy
    np.testing.assert_allclose(x[:, 0, 2:].std(axis=0), 1, rtol=1e-10)
    np.testing.assert_allclose(x[:, 1].std(axis=0), 1, rtol=1e-10)
    assert np.all(x[:, 0, :2] == 0)


def test_the_logarithmic_x_is_the_standardised_log_of_sfr_plus_the_floor():
    scaling = HistoryScaling("log", np.full((2, 64), 0.5), np.full((2, 64), 2.0))
    x = scaling.to_x(np.full(64, 9.9999), np.full(64, -5.0))
    np.testing.assert_allclose(x[0], (1.0 - 0.5) / 2)
    # a metallicity below the floor is one at the floor
    np.testing.assert_allclose(x[1], (-3.0 - 0.5) / 2)


@pytest.mark.parametrize("kind", ["log", "linear"])
def test_any_x_gives_finite_histories_with_sfr_at_or_above_zero(kind):
    scaling = HistoryScaling(kind, np.zeros((2, 64)), np.ones((2, 64)))
    history = scaling.from_x(torch.tensor([-1e6, 1e6]).view(2, 1, 1).expand(2, 2, 64))
    assert torch.isfinite(history.sfr).all() and torch.all(history.sfr >= 0)
    assert history.logzsol.min() == -3.0
    assert torch.all(history.sfr[0] == 0)


def test_the_scaling_survives_its_dictionary(population):
    scaling = HistoryScaling.fit(*population, "linear", sfr_floor=1e-3, logzsol_floor=-2.5)
    back = HistoryScaling.from_dict(scaling.to_dict())
    assert (back.kind, back.sfr_floor, back.logzsol_floor) == ("linear", 1e-3, -2.5)
    assert np.array_equal(back.to_x(*population), scaling.to_x(*population))


def test_histories_from_x_are_differentiable():
    scaling = HistoryScaling("log", np.zeros((2, 64)), np.ones((2, 64)))
    x = torch.zeros((2, 64), dtype=torch.float64, requires_grad=True)
    scaling.from_x(x).sfr.sum().backward()
    # d SFR / d x = ln 10 * 10^x at x = 0
    np.testing.assert_allclose(x.grad[0], np.log(10), rtol=1e-12)


def test_a_negative_sfr_is_refused_with_its_value():
    scaling = HistoryScaling("log", np.zeros((2, 64)), np.ones((2, 64)))
    with pytest.raises(ValueError, match=r"-2\.5"):
        scaling.to_x(np.full(64, -2.5), np.zeros(64))


@pytest.mark.parametrize(
    ("kind", "mean", "std"),
    [
        ("cubic", np.zeros((2, 64)), np.ones((2, 64))),
        ("log", np.zeros((2, 64)), np.ones((2, 63))),
        ("log", np.zeros((3, 64)), np.ones((3, 64))),
        ("log", np.zeros((2, 64)), np.zeros((2, 64))),
        ("log", np.full((2, 64), np.nan), np.ones((2, 64))),
    ],
)
def test_a_scaling_that_cannot_be_inverted_is_refused(kind, mean, std):
    with pytest.raises(ValueError, match="expected"):
        HistoryScaling(kind, mean, std)


# ---- derived quantities -------------------------------------------------------------------------


@pytest.mark.parametrize("time", [TODAY, CUT])
def test_a_constant_sfr_has_the_closed_forms_of_a_uniform_age_distribution(time):
    sfr = np.full(64, 3.0)
    assert calc_mass_formed(sfr, BINS, time) == pytest.approx(3.0 * time * 1e9)
    for fraction in (0.1, 0.5, 0.9):
        quantile = calc_formation_quantile(sfr, BINS, time, fraction)
        assert quantile == pytest.approx(fraction * time)
    assert calc_age_mass_weighted(sfr, BINS, time) == pytest.approx(time / 2)
    assert calc_sfr_recent(sfr, BINS, time, 0.1) == pytest.approx(3.0)
    mass = calc_mass_formed(sfr, BINS, time)
    assert calc_ssfr(sfr, BINS, time, mass) == pytest.approx(1e-9 / time)


def test_a_burst_in_one_bin_is_as_old_as_the_bins_centre():
    sfr = np.zeros(64)
    sfr[10] = 5.0
    assert calc_age_mass_weighted(sfr, BINS, TODAY) == pytest.approx(TODAY - BINS.centres[10])
    expected = BINS.edges[10] + 0.25 * BINS.width
    assert calc_formation_quantile(sfr, BINS, TODAY, 0.25) == pytest.approx(expected)
    assert calc_mass_formed(sfr, BINS, TODAY) == pytest.approx(5e9 * BINS.width)


def test_a_burst_cut_by_the_observation_is_as_old_as_half_its_seen_part():
    sfr = np.zeros(64)
    sfr[40] = 1.0
    assert calc_mass_formed(sfr, BINS, CUT) == pytest.approx(0.3 * BINS.width * 1e9)
    assert calc_age_mass_weighted(sfr, BINS, CUT) == pytest.approx(0.15 * BINS.width)
    expected = BINS.edges[40] + 0.15 * BINS.width
    assert calc_formation_quantile(sfr, BINS, CUT, 0.5) == pytest.approx(expected)


def test_a_delayed_tau_history_has_its_closed_forms_to_the_resolution_of_the_bins():
    tau = 2.0

    def cumulative(t):
        return 1 - (1 + t / tau) * np.exp(-t / tau)

    sfr = np.diff(cumulative(BINS.edges)) / (BINS.width * 1e9)
    np.testing.assert_allclose(calc_mass_formed(sfr, BINS, TODAY), cumulative(TODAY), rtol=1e-12)
    t50 = calc_formation_quantile(sfr, BINS, TODAY, 0.5)
    # linear interpolation in a bin errs at second order: width^2 / 8 * |M''| / M' here
    assert cumulative(t50) == pytest.approx(0.5 * cumulative(TODAY), abs=5e-4)
    y = TODAY / tau
    mean_time = tau * (2 - (y**2 + 2 * y + 2) * np.exp(-y)) / cumulative(TODAY)
    age = calc_age_mass_weighted(sfr, BINS, TODAY)
    assert age == pytest.approx(TODAY - mean_time, abs=0.01)


def test_stars_formed_after_the_observation_do_not_count():
    sfr, later = np.ones(64), np.ones(64)
    later[41:] = 1e6
    logz = np.where(np.arange(64) < 41, -1.0, 0.5)
    for calc in (calc_mass_formed, calc_age_mass_weighted):
        assert calc(sfr, BINS, CUT) == calc(later, BINS, CUT)
    assert calc_formation_quantile(later, BINS, CUT, 0.9) == pytest.approx(0.9 * CUT)
    assert calc_sfr_recent(later, BINS, CUT, 0.1) == pytest.approx(1.0)
    assert calc_logzsol_mass_weighted(later, logz, BINS, CUT) == pytest.approx(-1.0)


def test_a_galaxy_without_stars_has_no_ages_and_no_metallicity():
    empty = np.zeros((2, 64))
    assert np.all(calc_mass_formed(empty, BINS, TODAY) == 0)
    assert np.all(np.isnan(calc_formation_quantile(empty, BINS, TODAY, 0.5)))
    assert np.all(np.isnan(calc_age_mass_weighted(empty, BINS, TODAY)))
    assert np.all(np.isnan(calc_logzsol_mass_weighted(empty, empty, BINS, TODAY)))


def test_the_recent_sfr_mixes_the_bins_that_its_window_touches():
    sfr = np.zeros(64)
    sfr[63], sfr[62] = 4.0, 1.0
    assert calc_sfr_recent(sfr, BINS, TODAY, 0.1) == pytest.approx(4.0)
    assert calc_sfr_recent(sfr, BINS, TODAY, 2 * BINS.width) == pytest.approx(2.5)
    assert calc_sfr_recent(sfr, BINS, TODAY, 1.0) == pytest.approx(5.0 * BINS.width)


def test_the_ssfr_of_a_quenched_galaxy_is_the_floor():
    sfr = np.r_[np.ones(32), np.zeros(32)]
    assert calc_ssfr(sfr, BINS, TODAY, 1e10) == SSFR_FLOOR


def test_the_mass_weighted_metallicity_is_the_log_of_the_mean_not_the_mean_of_logs():
    sfr = np.zeros(64)
    sfr[5], sfr[50] = 3.0, 1.0
    logz = np.where(np.arange(64) < 30, -1.0, 0.0)
    expected = np.log10((3 * 0.1 + 1 * 1.0) / 4)
    assert calc_logzsol_mass_weighted(sfr, logz, BINS, TODAY) == pytest.approx(expected)


def test_leading_axes_pass_through(population):
    sfr, logz = (v.reshape(5, 10, 64) for v in population)
    assert calc_mass_formed_per_bin(sfr, BINS, CUT).shape == (5, 10, 64)
    t50 = calc_formation_quantile(sfr, BINS, CUT, 0.5)
    assert t50.shape == (5, 10)
    assert t50[2, 3] == calc_formation_quantile(sfr[2, 3], BINS, CUT, 0.5)
    assert calc_logzsol_mass_weighted(sfr, logz, BINS, CUT).shape == (5, 10)


def test_empty_bins_inherit_the_last_metallicity_and_leading_ones_the_first():
    sfr = np.array([[0.0, 0.0, 1.0, 0.0, 2.0, 0.0], [0.0] * 6])
    logz = np.array([[-11.0, -11.0, -1.0, -11.0, 0.2, -11.0], [-11.0] * 6])
    filled = fill_empty_metallicity(sfr, logz)
    np.testing.assert_allclose(filled[0], [-1.0, -1.0, -1.0, -1.0, 0.2, 0.2])
    np.testing.assert_allclose(filled[1], -3.0)
    assert fill_empty_metallicity(sfr, np.full((2, 6), -11.0)).min() == -3.0
