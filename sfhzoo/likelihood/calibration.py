"""The multiplicative calibration polynomial: a survey's flux calibration is right to per cents.

The spectrum is multiplied by 1 + sum_n c_n P_n(t), n = 1 ... order, with Legendre polynomials P_n
on the range in use and c_n ~ N(0, rms). Order 0 would free the mass and is left out. The
correction is small, so it may multiply the smoothed data instead of the model: it is then linear.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.likelihood.problem import Problem

ANGSTROM_PER_ORDER = 700.0
MAX_AUTO_ORDER = 8
"""The posterior network is trained with this many orders."""


def choose_order(wave: NDArray[np.float64]) -> int:
    """Order for the observed range of `wave` (Å)."""
    return int(np.clip(round((wave[-1] - wave[0]) / ANGSTROM_PER_ORDER), 1, MAX_AUTO_ORDER))


def calc_calibration_rows(
    wave: NDArray[np.float64], ends: tuple[float, float], order: int
) -> NDArray[np.float64]:
    """Legendre polynomials P_1 ... P_order [order, wave] on a range scaled to [-1, 1].

    Constant beyond the range, where the data do not hold them.
    """
    t = np.clip(2 * (wave - ends[0]) / (ends[1] - ends[0]) - 1, -1, 1)
    return np.ascontiguousarray(np.polynomial.legendre.legvander(t, order)[:, 1:].T)


def calc_smooth_flux(flux: Tensor, ivar: Tensor, width: int = 51) -> Tensor:
    """Running weighted mean of a flux [wave]."""
    # "same" is as long as the longer of the two
    width = min(width, len(flux))
    kernel = np.ones(width)
    top = np.convolve((flux * ivar).numpy(), kernel, "same")
    return torch.from_numpy(top / np.convolve(ivar.numpy(), kernel, "same"))


def calc_calibration_columns(problem: Problem) -> Tensor:
    """R [wave, order]: rms P_n times the smoothed flux, over the file's errors."""
    wave, order = problem.model.wave_obs, problem.calibration_order
    if order == 0:
        return torch.zeros(len(wave), 0, dtype=torch.float64)
    rows = torch.from_numpy(calc_calibration_rows(wave, (wave[0], wave[-1]), order))
    reference = calc_smooth_flux(problem.flux, problem.ivar) * problem.ivar.sqrt()
    return problem.calibration_rms * (rows * reference).T


def fit_calibration(
    problem: Problem, flux: Tensor, columns: Tensor, scale: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Coefficients [sample, order] in units of their rms, and chi² [sample].

    `flux` [sample, wave] are model spectra, `scale` the factor on the errors; chi² is with the
    file's own errors. `columns` may have further rows, of bands, which no calibration moves.
    """
    columns = columns[: len(problem.flux)]
    residual = (problem.flux - flux) * problem.ivar.sqrt()
    c = draw_calibration(residual / scale, columns / scale, generator)
    return c, ((residual - c @ columns.T) ** 2).sum(1)


def draw_calibration(residual: Tensor, columns: Tensor, generator: torch.Generator) -> Tensor:
    """Coefficients [sample, order] in units of their rms, given whitened residuals [sample, wave].

    Their conditional posterior is Gaussian with precision 1 + R^T R.
    """
    order = columns.shape[1]
    precision = torch.eye(order, dtype=columns.dtype) + columns.T @ columns
    factor = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((residual @ columns).T, factor).T
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
    return mean + torch.linalg.solve_triangular(factor.T, noise.T, upper=True).T
