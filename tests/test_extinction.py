"""Galactic extinction: Fitzpatrick's published curve, and its removal from a spectrum."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from sfhzoo.errors import DataError
from sfhzoo.spectra.extinction import (
    calc_galactic_extinction,
    calc_galactic_transmission,
    deredden,
)
from sfhzoo.spectra.spectrum import Spectrum

NGC3522 = Path(str(files("sfhzoo") / "data" / "spec-NGC3522.fits"))


def test_the_extinction_curve_goes_through_the_published_anchors():
    # Fitzpatrick (1999), Table 3: A(λ)/E(B-V) for R_V = 3.1
    wave = [26500.0, 12200.0, 6000.0, 5470.0, 4670.0, 4110.0, 2700.0, 2600.0]
    published = [0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591]
    assert np.allclose(calc_galactic_extinction(wave), published, atol=1.1e-3)
    assert calc_galactic_extinction(1e12) == pytest.approx(0.0, abs=1e-4)


def test_the_extinction_curve_has_its_bump_and_no_step_where_its_parts_meet():
    wave = np.linspace(1800.0, 2600.0, 801)
    assert wave[np.argmax(calc_galactic_extinction(wave))] == pytest.approx(2175.0, abs=15)
    low, high = calc_galactic_extinction([2700.0 - 1e-6, 2700.0 + 1e-6])
    assert low == pytest.approx(high, abs=1e-6)


def test_dereddening_undoes_reddening_and_keeps_the_signal_to_noise():
    wave = np.linspace(4000.0, 5000.0, 60)
    intrinsic = Spectrum(wave, np.full(60, 2e-16), np.full(60, 1e34))
    transmission = calc_galactic_transmission(intrinsic.wave_obs, 0.3)
    reddened = replace(
        intrinsic,
        flux=intrinsic.flux * transmission,
        ivar=intrinsic.ivar / transmission**2,
    )
    restored = deredden(reddened, 0.3)
    assert np.allclose(restored.flux, intrinsic.flux, rtol=1e-12)
    assert np.allclose(restored.ivar, intrinsic.ivar, rtol=1e-12)
    assert restored.meta["ebv"] == 0.3


@pytest.mark.parametrize("ebv", [-0.1, 5.0, np.nan])
def test_impossible_reddenings_are_refused(ebv):
    with pytest.raises(DataError, match=r"E\(B-V\)"):
        calc_galactic_transmission(5000.0, ebv)


def test_the_ebv_option_dereddens_what_is_read():
    bright, faint = Spectrum.read(NGC3522, ebv=0.1), Spectrum.read(NGC3522)
    at = np.argmin(np.abs(faint.wave_obs - 5470.0))
    assert bright.flux[at] / faint.flux[at] == pytest.approx(10 ** (0.4 * 0.1 * 3.055), rel=1e-3)
