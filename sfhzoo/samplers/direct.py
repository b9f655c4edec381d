"""What the samplers without a posterior network share: where they begin, what they return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfhzoo.errors import SamplingError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import fit_calibration
from sfhzoo.likelihood.compression import CompressedLikelihood, span_of
from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.likelihood.problem import Draws, Problem, draw_error_scale
from sfhzoo.likelihood.profile import fit_profile
from sfhzoo.samplers.gauss_newton import CurvedLikelihood

SPREAD = (0.25, 0.35, 0.25)
"""Of the nuisance coordinates about the fit, over which S is interpolated at first."""
MAX_MISFIT = 1.3
MAX_CHI2_RATIO = 30.0
"""of the samples' median chi² to that of the noise, beyond which the samples are refused"""
SCALE_RANGE = (0.3, 100.0)


@dataclass(frozen=True)
class Setup:
    """A problem, where u starts, and which coordinates are free.

    reference : best fit of non-negative templates [wave]; the calibration multiplies it
    centre : its u [3]; None without a spectrum: bands alone do not fix it
    free : [2 bin + 3] bool
    """

    problem: Problem
    reference: Tensor
    centre: Tensor | None
    free: Tensor

    @classmethod
    def of(cls, problem: Problem) -> Setup:
        """Fits dust and kinematics to begin with."""
        free = torch.ones(2 * problem.n_bins + N_NUISANCE, dtype=torch.bool)
        free[-N_NUISANCE:] = problem.fixed_coordinates().isnan()
        if not problem.has_pixels:
            return cls(problem, torch.zeros_like(problem.flux), None, free)
        found = fit_profile(problem)
        values = (torch.tensor(v, dtype=torch.float64) for v in found[:3])
        return cls(problem, found.flux, nuisance.to_coordinates(*values), free)

    @property
    def has_data(self) -> bool:
        """Whether there is anything to fit."""
        return self.centre is not None or self.problem.bands is not None

    @property
    def d(self) -> int:
        """Number of coordinates of x."""
        return 2 * self.problem.n_bins

    def initial(self, n: int) -> Tensor:
        """States [n, n_state] at the mean history, with u of the fit or the fixed values."""
        fixed = self.problem.fixed_coordinates()
        start = (
            torch.zeros(N_NUISANCE, dtype=torch.float64) if self.centre is None else self.centre
        )
        u = torch.where(fixed.isnan(), start, fixed)
        return torch.cat([torch.zeros(self.d, dtype=torch.float64), u]).repeat(n, 1)

    def spread(self) -> Tensor:
        """Two states [2, n_state] at the ends of the first interpolation range."""
        wide = 1.0
        if self.centre is None:
            # bands alone leave A_V anywhere
            wide = 3.0 if self.problem.bands is None else 8.0
        step = torch.tensor(SPREAD, dtype=torch.float64) * self.free[self.d :] * wide
        states = self.initial(2)
        states[:, self.d :] += torch.stack([-step, step])
        return states

    def build(
        self, state: Tensor, generator: torch.Generator, scale: float | None = None
    ) -> CurvedLikelihood:
        """The likelihood for dust and kinematics like those of states (x, u).

        Without `scale`, the factor on the errors is that of the flux outside all model spectra.
        """
        problem = self.problem
        sfr = problem.scaling.from_x(state[:, : self.d].view(-1, 2, problem.n_bins)).sfr
        compressed = CompressedLikelihood(
            problem.model, problem.flux, problem.ivar, problem.scaling,
            span_of(state[:, self.d :], 2.0), sfr.median(0).values, generator, problem.bands,
        ).calibrated(self.reference, problem.calibration_order)  # fmt: skip
        if scale is None:
            scale = calc_noise_scale(compressed) if problem.fit_error_scale else 1.0
        return self.curve(compressed, scale)

    def curve(self, compressed: CompressedLikelihood, scale: float) -> CurvedLikelihood:
        """The likelihood with the calibration in its noise and another factor on the errors."""
        return CurvedLikelihood(compressed, self.problem.calibration_rms, scale)


def calc_noise_scale(likelihood: CompressedLikelihood) -> float:
    """Factor on the errors from the flux outside the span of all model spectra."""
    return clip_scale(likelihood.calc_outside_rms())


def clip_scale(scale: float) -> float:
    """A factor on the errors, within `SCALE_RANGE`."""
    return min(max(scale, SCALE_RANGE[0]), SCALE_RANGE[1])


def finish(
    setup: Setup,
    parts: Sequence[tuple[CurvedLikelihood, Tensor]],
    facts: Mapping[str, Any],
    nfe: int,
    generator: torch.Generator,
    warnings: Sequence[str] = (),
) -> Draws:
    """Draws from states (x, u), each part with the likelihood it was made with.

    SamplingError when they do not reach the data.
    """
    problem, n_pixels = setup.problem, len(setup.problem.flux)
    spectra, losses = [], []
    for likelihood, state in parts:
        spectra.append(likelihood.full.calc_flux(state))
        losses.append(likelihood.full.calc_loss(state, spectra[-1]))
    flux, loss = torch.cat(spectra), torch.cat(losses)
    scale = parts[0][0].scale
    c, chi2 = fit_calibration(problem, flux, parts[0][0].columns, scale, generator)
    noise = calc_noise_scale(parts[0][0].full) if problem.fit_error_scale else 1.0
    ratio = float(chi2.median()) / (n_pixels * noise**2)
    if not ratio < MAX_CHI2_RATIO:
        raise SamplingError(
            f"the samples did not reach the data: median chi² {ratio:.3g} times that of the "
            "noise; check redshift, units and mask"
        )
    told = list(warnings)
    if problem.fit_error_scale and ratio > MAX_MISFIT:
        told.append(
            f"the samples' chi² is {ratio:.1f} times that of the noise, and the errors are taken "
            "to be larger by as much: the models do not hold this spectrum, or the draws are not "
            "converged"
        )
    if float(loss.median()) > 1.0:
        told.append(
            f"the compressed likelihood misses the exact chi² by {float(loss.median()):.1f}"
        )
    factor = draw_error_scale(chi2, n_pixels, problem.fit_error_scale, generator)
    state = torch.cat([torch.cat([s for _, s in parts]), c * problem.calibration_rms], dim=1)
    all_facts = {
        **facts, "span_error_scale": noise, "used_error_scale": scale,
        "rank": parts[0][0].full.rank, "chi2_over_noise": ratio,
        "chi2_compression_loss": float(loss.max()),
    }  # fmt: skip
    stats = {"chi2": chi2.numpy(), "compression_loss": loss.numpy()}
    return Draws(state, flux, factor, nfe, stats, all_facts, tuple(told))
