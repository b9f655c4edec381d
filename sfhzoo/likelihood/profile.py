"""The best fit of non-negative templates: dust, kinematics and a chi² that no history beats much.

The classical inversion (non-negative least squares over single-bin templates, as in pPXF without
regularisation). It is no posterior: samplers take from it the dust and kinematics they hold fixed,
and the factor on the file's errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, nnls
from torch import Tensor

from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Problem

STRIDE = 4
"""Every so many bins serve as templates; neighbours are degenerate."""
N_PARAMETERS = 20
"""Effective number of parameters a galaxy's spectrum fixes."""
LOWEST = np.array([0.0, nuisance.SIGMA_V_RANGE[0], -nuisance.VELOCITY_MAX])
HIGHEST = np.array([nuisance.A_V_MAX, nuisance.SIGMA_V_RANGE[1], nuisance.VELOCITY_MAX])


class Profile(NamedTuple):
    """Best-fitting dust and kinematics (mag, km/s, km/s), and chi² and flux [wave] there.

    chi² is that of pixels and bands.
    """

    a_v: float
    sigma_v: float
    velocity: float
    chi2: float
    flux: Tensor


def fit_profile(
    problem: Problem,
    start: ArrayLike = (0.3, 130.0, 0.0),
    spread: ArrayLike = (0.3, 50.0, 30.0),
    max_evaluations: int = 70,
) -> Profile:
    """A_V, sigma_v and velocity at the minimum of chi² over non-negative template weights.

    Parameters
    ----------
    problem : its fixed values are kept
    start, spread : where the search begins and its first steps (mag, km/s, km/s)
    max_evaluations : of chi²; the simplex search is stopped there
    """
    weight = problem.ivar.sqrt()
    y = problem.whiten().numpy()
    templates = problem.model.templates[::STRIDE].flatten(0, 1)
    fixed = (problem.a_v, problem.sigma_v, problem.velocity)
    free = [i for i, value in enumerate(fixed) if value is None]
    values = np.where([v is None for v in fixed], start, [v or 0.0 for v in fixed])
    scale = np.asarray(spread, float)

    def place(z: NDArray[np.float64]) -> NDArray[np.float64]:
        trial = values.copy()
        trial[free] += z * scale[free]
        return trial

    def fit_at(inside: NDArray[np.float64]) -> tuple[Tensor, float]:
        """Best flux [wave] and its chi² with dust and kinematics given."""
        spectra = problem.model.observe(templates, *inside.tolist())
        design = _add_bands(problem, spectra * weight, float(inside[0]))
        # bins after the observation are dark; nnls wants columns of similar size
        norm = design.norm(dim=1).clamp(min=1e-300)
        amount, residual = nnls((design / norm[:, None]).numpy().T, y)
        return (torch.from_numpy(amount) / norm) @ spectra, float(residual) ** 2

    def chi2_of(z: NDArray[np.float64]) -> float:
        trial = place(z)
        inside = np.clip(trial, LOWEST, HIGHEST)
        return fit_at(inside)[1] + float(100 * (((trial - inside) / scale) ** 2).sum())

    z = np.zeros(len(free))
    if free:
        simplex = np.vstack([z, 0.8 * np.eye(len(free))])
        options = {"maxfev": max_evaluations, "xatol": 0.02, "fatol": 0.5,
                   "initial_simplex": simplex}  # fmt: skip
        found = minimize(chi2_of, z, method="Nelder-Mead", options=options)
        z = found.x
    best = np.clip(place(z), LOWEST, HIGHEST)
    flux, chi2 = fit_at(best)
    a_v, sigma_v, velocity = best.tolist()
    return Profile(a_v, sigma_v, velocity, chi2, flux)


def _add_bands(problem: Problem, design: Tensor, a_v: float) -> Tensor:
    """Whitened templates [template, wave + band] from those of the pixels [template, wave]."""
    if problem.bands is None:
        return design
    bands = problem.bands.model.at(a_v)[::STRIDE].flatten(0, 1) / problem.bands.error
    return torch.cat([design, bands], dim=1)


def calc_error_scale(chi2: float, n_pixels: int) -> float:
    """Factor on the errors that brings chi² to its expectation, within 0.3 and 100."""
    freedom = max(n_pixels - N_PARAMETERS, 0.5 * n_pixels)
    return float(np.clip((chi2 / freedom) ** 0.5, 0.3, 100.0))
