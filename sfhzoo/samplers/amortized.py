"""The default sampler: a posterior network draws, the exact likelihood corrects.

    1. Encode the spectrum, draw from the network: near the draws' dust and kinematics the best fit
       of non-negative templates gives the factor on the errors.
    2. Split the data (`polish.split_data`), draw from the network given the first part, update
       each draw with the second part under the exact likelihood.

The network is accurate in the directions the data constrain softly and too wide in those they
fix; the likelihood is the reverse. The result is exact where the model is linear and the network
right, and approximate elsewhere; `shift` and chi² tell how far the update had to go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfhzoo.errors import DataError, SamplingError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.compression import CompressedLikelihood, span_of
from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.likelihood.problem import Draws, Problem, draw_error_scale
from sfhzoo.likelihood.profile import calc_error_scale, fit_profile
from sfhzoo.samplers.encoding import PIXEL_KMS, WAVE_MAX, WAVE_MIN, Conditions, to_rest_grid
from sfhzoo.samplers.polish import (
    MAX_ITERATIONS,
    Polished,
    calc_precision,
    join,
    polish,
    split_data,
)
from sfhzoo.samplers.posterior_network import PosteriorNetwork, split_state
from sfhzoo.units import SPEED_OF_LIGHT

FRACTION = 0.3
"""Share of the information that the network sees."""
N_PILOT = 64
PROFILE_EVALUATIONS = 40
N_GROUPS = 50
"""Splits of the data; draws of one split share its noise, so many splits of few draws."""
MIN_ENSEMBLE = 400
"""Draws that estimate the covariance; it has 131 dimensions."""
SPARE = 1.25
"""Draws moved onto the data per sample wanted; some get stuck."""
STEPS = 24
FIRST_ITERATIONS = 30
CHUNK = 256
MAX_MISFIT = 1.3
MAX_SHIFT = 4.0
"""Mean squared shift per coordinate beyond which the network's draws were not near the data."""


@dataclass
class AmortizedSampler:
    """See the module's text. `lsf_extra` in km/s; `luminosity` turns flux into Lsun/Å at rest."""

    network: PosteriorNetwork
    lsf_extra: float
    luminosity: float
    fraction: float = FRACTION

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n posterior samples.

        Raises SamplingError when the draws cannot be brought onto the data, DataError when the
        network sees none of it.
        """
        start_nfe = self.network.nfe
        scale = self._calc_error_scale(problem, generator)
        error = problem.ivar.rsqrt() * scale
        fraction = self._fraction(problem, error)
        size = max(-(-max(int(SPARE * n) + 4, MIN_ENSEMBLE) // N_GROUPS), 2)
        splits = [split_data(problem.flux, error, fraction, generator) for _ in range(N_GROUPS)]
        seen = torch.cat([self._encode(problem, p.first, fraction * error**-2) for p in splits])
        state = self._draw(problem, seen.repeat_interleave(size, 0), generator)
        groups = state.view(N_GROUPS, size, -1)
        # deviations from the means of `size` draws are too small by this factor
        centred = (groups - groups.mean(1, keepdim=True)).flatten(0, 1) * (
            size / (size - 1)
        ) ** 0.5
        # all draws measure the covariance, as many as needed (and some to spare) are moved
        pick = torch.randperm(len(state), generator=generator)[: int(SPARE * n) + 4]
        target = torch.stack([p.second for p in splits])[pick // size] / error
        noise = torch.randn(target.shape, generator=generator, dtype=target.dtype)
        target = target + noise / (1 - fraction) ** 0.5
        anchors = state[pick]
        move = self._mover(problem, anchors, centred, target, 1 - fraction)
        # S is interpolated over the dust and kinematics of the draws first, then, exactly enough
        # not to shift the result, over those of the moved draws
        likelihood = self._likelihood(problem, error, state, generator)
        done = move(likelihood, None, FIRST_ITERATIONS)
        settled = done.state[_is_settled(done.cost)]
        likelihood = self._likelihood(problem, error, settled, generator)
        done = move(likelihood, done.state, MAX_ITERATIONS)
        keep, n_replaced = self._select(done, n, generator)
        final = done.state[keep]
        flux = likelihood.calc_flux(final)
        chi2 = (
            (problem.flux - self._calibrated(likelihood, final, flux)) ** 2 * problem.ivar
        ).sum(1)
        factor = draw_error_scale(chi2, len(problem.flux), problem.fit_error_scale, generator)
        loss = likelihood.calc_loss(final, flux)
        shift = float(done.shift[keep].median()) / likelihood.n_state
        misfit = float(chi2.median()) / (len(problem.flux) * scale**2)
        warnings = self._warn(loss, shift, n_replaced, len(done.cost))
        if problem.fit_error_scale and misfit > MAX_MISFIT:
            warnings.append(
                f"the samples' chi² is {misfit:.1f} times that of the best mix of stellar "
                "populations: the prior may not hold this history, or the draws are not converged"
            )
        stats = {"chi2": chi2.numpy(), "compression_loss": loss.numpy(),
                 "shift": done.shift[keep].numpy()}  # fmt: skip
        facts = {
            "fraction": fraction, "profile_error_scale": scale, "rank": len(likelihood.y),
            "iterations": done.iterations, "chi2_over_best_fit": misfit,
            "ensemble": len(state), "moved": len(pick), "replaced": n_replaced,
            "shift_per_coordinate": shift,
            "chi2_compression_loss": float(loss.max()),
        }  # fmt: skip
        return Draws(
            final, flux, factor, self.network.nfe - start_nfe, stats, facts, tuple(warnings)
        )

    def _calc_error_scale(self, problem: Problem, generator: torch.Generator) -> float:
        """The factor on the errors, from the best fit near the network's dust and kinematics."""
        if not problem.fit_error_scale:
            return 1.0
        seen = self._encode(problem, problem.flux, problem.ivar)
        state = self._draw(problem, seen.expand(N_PILOT, -1), generator)
        _, u = split_state(state[:, : 2 * problem.n_bins + N_NUISANCE], problem.n_bins)
        found = nuisance.to_physical(u)
        start = tuple(float(v.median()) for v in found)
        spread = tuple(
            max(float(v.std()), s) for v, s in zip(found, (0.02, 3.0, 3.0), strict=True)
        )
        profile = fit_profile(problem, start, spread, PROFILE_EVALUATIONS)
        return calc_error_scale(profile.chi2, len(problem.flux))

    def _fraction(self, problem: Problem, error: Tensor) -> float:
        """Information for the network: `fraction`, within the S/N it was trained on."""
        lo, hi = self.network.config["domain"]["snr"]
        wave = problem.model.wave_obs
        step = np.median(np.diff(np.log(wave))) * SPEED_OF_LIGHT
        snr = float((problem.flux / error).median()) * (PIXEL_KMS / step) ** 0.5
        lowest, highest = (lo / max(snr, 1e-3)) ** 2, (0.7 * hi / max(snr, 1e-3)) ** 2
        return float(min(max(self.fraction, min(lowest, 0.9)), highest))

    def _encode(self, problem: Problem, flux: Tensor, ivar: Tensor) -> Tensor:
        rest = problem.model.wave_obs / (1 + problem.model.redshift)
        y, weight = to_rest_grid(
            rest, flux.numpy() * self.luminosity, ivar.numpy() / self.luminosity**2
        )
        if not bool((weight > 0).any()):
            raise DataError(
                f"the posterior network sees segments of 3 % in wavelength between {WAVE_MIN:.0f} "
                f"and {WAVE_MAX:.0f} Å at rest; the pixels in use ({rest[0]:.0f} to "
                f"{rest[-1]:.0f} Å) fill none: fit a wider range or use --sampler cla"
            )
        one = torch.ones(1, dtype=torch.float64)
        calibration = problem.calibration_rms if problem.calibration_order else 0.0
        known = Conditions(
            problem.model.cosmic_time * one, self.lsf_extra * one, calibration * one
        )
        return self.network.encoder.encode(y, weight, known)

    def _draw(self, problem: Problem, features: Tensor, generator: torch.Generator) -> Tensor:
        """One state per row of features; fixed parameters imposed, calibration from its prior."""
        state = self.network.draw(features, generator, STEPS).double()
        state = _impose(state, problem.fixed_coordinates())
        n, order = len(state), problem.calibration_order
        c = torch.randn((n, order), generator=generator, dtype=torch.float64)
        return torch.cat([state, problem.calibration_rms * c], dim=1)

    def _likelihood(
        self, problem: Problem, error: Tensor, state: Tensor, generator: torch.Generator
    ) -> CompressedLikelihood:
        x, u = split_state(state[:, : 2 * problem.n_bins + N_NUISANCE], problem.n_bins)
        sfr = problem.scaling.from_x(x).sfr.mean(0)
        reference = None
        if problem.calibration_order:
            reference = calc_smooth_flux(problem.flux, problem.ivar)
        return CompressedLikelihood(
            problem.model, problem.flux, error**-2, problem.scaling, span_of(u), sfr,
            generator, problem.calibration_order, reference,
        )  # fmt: skip

    def _mover(
        self, problem: Problem, anchors: Tensor, centred: Tensor, target: Tensor, weight: float
    ) -> Callable[[CompressedLikelihood, Tensor | None, int], Polished]:
        """A function (likelihood, initial states, iterations) that moves the anchors to the data.

        `centred` are the deviations that measure C, `target` the perturbed whitened data
        [sample, wave], `weight` their share of the information.
        """
        n_state, order = anchors.shape[1], problem.calibration_order
        free = torch.ones(n_state, dtype=torch.bool)
        n_network = n_state - order
        free[n_network - N_NUISANCE : n_network] = problem.fixed_coordinates().isnan()
        soft = free.clone()
        soft[n_network:] = False
        precision = calc_precision(centred, soft)
        if order:
            precision[n_network:, n_network:] = torch.eye(order) / problem.calibration_rms**2

        def move(
            likelihood: CompressedLikelihood, initial: Tensor | None, iterations: int
        ) -> Polished:
            compressed = target @ likelihood.basis.T
            start = anchors if initial is None else initial
            # the draws are independent, and memory grows with those moved at once
            parts = [
                polish(likelihood, a, t, precision, free, weight, i, iterations)
                for a, t, i in zip(
                    anchors.split(CHUNK), compressed.split(CHUNK), start.split(CHUNK), strict=True
                )
            ]
            return join(parts)

        return move

    @staticmethod
    def _select(done: Polished, n: int, generator: torch.Generator) -> tuple[Tensor, int]:
        """n indices of draws that reached the data (repeated if too few), and how many failed."""
        cost = done.cost
        good = _is_settled(cost).nonzero()[:, 0]
        n_unfinished = int(done.unfinished.sum())
        if min(len(good), len(cost) - n_unfinished) < 0.3 * len(cost):
            raise SamplingError(
                f"only {len(good)} of {len(cost)} draws reached the data, {n_unfinished} were "
                f"still moving after {done.iterations} iterations; the spectrum is unlike any "
                "galaxy the posterior network was trained on (try --sampler cla)"
            )
        order = torch.randperm(len(good), generator=generator)
        return good[order.repeat(-(-n // len(good)))[:n]], len(cost) - len(good)

    @staticmethod
    def _calibrated(likelihood: CompressedLikelihood, state: Tensor, flux: Tensor) -> Tensor:
        *_, c = likelihood.split(state)
        return flux + (c @ likelihood.calibration @ likelihood.basis) / likelihood.ivar.sqrt()

    @staticmethod
    def _warn(loss: Tensor, shift: float, n_replaced: int, n_total: int) -> list[str]:
        warnings = []
        if float(loss.median()) > 1.0:
            warnings.append(
                f"the compressed likelihood misses the exact chi² by {float(loss.median()):.1f}"
            )
        if shift > MAX_SHIFT:
            warnings.append(
                f"the posterior network's draws were far from the data (squared shift per "
                f"coordinate {shift:.1f}, expected about 1): the intervals may be too narrow"
            )
        if n_replaced > 0.1 * n_total:
            warnings.append(f"{n_replaced} of {n_total} draws did not converge and were replaced")
        return warnings


def _is_settled(cost: Tensor) -> Tensor:
    """Which draws [sample] ended near the others' objective; the rest are stuck elsewhere."""
    middle = cost.median()
    spread = 1.4826 * (cost - middle).abs().median() + 1.0
    return (cost < middle + 8 * spread) & torch.isfinite(cost)


def _impose(state: Tensor, fixed: Tensor) -> Tensor:
    """Condition an ensemble [sample, 2 bin + 3] on fixed nuisance coordinates (NaN = free).

    Linear regression of the state on the fixed coordinates, as in an ensemble Kalman filter.
    """
    pick = (~fixed.isnan()).nonzero()[:, 0]
    if len(pick) == 0:
        return state
    column = state.shape[1] - N_NUISANCE + pick
    centred = state - state.mean(0)
    inner = centred[:, column].T @ centred[:, column]
    inner = inner + 1e-6 * len(state) * torch.eye(len(pick), dtype=state.dtype)
    gain = torch.linalg.solve(inner, centred[:, column].T @ centred)
    # regression far outside the ensemble would leave the prior; three spreads are enough
    spread = centred[:, column].std(0)
    change = (fixed[pick] - state[:, column]).clamp(-3 * spread, 3 * spread)
    moved = state + change @ gain
    moved[:, column] = fixed[pick]
    return moved


def calc_smooth_flux(flux: Tensor, ivar: Tensor, width: int = 51) -> Tensor:
    """Running weighted mean of a flux [wave]."""
    kernel = np.ones(width)
    top = np.convolve((flux * ivar).numpy(), kernel, "same")
    return torch.from_numpy(top / np.convolve(ivar.numpy(), kernel, "same"))
