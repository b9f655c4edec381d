"""What one measures on a spectrum of stars: breaks, lines, magnitudes; pure functions.

Flux is f_λ [..., wave] in any unit unless a docstring says otherwise, wavelengths are vacuum Å.
Band limits that their papers give in air are converted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfhzoo.units import CM_PER_MPC, FWHM_PER_SIGMA, SPEED_OF_LIGHT
from sfhzoo.wavelengths import calc_vacuum_from_air

Array = NDArray[np.float64]

D4000_BANDS = ((3850.0, 3950.0), (4000.0, 4100.0))
"""Air Å (Balogh et al. 1999, ApJ 527, 54)"""
HDELTA_A = (4083.50, 4122.25)
HDELTA_A_SIDES = ((4041.60, 4081.50), (4128.50, 4161.00))
"""Air Å (Worthey & Ottaviani 1997, ApJS 111, 377)"""
AB_ZERO = -48.6
"""mag, of 1 erg/s/cm²/Hz"""


def calc_d4000(wave: Array, flux: Array) -> Array:
    """Ratio [...] of the mean f_ν in 4000–4100 Å to that in 3850–3950 Å."""
    blue, red = (
        _calc_mean(wave, flux * wave**2, *calc_vacuum_from_air(np.array(band)))
        for band in D4000_BANDS
    )
    return red / blue


def calc_hdelta_a(wave: Array, flux: Array) -> Array:
    """Equivalent width [...], Å, of Hδ_A; positive in absorption.

    The pseudo-continuum is the line through the mean fluxes of the two side bands.
    """
    sides = [calc_vacuum_from_air(np.array(side)) for side in HDELTA_A_SIDES]
    blue, red = (_calc_mean(wave, flux, *side) for side in sides)
    centre_blue, centre_red = (side.mean() for side in sides)
    low, high = calc_vacuum_from_air(np.array(HDELTA_A))
    share = (wave - centre_blue) / (centre_red - centre_blue)
    continuum = blue[..., None] * (1 - share) + red[..., None] * share
    return np.asarray(high - low) * _calc_mean(wave, 1 - flux / continuum, low, high)


def calc_ab_magnitude(wave: Array, luminosity: Array, band: Any, solar_luminosity: float) -> Array:
    """Absolute AB magnitude [...] of a luminosity [..., wave] in Lsun/Å.

    `band` is a `sedpy.observate.Filter`: photon-counting transmission on its own wavelengths.
    `solar_luminosity` is erg/s.
    """
    low, high = band.wavelength[[0, -1]]
    axis = np.unique(np.concatenate([band.wavelength, wave[(wave > low) & (wave < high)]]))
    transmission = np.interp(axis, band.wavelength, band.transmission, left=0.0, right=0.0)
    flux = _resample(axis, wave, luminosity) * solar_luminosity
    area = 4 * np.pi * (1e-5 * CM_PER_MPC) ** 2
    photons = np.trapezoid(flux / area * transmission * axis, axis, axis=-1)
    flat = np.trapezoid(transmission / axis, axis) * SPEED_OF_LIGHT * 1e13
    return -2.5 * np.log10(photons / flat) + AB_ZERO


def calc_smoothed(wave: Array, flux: Array, fwhm: ArrayLike, target_fwhm: float) -> Array:
    """Flux [..., wave] brought to a Gaussian resolution of `target_fwhm` (Å).

    `fwhm` [wave] or a number is the spectrum's own, Å; where that is coarser nothing happens. For
    a short range: the cost is wave².
    """
    own = np.broadcast_to(np.asarray(fwhm, dtype=np.float64), wave.shape)
    sigma = np.sqrt(np.maximum(target_fwhm**2 - own**2, 0)) / FWHM_PER_SIGMA
    step = np.gradient(wave)
    kernel = np.exp(-0.5 * ((wave[:, None] - wave) / np.maximum(sigma, 1e-6)[:, None]) ** 2) * step
    kernel /= kernel.sum(axis=1, keepdims=True)
    return np.where(sigma > 0.5 * step, flux @ kernel.T, flux)


def _calc_mean(wave: Array, values: Array, low: float, high: float) -> Array:
    """Mean [...] over low to high of values [..., wave], linear between the nodes."""
    inside = wave[(wave > low) & (wave < high)]
    axis = np.concatenate([[low], inside, [high]])
    return np.trapezoid(_resample(axis, wave, values), axis, axis=-1) / (high - low)


def _resample(axis: Array, wave: Array, values: Array) -> Array:
    """Values [..., wave] linearly interpolated to `axis`."""
    below = np.clip(np.searchsorted(wave, axis, side="right") - 1, 0, len(wave) - 2)
    share = (axis - wave[below]) / (wave[below + 1] - wave[below])
    return values[..., below] * (1 - share) + values[..., below + 1] * share
