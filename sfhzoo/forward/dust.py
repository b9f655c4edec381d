"""Attenuation by dust.

    flux = flux_0 * 10^(-0.4 A_V A(λ)/A_V),    A(λ)/A_V = k(λ)/R_V,    R_V = 4.05

with k(λ) of Calzetti et al. (2000, ApJ 533, 682, eq. 4), defined from 0.12 to 2.2 µm.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

R_V = 4.05
_SLOPE = 2.659
_SHORTEST = 0.12
_BREAK = 0.63
_LN_FLUX_PER_MAG = 0.4 * float(np.log(10.0))


def _calc_blue(inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    polynomial = -2.156 + 1.509 * inverse - 0.198 * inverse**2 + 0.011 * inverse**3
    return _SLOPE * polynomial + R_V


def calc_calzetti_curve(wave_rest: ArrayLike) -> NDArray[np.float64]:
    """A(λ)/A_V [...] at rest wavelengths [...] (vacuum Å); Calzetti et al. (2000), eq. 4.

    Below 1200 Å it follows the tangent in wavelength at 1200 Å; beyond 2.2 µm the red formula
    goes on until it reaches zero at 3.1 µm and stays there. The published 0.6 % step at 6300 Å
    is kept.
    """
    micron = np.asarray(wave_rest, dtype=np.float64) / 1e4
    inverse = 1 / np.clip(micron, _SHORTEST, None)
    start = 1 / _SHORTEST
    slope_per_inverse = _SLOPE * (1.509 - 2 * 0.198 * start + 3 * 0.011 * start**2)
    tangent = slope_per_inverse * start**2 * np.clip(_SHORTEST - micron, 0, None)
    red = np.clip(_SLOPE * (-1.857 + 1.040 * inverse) + R_V, 0, None)
    return np.where(micron < _BREAK, _calc_blue(inverse) + tangent, red) / R_V


def calc_attenuation(a_v: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Transmitted fraction [..., wave] for A_V [...] (mag) and a curve A(λ)/A_V [wave]."""
    return torch.exp(-_LN_FLUX_PER_MAG * a_v.unsqueeze(-1) * curve)
