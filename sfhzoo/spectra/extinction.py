"""Extinction by the Milky Way: Fitzpatrick (1999, PASP 111, 63).

    transmission = 10^(-0.4 k(λ) E(B-V)),    k(λ) = A(λ) / E(B-V)

Below 2700 Å, k is Fitzpatrick & Massa's (1990, ApJS 72, 163) formula with the paper's mean
coefficients for R_V; above it, a cubic spline through the paper's anchors. Both are functions
of x = 1/λ in 1/µm.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import Spectrum

if TYPE_CHECKING:
    from sfhzoo.spectra.photometry import Photometry

HIGHEST_EBV = 5.0
"""mag; through more dust no optical galaxy spectrum is taken"""

_OPTICAL_WAVE = (6000.0, 5470.0, 4670.0, 4110.0)
_OPTICAL_POLYNOMIALS = (
    (-4.22809e-01, 1.00270, 2.13572e-04),
    (-5.13540e-02, 1.00216, -7.35778e-05),
    (7.00127e-01, 1.00184, -3.32598e-05),
    (1.19456, 1.01707, -5.46959e-03, 7.97809e-04, -4.45636e-05),
)
"""Anchors at `_OPTICAL_WAVE` (Å) as polynomials in R_V, from Fitzpatrick's Table 4."""
_INFRARED = ((26500.0, 0.26469), (12200.0, 0.82925))
"""Anchors (Å, k at R_V = 3.1), proportional to R_V."""
_ULTRAVIOLET_WAVE = (2700.0, 2600.0)
_LARGEST_X = 11.0
"""1/µm; beyond the Lyman limit the curve is held: nothing comes through the Galaxy there."""


def calc_galactic_extinction(wave_obs: ArrayLike, r_v: float = 3.1) -> NDArray[np.float64]:
    """k = A(λ) / E(B-V) at `wave_obs` (Å), same shape; Fitzpatrick (1999)."""
    from scipy.interpolate import CubicSpline

    x = np.minimum(1e4 / np.asarray(wave_obs, dtype=np.float64), _LARGEST_X)
    anchors = [(0.0, 0.0)]
    anchors += [(1e4 / wave, k * r_v / 3.1) for wave, k in _INFRARED]
    anchors += [
        (1e4 / wave, float(np.polynomial.polynomial.polyval(r_v, c)))
        for wave, c in zip(_OPTICAL_WAVE, _OPTICAL_POLYNOMIALS)
    ]
    anchors += [
        (1e4 / wave, float(_calc_ultraviolet(np.array(1e4 / wave), r_v)))
        for wave in _ULTRAVIOLET_WAVE
    ]
    spline = CubicSpline(*np.transpose(anchors), bc_type="natural")
    return np.where(x >= 1e4 / 2700.0, _calc_ultraviolet(x, r_v), spline(x))


def _calc_ultraviolet(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    """k at x >= 3.7 (1/µm): linear, the 2175 Å bump, and the far-UV rise."""
    x0, gamma, bump, rise = 4.596, 0.99, 3.23, 0.41
    slope = -0.824 + 4.717 / r_v
    intercept = 2.030 - 3.007 * slope
    drude = x**2 / ((x**2 - x0**2) ** 2 + (x * gamma) ** 2)
    y = np.maximum(x - 5.9, 0.0)
    far = 0.5392 * y**2 + 0.05644 * y**3
    return np.asarray(r_v + intercept + slope * x + bump * drude + rise * far)


def calc_galactic_transmission(
    wave_obs: ArrayLike, ebv: float, r_v: float = 3.1
) -> NDArray[np.float64]:
    """Fraction of the light that passes the Galaxy at `wave_obs` (Å), same shape.

    `ebv` is E(B-V) in mag; the values of Schlegel, Finkbeiner & Davis (1998) are 14 % too high
    for this curve (Schlafly & Finkbeiner 2011: multiply by 0.86). DataError unless
    0 <= ebv < 5 and 2 <= r_v <= 6.
    """
    if not 0.0 <= ebv < HIGHEST_EBV:
        raise DataError(f"expected E(B-V) from 0 to {HIGHEST_EBV:g} mag, got {ebv}")
    if not 2.0 <= r_v <= 6.0:
        raise DataError(f"expected R_V from 2 to 6, got {r_v}")
    return np.asarray(10.0 ** (-0.4 * ebv * calc_galactic_extinction(wave_obs, r_v)))


def deredden(spectrum: Spectrum, ebv: float, r_v: float = 3.1) -> Spectrum:
    """`spectrum` as seen from outside the Galaxy; `ebv` and errors as for the transmission.

    Flux and errors are divided by the transmission, so signal-to-noise ratios stay.
    """
    transmission = calc_galactic_transmission(spectrum.wave_obs, ebv, r_v)
    return replace(
        spectrum,
        flux=spectrum.flux / transmission,
        ivar=spectrum.ivar * transmission**2,
        meta={**spectrum.meta, "ebv": float(ebv)},
    )


def deredden_bands(photometry: Photometry, ebv: float, r_v: float = 3.1) -> Photometry:
    """`photometry` as seen from outside the Galaxy; `ebv` and errors as for the transmission.

    Each band is divided by its mean transmission for a spectrum of constant f_λ: right within
    0.01 mag at E(B-V) = 0.1, 0.03 mag in the ultraviolet (docs/photometry.md).
    """
    transmission = np.array(
        [
            np.average(
                calc_galactic_transmission(f.wave, ebv, r_v),
                weights=f.transmission * f.wave * np.gradient(f.wave),
            )
            for f in photometry.filters
        ]
    )
    return replace(
        photometry,
        maggies=photometry.maggies / transmission,
        error=photometry.error / transmission,
        meta={**(photometry.meta or {}), "ebv": float(ebv)},
        # they are found again
        warnings=(),
    )
