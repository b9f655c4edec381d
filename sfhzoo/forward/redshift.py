"""From luminosity per rest wavelength to flux per observed wavelength.

f_λ(λ_obs) = L_λ(λ_obs / (1 + redshift)) / [4π d_L² (1 + redshift)]
"""

from __future__ import annotations

import numpy as np

from sfhzoo.errors import DataError
from sfhzoo.units import SOLAR_LUMINOSITY


def calc_flux_factor(
    redshift: float,
    luminosity_distance_cm: float,
    solar_luminosity: float = SOLAR_LUMINOSITY,
) -> float:
    """Factor from Lsun/Å (rest) to erg/s/cm²/Å (observed).

    Parameters
    ----------
    redshift : > 0
    luminosity_distance_cm : cm
    solar_luminosity : the Lsun of the spectra, erg/s (BC03: 3.826e33, IAU: 3.828e33)

    Raises DataError where the distance is not positive (redshift <= 0).
    """
    if not (redshift > 0 and luminosity_distance_cm > 0):
        raise DataError(
            f"expected a redshift > 0, which gives a distance, got {redshift}; "
            "give the galaxy's cosmological redshift"
        )
    area = 4 * np.pi * luminosity_distance_cm**2
    return float(solar_luminosity / (area * (1 + redshift)))
