"""Integrals over attenuated starlight: the energy dust absorbs, the flux in a filter.

    I(A_V) = ∫ r(λ) L(λ) 10^(-0.4 A_V k(λ)) dλ = Σ_node S_node 10^(-0.4 A_V k_node)

for each response r. L and r are linear between their own nodes, so two Gauss points on each piece
make the integral exact; what falls at one k is added up. The k_node are dense enough (0.01 mag per
mag of A_V) that the transmission is linear between them to 5e-4 at A_V = 6. S is linear in the
spectra, so S is computed once for all populations and I costs nothing at each A_V.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import GridError
from sfhzoo.forward.attenuation import Law, calc_attenuation
from sfhzoo.forward.csp import calc_age_weights
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins

LYMAN_LIMIT, RED_LIMIT = 912.0, 3.1e4
"""Å; dust takes little energy outside."""
SHORTEST_WAVE = 90.0
"""Å; no starlight to speak of below."""
K_STEP = 0.01
_K_SOFT = 2.0
"""Beyond it the steps in k grow with k: little light is left there."""
_GAUSS = (0.5 - 0.5 / 3**0.5, 0.5 + 0.5 / 3**0.5)


class Response(NamedTuple):
    """A response r(λ), linear between its nodes and zero outside, times λ^power."""

    wave: NDArray[np.float64]
    """[node] Å, increasing"""
    value: NDArray[np.float64]
    """[node]"""
    power: int = 0
    """0 or 1"""


def make_energy_response(grid: SSPGrid) -> Response:
    """The response of all starlight; GridError if the grid lacks what dust absorbs."""
    first, last = grid.wave[0], grid.wave[-1]
    if first > LYMAN_LIMIT or last < RED_LIMIT:
        raise GridError(
            f"grid {grid.name!r}: expected wavelengths from {LYMAN_LIMIT:.0f} to {RED_LIMIT:.0f} "
            f"Å for the energy that dust absorbs, got {first:.0f} to {last:.0f} Å; read the "
            "whole grid, or leave the dust emission out"
        )
    return Response(np.array([max(first, SHORTEST_WAVE), last]), np.ones(2))


class Integrals:
    """I(A_V) of each bin, metallicity and response, seen at one cosmic time.

    Parameters
    ----------
    grid : SSPs
    bins, cosmic_time : of the histories, and of the observation (Gyr)
    responses : in the rest frame
    law : attenuation
    scale : factor on L

    Attributes
    ----------
    templates : [bin, metallicity, node] ∫ r L dλ per Msun/yr of the light at each node
    curve : [node] A(λ)/A_V
    owner : [node, response] 1 where a node belongs to a response, else 0
    """

    def __init__(
        self,
        grid: SSPGrid,
        bins: TimeBins,
        cosmic_time: float,
        responses: Sequence[Response],
        law: Law,
        scale: float = 1.0,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        parts = [_calc_node_matrix(grid.wave, r, law) for r in responses]
        matrix = scipy.sparse.vstack([m for m, _ in parts]).tocsr()
        owner = np.zeros((matrix.shape[0], len(responses)))
        start = 0
        for i, (_, k) in enumerate(parts):
            owner[start : start + len(k), i] = 1
            start += len(k)
        templates = calc_node_templates(grid, bins, cosmic_time, matrix) * scale
        as_tensor = lambda v: torch.as_tensor(v, dtype=dtype, device=device)  # noqa: E731
        self.templates = as_tensor(templates)
        self.curve = as_tensor(np.concatenate([k for _, k in parts]))
        self.owner = as_tensor(owner)

    def at(self, a_v: torch.Tensor) -> torch.Tensor:
        """I [..., bin, metallicity, response] at A_V [...] (mag)."""
        transmitted = calc_attenuation(a_v, self.curve)[..., None, None, :]
        return (self.templates * transmitted) @ self.owner

    def __call__(self, weights: torch.Tensor, a_v: torch.Tensor) -> torch.Tensor:
        """I [..., response] of weights [..., bin * metallicity] (Msun/yr) at A_V [...] (mag)."""
        light = weights @ self.templates.flatten(0, 1)
        return (light * calc_attenuation(a_v, self.curve)) @ self.owner


def calc_node_templates(
    grid: SSPGrid, bins: TimeBins, cosmic_time: float, matrix: scipy.sparse.csr_array
) -> NDArray[np.float64]:
    """[bin, metallicity, node] of a `matrix` [node, wave] times the bins' light.

    The light is that of `calc_bin_templates`, Lsun/Å per Msun/yr; averaging over age after the
    sum over wavelength spares its 10,000 wavelengths.
    """
    weights = calc_age_weights(grid.age, bins.lookback_edges(cosmic_time))
    ssp = [(matrix @ flux.T.astype(np.float64)).T for flux in grid.flux[grid.valid]]
    return np.stack([weights @ s for s in ssp], axis=1)


def calc_response_matrix(wave: ArrayLike, responses: Sequence[Response]) -> NDArray[np.float64]:
    """[response, wave]: ∫ r f dλ of spectra f linear between `wave` [wave] (Å), without dust."""
    axis = np.asarray(wave, dtype=np.float64)
    rows = np.zeros((len(responses), len(axis)))
    for row, response in zip(rows, responses):
        point, weight = _calc_gauss_points(axis, response)
        node, share = _calc_node_share(axis, point)
        np.add.at(row, node, weight * (1 - share))
        np.add.at(row, node + 1, weight * share)
    return rows


def _calc_node_matrix(
    wave: NDArray[np.float64], response: Response, law: Law
) -> tuple[scipy.sparse.csr_array, NDArray[np.float64]]:
    """(matrix [node, wave], k [node]) of one response: its integral over spectra, sorted by k."""
    point, weight = _calc_gauss_points(wave, response)
    column, share = _calc_node_share(wave, point)
    position = _calc_k_index(law(point))
    low = np.floor(position).astype(int)
    nodes = np.arange(low.min(), low.max() + 2)
    k = _K_SOFT * np.sinh(nodes * K_STEP / _K_SOFT)
    row = low - nodes[0]
    # the transmission is taken as linear in k between the nodes, not in their index
    upper = (law(point) - k[row]) / (k[row + 1] - k[row])
    entries = [
        (row + i, column + j, weight * a * b)
        for i, a in ((0, 1 - upper), (1, upper))
        for j, b in ((0, 1 - share), (1, share))
    ]
    rows, columns, values = (np.concatenate(v) for v in zip(*entries))
    shape = (len(nodes), len(wave))
    return scipy.sparse.coo_array((values, (rows, columns)), shape=shape).tocsr(), k


def _calc_k_index(k: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(_K_SOFT * np.arcsinh(k / _K_SOFT) / K_STEP)


def _calc_gauss_points(
    wave: NDArray[np.float64], response: Response
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points [point] (Å) and weights [point] r dλ of an integral exact for linear pieces."""
    low, high = max(wave[0], response.wave[0]), min(wave[-1], response.wave[-1])
    cuts = np.union1d(wave, response.wave)
    cuts = cuts[(cuts >= low) & (cuts <= high)]
    step = np.diff(cuts)
    point = np.concatenate([cuts[:-1] + g * step for g in _GAUSS])
    value = np.interp(point, response.wave, response.value) * point**response.power
    return point, value * np.tile(0.5 * step, 2)


def _calc_node_share(
    wave: NDArray[np.float64], point: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Index of the node below each point, and the share of the node above."""
    node = np.clip(np.searchsorted(wave, point) - 1, 0, len(wave) - 2)
    return node, (point - wave[node]) / (wave[node + 1] - wave[node])
