"""Densities that a user may put in the place of a prior's own, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import UsageError

Array = NDArray[np.float64]

CHOICES = "flat:LOW,HIGH or normal:MEAN,SIGMA"


@dataclass(frozen=True)
class Density:
    """A normalised density of one quantity.

    at, log_density : a fine table; zero beyond its ends
    """

    name: str
    at: Array
    log_density: Array

    def __call__(self, value: ArrayLike) -> Array:
        """ln of the density [...]; -inf outside the range."""
        value = np.asarray(value, float)
        return np.asarray(np.interp(value, self.at, self.log_density, -np.inf, -np.inf))


def tabulate(
    name: str, ends: tuple[float, float], log_density: Callable[[Array], Array]
) -> Density:
    """A density between `ends` from ln of a function proportional to it."""
    at = np.linspace(*ends, 2001)
    value = log_density(at)
    return Density(name, at, value - np.log(np.trapezoid(np.exp(value), at)))


def parse_density(text: str) -> Density:
    """The density of a name, one of `CHOICES`; UsageError for anything else."""
    name, _, rest = text.partition(":")
    wrong = UsageError(f"expected {CHOICES}, got {text!r}")
    try:
        first, second = (float(part) for part in rest.split(","))
    except ValueError as e:
        raise wrong from e
    if not np.all(np.isfinite([first, second])):
        raise wrong
    if name == "flat" and first < second:
        return tabulate(text, (first, second), np.zeros_like)
    if name == "normal" and second > 0:
        ends = (first - 8 * second, first + 8 * second)
        return tabulate(text, ends, lambda v: -0.5 * ((v - first) / second) ** 2)
    raise wrong
