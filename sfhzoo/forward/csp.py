"""Composite stellar populations: from SSPs to the light of each bin of cosmic time.

    L(λ) = Σ_bin SFR_bin ∫_bin S(λ; age(t), Z_bin) dt

over the part of each bin before the observation. S is linear in flux against log10(age) between
the grid's nodes, constant beyond them, so that the time integral has a closed form; and linear in
flux against log Z, so that the spectrum is linear in SFR and piecewise linear in SFR * logzsol.
"""

from __future__ import annotations

import zlib
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR

Interpolation = Literal["log", "linear"]

_TEMPLATES: dict[tuple[Any, ...], NDArray[np.float64]] = {}
_MAX_TEMPLATES = 2
"""18 MB each for the bundled grid, 200 MB for 64 metallicities of MILES's wavelengths"""


def calc_age_weights(
    age_nodes_yr: ArrayLike, lookback_edges_gyr: ArrayLike
) -> NDArray[np.float64]:
    """Weights [bin, age] (yr): the light of a bin with SFR 1 Msun/yr is Σ_age weight * SSP.

    Parameters
    ----------
    age_nodes_yr : [age] increasing and positive ages of the SSPs, yr
    lookback_edges_gyr : [bin + 1] bin edges, Gyr before the observation, decreasing to 0; edges
        after the observation are 0, which gives their bins no weight

    Exact for SSPs linear in log10(age): with a < t < b and u = ln(t/a), the integral of the upper
    node's share u / ln(b/a) is [t (u - 1)] / ln(b/a). A bin's weights sum to its length.
    """
    nodes = np.asarray(age_nodes_yr, dtype=np.float64)
    edges = np.asarray(lookback_edges_gyr, dtype=np.float64) * YR_PER_GYR
    young, old = edges[1:, None], edges[:-1, None]
    a, b = nodes[None, :-1], nodes[None, 1:]
    lower, upper = np.clip(young, a, b), np.clip(old, a, b)
    upper_share = (upper * (np.log(upper / a) - 1) - lower * (np.log(lower / a) - 1)) / np.log(
        b / a
    )
    weights = np.zeros((len(edges) - 1, len(nodes)))
    weights[:, :-1] += (upper - lower) - upper_share
    weights[:, 1:] += upper_share
    weights[:, :1] += np.clip(nodes[0] - young, 0, None) - np.clip(nodes[0] - old, 0, None)
    weights[:, -1:] += np.clip(old - nodes[-1], 0, None) - np.clip(young - nodes[-1], 0, None)
    return weights


def calc_bin_templates(grid: SSPGrid, bins: TimeBins, cosmic_time: float) -> NDArray[np.float64]:
    """Light [bin, metallicity, wave] of each bin, Lsun/Å per Msun/yr, seen at `cosmic_time` (Gyr).

    `metallicity` runs over the grid's valid nodes only. Bins after `cosmic_time` are dark. The
    last few results are kept, by the grid's content and the time; the array is read-only.
    """
    key = (*_calc_fingerprint(grid), bins.lookback_edges(cosmic_time).tobytes())
    if key not in _TEMPLATES:
        while len(_TEMPLATES) >= _MAX_TEMPLATES:
            _TEMPLATES.pop(next(iter(_TEMPLATES)))
        _TEMPLATES[key] = _average_over_bins(grid, bins, cosmic_time)
    return _TEMPLATES[key]


def _calc_fingerprint(grid: SSPGrid) -> tuple[Any, ...]:
    # a cut or changed grid keeps the sha256 of the file it came from; its content tells
    parts = (grid.flux, grid.age, grid.wave, grid.valid)
    return grid.flux.shape, *(zlib.crc32(np.ascontiguousarray(part).data) for part in parts)


def _average_over_bins(grid: SSPGrid, bins: TimeBins, cosmic_time: float) -> NDArray[np.float64]:
    weights = calc_age_weights(grid.age, bins.lookback_edges(cosmic_time))
    usable = np.flatnonzero(grid.valid)
    templates = np.empty((len(weights), len(usable), len(grid.wave)))
    for k, node in enumerate(usable):
        templates[:, k] = weights @ grid.flux[node].astype(np.float64)
    templates.setflags(write=False)
    return templates


def calc_surviving_fraction(
    grid: SSPGrid, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    """Surviving mass per mass formed [bin, metallicity] at `cosmic_time` (Gyr).

    0 for bins after it. What counts as surviving is `grid.attributes["surviving_mass"]`.
    """
    weights = calc_age_weights(grid.age, bins.lookback_edges(cosmic_time))
    length = weights.sum(axis=1, keepdims=True)
    mass = weights @ grid.surviving_mass_fraction[grid.valid].T
    return np.divide(mass, length, out=np.zeros_like(mass), where=length > 0)


def calc_metallicity_weights(
    logzsol: torch.Tensor, nodes: torch.Tensor, interpolation: Interpolation = "log"
) -> torch.Tensor:
    """Weights [..., metallicity] of the nodes for metallicities [...]; differentiable.

    Parameters
    ----------
    logzsol : [...] log10(Z/Z_sun), clamped to the nodes' range
    nodes : [metallicity] increasing log10(Z/Z_sun)
    interpolation : flux linear in "log" Z (the default) or in "linear" Z
    """
    if interpolation not in ("log", "linear"):
        raise ValueError(f"expected interpolation 'log' or 'linear', got {interpolation!r}")
    nodes = nodes.to(logzsol)
    value = torch.clamp(logzsol, nodes[0], nodes[-1])
    if interpolation == "linear":
        nodes, value = 10.0**nodes, 10.0**value
    below = torch.clamp(
        torch.searchsorted(nodes, value.detach().contiguous(), right=True) - 1, 0, len(nodes) - 2
    )
    share = ((value - nodes[below]) / (nodes[below + 1] - nodes[below])).unsqueeze(-1)
    index = torch.arange(len(nodes), device=logzsol.device)
    below = below.unsqueeze(-1)
    zero = torch.zeros_like(share)
    return torch.where(index == below, 1 - share, zero) + torch.where(
        index == below + 1, share, zero
    )
