"""From a fine spectrum to pixels: the mean flux density between the pixel's edges.

    flux_pixel = ∫ f dλ / (λ_high - λ_low)

The integral over a spectrum that is linear between its nodes is a sparse matrix, so that flux is
conserved to rounding; sampling at the pixel centre would not be.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

_GAP = 1.5
"""A step this many times that on the pixel's other side is a gap, not a wider pixel."""


def calc_pixel_edges(wave: ArrayLike) -> NDArray[np.float64]:
    """Edges [wave, 2] (Å) of pixels with these centres [wave] (Å): midway to the neighbours.

    The end pixels are symmetric, and so are pixels beside a gap.
    """
    centre = np.asarray(wave, dtype=np.float64)
    step = np.diff(centre)
    left, right = np.insert(step, 0, step[0]), np.append(step, step[-1])
    low = np.where(left > _GAP * right, right, left)
    high = np.where(right > _GAP * left, left, right)
    return np.stack([centre - 0.5 * low, centre + 0.5 * high], axis=-1)


def calc_pixel_matrix(
    wave_fine: NDArray[np.float64], edges: NDArray[np.float64]
) -> scipy.sparse.csr_array:
    """Matrix [wave, fine]: mean of a spectrum on `wave_fine` [fine] between `edges` [wave, 2], Å.

    Exact for spectra linear between the nodes, which must enclose the edges.
    """
    low, high = edges[:, 0], edges[:, 1]
    cuts = np.union1d(wave_fine, edges.ravel())
    start, stop = cuts[:-1], cuts[1:]
    middle = 0.5 * (start + stop)
    pixel = np.searchsorted(low, middle, side="right") - 1
    keep = (pixel >= 0) & (middle < high[np.maximum(pixel, 0)])
    start, stop, middle, pixel = start[keep], stop[keep], middle[keep], pixel[keep]
    node = np.searchsorted(wave_fine, middle) - 1
    share = (middle - wave_fine[node]) / (wave_fine[node + 1] - wave_fine[node])
    weight = (stop - start) / (high - low)[pixel]
    return scipy.sparse.coo_array(
        (
            np.concatenate([weight * (1 - share), weight * share]),
            (np.concatenate([pixel, pixel]), np.concatenate([node, node + 1])),
        ),
        shape=(len(edges), len(wave_fine)),
    ).tocsr()
