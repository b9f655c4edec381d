"""The 64 bins of cosmic time on which every history lives.

Equal bins from the Big Bang to the age of the universe; bin 0 is the Big Bang, bin 63 is today.
An observation at some redshift sees only the earlier ones: the bin that its age cuts counts with
its earlier part, later bins are a prediction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 64

Cosmology = Any
"""An astropy FLRW instance."""


def resolve_cosmology(cosmology: str | Cosmology) -> Cosmology:
    """An astropy cosmology from its name (`"Planck15"`) or from itself.

    Raises ValueError for a name astropy does not know.
    """
    if not isinstance(cosmology, str):
        return cosmology
    from astropy import cosmology as astropy_cosmology

    if cosmology not in astropy_cosmology.available:
        raise ValueError(
            f"expected one of astropy's cosmologies {astropy_cosmology.available}, "
            f"got {cosmology!r}"
        )
    return getattr(astropy_cosmology, cosmology)


@dataclass(frozen=True)
class TimeBins:
    """Equal bins of cosmic time.

    Parameters
    ----------
    cosmology : name of an astropy cosmology, or an astropy FLRW instance
    n : number of bins
    """

    cosmology: str | Cosmology = "Planck15"
    n: int = N_BINS
    _flrw: Cosmology = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_flrw", resolve_cosmology(self.cosmology))

    @cached_property
    def age_today(self) -> float:
        """Age of the universe, Gyr (13.798 for Planck15)."""
        return float(self._flrw.age(0).value)

    @cached_property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges [n + 1], Gyr of cosmic time."""
        return np.linspace(0.0, self.age_today, self.n + 1)

    @property
    def width(self) -> float:
        """Width of a bin, Gyr."""
        return self.age_today / self.n

    @property
    def centres(self) -> NDArray[np.float64]:
        """Bin centres [n], Gyr of cosmic time."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    def age_at(self, redshift: float) -> float:
        """Age of the universe at a redshift, Gyr."""
        return float(self._flrw.age(redshift).value)

    def overlap(self, cosmic_time: float) -> NDArray[np.float64]:
        """Time [n] of each bin that lies before `cosmic_time`, Gyr; 0 for later bins."""
        return np.clip(cosmic_time - self.edges[:-1], 0.0, self.width)

    def lookback_edges(self, cosmic_time: float) -> NDArray[np.float64]:
        """Bin edges [n + 1] as Gyr before `cosmic_time`; later edges are 0."""
        return np.clip(cosmic_time - self.edges, 0.0, None)

    def luminosity_distance_cm(self, redshift: float) -> float:
        """Luminosity distance, cm."""
        from sfhzoo.units import CM_PER_MPC

        return float(self._flrw.luminosity_distance(redshift).value) * CM_PER_MPC
