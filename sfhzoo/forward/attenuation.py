"""Attenuation by dust: one law is one curve, and A_V scales it.

    flux = flux_0 * 10^(-0.4 A_V A(λ)/A_V)

A law is a function of rest wavelengths that returns A(λ)/A_V = k(λ)/R_V:

| law          | source                                        | published for      |
|--------------|-----------------------------------------------|--------------------|
| `calzetti`   | Calzetti et al. (2000, ApJ 533, 682), eq. 4   | 0.12 to 2.2 µm     |
| `cardelli`   | Cardelli et al. (1989, ApJ 345, 245), eqs 1-5 | 0.1 to 3.3 µm      |
| `salim`      | Salim et al. (2018, ApJ 859, 11), eqs 3-5     | as Calzetti        |

All hold from 90 Å to 1e8 Å; each function says how it goes on beyond its published range.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial.polynomial import polyder, polyval
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import UsageError
from sfhzoo.units import LN10

Law = Callable[[ArrayLike], NDArray[np.float64]]
"""Rest wavelengths [...] (vacuum Å) -> A(λ)/A_V [...]."""

CALZETTI_R_V = 4.05
V_WAVE, B_WAVE = 5500.0, 4400.0
"""Å, the V and B of Salim et al. (2018)."""
BUMP_WAVE, BUMP_WIDTH = 2175.0, 350.0
"""Å, centre and width of the UV bump."""

_LN_FLUX_PER_MAG = 0.4 * LN10
_CALZETTI_SLOPE = 2.659
_CALZETTI_SHORTEST = 0.12
_CALZETTI_BREAK = 0.63
_FAR_POWER = -0.77
_CARDELLI_SHORTEST = 0.1
_R_V_RANGE = (2.0, 6.0)
_SLOPE_RANGE = (-1.6, 0.6)
_BUMP_RANGE = (-2.0, 8.0)


def calc_attenuation(a_v: torch.Tensor, curve: torch.Tensor) -> torch.Tensor:
    """Transmitted fraction [..., wave] for A_V [...] (mag) and a curve A(λ)/A_V [wave]."""
    return torch.exp(-_LN_FLUX_PER_MAG * a_v.unsqueeze(-1) * curve)


# ---- Calzetti -----------------------------------------------------------------------------------


def calc_calzetti_curve(wave_rest: ArrayLike) -> NDArray[np.float64]:
    """A(λ)/A_V [...] at rest wavelengths [...] (vacuum Å); Calzetti et al. (2000), eq. 4.

    Below 1200 Å it goes on as λ^-0.77, as in BAGPIPES: within 0.6 % of Leitherer et al. (2002,
    ApJS 140, 303) at 1000 Å. Beyond 2.2 µm the red formula goes on until it reaches zero at 3.1 µm
    and stays there. The published 0.6 % step at 6300 Å is kept.
    """
    micron = np.asarray(wave_rest, dtype=np.float64) / 1e4
    inverse = 1 / np.clip(micron, _CALZETTI_SHORTEST, None)
    polynomial = -2.156 + 1.509 * inverse - 0.198 * inverse**2 + 0.011 * inverse**3
    beyond = np.clip(micron / _CALZETTI_SHORTEST, None, 1) ** _FAR_POWER
    blue = (_CALZETTI_SLOPE * polynomial + CALZETTI_R_V) * beyond
    red = np.clip(_CALZETTI_SLOPE * (-1.857 + 1.040 * inverse) + CALZETTI_R_V, 0, None)
    return np.where(micron < _CALZETTI_BREAK, blue, red) / CALZETTI_R_V


# ---- Cardelli -----------------------------------------------------------------------------------


def calc_cardelli_curve(wave_rest: ArrayLike, r_v: float = 3.1) -> NDArray[np.float64]:
    """A(λ)/A_V = a(x) + b(x)/R_V [...] at rest wavelengths [...] (vacuum Å), x = 1/λ in 1/µm.

    Cardelli, Clayton & Mathis (1989), eqs 1-5. Beyond 3.3 µm the infrared power law x^1.61 goes
    on; below 1000 Å the curve follows its tangent in wavelength. The published steps, 1 % at
    3030 Å and less elsewhere, are kept. UsageError unless 2 <= r_v <= 6.
    """
    _check_range("r_v", r_v, _R_V_RANGE, "the law was measured for 2.6 to 5.6")
    micron = np.asarray(wave_rest, dtype=np.float64) / 1e4
    value = _calc_cardelli(1 / np.clip(micron, _CARDELLI_SHORTEST, None), r_v)
    start = 1 / _CARDELLI_SHORTEST
    slope = _calc_cardelli_far_slope(start - 8.0, r_v)
    return value + slope * start**2 * np.clip(_CARDELLI_SHORTEST - micron, 0, None)


def _calc_cardelli(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    parts = [f(x, r_v) for f in (_cardelli_infrared, _cardelli_optical, _cardelli_ultraviolet)]
    far = _cardelli_far(x, r_v)
    return np.asarray(np.select([x < 1.1, x < 3.3, x <= 8.0], parts, default=far))


def _cardelli_infrared(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    return (0.574 - 0.527 / r_v) * x**1.61


def _cardelli_optical(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    y = x - 1.82
    a = (1.0, 0.17699, -0.50447, -0.02427, 0.72085, 0.01979, -0.77530, 0.32999)
    b = (0.0, 1.41338, 2.28305, 1.07233, -5.38434, -0.62251, 5.30260, -2.09002)
    return np.asarray(polyval(y, np.add(a, np.divide(b, r_v))), dtype=np.float64)


def _cardelli_ultraviolet(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    y = np.clip(x - 5.9, 0, None)
    a = 1.752 - 0.316 * x - 0.104 / ((x - 4.67) ** 2 + 0.341)
    b = -3.090 + 1.825 * x + 1.206 / ((x - 4.62) ** 2 + 0.263)
    a += -0.04473 * y**2 - 0.009779 * y**3
    b += 0.2130 * y**2 + 0.1207 * y**3
    return a + b / r_v


def _cardelli_far(x: NDArray[np.float64], r_v: float) -> NDArray[np.float64]:
    return np.asarray(polyval(x - 8.0, _calc_cardelli_far_coefficients(r_v)), dtype=np.float64)


def _calc_cardelli_far_coefficients(r_v: float) -> NDArray[np.float64]:
    a, b = (-1.073, -0.628, 0.137, -0.070), (13.670, 4.257, -0.420, 0.374)
    return np.add(a, np.divide(b, r_v))


def _calc_cardelli_far_slope(y: float, r_v: float) -> float:
    return float(polyval(y, polyder(_calc_cardelli_far_coefficients(r_v))))


# ---- Salim --------------------------------------------------------------------------------------


def calc_salim_r_v(slope: float) -> float:
    """R_V of a Calzetti curve steepened by (λ / 5500 Å)^slope; Salim et al. (2018), eq. 4."""
    return CALZETTI_R_V / ((CALZETTI_R_V + 1) * (B_WAVE / V_WAVE) ** slope - CALZETTI_R_V)


def calc_salim_curve(
    wave_rest: ArrayLike, slope: float = 0.0, bump: float = 0.0
) -> NDArray[np.float64]:
    """A(λ)/A_V [...] at rest wavelengths [...] (vacuum Å); Salim et al. (2018), eqs 3-5.

    Parameters
    ----------
    slope : delta, power of λ / 5500 Å on Calzetti's curve; negative is steeper (SMC: about -0.45)
    bump : B, amplitude of the 2175 Å bump in k(λ); about 3 in the Milky Way

    UsageError for a slope outside -1.6 to 0.6 or a bump outside -2 to 8. The curve is cut at 0.
    """
    _check_range("slope", slope, _SLOPE_RANGE, "negative is steeper than Calzetti")
    _check_range("bump", bump, _BUMP_RANGE, "the Milky Way has 3")
    wave = np.asarray(wave_rest, dtype=np.float64)
    drude = (wave * BUMP_WIDTH) ** 2
    drude = drude / ((wave**2 - BUMP_WAVE**2) ** 2 + drude)
    curve = calc_calzetti_curve(wave) * (wave / V_WAVE) ** slope + bump * drude / calc_salim_r_v(
        slope
    )
    return np.clip(curve, 0, None)


# ---- one interface ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Calzetti:
    """The law of starburst galaxies; see `calc_calzetti_curve`."""

    def __call__(self, wave_rest: ArrayLike) -> NDArray[np.float64]:
        return calc_calzetti_curve(wave_rest)


@dataclass(frozen=True)
class Cardelli:
    """The extinction of the Milky Way; see `calc_cardelli_curve`."""

    r_v: float = 3.1

    def __call__(self, wave_rest: ArrayLike) -> NDArray[np.float64]:
        return calc_cardelli_curve(wave_rest, self.r_v)


@dataclass(frozen=True)
class Salim:
    """Calzetti's law with another slope and a UV bump; see `calc_salim_curve`."""

    slope: float = 0.0
    bump: float = 0.0

    def __call__(self, wave_rest: ArrayLike) -> NDArray[np.float64]:
        return calc_salim_curve(wave_rest, self.slope, self.bump)


LAWS: dict[str, type[Calzetti] | type[Cardelli] | type[Salim]] = {
    "calzetti": Calzetti,
    "cardelli": Cardelli,
    "salim": Salim,
}


def make_law(name: str, **parameters: float) -> Law:
    """The attenuation law of a name in `LAWS`, e.g. `make_law("salim", slope=-0.4, bump=1.0)`.

    Raises UsageError for a name, parameter or value that no law has.
    """
    if name not in LAWS:
        raise UsageError(f"expected an attenuation law among {', '.join(LAWS)}, got {name!r}")
    known = LAWS[name].__dataclass_fields__
    if wrong := parameters.keys() - known.keys():
        raise UsageError(
            f"expected parameters {', '.join(known) or 'none'} of the law {name}, "
            f"got {', '.join(sorted(wrong))}"
        )
    law = LAWS[name](**parameters)
    law(V_WAVE)  # checks the values now, not at the first spectrum
    return law


def _check_range(name: str, value: float, limits: tuple[float, float], hint: str) -> None:
    low, high = limits
    if not (math.isfinite(value) and low <= value <= high):
        raise UsageError(f"expected {name} from {low:g} to {high:g}, got {value}; {hint}")
