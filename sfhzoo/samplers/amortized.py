"""The default sampler: a posterior network draws, the exact likelihood completes.

    1. The part of the flux outside the span of all spectra gives the factor on the errors.
    2. The network draws given blunt views of the data (`fission`): of good data they hold a part
       of the information, and no coefficient is known better than to 1 / 30 of its spread, so what
       it has to resolve is within its reach.
    3. Each draw is updated with the rest of the data under the exact likelihood (`polish`).
    4. What still tells the views apart is the network's error: it is taken out (`update`).

Where the network is right the result is the posterior, up to the curvature over the spread that a
blunt view leaves; facts and warnings tell how far the update went and which draws did not arrive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sfhzoo.errors import DataError, SamplingError
from sfhzoo.likelihood.calibration import calc_calibration_columns, fit_calibration
from sfhzoo.likelihood.compression import MIN_FREEDOM
from sfhzoo.likelihood.nuisance import N_NUISANCE, VELOCITY_SCALE
from sfhzoo.likelihood.problem import Draws, Problem, draw_error_scale
from sfhzoo.samplers.encoding import (
    MAX_SNR,
    WAVE_MAX,
    WAVE_MIN,
    Conditions,
    calc_level,
    segment_of_pixel,
    to_rest_grid,
)
from sfhzoo.samplers.fission import draw_views
from sfhzoo.samplers.posterior_network import PosteriorNetwork, split_state
from sfhzoo.samplers.update import Blunt, Moved, is_far, prepare, try_out, update
from sfhzoo.stopwatch import Stopwatch

N_GROUPS = 160
"""Views of the data; draws of one view share its noise, so many views of few draws."""
EXTRA_NOISE_PER_SNR = 1 / 40
"""Variance of the noise added to what the network sees, in units of the data's, over the rms
signal-to-noise ratio per 138 km/s. The network knows what is soft better than the update, which is
for Gaussians, and what is stiff worse: of good data it sees less (docs/validation.md)."""
MIN_EXTRA_NOISE = 1e-3
"""Without any, directions that are not blurred would have nothing left for the update."""
MIN_ENSEMBLE = 800
"""Draws that estimate the covariance; it has 131 dimensions."""
SPARE = 1.1
"""Draws moved onto the data per sample wanted; some get stuck."""
N_TRIED = 20
"""Draws that are moved to see whether the errors are large enough."""
STEPS = 32
MAX_MISFIT = 1.15
"""Median chi² over its expectation beyond which the errors are scaled up and all is repeated."""
MAX_ROUNDS = 3
MIN_ARRIVED = 0.3
"""Share of the draws that must reach the data."""
MAX_RHAT = 1.3
MIN_WITHIN = 20
"""Degrees of freedom within views below which nothing is said about their agreement."""
MAX_SHIFT = 1.0
"""Mean squared shift per coordinate beyond which the network's draws were not near the data."""


class View(NamedTuple):
    """What the network may see of a problem, for the file's own errors.

    functionals : whitened columns of its basis [wave, component] for a flux in units of `level`
    level : Lsun/Å
    offset : by which the network sees velocities too low, km/s
    snr, coverage, conditions : as `Encoder.features` takes them
    """

    functionals: Tensor
    level: Tensor
    offset: float
    snr: Tensor
    coverage: Tensor
    conditions: Conditions


@dataclass
class AmortizedSampler:
    """See the module's text.

    Parameters
    ----------
    lsf_extra : broadening by the instrument beyond the grid's own resolution, km/s
    luminosity : factor from flux (erg/s/cm²/Å) to Lsun/Å at rest
    ensemble : draws of the network, at least; groups : views they are given
    extra_noise : variance of the noise added to the views, in units of the data's; None: by the
        signal-to-noise ratio
    """

    network: PosteriorNetwork
    lsf_extra: float
    luminosity: float
    ensemble: int = MIN_ENSEMBLE
    groups: int = N_GROUPS
    extra_noise: float | None = None

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n posterior samples.

        Raises SamplingError when the draws cannot be brought onto the data, DataError when the
        network sees none of it.
        """
        start_nfe, watch = self.network.nfe, Stopwatch()
        with watch("view"):
            view = self._view(problem)
            scale = 1.0
            if problem.fit_error_scale:
                columns = calc_calibration_columns(problem)
                scale = calc_span_scale(problem, view.functionals, columns)
        net = self.network.network
        basis = net.basis.double()
        population = (basis / net.eigenvalues) @ basis.T
        n_moved, rounds, rest, span_scale = int(SPARE * n) + 4, 0, None, None
        while rest is None:
            rounds += 1
            with watch("network"):
                blunt = self._look(problem, view, scale, n_moved, generator)
            views = torch.randperm(len(blunt.views), generator=generator)
            # whole views, as their means are wanted
            pick = (views[:, None] * blunt.size + torch.arange(blunt.size)).flatten()[:n_moved]
            fit_scale = problem.fit_error_scale and rounds == 1
            rest = prepare(
                problem, blunt, blunt.state, population, fit_scale, scale, generator, watch
            )
            span_scale = span_scale or rest.scale
            if problem.fit_error_scale and rounds < MAX_ROUNDS:
                # one of each view; if none arrives, that is for the update to say
                some = pick[:: blunt.size][:N_TRIED]
                tried = try_out(rest, some, generator, watch)
                if len(tried) >= MIN_ARRIVED * len(some):
                    _, chi2 = fit_calibration(problem, tried, rest.columns, rest.scale, generator)
                    misfit = _calc_misfit(problem, chi2, rest.scale)
                    if misfit > MAX_MISFIT:
                        # no history is as good as the best mix of templates: the errors must
                        # cover that
                        scale, rest = rest.scale * misfit**0.5, None
        moved = update(problem, rest, pick, population, fit_scale, generator, watch)
        keep, n_replaced = _select(moved, n, generator)
        c, chi2 = fit_calibration(problem, moved.flux[keep], moved.columns, moved.scale, generator)
        misfit = _calc_misfit(problem, chi2, moved.scale)
        known = {
            "nfe": self.network.nfe - start_nfe, "ensemble": len(blunt.state), "rounds": rounds,
            "error_scale_of_the_span": span_scale, "replaced": n_replaced,
            "chi2_over_noise": misfit, "seconds": watch.rounded(),
        }  # fmt: skip
        view_of = pick[keep] // blunt.size
        return _finish(problem, moved, keep, view_of, c, chi2, generator, known)

    def _view(self, problem: Problem) -> View:
        """What the network may see, for the file's own errors."""
        rest = problem.model.wave_obs / (1 + problem.model.redshift)
        flux, ivar = problem.flux * self.luminosity, problem.ivar / self.luminosity**2
        y, weight = to_rest_grid(rest, flux.numpy(), ivar.numpy())
        if not bool((weight > 0).any()):
            raise DataError(
                f"the posterior network sees segments of 3 % in wavelength between {WAVE_MIN:.0f} "
                f"and {WAVE_MAX:.0f} Å at rest; the pixels in use ({rest[0]:.0f} to "
                f"{rest[-1]:.0f} Å) fill none: fit a wider range or use --sampler pnpdm"
            )
        per_pixel = weight[:, torch.from_numpy(segment_of_pixel())] * self.network.encoder.use
        level = calc_level(y, per_pixel)
        basis, offset = self.network.encoder.at(rest)
        functionals = basis * ivar.sqrt()[:, None] * level
        n_seen = (per_pixel > 0).sum(1)
        one = torch.ones(1, dtype=torch.float64)
        calibration = problem.calibration_rms if problem.calibration_order else 0.0
        conditions = Conditions(
            problem.model.cosmic_time * one, self.lsf_extra * one, calibration * one
        )
        snr = (per_pixel.sum(1) / n_seen).sqrt() * level
        return View(functionals, level, offset, snr, (weight > 0).double().mean(1), conditions)

    def _look(
        self, problem: Problem, view: View, scale: float, n: int, generator: torch.Generator
    ) -> Blunt:
        """Draws of the network given blunt views; fixed parameters imposed."""
        size = max(-(-max(n, self.ensemble) // self.groups), 2)
        functionals = view.functionals / scale
        whitened = problem.flux * problem.ivar.sqrt() / scale
        extra = self.extra_noise
        if extra is None:
            extra = max(float(view.snr) / scale * EXTRA_NOISE_PER_SNR, MIN_EXTRA_NOISE)
        views = draw_views(whitened, functionals, MAX_SNR, extra, self.groups, generator)
        share = 1 / (1 + extra)
        information = share * functionals.T @ functionals
        features = self.network.encoder.features(
            information[None], share * views - information[0], view.level,
            view.snr / scale * share**0.5, view.coverage, view.conditions,
        )  # fmt: skip
        state = self.network.draw(features.repeat_interleave(size, 0), generator, STEPS).double()
        state[:, -1] += view.offset / VELOCITY_SCALE
        state = _impose(state, problem.fixed_coordinates())
        own_error = self.network.config.get("own_error", 0.0)
        return Blunt(view.functionals, scale, extra, views, state, size, own_error)


def _finish(
    problem: Problem, moved: Moved, keep: Tensor, view: Tensor, c: Tensor, chi2: Tensor,
    generator: torch.Generator, known: dict[str, Any],
) -> Draws:  # fmt: skip
    """Factor on the errors, statistics, diagnostics and warnings of the kept draws."""
    state, loss = moved.polished.state[keep], moved.loss[keep]
    factor = draw_error_scale(chi2, len(problem.flux), problem.fit_error_scale, generator)
    shift = moved.shift[keep] / state.shape[1]
    ess, rhat = calc_view_dependence(_summarise(problem, moved.pooled[keep]), view)
    ess = min(ess, float(len(keep.unique())))
    stats = {"chi2": chi2.numpy(), "compression_loss": loss.numpy(), "shift": shift.numpy()}
    nfe = known.pop("nfe")
    facts = {
        "ess": ess, "rhat": rhat, "rank": moved.rank, "directions": moved.directions,
        "likelihood_builds": moved.builds, "iterations": moved.polished.iterations,
        "moved": len(moved.polished.cost), "shift_per_coordinate": float(shift.median()),
        "chi2_compression_loss": float(loss.max()), **known,
    }  # fmt: skip
    full = torch.cat([state, c * problem.calibration_rms], dim=1)
    warnings = _warn(facts, float(loss.median()))
    return Draws(full, moved.flux[keep], factor, nfe, stats, facts, warnings)


def _calc_misfit(problem: Problem, chi2: Tensor, scale: float) -> float:
    """Median chi² of draws [sample] over its expectation."""
    return float(chi2.median()) / len(problem.flux) / scale**2


def _summarise(problem: Problem, state: Tensor) -> Tensor:
    """What is watched for convergence: three summaries of the history, the free nuisance."""
    x, u = split_state(state, problem.n_bins)
    return torch.cat([calc_summaries(problem, x), u[:, problem.fixed_coordinates().isnan()]], 1)


def calc_summaries(problem: Problem, x: Tensor) -> Tensor:
    """Log mass, mean age and metallicity of histories x [sample, 2, bin]: [sample, 3]."""
    sfr, logzsol = problem.scaling.from_x(x)
    weight = sfr * torch.from_numpy(problem.model.bins.overlap(problem.model.cosmic_time))
    total = weight.sum(1)
    time = torch.from_numpy(problem.model.bins.centres)
    mean = [(weight * v).sum(1) / total for v in (time, 10**logzsol)]
    return torch.stack([total.log10(), mean[0], mean[1].log10()], dim=1)


def calc_view_dependence(values: Tensor, view: Tensor) -> tuple[float, float]:
    """(effective sample size, R-hat) of draws [sample, quantity], worst over the quantities.

    The posterior does not depend on the view a draw came from, so the intraclass correlation r
    of draws of one view should vanish (one-way analysis of variance). Draws of k per view count
    as n / (1 + (k - 1) r); R-hat is (1 - r)^-1/2, the total spread over that within views
    (nested R-hat of Margossian et al. 2024, Bayesian Analysis, for chains of one draw).
    """
    n = len(values)
    groups, member = torch.unique(view, return_inverse=True)
    g = len(groups)
    size = torch.bincount(member).double()
    if g < 2 or n - g < MIN_WITHIN:
        return float(n), 1.0
    sums = torch.zeros(g, values.shape[1], dtype=values.dtype).index_add_(0, member, values)
    means = sums / size[:, None]
    within = ((values - means[member]) ** 2).sum(0) / (n - g)
    between = (size[:, None] * (means - values.mean(0)) ** 2).sum(0) / (g - 1)
    typical = (n - float((size**2).sum()) / n) / (g - 1)
    r = (between - within) / (between + (typical - 1) * within).clamp(min=1e-300)
    worst = float(r.clamp(0.0, 0.99).max())
    return n / (1 + (typical - 1) * worst), (1 - worst) ** -0.5


def calc_span_scale(problem: Problem, functionals: Tensor, columns: Tensor) -> float:
    """Factor on the errors from the flux outside the span of all spectra and of calibration.

    Only pixels that the functionals see count. 1 where too few are left over.
    """
    seen = (functionals != 0).any(1)
    rows = torch.cat([functionals, columns], dim=1)[seen]
    rows = rows / rows.norm(dim=0).clamp(min=1e-300)
    axes, values, _ = torch.linalg.svd(rows, full_matrices=False)
    axes = axes[:, values > 1e-6 * values[0]]
    freedom = len(rows) - axes.shape[1]
    if freedom < MIN_FREEDOM:
        return 1.0
    y = (problem.flux * problem.ivar.sqrt())[seen]
    outside = float((y**2).sum() - ((y @ axes) ** 2).sum())
    return min(max((outside / freedom) ** 0.5, 0.3), 100.0)


def _select(moved: Moved, n: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """n indices of draws that reached the data (repeated if too few), and how many failed."""
    done, good = moved.polished, moved.settled.nonzero()[:, 0]
    total, far = len(done.cost), int(is_far(done).sum())
    if min(len(good), total - far) < MIN_ARRIVED * total:
        raise SamplingError(
            f"only {len(good)} of {total} draws reached the data, {far} were still moving "
            f"after {done.iterations} iterations; the spectrum is unlike any galaxy the posterior "
            "network was trained on, or its bands are of another aperture (try --sampler pnpdm)"
        )
    order = torch.randperm(len(good), generator=generator)
    return good[order.repeat(-(-n // len(good)))[:n]], total - len(good)


def _warn(facts: dict[str, Any], loss: float) -> tuple[str, ...]:
    warnings = []
    if loss > 1.0:
        warnings.append(f"the compressed likelihood misses the exact chi² by {loss:.1f}")
    shift, misfit = facts["shift_per_coordinate"], facts["chi2_over_noise"]
    if shift > MAX_SHIFT:
        warnings.append(
            "the posterior network's draws were far from the data (squared shift per coordinate "
            f"{shift:.1f}, expected well below 1): the intervals may be too narrow"
        )
    if facts["rhat"] > MAX_RHAT:
        warnings.append(
            "not converged: the draws depend on the view they came from (R-hat "
            f"{facts['rhat']:.2f}, effective sample size {facts['ess']:.0f}); the intervals may "
            "be too wide"
        )
    if facts["replaced"] > 0.1 * facts["moved"]:
        warnings.append(
            f"{facts['replaced']} of {facts['moved']} draws did not converge and were replaced"
        )
    if misfit > MAX_MISFIT:
        warnings.append(
            f"the samples' chi² is {misfit:.1f} times its expectation: the prior may not hold "
            "this history, or the draws are not converged"
        )
    return tuple(warnings)


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
