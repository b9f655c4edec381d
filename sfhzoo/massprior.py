"""Another prior of the mass: p'(x) = p(x) pi(log M) / p_M(log M).

A training set samples halo masses as its maker chose, often evenly in log mass, and a prior
trained on it takes that over. Here p_M is the density of the log mass formed before the
observation under the prior, estimated from its draws, and pi the density a user wants instead:

    as-trained           pi = p_M: nothing changes
    flat[:LOW,HIGH]      even in log mass, by default from 8 to 12.5
    schechter            the stellar mass function at redshift 0: Baldry et al. 2012 (MNRAS 421,
                         621), GAMA: log M* 10.66, phi 3.96e-3 and 0.79e-3 Mpc^-3, alpha -0.35
                         and -1.47. Theirs is the mass surviving; of the mass formed 41 % has
                         gone back into gas (Chabrier IMF, old stars), a shift of 0.23 dex
    normal:MEAN,SIGMA    Gaussian in log mass

Histories of one mass keep their distribution. Draws of the posterior get the weight pi / p_M; as
a spectrum fixes the mass to some per cent, it hardly varies among them. Where the prior has
practically no draws p_M is bounded from below: no weight makes up for support that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.densities import Density, parse_density, tabulate
from sfhzoo.errors import UsageError
from sfhzoo.histories import Histories, calc_mass_formed
from sfhzoo.priors.prior import Prior

Array = NDArray[np.float64]

AS_TRAINED = "as-trained"
CHOICES = "as-trained, flat, flat:LOW,HIGH, schechter or normal:MEAN,SIGMA"
RANGE = (8.0, 12.5)
"""log10 Msun, of the flat prior and of the mass function."""
SCHECHTER = (10.66, ((3.96e-3, -0.35), (0.79e-3, -1.47)))
LOG_FORMED_OVER_SURVIVING = 0.23
N_DRAWS, STEPS = 4000, 20
"""Draws of the prior that p_M is estimated from, and steps of its sampler."""
FLOOR = 2e-3
"""Lowest p_M over its highest value."""


def parse_mass_prior(text: str) -> Density | None:
    """The mass prior of a name, per dex; None for `as-trained`. UsageError for anything else."""
    if text == AS_TRAINED:
        return None
    if text == "schechter":
        return tabulate(text, RANGE, _calc_schechter)
    if text == "flat":
        return tabulate(text, RANGE, np.zeros_like)
    try:
        return parse_density(text)
    except UsageError as e:
        raise UsageError(f"expected the mass prior {CHOICES}, got {text!r}") from e


def _calc_schechter(log_mass: Array) -> Array:
    knee, parts = SCHECHTER
    ratio = 10.0 ** (log_mass - LOG_FORMED_OVER_SURVIVING - knee)
    return np.asarray(np.log(sum(phi * ratio ** (alpha + 1) for phi, alpha in parts)) - ratio)


@dataclass(frozen=True)
class MassDensity:
    """p_M of a prior: Gaussian kernels on the log masses of its draws, as a table.

    log_mass : log10 Msun, evenly spaced; density : per dex, at least `FLOOR` of its maximum
    """

    log_mass: Array
    density: Array

    @classmethod
    def of(cls, log_mass: ArrayLike) -> MassDensity:
        """From draws [sample]; the kernel's width is Silverman's (1986, eq. 3.31)."""
        drawn = np.asarray(log_mass, float)
        quartiles = np.percentile(drawn, [25, 75])
        spread = min(drawn.std(), float(np.diff(quartiles)[0]) / 1.34)
        width = 0.9 * max(spread, 1e-3) * len(drawn) ** -0.2
        at = np.linspace(drawn.min() - 4 * width, drawn.max() + 4 * width, 600)
        kernels = np.exp(-0.5 * ((at[:, None] - drawn) / width) ** 2)
        density = kernels.mean(1) / (width * np.sqrt(2 * np.pi))
        return cls(at, np.maximum(density, FLOOR * density.max()))

    @property
    def lowest(self) -> float:
        """The floor."""
        return float(self.density.max()) * FLOOR

    def __call__(self, log_mass: ArrayLike) -> Array:
        """ln p_M [...]."""
        at, floor = np.asarray(log_mass, float), self.lowest
        return np.asarray(np.log(np.interp(at, self.log_mass, self.density, floor, floor)))

    def is_supported(self, log_mass: ArrayLike) -> NDArray[np.bool_]:
        """Where [...] the prior has draws enough."""
        return self(log_mass) > np.log(1.001 * self.lowest)


def calc_log_mass(sfr: torch.Tensor, prior: Prior, cosmic_time: float) -> Array:
    """log10 mass formed [sample] (Msun) before `cosmic_time` (Gyr) of SFR [sample, bin]."""
    mass = calc_mass_formed(sfr.numpy(), prior.bins, cosmic_time)
    return np.log10(np.maximum(mass, 1e-3))


@lru_cache(maxsize=8)
def draw_histories(prior: Prior, n: int = N_DRAWS, seed: int = 0) -> Histories:
    """n histories of a prior, float64 tensors [n, bin] on the CPU; the same for the same seed."""
    x = prior.sample_x(n, torch.Generator().manual_seed(seed), STEPS)
    return prior.scaling.from_x(x.cpu().double())


def calc_mass_density(prior: Prior, cosmic_time: float) -> MassDensity:
    """p_M of a prior for galaxies observed at `cosmic_time` (Gyr)."""
    return MassDensity.of(calc_log_mass(draw_histories(prior).sfr, prior, cosmic_time))


@dataclass(frozen=True)
class Weights:
    """Importance weights pi / p_M of posterior draws.

    log_weight : [sample], ln; not normalised
    unsupported : share of the weight at masses where the prior has practically no draws
    """

    log_weight: Array
    unsupported: float

    @property
    def normalised(self) -> Array:
        """[sample], of sum 1."""
        weight = np.exp(self.log_weight - self.log_weight.max())
        return np.asarray(weight / weight.sum())

    @property
    def effective(self) -> float:
        """Effective number of draws, (sum w)² / sum w²."""
        return float(1 / (self.normalised**2).sum())

    @property
    def log_mean(self) -> tuple[float, float]:
        """ln of the mean weight and its error, draws taken as independent."""
        n, top = len(self.log_weight), self.log_weight.max()
        mean = float(np.exp(self.log_weight - top).mean())
        return float(np.log(mean) + top), max(1 / self.effective - 1 / n, 0.0) ** 0.5

    def resample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """n indices by systematic resampling: each draw its weight's share, rounded up or down."""
        start = float(torch.rand((), generator=generator))
        level = (start + np.arange(n)) / n
        index = np.searchsorted(np.cumsum(self.normalised), level)
        return torch.from_numpy(np.minimum(index, len(self.log_weight) - 1))


def calc_weights(log_mass: ArrayLike, density: MassDensity, wanted: Density) -> Weights:
    """Weights of draws with log masses [sample]; UsageError where `wanted` has none of them."""
    log_mass = np.asarray(log_mass, float)
    log_weight = wanted(log_mass) - density(log_mass)
    if not np.isfinite(log_weight).any():
        raise UsageError(
            f"the mass prior {wanted.name} ends at log masses {wanted.at[0]:.2f} and "
            f"{wanted.at[-1]:.2f}, the posterior has {log_mass.min():.2f} to "
            f"{log_mass.max():.2f}; give a wider one"
        )
    weights = Weights(log_weight, 0.0)
    bare = float(weights.normalised[~density.is_supported(log_mass)].sum())
    return Weights(log_weight, bare)


def weigh_histories(
    sfr: torch.Tensor, prior: Prior, cosmic_time: float, wanted: Density
) -> Weights:
    """Weights of posterior draws of SFR [sample, bin] under `prior`, observed at `cosmic_time`."""
    log_mass = calc_log_mass(sfr, prior, cosmic_time)
    return calc_weights(log_mass, calc_mass_density(prior, cosmic_time), wanted)
