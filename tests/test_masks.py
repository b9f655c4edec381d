"""Masks: where the lines are, what is left, and why a pixel is out."""

from __future__ import annotations

import numpy as np
import pytest

from sfhzoo.errors import DataError
from sfhzoo.spectra.masks import (
    EMISSION_LINES,
    build_mask,
    calc_line_mask,
    calc_sky_mask,
    parse_ranges,
)
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.units import SPEED_OF_LIGHT

WAVE = np.arange(3800.0, 9200.0, 1.0)
LINES = {line.name: line for line in EMISSION_LINES}


def make_spectrum(**changes: object) -> Spectrum:
    arrays = {"flux": np.full(WAVE.size, 2e-16), "ivar": np.full(WAVE.size, 1e34)}
    return Spectrum(wave_obs=WAVE, **(arrays | changes))


@pytest.mark.parametrize(
    ("name", "level"),
    [("Hα", 3), ("Hβ", 4), ("Hγ", 5), ("Hδ", 6), ("Hε", 7), ("H8", 8), ("H9", 9), ("H10", 10)],
)
def test_balmer_lines_follow_rydbergs_formula_in_vacuum(name, level):
    rydberg_hydrogen = 109677.5834e-8  # 1/Å
    expected = 1 / (rydberg_hydrogen * (1 / 4 - 1 / level**2))
    assert LINES[name].wave_rest == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("stronger", "weaker", "energies"),
    [
        # NIST energies (1/cm) of the two lower levels, upper level of each doublet
        ("[O III] 5007", "[O III] 4959", (20273.27, 306.174, 113.178)),
        ("[N II] 6584", "[N II] 6548", (15316.17, 130.8, 48.7)),
    ],
)
def test_forbidden_doublets_agree_with_their_energy_levels(stronger, weaker, energies):
    upper, low_of_stronger, low_of_weaker = energies
    assert LINES[stronger].wave_rest == pytest.approx(1e8 / (upper - low_of_stronger), abs=0.1)
    assert LINES[weaker].wave_rest == pytest.approx(1e8 / (upper - low_of_weaker), abs=0.1)


def test_every_line_is_masked_as_far_as_its_half_width():
    for line in EMISSION_LINES:
        half = line.width * 500.0 / SPEED_OF_LIGHT
        inside = line.wave_rest * (1 + half * np.array([-0.99, 0.0, 0.99]))
        assert not calc_line_mask(inside, half_width_kms=500.0).any(), line.name


def test_absorption_features_that_measure_age_and_metals_are_kept():
    # Ca K, the 4000 Å break's red side, G band, Mg b, Fe 5270
    kept = np.array([3934.8, 4050.0, 4305.6, 5176.6, 5270.4])
    assert calc_line_mask(kept).all()


def test_a_line_of_300_kms_leaves_less_than_a_percent_of_its_peak_if_strong():
    line = LINES["[O III] 5007"]
    wave = np.linspace(5009.0, 5060.0, 2000)
    profile = np.exp(
        -0.5 * ((wave / line.wave_rest - 1) * SPEED_OF_LIGHT / np.hypot(300.0, 0)) ** 2
    )
    assert profile[calc_line_mask(wave)].max() < 0.012


def test_sky_residuals_are_masked_in_the_observed_frame():
    use = calc_sky_mask(np.array([5560.0, 5578.9, 5600.0, 6900.0, 7000.0, 7620.0, 7800.0]))
    assert use.tolist() == [True, False, True, False, True, False, True]


def test_each_reason_holds_its_own_pixels_and_the_mask_is_what_remains():
    ivar, flags = np.full(WAVE.size, 1e34), np.ones(WAVE.size, dtype=bool)
    ivar[100], flags[200] = 0.0, False
    spectrum = make_spectrum(ivar=ivar, mask=flags)
    mask, reasons = build_mask(spectrum, 0.1, exclude=["4500:4510"], wave_range=(3850.0, 9000.0))
    assert np.flatnonzero(reasons["no data"]).tolist() == [100]
    assert np.flatnonzero(reasons["flagged"]).tolist() == [200]
    assert reasons["excluded"].sum() == 11
    assert reasons["wave range"].sum() == 50 + 199
    assert reasons["emission lines"][np.argmin(np.abs(WAVE - 1.1 * 6564.6))]
    assert np.array_equal(mask, ~np.any(list(reasons.values()), axis=0))


def test_lines_can_be_kept_and_the_sky_too():
    mask, reasons = build_mask(make_spectrum(), 0.1, lines="keep", sky=False)
    assert mask.all() and not any(out.any() for out in reasons.values())


def test_ranges_are_read_as_written():
    assert parse_ranges(["5570:5590", " 1e3 : 2e3 ", (1.0, 2.0)]) == [
        (5570.0, 5590.0),
        (1000.0, 2000.0),
        (1.0, 2.0),
    ]


@pytest.mark.parametrize("text", ["", "5570", "a:b", "1:2:3", "5590:5570", "nan:5", "-1:5", ":9"])
def test_malformed_ranges_are_refused(text):
    with pytest.raises(DataError, match="A:B"):
        parse_ranges([text])


def test_no_pixel_may_be_left_and_the_reasons_say_why():
    mask, reasons = build_mask(make_spectrum(), 0.1, wave_range="100:200")
    assert not mask.any() and reasons["wave range"].sum() == 5400


def test_lines_are_masked_or_kept():
    with pytest.raises(DataError, match="'mask' or 'keep'"):
        build_mask(make_spectrum(), 0.1, lines="drop")  # type: ignore[arg-type]
