"""The convolved likelihood approximation (CLA), the sampler of the published method.

Reverse diffusion with the prior's score and an approximate likelihood score,

    p_t(y | x_t) ~ N(y | S(x_t), Sigma_y + sigma_t² diag(A A^T)),

with A A^T replaced by the variance per pixel of S(alpha) over 1000 draws alpha ~ N(0, I), and the
likelihood's gradient clipped (Perry-Fagant, Stone, Hezaveh & Perreault-Levasseur; Adam et al.
2022, arXiv:2211.03812, for the approximation). A_V, sigma_v and the redshift offset are not
sampled: they are set by a fast fit of non-negative templates first, or by the user.

Kept as published, for comparison: it is slow, approximate for a non-linear S, and its intervals
are not calibrated. The reverse process is score_models' Euler-Maruyama step on its VE SDE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, nnls
from torch import Tensor

from sfhzoo.errors import SamplingError
from sfhzoo.forward.model import calc_spectrum
from sfhzoo.likelihood import nuisance
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.problem import Draws, Problem, draw_error_scale

N_CONVOLUTION_DRAWS = 1000
PROFILE_STRIDE = 4
"""Every so many bins serve as templates of the profile fit; neighbours are degenerate."""


class Profile(NamedTuple):
    """Best-fitting dust and kinematics (mag, km/s, km/s) and the chi² there."""

    a_v: float
    sigma_v: float
    velocity: float
    chi2: float


def fit_profile(problem: Problem) -> Profile:
    """A_V, sigma_v and velocity at the minimum of chi² over non-negative template weights.

    Fixed values are kept; the templates are every fourth bin at every metallicity.
    """
    weight = problem.ivar.sqrt()
    y = (problem.flux * weight).numpy()
    templates = problem.model.templates[::PROFILE_STRIDE].flatten(0, 1)
    fixed = (problem.a_v, problem.sigma_v, problem.velocity)
    start = np.array([0.3, 130.0, 0.0])
    scale = np.array([0.3, 50.0, 30.0])
    free = [i for i, v in enumerate(fixed) if v is None]
    values = np.array([s if v is None else v for s, v in zip(start, fixed)], float)

    def chi2_of(z: np.ndarray) -> float:
        trial = values.copy()
        trial[free] = start[free] + z * scale[free]
        inside = np.clip(trial, [0.0, 1.0, -300.0], [nuisance.A_V_MAX, 500.0, 300.0])
        # a fine-grid step of 1e-30 in flux would defeat nnls' tolerance: whitened data do not
        design = problem.model.observe(templates, *(float(v) for v in inside)) * weight
        norm = design.norm(dim=1).clamp(min=1e-300)
        residual = nnls((design / norm[:, None]).numpy().T, y)[1]
        return float(residual**2 + 100 * (((trial - inside) / scale) ** 2).sum())

    if not free:
        return _make_profile(values, chi2_of(np.zeros(0)))
    found = minimize(
        chi2_of, np.zeros(len(free)), method="Nelder-Mead",
        options={
            "maxfev": 70, "xatol": 0.02, "fatol": 0.5, "initial_simplex": _simplex(len(free)),
        },
    )  # fmt: skip
    values[free] = np.clip(
        start[free] + found.x * scale[free],
        np.array([0.0, 1.0, -300.0])[free],
        np.array([nuisance.A_V_MAX, 500.0, 300.0])[free],
    )
    return _make_profile(values, float(found.fun))


def _make_profile(values: NDArray[np.float64], chi2: float) -> Profile:
    a_v, sigma_v, velocity = values.tolist()
    return Profile(a_v, sigma_v, velocity, chi2)


def _simplex(n: int) -> np.ndarray:
    return np.vstack([np.zeros(n), 0.8 * np.eye(n)])


@dataclass
class ClaSampler:
    """Posterior samples by the published method.

    Parameters
    ----------
    prior : its score is used
    steps : of the reverse diffusion
    clip : largest norm of the likelihood's score, in units of 1 / sigma_t
    batch : samples per pass
    """

    prior: Prior
    steps: int = 1000
    clip: float = 10.0
    batch: int = 100
    progress: bool = False

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n samples; SamplingError when the diffusion leaves the finite numbers."""
        profile = fit_profile(problem)
        freedom = len(problem.flux) - 20
        scale = (profile.chi2 / freedom) ** 0.5 if problem.fit_error_scale else 1.0
        ivar = problem.ivar / scale**2
        templates = problem.model.at(profile.a_v, profile.sigma_v, profile.velocity)
        likelihood = _ConvolvedLikelihood(problem, templates, ivar, generator)
        start_nfe = self.prior.nfe
        batches = [min(self.batch, n - i) for i in range(0, n, self.batch)]
        x = torch.cat([self._reverse(likelihood, b, generator) for b in batches])
        u = nuisance.to_coordinates(*(torch.tensor(v, dtype=torch.float64) for v in profile[:3]))
        state = torch.cat([x.double().flatten(1), u.expand(n, -1)], dim=1)
        sfr, logzsol = problem.scaling.from_x(x.double())
        flux = calc_spectrum(sfr, logzsol, templates, problem.model.nodes)
        chi2 = ((problem.flux - flux) ** 2 * problem.ivar).sum(1)
        factor = draw_error_scale(chi2, len(problem.flux), problem.fit_error_scale, generator)
        warning = "sampler cla: A_V and sigma_v are fixed at a fit's values, their errors left out"
        return Draws(
            state, flux, factor, self.prior.nfe - start_nfe, {"chi2": chi2.numpy()},
            {"profile": profile._asdict(), "steps": self.steps, "clip": self.clip}, (warning,),
        )  # fmt: skip

    def _reverse(
        self, likelihood: _ConvolvedLikelihood, n: int, generator: torch.Generator
    ) -> Tensor:
        from tqdm import tqdm

        prior, sde, device = self.prior, self.prior.score_model.sde, self.prior.device
        shape = (n, *prior.shape)
        x = torch.randn(shape, generator=generator).to(device) * sde.sigma_max
        dt = sde.T / self.steps
        for i in tqdm(range(self.steps), desc="cla", disable=not self.progress):
            t = torch.full((n,), 1.0 - i / self.steps, device=device)
            sigma_t = sde.sigma(t)
            guide = likelihood.score(x, sigma_t, self.clip)
            with torch.no_grad():
                drift = sde.diffusion(t, x) ** 2 * (prior.score(x, sigma_t) + guide)
                mean = x + drift * dt
                noise = torch.randn(shape, generator=generator).to(device)
                x = mean + sde.diffusion(t, x) * dt**0.5 * noise
            if not torch.isfinite(x).all():
                raise SamplingError(
                    f"the diffusion left the finite numbers at sigma_t = {float(sigma_t[0]):.3g}"
                )
        return mean.cpu()


class _ConvolvedLikelihood:
    """The likelihood's score at noise level sigma_t for fixed templates on the pixels."""

    def __init__(
        self, problem: Problem, templates: Tensor, ivar: Tensor, generator: torch.Generator
    ) -> None:
        # in units of the median flux float32 is exact enough and four times as fast
        unit = float(problem.flux.abs().median())
        self.scaling, self.nodes = problem.scaling, problem.model.nodes.float()
        self.templates = (templates / unit).float()
        self.flux = (problem.flux / unit).float()
        self.variance = (1 / (ivar * unit**2)).float()
        alpha = torch.randn((N_CONVOLUTION_DRAWS, 2, problem.n_bins), generator=generator)
        self.convolved = self.spectrum(alpha).var(dim=0)

    def spectrum(self, x: Tensor) -> Tensor:
        sfr, logzsol = self.scaling.from_x(x)
        return calc_spectrum(sfr, logzsol, self.templates, self.nodes)

    def score(self, x: Tensor, sigma_t: Tensor, clip: float) -> Tensor:
        """Gradient of log p_t(y | x_t) [sample, 2, bin], its norm clipped at clip / sigma_t."""
        with torch.enable_grad():
            x = x.detach().cpu().requires_grad_()
            s2 = sigma_t.cpu()[:, None] ** 2
            variance = self.variance + s2 * self.convolved
            chi2 = ((self.flux - self.spectrum(x)) ** 2 / variance).sum()
            (gradient,) = torch.autograd.grad(-0.5 * chi2, x)
        gradient = torch.nan_to_num(gradient)
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
        limit = clip / sigma_t.cpu() * gradient[0].numel() ** 0.5
        return (gradient * (limit / norm).clamp(max=1.0)[:, None, None]).to(sigma_t.device)
