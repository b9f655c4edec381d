"""A history's template weights, and their derivatives by the network's x.

Light of bin b goes to metallicity nodes k and k + 1 with weights SFR (1 - f) and SFR f, so

    dS/dx_0 = SFR' [(1 - f) T_k + f T_{k+1}],      dS/dx_1 = SFR f' [T_{k+1} - T_k].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sfhzoo.histories import HistoryScaling
from sfhzoo.units import LN10


class LinearisedHistories(NamedTuple):
    """Each [sample, bin]: SFR (Msun/yr), lower node, share f of the upper node, SFR', SFR f'."""

    sfr: Tensor
    node: Tensor
    share: Tensor
    d_sfr: Tensor
    d_z: Tensor


def linearise_histories(scaling: HistoryScaling, nodes: Tensor, x: Tensor) -> LinearisedHistories:
    """Weights and slopes at x [sample, 2, bin]; `nodes` [metallicity] are the grid's logzsol.

    The slope by metallicity is 0 beyond the nodes, where the light does not change.
    """
    sfr, logzsol = scaling.from_x(x)
    value = logzsol.clamp(nodes[0], nodes[-1])
    node = torch.searchsorted(nodes, value.contiguous(), right=True) - 1
    node = node.clamp(0, len(nodes) - 2)
    width = nodes[node + 1] - nodes[node]
    std = torch.as_tensor(scaling.std, dtype=x.dtype)
    d_sfr = LN10 * (sfr + scaling.sfr_floor) * std[0] if scaling.kind == "log" else std[0]
    inside = (logzsol > nodes[0]) & (logzsol < nodes[-1])
    slope = torch.where(inside, scaling.calc_logzsol_slope(logzsol), torch.zeros_like(sfr))
    return LinearisedHistories(
        sfr, node, (value - nodes[node]) / width, d_sfr.expand_as(sfr), slope * sfr / width
    )


def scatter_weights(at: LinearisedHistories, n_nodes: int) -> Tensor:
    """Weights [sample, bin * metallicity] (Msun/yr) of templates at `n_nodes` metallicities."""
    weights = torch.zeros(*at.sfr.shape, n_nodes, dtype=at.sfr.dtype)
    weights.scatter_(2, at.node[..., None], (at.sfr * (1 - at.share))[..., None])
    weights.scatter_add_(2, at.node[..., None] + 1, (at.sfr * at.share)[..., None])
    return weights.flatten(1)
