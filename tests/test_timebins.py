"""The bins of cosmic time against the published cosmology and their own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.cosmology import FlatLambdaCDM

from sfhzoo.timebins import TimeBins
from sfhzoo.units import SPEED_OF_LIGHT


def test_there_are_64_equal_bins_from_the_big_bang_to_13_798_gyr():
    bins = TimeBins()
    assert bins.n == 64
    assert bins.age_today == pytest.approx(13.798, abs=1e-3)
    assert bins.width == pytest.approx(0.2156, abs=1e-4)
    assert bins.edges[0] == 0 and bins.edges[-1] == bins.age_today
    np.testing.assert_allclose(np.diff(bins.edges), bins.width, rtol=1e-12)
    np.testing.assert_allclose(bins.centres, (np.arange(64) + 0.5) * bins.width, rtol=1e-12)


def test_an_einstein_de_sitter_universe_has_the_ages_of_its_closed_form():
    eds = FlatLambdaCDM(H0=70.0, Om0=1.0, Tcmb0=0.0)
    bins = TimeBins(eds)
    hubble_time = 977.7922217 / 70.0
    assert bins.age_today == pytest.approx(2 / 3 * hubble_time, rel=1e-6)
    assert bins.age_at(3.0) == pytest.approx(2 / 3 * hubble_time * 4.0**-1.5, rel=1e-6)
    # d_L = 2 c/H0 (1 + z - sqrt(1 + z))
    expected = 2 * SPEED_OF_LIGHT / 70.0 * (4.0 - 2.0) * 3.0856775814913673e24
    assert bins.luminosity_distance_cm(3.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("redshift", [0.0, 0.0873, 0.7, 5.0])
def test_the_overlap_sums_to_the_age_at_the_redshift(redshift):
    bins = TimeBins()
    age = bins.age_at(redshift)
    assert bins.overlap(age).sum() == pytest.approx(age, rel=1e-12)


def test_a_bin_cut_by_the_observation_counts_with_its_earlier_part_and_later_ones_not():
    bins = TimeBins()
    overlap = bins.overlap(10.25 * bins.width)
    np.testing.assert_allclose(overlap[:10], bins.width, rtol=1e-12)
    assert overlap[10] == pytest.approx(0.25 * bins.width)
    assert np.all(overlap[11:] == 0)


def test_lookback_edges_count_back_from_the_observation_and_stop_at_zero():
    bins = TimeBins()
    lookback = bins.lookback_edges(10.25 * bins.width)
    assert lookback[0] == pytest.approx(10.25 * bins.width)
    assert lookback[10] == pytest.approx(0.25 * bins.width)
    assert np.all(lookback[11:] == 0)


def test_an_unknown_cosmology_is_refused_by_its_name():
    with pytest.raises(ValueError, match="Planck51"):
        TimeBins("Planck51")


def test_bins_of_the_same_cosmology_are_equal_and_of_another_are_not():
    assert TimeBins() == TimeBins("Planck15")
    assert TimeBins() != TimeBins("Planck18")
