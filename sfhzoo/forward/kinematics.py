"""Line-spread function and stellar velocities: Gaussians in log wavelength.

    dv = c d ln λ

The templates have a resolution of their own; to bring them to the instrument's, the difference in
quadrature is applied (once, as a banded matrix: its width changes with wavelength). Where the
instrument is sharper than the templates the difference would be negative: it is cut at zero, the
model's lines are then too broad, and the caller is told how often.

The velocity dispersion is one width for the whole spectrum, so it is a product in Fourier space
with the transform of the Gaussian in closed form (Cappellari 2017, MNRAS 466, 798), right also
for widths below the sampling.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.units import FWHM_PER_SIGMA, SPEED_OF_LIGHT

_N_SIGMA = 5.0
_MIN_PADDING = 128


def calc_resolution_sigma(resolution_fwhm: ArrayLike, wave_rest: ArrayLike) -> NDArray[np.float64]:
    """Sigma [...] (km/s) of a resolution FWHM [...] (Å) at rest wavelengths [...] (Å)."""
    width = np.asarray(resolution_fwhm, dtype=np.float64) / FWHM_PER_SIGMA
    return SPEED_OF_LIGHT * width / np.asarray(wave_rest, dtype=np.float64)


def calc_lsf_difference(
    lsf_sigma: ArrayLike, template_sigma: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What turns the templates' resolution into the instrument's, both sigmas [...] in km/s.

    Returns the sigma [...] (km/s) still to apply, and where [...] it was cut at zero.
    """
    difference = np.square(np.asarray(lsf_sigma, float)) - np.square(
        np.asarray(template_sigma, float)
    )
    return np.sqrt(np.clip(difference, 0, None)), difference < 0


def calc_broadening_matrix(
    sigma: NDArray[np.float64], velocity_step: float
) -> scipy.sparse.csr_array:
    """Matrix [fine, fine] that broadens to sigma [fine] (km/s) a spectrum with this step (km/s).

    Row i is a Gaussian of the width at i, cut at 5 sigma and normalised, so a flat spectrum
    stays flat up to its ends.
    """
    width = np.asarray(sigma, dtype=np.float64) / velocity_step
    half = int(np.ceil(_N_SIGMA * width.max()))
    offset = np.arange(-half, half + 1)
    row = np.arange(len(width))[:, None]
    column = row + offset
    reach = np.abs(offset) <= _N_SIGMA * width[:, None]
    inside = (reach | (offset == 0)) & (column >= 0) & (column < len(width))
    safe = np.maximum(width, 1e-6)[:, None]
    # far below one step the sampled Gaussian is a delta, as it should be
    kernel = np.where(inside, np.exp(-0.5 * np.minimum(np.abs(offset) / safe, 30.0) ** 2), 0.0)
    kernel /= kernel.sum(axis=1, keepdims=True)
    rows = np.broadcast_to(row, column.shape)
    shape = (len(width), len(width))
    return scipy.sparse.coo_array(
        (kernel[inside], (rows[inside], column[inside])), shape=shape
    ).tocsr()


def calc_broadened(
    spectra: torch.Tensor,
    sigma_v: torch.Tensor,
    velocity: torch.Tensor,
    velocity_step: float,
) -> torch.Tensor:
    """Spectra [..., fine] seen through a Gaussian velocity distribution; differentiable in all.

    Parameters
    ----------
    spectra : [..., fine] on equal steps in ln λ
    sigma_v, velocity : [...] km/s, broadcast against the spectra; positive velocity is redward
    velocity_step : of the spectra, km/s

    The padding bridges the spectrum's two ends, so no step rings when they are joined.
    """
    n = spectra.shape[-1]
    n_padded = scipy.fft.next_fast_len(n + _MIN_PADDING, real=True)
    ramp = torch.linspace(0, 1, n_padded - n + 2, dtype=spectra.dtype, device=spectra.device)[1:-1]
    bridge = torch.lerp(spectra[..., -1:], spectra[..., :1], ramp)
    transform = torch.fft.rfft(torch.cat([spectra, bridge], dim=-1), dim=-1)
    angle = 2 * np.pi * torch.fft.rfftfreq(n_padded, dtype=spectra.dtype, device=spectra.device)
    width = (sigma_v / velocity_step).unsqueeze(-1)
    shift = (SPEED_OF_LIGHT / velocity_step * torch.log1p(velocity / SPEED_OF_LIGHT)).unsqueeze(-1)
    size, phase = torch.broadcast_tensors(torch.exp(-0.5 * (width * angle) ** 2), -shift * angle)
    return torch.fft.irfft(transform * torch.polar(size, phase), n=n_padded, dim=-1)[..., :n]
