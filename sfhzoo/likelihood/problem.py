"""One observation and the choices made for it: what every sampler gets, and what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.forward.bands import BandModel
from sfhzoo.forward.model import ForwardModel
from sfhzoo.histories import Histories, HistoryScaling
from sfhzoo.likelihood import nuisance

CALIBRATION_RMS = 0.02
"""Prior of each Legendre coefficient of the relative flux calibration."""


@dataclass(frozen=True, eq=False)
class Bands:
    """Band fluxes of the galaxy, as much its data as the pixels.

    model : what a history gives in these bands
    maggies, error : [band]
    """

    model: BandModel
    maggies: Tensor
    error: Tensor

    def __len__(self) -> int:
        return len(self.maggies)

    @property
    def whitened(self) -> Tensor:
        """Fluxes over their errors [band]."""
        return self.maggies / self.error

    @property
    def steepness(self) -> float:
        """Largest A(λ)/A_V of the bands."""
        pivot = np.array([f.wave_pivot for f in self.model.filters])
        return float(np.max(self.model.law(pivot / (1 + self.model.redshift))))


@dataclass(frozen=True)
class Problem:
    """One observation and the choices made for it.

    Parameters
    ----------
    model : forward model on the pixels in use
    flux, ivar : [wave] of those pixels, erg/s/cm²/Å and its inverse square
    scaling : of the prior's x
    a_v, sigma_v, velocity : a fixed value (mag, km/s, km/s), or None to sample it
    fit_error_scale : scale the spectrum's errors by a factor that is fitted
    calibration_order, calibration_rms : of the calibration polynomial; order 0 = none
    bands : band fluxes, or None
    """

    model: ForwardModel
    flux: Tensor
    ivar: Tensor
    scaling: HistoryScaling
    a_v: float | None = None
    sigma_v: float | None = None
    velocity: float | None = None
    fit_error_scale: bool = True
    calibration_order: int = 0
    calibration_rms: float = CALIBRATION_RMS
    bands: Bands | None = None

    @property
    def n_bins(self) -> int:
        return self.model.templates.shape[0]

    @property
    def has_pixels(self) -> bool:
        """Whether any pixel carries data."""
        return bool((self.ivar > 0).any())

    def to_histories(self, state: Tensor) -> Histories:
        """SFR and metallicity, each [sample, bin], of states [sample, 2 bin + ...]."""
        x = state[:, : 2 * self.n_bins].view(-1, 2, self.n_bins)
        return self.scaling.from_x(x)

    def to_nuisance(self, state: Tensor) -> nuisance.Nuisance:
        """Dust and kinematics, each [sample], of states [sample, 2 bin + 3 + ...]."""
        first = 2 * self.n_bins
        return nuisance.to_physical(state[:, first : first + nuisance.N_NUISANCE])

    def whiten(self, scale: float = 1.0) -> Tensor:
        """Data over errors [wave + band]; `scale` is a factor on the spectrum's errors."""
        pixels = self.flux * self.ivar.sqrt() / scale
        return pixels if self.bands is None else torch.cat([pixels, self.bands.whitened])

    def fixed_coordinates(self) -> Tensor:
        """Nuisance coordinates u [3]; NaN where the parameter is free."""
        values = (self.a_v, self.sigma_v, self.velocity)
        filled = [torch.tensor(1.0 if v is None else v, dtype=torch.float64) for v in values]
        u = nuisance.to_coordinates(*filled)
        return torch.where(torch.tensor([v is None for v in values]), torch.nan, u)


@dataclass(frozen=True)
class Draws:
    """Posterior samples of a problem.

    state : [sample, 2 bin + 3 + calibration_order]
    flux : exact model spectra [sample, wave] on the pixels in use
    error_scale : factor [sample] on the file's errors
    stats : name -> [sample]
    facts : numbers and names about the run
    """

    state: Tensor
    flux: Tensor
    error_scale: Tensor
    nfe: int
    stats: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def pick(self, index: Tensor) -> Draws:
        """The samples at `index`, which may repeat."""
        stats = {name: values[index.numpy()] for name, values in self.stats.items()}
        return replace(
            self, state=self.state[index], flux=self.flux[index],
            error_scale=self.error_scale[index], stats=stats,
        )  # fmt: skip


def draw_error_scale_prior(n: int, generator: torch.Generator) -> Tensor:
    """Draws [n] of the factor on the errors without any data."""
    normal = torch.randn(n, generator=generator, dtype=torch.float64)
    return torch.exp(nuisance.ERROR_SCALE_SPREAD * normal)


def draw_error_scale(chi2: Tensor, n_pixels: int, fit: bool, generator: torch.Generator) -> Tensor:
    """Draws [sample] of the factor f on the errors, given chi² [sample] with the file's errors.

    The prior is ln f ~ N(0, ERROR_SCALE_SPREAD), the likelihood f^-N exp(-chi² / 2 f²); by the
    inverse of the cumulative distribution on a grid.
    """
    if not fit:
        return torch.ones_like(chi2)
    best = 0.5 * torch.log(chi2.clamp(min=1e-12) / n_pixels)
    # the prior moves the peak by ln f / (2 N spread²): far less than the grid's extent
    reach = 8 / (2 * n_pixels) ** 0.5
    ln_f = best[:, None] + torch.linspace(-reach, reach, 801, dtype=chi2.dtype)
    log_p = -n_pixels * ln_f - 0.5 * chi2[:, None] * torch.exp(-2 * ln_f)
    log_p = log_p - 0.5 * (ln_f / nuisance.ERROR_SCALE_SPREAD) ** 2
    total = torch.softmax(log_p, dim=1).cumsum(1)
    level, place = torch.rand((2, len(chi2)), generator=generator, dtype=chi2.dtype)
    index = torch.searchsorted(total, level[:, None]).clamp(max=ln_f.shape[1] - 1)
    step = ln_f[0, 1] - ln_f[0, 0]
    return torch.exp(ln_f.gather(1, index)[:, 0] + (place - 0.5) * step)
