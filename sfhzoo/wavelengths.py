"""Wavelengths in air and in vacuum.

    wave_vacuum = n(1/wave_vacuum) * wave_air

with the refractive index n of standard air (15 °C, 101325 Pa, dry, 450 ppm CO2) from
Ciddor (1996, Applied Optics 35, 1566, eq. 1). By convention wavelengths below 2000 Å are quoted
in vacuum on both scales, so both functions leave them as they are; at 2000 Å itself the
conversion steps by 0.65 Å.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

SHORTEST_AIR_WAVELENGTH = 2000.0
"""Å; below it wavelengths are always quoted in vacuum."""

_FIXED_POINT_STEPS = 4
"""Each step gains a factor of about 1e5, so four reach the last bit."""


def _calc_refractive_index(wave_vacuum: NDArray[np.float64]) -> NDArray[np.float64]:
    """n of standard air at vacuum wavelengths (Å); Ciddor (1996), eq. 1."""
    wavenumber_squared = (1e4 / wave_vacuum) ** 2
    return (
        1.0
        + 0.05792105 / (238.0185 - wavenumber_squared)
        + 0.00167917 / (57.362 - wavenumber_squared)
    )


def calc_air_from_vacuum(wave: ArrayLike) -> NDArray[np.float64]:
    """Air wavelengths [...] (Å) of vacuum wavelengths [...] (Å); identity below 2000 Å.

    Ciddor (1996, Applied Optics 35, 1566), eq. 1.
    """
    vacuum = np.asarray(wave, dtype=np.float64)
    # the formula has poles in the far UV, where the result is thrown away
    safe = np.maximum(vacuum, SHORTEST_AIR_WAVELENGTH)
    return np.where(
        vacuum < SHORTEST_AIR_WAVELENGTH, vacuum, vacuum / _calc_refractive_index(safe)
    )


def calc_vacuum_from_air(wave: ArrayLike) -> NDArray[np.float64]:
    """Vacuum wavelengths [...] (Å) of air wavelengths [...] (Å); identity below 2000 Å.

    The inverse of Ciddor (1996, Applied Optics 35, 1566), eq. 1, by fixed-point iteration.
    """
    air = np.asarray(wave, dtype=np.float64)
    safe = np.maximum(air, SHORTEST_AIR_WAVELENGTH)
    vacuum = safe
    for _ in range(_FIXED_POINT_STEPS):
        vacuum = safe * _calc_refractive_index(vacuum)
    return np.where(air < SHORTEST_AIR_WAVELENGTH, air, vacuum)
