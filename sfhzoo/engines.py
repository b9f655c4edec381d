"""Which sampler serves an observation, and what the user should know about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch

from sfhzoo.errors import ArtifactError, DataError, Incompatible, SamplingError, UsageError
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.likelihood.calibration import MAX_AUTO_ORDER
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.amortized import MAX_SHIFT, AmortizedSampler
from sfhzoo.samplers.cla import ClaSampler
from sfhzoo.samplers.encoding import PIXEL_KMS, count_segments
from sfhzoo.samplers.mmps import MmpsSampler
from sfhzoo.samplers.posterior_network import PosteriorNetwork
from sfhzoo.samplers.split_gibbs import SplitGibbsSampler
from sfhzoo.units import SPEED_OF_LIGHT
from sfhzoo.zoo.artifacts import find_posterior_network, load_posterior_network

SamplerName = Literal["auto", "amortized", "pnpdm", "mmps", "cla"]
SCORE_SAMPLERS: dict[str, Callable[..., Any]] = {
    "pnpdm": SplitGibbsSampler,
    "mmps": MmpsSampler,
    "cla": ClaSampler,
}
"""Samplers that need only the prior's score and the likelihood."""


@dataclass(frozen=True)
class Observation:
    """A problem, and what a posterior network must know of it besides.

    lsf_extra : broadening by the instrument beyond the grid's own resolution, km/s
    luminosity : factor from flux (erg/s/cm²/Å) to Lsun/Å at rest
    """

    problem: Problem
    lsf_extra: float
    luminosity: float


class Engine(NamedTuple):
    """A sampler, its name for the record, and notes to the user.

    fallback : from a reason to the engine that takes its place where it fails; None for none
    """

    sampler: Any
    name: str
    device: str
    notes: tuple[str, ...]
    fallback: Callable[[str], Engine] | None = None

    def draw(self, problem: Problem, n: int, generator: torch.Generator) -> tuple[Draws, Engine]:
        """n posterior samples, and the engine that made them.

        Raises SamplingError, and DataError where a posterior network sees none of the data, if
        there is no fallback.
        """
        try:
            draws = self._sample(problem, n, generator)
        except (DataError, SamplingError) as e:
            if self.fallback is None:
                raise
            reason = str(e)
        else:
            shift = draws.facts.get("shift_per_coordinate", 0.0)
            if self.fallback is None or not shift > MAX_SHIFT:
                return draws, self
            reason = f"the posterior network's draws were far from the data ({shift:.1f})"
        return self.fallback(reason).draw(problem, n, generator)

    def _sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        try:
            draws: Draws = self.sampler.sample(problem, n, generator)
        except torch.linalg.LinAlgError as e:
            raise SamplingError(
                "the numbers went out of range; check the flux unit and the errors"
            ) from e
        return draws


def choose_engine(
    wanted: SamplerName,
    prior: Prior,
    grid: SSPGrid,
    network: str | Path | PosteriorNetwork | None,
    observation: Observation,
    device: str,
    progress: bool,
) -> Engine:
    """The sampler `wanted`; "auto" is amortized where a network fits the observation, else pnpdm.

    Whether a network fits is asked before, of its domain, and after, of its draws (`Engine.draw`).

    Raises UsageError for an unknown name, ArtifactError where the posterior network is missing,
    Incompatible where it belongs to another prior or grid.
    """
    if wanted not in get_args(SamplerName):
        raise UsageError(
            f"expected sampler {', '.join(map(repr, get_args(SamplerName)))}, got {wanted!r}"
        )
    if wanted in SCORE_SAMPLERS:
        return _by_score(wanted, prior, device, progress, ())

    def without_network(*reasons: str) -> Engine:
        notes = tuple(f"{reason}: pnpdm is used, slower" for reason in reasons)
        return _by_score("pnpdm", prior, device, progress, notes)

    try:
        found = _find_network(prior, grid, network)
    except (ArtifactError, Incompatible) as e:
        if wanted == "amortized" or network is not None:
            raise
        return without_network(str(e))
    outside = list_outside_domain(found, observation)
    if outside and wanted == "auto":
        return without_network(*outside)
    sampler = AmortizedSampler(found, observation.lsf_extra, observation.luminosity)
    notes = tuple(f"{o}: the result may be wrong" for o in outside)
    fallback = without_network if wanted == "auto" else None
    return Engine(sampler, f"amortized ({found.name})", "cpu", notes, fallback)


def list_outside_domain(network: PosteriorNetwork, observation: Observation) -> list[str]:
    """Where an observation lies outside what a posterior network was trained for."""
    domain, problem = network.config["domain"], observation.problem
    found = []
    if not problem.has_pixels and problem.bands is not None:
        return ["the posterior network sees no photometry"]
    if not problem.has_pixels:
        return ["there are no data, outside the posterior network's domain"]
    redshift, (lo, hi) = problem.model.redshift, domain["redshift"]
    if not lo <= redshift <= hi:
        found.append(f"redshift {redshift:g} is outside the posterior network's {lo:g} to {hi:g}")
    if observation.lsf_extra > domain["lsf_extra"][1]:
        found.append(
            f"the instrument's broadening ({observation.lsf_extra:.0f} km/s) is beyond the "
            f"posterior network's {domain['lsf_extra'][1]:g} km/s"
        )
    filled = count_segments(problem.model.wave_obs / (1 + redshift), problem.ivar.numpy())
    if filled < domain["min_segments"]:
        found.append(
            f"the pixels fill {filled} segments of 3 % in wavelength, the posterior network needs "
            f"{domain['min_segments']}"
        )
    order, rms = problem.calibration_order, problem.calibration_rms
    if order > MAX_AUTO_ORDER or (order and rms > domain["calibration"][1]):
        found.append(
            f"the calibration (order {order}, {rms:g}) is beyond the posterior network's "
            f"(order {MAX_AUTO_ORDER}, {domain['calibration'][1]:g})"
        )
    snr = calc_snr_per_rest_pixel(problem)
    if snr < domain["snr"][0]:
        found.append(
            f"the S/N of {snr:.2g} per {PIXEL_KMS:.0f} km/s is below the posterior network's "
            f"{domain['snr'][0]:g}"
        )
    return found


def calc_snr_per_rest_pixel(problem: Problem) -> float:
    """Median signal-to-noise ratio per pixel of the posterior network's grid."""
    step = float(np.median(np.diff(np.log(problem.model.wave_obs)))) * SPEED_OF_LIGHT
    return float((problem.flux * problem.ivar.sqrt()).median()) * (PIXEL_KMS / step) ** 0.5


def _by_score(
    name: str, prior: Prior, device: str, progress: bool, notes: tuple[str, ...]
) -> Engine:
    sampler = SCORE_SAMPLERS[name](prior.to(device), progress=progress)
    return Engine(sampler, name, device, notes)


def find_matching_network(prior: Prior, grid: SSPGrid) -> Path | None:
    """The newest posterior network on this disk made for this prior and this grid."""
    return find_posterior_network(prior.name, grid.name, prior.training_set, grid.sha256)


def _find_network(
    prior: Prior, grid: SSPGrid, network: str | Path | PosteriorNetwork | None
) -> PosteriorNetwork:
    if isinstance(network, PosteriorNetwork):
        found = network
    else:
        path = Path(network) if network else find_matching_network(prior, grid)
        if path is None:
            raise ArtifactError(
                f"no posterior network for {prior.name} with {grid.name} (make one with "
                "`sfhzoo amortize` and give it with --network)"
            )
        found = _load_network(path)
    check_same_histories(found, prior)
    if found.config["grid"]["sha256"] != grid.sha256:
        raise Incompatible(f"{found.name} was trained with another file of {grid.name}")
    return found


def check_same_histories(network: PosteriorNetwork, prior: Prior) -> None:
    """Incompatible where a posterior network was trained on other histories than a prior."""
    expected, own = network.config["training_set"]["sha256"], prior.training_set
    if expected != own:
        raise Incompatible(
            f"{network.name} was trained on the histories {expected[:12]}…, the prior "
            f"{prior.name} on {own[:12]}…"
        )


@lru_cache(maxsize=4)
def _load_network(path: Path) -> PosteriorNetwork:
    """Read and verified once per process."""
    return load_posterior_network(path)
