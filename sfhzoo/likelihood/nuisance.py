"""Nuisance parameters and their priors: dust, stellar kinematics, redshift offset.

    A_V        half-normal, scale 1 mag                          [0, 4] mag
    sigma_v    log-normal, median 130 km/s, 0.6 in ln            [1, 500] km/s
    velocity   normal, scale 100 km/s: the redshift's error      [-300, 300] km/s

Samplers work in probit coordinates u = Phi^-1(F(theta)), in which every prior is a standard
normal; `to_physical` and its derivative lead back.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

NAMES = ("a_v", "sigma_v", "velocity_offset")
N_NUISANCE = len(NAMES)

A_V_SCALE, A_V_MAX = 1.0, 4.0
SIGMA_V_MEDIAN, SIGMA_V_SPREAD = 130.0, 0.6
SIGMA_V_RANGE = (1.0, 500.0)
VELOCITY_SCALE, VELOCITY_MAX = 100.0, 300.0
ERROR_SCALE_SPREAD = 0.3
"""Of ln of the factor on the errors, which are right to some tens of per cent."""
RANGES = {
    "a_v": (0.0, A_V_MAX),
    "sigma_v": SIGMA_V_RANGE,
    "velocity_offset": (-VELOCITY_MAX, VELOCITY_MAX),
}

_U_MAX = 4.5
"""A_V's coordinate is cut here: 1 - Phi(4.5) = 3e-6 of the prior; double precision still holds."""


class Nuisance(NamedTuple):
    """Physical values, each [...]: mag, km/s, km/s."""

    a_v: Tensor
    sigma_v: Tensor
    velocity: Tensor


def to_physical(u: Tensor) -> Nuisance:
    """Nuisance parameters of coordinates u [..., 3]."""
    upper = 0.5 + 0.5 * torch.special.ndtr(u[..., 0].clamp(-_U_MAX, _U_MAX))
    a_v = (A_V_SCALE * torch.special.ndtri(upper)).clamp(0.0, A_V_MAX)
    sigma_v = (SIGMA_V_MEDIAN * torch.exp(SIGMA_V_SPREAD * u[..., 1])).clamp(*SIGMA_V_RANGE)
    velocity = (VELOCITY_SCALE * u[..., 2]).clamp(-VELOCITY_MAX, VELOCITY_MAX)
    return Nuisance(a_v, sigma_v, velocity)


def to_coordinates(a_v: Tensor, sigma_v: Tensor, velocity: Tensor) -> Tensor:
    """Coordinates u [..., 3] of physical values; the inverse of `to_physical` inside its range."""
    share = 2 * torch.special.ndtr(a_v / A_V_SCALE) - 1
    return torch.stack(
        [
            torch.special.ndtri(share.clamp(1e-6, 1 - 1e-6)).clamp(-_U_MAX, _U_MAX),
            torch.log(sigma_v.clamp(*SIGMA_V_RANGE) / SIGMA_V_MEDIAN) / SIGMA_V_SPREAD,
            velocity / VELOCITY_SCALE,
        ],
        dim=-1,
    )


def is_at_end(n: Nuisance) -> tuple[Tensor, Tensor, Tensor]:
    """Where each parameter [...] was cut at an end of its range; A_V = 0 is no end."""
    return (
        n.a_v >= A_V_MAX,
        (n.sigma_v <= SIGMA_V_RANGE[0]) | (n.sigma_v >= SIGMA_V_RANGE[1]),
        n.velocity.abs() >= VELOCITY_MAX,
    )


def calc_log_prior(name: str, value: Tensor) -> Tensor:
    """ln of a prior's density [...] at physical values, up to a constant.

    `name` is one of `NAMES` or "error_scale", the factor on the errors.
    """
    if name == "a_v":
        return -0.5 * (value / A_V_SCALE) ** 2
    if name == "sigma_v":
        return -0.5 * ((value / SIGMA_V_MEDIAN).log() / SIGMA_V_SPREAD) ** 2 - value.log()
    if name == "error_scale":
        return -0.5 * (value.log() / ERROR_SCALE_SPREAD) ** 2 - value.log()
    return -0.5 * (value / VELOCITY_SCALE) ** 2


def calc_derivative(u: Tensor) -> Tensor:
    """d theta / d u [..., 3], elementwise; 0 where a parameter sits at the end of its range."""
    n = to_physical(u)
    density = torch.exp(-0.5 * u[..., 0] ** 2) / math.sqrt(2 * math.pi)
    half_normal = torch.exp(-0.5 * (n.a_v / A_V_SCALE) ** 2) * math.sqrt(2 / math.pi) / A_V_SCALE
    free = (n.sigma_v > SIGMA_V_RANGE[0]) & (n.sigma_v < SIGMA_V_RANGE[1])
    inside = (u[..., 0].abs() < _U_MAX) & (n.a_v < A_V_MAX)
    return torch.stack(
        [
            torch.where(inside, density / half_normal, 0.0),
            torch.where(free, SIGMA_V_SPREAD * n.sigma_v, 0.0),
            torch.where(n.velocity.abs() < VELOCITY_MAX, VELOCITY_SCALE, 0.0),
        ],
        dim=-1,
    )
