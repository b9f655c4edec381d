"""Air and vacuum wavelengths."""

from __future__ import annotations

import numpy as np
import pytest

from sfhzoo.wavelengths import calc_air_from_vacuum, calc_vacuum_from_air

# NIST Atomic Spectra Database: air and vacuum wavelengths of the same lines, Å
PUBLISHED = {
    "[O II] 3727": (3726.03, 3727.09),
    "H-beta": (4861.33, 4862.68),
    "[O III] 5007": (5006.84, 5008.24),
    "Na D2": (5889.951, 5891.583),
    "H-alpha": (6562.80, 6564.61),
    "[S II] 6731": (6730.82, 6732.68),
}


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_line_pairs_are_reproduced(line: str) -> None:
    air, vacuum = PUBLISHED[line]
    assert calc_vacuum_from_air(air) == pytest.approx(vacuum, abs=0.011)
    assert calc_air_from_vacuum(vacuum) == pytest.approx(air, abs=0.011)


def test_the_round_trip_returns_the_wavelength() -> None:
    wave = np.geomspace(2001.0, 1e5, 5000)
    assert np.abs(calc_air_from_vacuum(calc_vacuum_from_air(wave)) - wave).max() < 1e-9


def test_wavelengths_below_2000_are_left_alone() -> None:
    wave = np.array([5.6, 912.0, 1215.67, 1999.9])
    assert np.array_equal(calc_vacuum_from_air(wave), wave)
    assert np.array_equal(calc_air_from_vacuum(wave), wave)


def test_vacuum_wavelengths_are_the_longer_ones_and_stay_in_order() -> None:
    air = np.linspace(2000.0, 1e4, 10_000)
    vacuum = calc_vacuum_from_air(air)
    assert np.all(vacuum > air)
    assert np.all(np.diff(vacuum) > 0)


def test_the_shape_of_the_input_is_kept() -> None:
    assert calc_vacuum_from_air(5000.0).shape == ()
    assert calc_vacuum_from_air(np.full((2, 3), 5000.0)).shape == (2, 3)
