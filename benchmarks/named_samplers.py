"""Samplers by their names on the command line, for problems that benchmarks build themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sfhzoo.forward.kinematics import calc_resolution_sigma
from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.priors.prior import Prior
from sfhzoo.zoo.artifacts import find_posterior_network, load_posterior_network

NAMES = ("amortized", "pnpdm", "mmps", "cla")


def calc_lsf_extra(model: ForwardModel, grid: SSPGrid, lsf_sigma: float | None) -> float:
    """Typical broadening (km/s) of an instrument of `lsf_sigma` beyond the grid's resolution."""
    if lsf_sigma is None:
        return 0.0
    rest = model.wave_obs / (1 + model.redshift)
    own = calc_resolution_sigma(np.interp(rest, grid.wave, grid.resolution_fwhm), rest)
    return float(np.sqrt(np.median(np.clip(lsf_sigma**2 - own**2, 0, None))))


def build_sampler(
    name: str, prior: Prior, grid: SSPGrid, model: ForwardModel, lsf_sigma: float | None,
    network: Path | None = None,
) -> Any:  # fmt: skip
    """The sampler `name` for observations through `model` with an LSF of `lsf_sigma` km/s.

    `network` is the directory of a posterior network; by default the one that is found.
    """
    if name == "amortized":
        from sfhzoo.samplers.amortized import AmortizedSampler

        path = network or find_posterior_network(prior.name, grid.name)
        if path is None:
            raise SystemExit(f"no posterior network for {prior.name} and {grid.name}")
        distance = prior.bins.luminosity_distance_cm(model.redshift)
        luminosity = 1 / calc_flux_factor(model.redshift, distance, grid.solar_luminosity)
        loaded = load_posterior_network(path)
        return AmortizedSampler(loaded, calc_lsf_extra(model, grid, lsf_sigma), luminosity)
    if name == "pnpdm":
        from sfhzoo.samplers.split_gibbs import SplitGibbsSampler

        return SplitGibbsSampler(prior)
    if name == "mmps":
        from sfhzoo.samplers.mmps import MmpsSampler

        return MmpsSampler(prior)
    if name == "cla":
        from sfhzoo.samplers.cla import ClaSampler

        return ClaSampler(prior)
    raise SystemExit(f"expected one of {', '.join(NAMES)}, got {name!r}")
