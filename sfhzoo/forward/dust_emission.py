"""Infrared emission of dust, in energy balance with the starlight it absorbs.

    L_dust(λ) = E(λ) ∫ L_stars(λ') [1 - 10^(-0.4 A_V A(λ')/A_V)] dλ',    ∫ E dλ = 1
    E ∝ (1 - gamma) j(umin) + gamma j(umin to 1e6)

j are the emissivities per hydrogen atom of Draine & Li (2007, ApJ 657, 810): of dust in one
radiation field `umin`, and in fields distributed as U^-2 up to 1e6 (their eqs 9, 23). Between the
tables' nodes E is linear in qpah and umin, as in BAGPIPES (Carnall et al. 2018, MNRAS 480, 4379).
Dust does not absorb its own light.

The packed tables are the authors' public ones (11 qpah, 22 umin, 1 µm to 1 cm, rounded to 0.05 %).
Nodes of qpah from 0.75, 1.49, 2.37 (Large Magellanic Cloud) and 0.10 (Small) have another mix of
grains than the other seven (Milky Way).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import UsageError

TEMPLATES = Path(__file__).parents[1] / "data" / "draine-li-2007.npz"
SHORTEST = 1e4
"""Å; the tables begin here, bluer dust does not shine."""


@dataclass(frozen=True)
class DustEmission:
    """The shape of the dust's spectrum: Draine & Li (2007).

    Parameters
    ----------
    qpah : mass of PAHs per mass of dust, per cent, 0.10 to 4.58
    umin : lowest intensity of starlight, in that of the solar neighbourhood, 0.10 to 25
    gamma : fraction of the dust in starlight more intense than that, 0 to 1

    Raises UsageError for values outside these ranges.
    """

    qpah: float = 3.5
    umin: float = 1.0
    gamma: float = 0.01

    def __post_init__(self) -> None:
        for name, low, high in (("qpah", 0.10, 4.58), ("umin", 0.10, 25.0), ("gamma", 0.0, 1.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise UsageError(
                    f"expected the dust emission's {name} from {low:g} to {high:g}, got {value}"
                )

    def __call__(self, wave_rest: ArrayLike) -> NDArray[np.float64]:
        """E [...] (1/Å) at rest wavelengths [...] (Å); zero outside 1 µm to 1 cm."""
        wave, template = self.calc_template()
        return np.interp(np.asarray(wave_rest, dtype=np.float64), wave, template, left=0, right=0)

    def calc_template(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rest wavelengths [node] (Å) of the tables, and E [node] (1/Å) there."""
        tables = read_templates()
        weights = np.outer(
            _calc_node_weights(self.qpah, tables.qpah), _calc_node_weights(self.umin, tables.umin)
        )
        mix = (1 - self.gamma) * tables.single + self.gamma * tables.power_law
        template = np.tensordot(weights, mix, axes=2)
        return tables.wave, template / np.trapezoid(template, tables.wave)


class DustTables(NamedTuple):
    """Draine & Li's emissivities per wavelength, in one arbitrary unit for all."""

    wave: NDArray[np.float64]
    """[node] Å"""
    qpah: NDArray[np.float64]
    """[qpah] per cent"""
    umin: NDArray[np.float64]
    """[umin]"""
    single: NDArray[np.float64]
    """[qpah, umin, node] dust in one radiation field"""
    power_law: NDArray[np.float64]
    """[qpah, umin, node] dust in fields from umin to 1e6"""


@cache
def read_templates() -> DustTables:
    """The packed tables; read once."""
    with np.load(TEMPLATES, allow_pickle=False) as file:
        return DustTables(*(file[name].astype(np.float64) for name in DustTables._fields))


def _calc_node_weights(value: float, nodes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [node] of a linear interpolation at `value`."""
    return np.array([np.interp(value, nodes, row) for row in np.eye(len(nodes))])
