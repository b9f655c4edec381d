"""Posterior draws under other priors of the mass and of the nuisance parameters.

Importance resampling: a draw gets the weight pi(theta) / p(theta), the density that is wanted over
the one that it was drawn with. A posterior well inside both loses little; where it is broad the
weights are uneven, and the user is told how many draws they leave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sfhzoo.densities import Density, parse_density
from sfhzoo.errors import UsageError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.massprior import Weights, parse_mass_prior, weigh_histories
from sfhzoo.priors.prior import Prior

OVERSAMPLING = 4
"""Draws per sample where they are weighted."""
MIN_EFFECTIVE = 50
RANGES = {**nuisance.RANGES, "error_scale": (0.0, np.inf)}


@dataclass(frozen=True)
class OtherPriors:
    """What a user wants in the place of the priors that samplers and networks work with.

    mass : of the log mass formed, per dex; None for the training set's
    nuisance : of some of `RANGES`, in physical units
    """

    mass: Density | None
    nuisance: Mapping[str, Density]

    @classmethod
    def parse(cls, mass: str, of_nuisance: Mapping[str, str]) -> OtherPriors:
        """From names of densities; UsageError for what is none."""
        for name in of_nuisance:
            if name not in RANGES:
                raise UsageError(f"expected a prior of {', '.join(RANGES)}, got one of {name!r}")
        return cls(
            parse_mass_prior(mass), {k: _parse_nuisance(k, v) for k, v in of_nuisance.items()}
        )

    def __bool__(self) -> bool:
        return self.mass is not None or bool(self.nuisance)

    @property
    def described(self) -> str:
        """For messages."""
        mass = [] if self.mass is None else [f"mass {self.mass.name}"]
        return ", ".join([*mass, *(f"{k} {d.name}" for k, d in self.nuisance.items())])


def reweight(
    problem: Problem, draws: Draws, prior: Prior, wanted: OtherPriors, n: int,
    generator: torch.Generator,
) -> tuple[Draws, dict[str, Any]]:  # fmt: skip
    """n of the draws under other priors, and what is recorded of it.

    UsageError where a prior has none of the draws, or is of a parameter that is fixed.
    """
    weights, record = Weights(np.zeros(len(draws.state)), 0.0), {}
    warnings = list(draws.warnings)
    if wanted.mass is not None:
        sfr = problem.to_histories(draws.state).sfr
        weights = weigh_histories(sfr, prior, problem.model.cosmic_time, wanted.mass)
        if weights.unsupported > 0.01:
            warnings.append(
                f"{weights.unsupported:.0%} of the samples have masses at which {prior.name} has "
                "practically no galaxies: the mass prior has no hold there"
            )
    log_weight = weights.log_weight + calc_nuisance_weight(problem, draws, wanted.nuisance)
    if not np.isfinite(log_weight).any():
        raise UsageError(f"no draw lies inside all the priors that were given: {wanted.described}")
    weights = replace(weights, log_weight=log_weight)
    if weights.effective < min(MIN_EFFECTIVE, n):
        warnings.append(
            f"the prior that was given ({wanted.described}) leaves {weights.effective:.0f} "
            f"effective samples of {len(log_weight)}: take more samples"
        )
    facts = dict(draws.facts)
    if "ess" in facts:
        facts["ess"] = min(facts["ess"], weights.effective)
    picked = replace(
        draws.pick(weights.resample(n, generator)), warnings=tuple(warnings), facts=facts
    )
    counts = {"effective": weights.effective, "of": len(log_weight)}
    if wanted.mass is not None:
        record["mass_prior"] = {"name": wanted.mass.name, **counts}
    if wanted.nuisance:
        names = {name: density.name for name, density in wanted.nuisance.items()}
        record["nuisance_priors"] = {**names, **counts}
    return picked, record


def calc_nuisance_weight(
    problem: Problem, draws: Draws, wanted: Mapping[str, Density]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """ln of the wanted densities over the samplers' own [sample]."""
    total = np.zeros(len(draws.state))
    free = dict(zip(nuisance.NAMES, problem.fixed_coordinates().isnan().tolist(), strict=True))
    physical = problem.to_nuisance(draws.state)
    values = dict(zip(nuisance.NAMES, physical, strict=True))
    cut = dict(zip(nuisance.NAMES, nuisance.is_at_end(physical), strict=True))
    values["error_scale"] = draws.error_scale
    free["error_scale"] = bool((draws.error_scale != 1).any())
    cut["error_scale"] = torch.zeros(len(draws.state), dtype=torch.bool)
    for name, density in wanted.items():
        if not free[name]:
            raise UsageError(f"{name} is fixed: it takes no prior")
        own = nuisance.calc_log_prior(name, values[name])
        # what was cut at the end of the range has a finite probability there, and no density
        own = torch.where(cut[name], torch.inf, own)
        total += density(values[name].numpy()) - own.numpy()
    return total


def _parse_nuisance(name: str, text: str) -> Density:
    try:
        density = parse_density(text)
    except UsageError as e:
        raise UsageError(f"the prior of {name}: {e}") from e
    low, high = RANGES[name]
    if density.at[-1] <= low or density.at[0] >= high:
        raise UsageError(f"the prior of {name}, {text}, is outside {low:g} to {high:g}")
    return density
