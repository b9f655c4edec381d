"""From draws given a blunt view of the data to draws given all of it, under the exact likelihood.

What the network's views left out (`fission`) moves each draw (`polish`). The model spectra are
compressed and interpolated over the dust and kinematics of the draws; how much chi² that misstates
is measured on the moved draws, and if it is too much all is made again around them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfhzoo.likelihood.compression import CompressedLikelihood, span_of
from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.likelihood.problem import Problem
from sfhzoo.samplers.encoding import MAX_SNR
from sfhzoo.samplers.fission import Fission
from sfhzoo.samplers.gauss_newton import Optimum, is_settled
from sfhzoo.samplers.polish import calc_precision, polish
from sfhzoo.samplers.posterior_network import split_state
from sfhzoo.stopwatch import Stopwatch

MAX_LOSS = 0.5
"""Median chi² that compression may misstate before it is made again around the moved draws."""
MAX_BUILDS = 3
WRONG_LOSS = 4.0
"""A draw whose chi² is wrong by more was moved beyond the range of the interpolation."""
MAX_GAIN = 100.0
"""Of chi², some thousands, in the last step that gained: beyond it a draw is still on its way."""
MIN_SPREAD = 0.01
"""rms, in units of the noise, of the draws' spectra along a direction that is kept."""
NUISANCE_SHARE = 0.75
"""Of a network's own error, that in dust and kinematics: the data tell them more directly."""


class Blunt(NamedTuple):
    """What the network made of the data.

    functionals : whitened by the file's errors [wave, component]
    scale : factor on the errors that was assumed
    extra : variance of the noise added for the views, in units of the data's
    views : t [group, component]
    state : its draws [group * size, n_state]
    size : draws per view
    own_error : share of their variance that is the network's error, where a view tells all
    """

    functionals: Tensor
    scale: float
    extra: float
    views: Tensor
    state: Tensor
    size: int
    own_error: float = 0.0

    def centred(self) -> Tensor:
        """Deviations from each view's mean, scaled to the draws' spread."""
        groups = self.state.view(-1, self.size, self.state.shape[1])
        deviations = groups - groups.mean(1, keepdim=True)
        return deviations.flatten(0, 1) * (self.size / (self.size - 1)) ** 0.5


class Moved(NamedTuple):
    """Draws after the update.

    pooled : states before what tells the views apart was taken out [sample, n_state]
    shift : squared distance from the anchor in the metric of the draws [sample]
    flux : exact spectra [sample, wave]
    loss : chi² by which the compressed ones are wrong [sample]
    settled : whether a draw arrived [sample]
    scale : factor on the errors
    columns : of the calibration polynomial, whitened by the file's errors [wave, order]
    rank, directions, builds : of the compressed likelihood
    """

    polished: Optimum
    pooled: Tensor
    shift: Tensor
    flux: Tensor
    loss: Tensor
    settled: Tensor
    scale: float
    columns: Tensor
    rank: int
    directions: int
    builds: int


class Rest(NamedTuple):
    """What the views left out, ready to move draws.

    blunt : what the network made of the data
    closer : its draws with less of its own error
    likelihood : of all the data; second : of the rest, along the directions that are kept
    target : the rest of the data [group, direction]
    precision : of the draws given their view [n_state, n_state]
    free : [n_state] bool
    scale : factor on the errors; ratio : of it to the likelihood's
    columns : of the calibration polynomial, whitened by the file's errors [wave, order]
    """

    blunt: Blunt
    closer: Blunt
    likelihood: CompressedLikelihood
    second: CompressedLikelihood
    target: Tensor
    precision: Tensor
    free: Tensor
    scale: float
    ratio: float
    columns: Tensor


def prepare(
    problem: Problem,
    blunt: Blunt,
    around: Tensor,
    population: Tensor,
    fit_scale: bool,
    scale: float,
    generator: torch.Generator,
    watch: Stopwatch,
) -> Rest:
    """The rest of the data, compressed onto spectra like those of the states `around`.

    Parameters
    ----------
    population : precision of the population's states [n_state, n_state]
    fit_scale : take the factor on the errors from the flux outside the span of all templates
    scale : that factor, or what to begin with
    """
    with watch("likelihood"):
        free = torch.ones(blunt.state.shape[1], dtype=torch.bool)
        free[-N_NUISANCE:] = problem.fixed_coordinates().isnan()
        likelihood = _build_likelihood(problem, scale, around, generator)
        reference = _calc_expected_flux(problem, likelihood, around)
        likelihood = likelihood.calibrated(reference, problem.calibration_order)
        columns = problem.calibration_rms * scale * likelihood.columns
        ratio = _calc_scale_ratio(likelihood) if fit_scale else 1.0
        scale *= ratio
        # bands keep their errors, and the network does not see them
        per_component = likelihood.per_component(ratio)
        functionals = likelihood.extend(blunt.functionals / scale)
        # views were made with another factor on the errors
        change = (blunt.scale / scale) ** 2
        fission = Fission(
            functionals, columns / scale, likelihood.basis, MAX_SNR, blunt.extra * change
        )
        first = likelihood.marginal(fission.first_transform / per_component)
        information = _calc_information(first, blunt.state)
        closer = draw_together(blunt, free, population, information)
        precision = calc_precision(closer.centred(), free, population + information)
        seen = likelihood.marginal(fission.transform / per_component)
        turn = _choose_directions(seen, closer.state)
        second = likelihood.marginal(turn @ fission.transform / per_component)
        target = fission.second(problem.whiten(scale), blunt.views * change) @ turn.T
    return Rest(blunt, closer, likelihood, second, target, precision, free, scale, ratio, columns)


def try_out(rest: Rest, pick: Tensor, generator: torch.Generator, watch: Stopwatch) -> Tensor:
    """Spectra [sample, wave], as compressed, of those of the picked draws that arrive."""
    with watch("trial"):
        moved = _polish(rest, pick, None, generator)
        arrived = is_settled(moved.cost) & ~is_far(moved)
        spectra = rest.likelihood.predict_uncalibrated(moved.state)
        return rest.likelihood.to_flux(spectra[arrived])


def update(
    problem: Problem,
    rest: Rest,
    pick: Tensor,
    population: Tensor,
    fit_scale: bool,
    generator: torch.Generator,
    watch: Stopwatch,
) -> Moved:
    """The picked draws, updated with what the views left out.

    Parameters
    ----------
    rest : made again around the moved draws where its spectra are too wrong
    pick : indices of the draws to move
    population, fit_scale : as for `prepare`
    """
    builds, initial = 1, None
    while True:
        with watch("polish"):
            polished = _polish(rest, pick, initial, generator)
            settled = is_settled(polished.cost)
            offset, pooled = polished.state - rest.closer.state[pick], polished.state
            again = centre_views(
                rest.second, pooled, pick // rest.blunt.size, settled, rest.precision, rest.free
            )
            polished = polished._replace(state=again.state)
            settled &= is_settled(again.cost)
        with watch("check"):
            flux = rest.likelihood.calc_flux(polished.state)
            loss = rest.likelihood.calc_loss(polished.state, flux, rest.ratio)
        typical = float(loss[settled].median())
        if builds == MAX_BUILDS or typical < MAX_LOSS:
            arrived = settled & (loss < max(WRONG_LOSS, 4 * typical))
            shift = ((offset @ rest.precision) * offset).sum(1)
            return Moved(
                polished, pooled, shift, flux, loss, arrived, rest.scale, rest.columns,
                rest.likelihood.rank, rest.second.rank, builds,
            )  # fmt: skip
        builds += 1
        around, initial = polished.state[settled], polished.state
        rest = prepare(
            problem, rest.blunt, around, population, fit_scale, rest.scale, generator, watch
        )


def is_far(moved: Optimum) -> Tensor:
    """Which draws [sample] are still on their way."""
    return moved.unfinished & (moved.gain > MAX_GAIN)


def _polish(
    rest: Rest, pick: Tensor, initial: Tensor | None, generator: torch.Generator
) -> Optimum:
    """Picked draws at their optima, each for the rest of the data with its own noise."""
    target = rest.target[pick // rest.blunt.size]
    target = target + torch.randn(target.shape, generator=generator, dtype=target.dtype)
    anchor = rest.closer.state[pick]
    return polish(rest.second, anchor, target, rest.precision, rest.free, initial)


def draw_together(blunt: Blunt, free: Tensor, population: Tensor, information: Tensor) -> Blunt:
    """The network's draws with less of its own error in their spread.

    They are spread about their view's mean by the posterior and by what the network gets wrong in
    that view, most of which is gone from the mean over all views. The network knows the population
    well and what a view tells less well, so of the variance W of a direction (1 in the population)
    a share `own_error` (1 - W⁴) is taken away, less of the nuisance values'. W follows from the
    precisions [n_state, n_state] of the population and of the view; the sample's own has too much
    noise.
    """
    root = torch.linalg.cholesky(population)
    gained = torch.linalg.solve_triangular(root, information, upper=False)
    gained = torch.linalg.solve_triangular(root, gained.T, upper=False)
    values, axes = torch.linalg.eigh(0.5 * (gained + gained.T))
    variance = 1 / (1 + values.clamp(min=0))
    groups = blunt.state.view(-1, blunt.size, blunt.state.shape[1])
    mean = groups.mean(1, keepdim=True)
    white = (groups - mean) @ root @ axes

    def shrink(share: float) -> Tensor:
        kept = white * (1 - share * (1 - variance**4)).sqrt()
        return torch.linalg.solve_triangular(root.T, (kept @ axes.T).mT, upper=True).mT

    nearer = shrink(blunt.own_error)
    nuisance = shrink(NUISANCE_SHARE * blunt.own_error)[..., -N_NUISANCE:]
    nearer = torch.cat([nearer[..., :-N_NUISANCE], nuisance], -1)
    state = torch.where(free, mean + nearer, groups)
    return blunt._replace(state=state.flatten(0, 1))


def centre_views(
    likelihood: CompressedLikelihood,
    state: Tensor,
    view: Tensor,
    good: Tensor,
    precision: Tensor,
    free: Tensor,
) -> Optimum:
    """Draws moved so that every view has the mean of all.

    The posterior does not depend on the view, so differences of the views' means are the
    network's errors. States and the spectra they predict are shifted alike, and the history is
    sought that fits both, as the shifted one alone would leave the data: spectra are not linear in
    it. Draws alone in their view stay.

    Parameters
    ----------
    state : draws [sample, n_state]; view : of each [sample]; good : those that count [sample]
    """
    member = torch.nn.functional.one_hot(view).to(state.dtype).T * good
    size = member.sum(1)
    weight = member / size.clamp(min=1)[:, None]
    # the mean of k draws takes a k-th of their variance with it
    stretch = (size / (size - 1).clamp(min=1)).sqrt()[view][:, None]
    moves = ((size[view] > 1) & good)[:, None]

    def centre(values: Tensor) -> Tensor:
        own = (weight @ values)[view]
        return torch.where(moves, values[good].mean(0) + stretch * (values - own), values)

    anchor, target = centre(state), centre(likelihood.predict(state))
    return polish(likelihood, anchor, target, precision, free)


def _build_likelihood(
    problem: Problem, scale: float, state: Tensor, generator: torch.Generator
) -> CompressedLikelihood:
    x, u = split_state(state, problem.n_bins)
    return CompressedLikelihood(
        problem.model, problem.flux, problem.ivar / scale**2, problem.scaling, span_of(u),
        problem.scaling.from_x(x).sfr.mean(0), generator, problem.bands,
    )  # fmt: skip


def _calc_expected_flux(
    problem: Problem, likelihood: CompressedLikelihood, state: Tensor
) -> Tensor:
    """Spectrum [wave] expected from draws and data: linear-Gaussian, calibration marginalised."""
    predicted = likelihood.predict(state)
    mean = predicted.mean(0)
    columns = likelihood.calc_columns(likelihood.to_flux(mean), problem.calibration_order)
    seen = problem.calibration_rms * likelihood.basis @ columns
    covariance = torch.cov(predicted.T)
    noise = torch.eye(likelihood.rank, dtype=mean.dtype) + seen @ seen.T
    gain = torch.linalg.solve(covariance + noise, likelihood.y - mean)
    return likelihood.to_flux(mean + covariance @ gain)


def _calc_scale_ratio(likelihood: CompressedLikelihood) -> float:
    """Factor on the errors, relative to the assumed one, from the flux outside all templates."""
    return min(max(likelihood.calc_outside_rms(), 0.1), 10.0)


def _calc_information(first: CompressedLikelihood, state: Tensor) -> Tensor:
    """J J^T [n_state, n_state] of the views at the mean state."""
    mean = state.mean(0, keepdim=True)
    return first.linearise(mean, torch.zeros(1, first.rank, dtype=mean.dtype))[1][0]


def _choose_directions(likelihood: CompressedLikelihood, state: Tensor) -> Tensor:
    """Orthonormal directions [r, component] of the data along which the draws' spectra differ.

    Where they agree to a hundredth of the noise the data cannot move them.
    """
    predicted = likelihood.predict(state)
    _, values, axes = torch.linalg.svd(predicted - predicted.mean(0), full_matrices=False)
    return axes[: max(int((values > MIN_SPREAD * len(state) ** 0.5).sum()), 1)]
