"""A grid whose answers are known: one absorption line on a continuum of closed form."""

from __future__ import annotations

import numpy as np

from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.units import SPEED_OF_LIGHT

LINE = 5000.0
LINE_SIGMA = 50.0
WAVE_OBS = np.geomspace(4500.0, 6500.0, 1600)
REDSHIFT = 0.08


def make_grid() -> SSPGrid:
    """An absorption line of 50 km/s at 5000 Å on a continuum that depends on age and Z."""
    wave = np.geomspace(3000.0, 9000.0, 20_000)
    logzsol = np.array([-1.5, -0.5, 0.0, 0.4, 0.8])
    age = np.geomspace(1e5, 1.4e10, 40)
    velocity = SPEED_OF_LIGHT * np.log(wave / LINE)
    line = 1 - 0.8 * np.exp(-0.5 * (velocity / LINE_SIGMA) ** 2)
    level = (1 + 0.3 * logzsol[:, None]) * (age / 1e9) ** -0.7
    return SSPGrid(
        name="fake-v1",
        logzsol=logzsol,
        age=age,
        wave=wave,
        flux=(level[..., None] * line * (wave / 5000) ** -0.5).astype(np.float32),
        surviving_mass_fraction=np.broadcast_to(1 - 0.05 * np.log10(age / 1e5), (5, 40)).copy(),
        resolution_fwhm=LINE_SIGMA / SPEED_OF_LIGHT * wave * 2.3548200450309493,
        valid=np.array([True, True, True, True, False]),
        attributes={"solar_luminosity": 3.826e33},
    )
