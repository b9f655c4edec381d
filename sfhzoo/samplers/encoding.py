"""What a posterior network sees of a spectrum: any observation as a vector of fixed length.

The flux is brought to a fixed rest-frame grid (138 km/s per pixel, 2400 to 9200 Å) and divided
into segments with one inverse variance each; a segment without data has none. On a basis B of
principal components of simulated spectra (its first column the mean spectrum, columns scaled to
their population spread) the coefficients follow by linear least squares with a unit prior,

    c = c0 + A^-1 B^T W (y - B c0),      A = 1 + B^T W B = 1 + sum_segment w_segment G_segment

so gaps, wavelength range and noise are accounted for before the network: it receives the
coefficients and how well each is known. G_segment is computed once. Emission lines are left out.

A network cannot resolve what a good spectrum fixes to a thousandth, and need not: noise
e ~ N(0, 1 / K²), K = MAX_SNR, is added to every coefficient, so that none is known better than to
1 / K of its spread in the population. With M = B^T W B

    c = (1 + (1 + 1/K²) M)^-1 [B^T W (y - B c0) + M e],   covariance (1 + K² A'^-1) / (K² + 1)

A' being the matrix inverted. What the noise hides is left to the exact likelihood (`fission`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.spectra.masks import calc_line_mask
from sfhzoo.units import LN10, SPEED_OF_LIGHT

WAVE_MIN, WAVE_MAX = 2400.0, 9200.0
LOG_STEP = 2e-4
N_SEGMENTS = 48
N_EXTRAS = 7
MAX_SNR = 30.0
"""Highest precision K of a coefficient that the network sees, in units of 1 / its spread."""
MAX_BEYOND = 0.05
"""Share of a segment that may lie beyond the spectrum's end and repeat its last value."""
PIXEL_KMS = LOG_STEP * LN10 * SPEED_OF_LIGHT


def rest_grid(margin: int = 0) -> NDArray[np.float64]:
    """Pixel centres, vacuum Å in the rest frame; `margin` more on each side."""
    n = round(np.log10(WAVE_MAX / WAVE_MIN) / LOG_STEP / N_SEGMENTS) * N_SEGMENTS
    return WAVE_MIN * 10.0 ** (LOG_STEP * (np.arange(-margin, n + margin) + 0.5))


def segment_of_pixel() -> NDArray[np.int64]:
    """Segment index [pixel] of the rest grid."""
    n = len(rest_grid())
    return np.arange(n) // (n // N_SEGMENTS)


@dataclass(frozen=True)
class Conditions:
    """What is known of an observation besides its flux; every field [batch].

    cosmic_time : at the observation, Gyr
    lsf_extra : broadening beyond the grid's own resolution that is not the stars', km/s
    calibration : prior rms of the calibration polynomial per order
    """

    cosmic_time: Tensor
    lsf_extra: Tensor
    calibration: Tensor


class Encoder:
    """Maps rest-frame spectra to features.

    Parameters
    ----------
    basis : B [pixel, component], 0 in masked pixels' rows
    """

    def __init__(self, basis: Tensor) -> None:
        self.basis = basis.double()

    @classmethod
    def fit(cls, spectra: Tensor, n_components: int) -> Encoder:
        """The basis of normalised, noiseless spectra [spectrum, pixel] of a population."""
        use = torch.from_numpy(calc_line_mask(rest_grid()))
        y = spectra.double() * use
        y = y / (y.sum(1) / use.sum())[:, None]
        mean = y.mean(0)
        _, scale, axes = torch.linalg.svd(y - mean, full_matrices=False)
        scaled = axes[: n_components - 1].T * scale[: n_components - 1] / len(y) ** 0.5
        return cls(torch.cat([mean[:, None], scaled], dim=1))

    @property
    def n_features(self) -> int:
        return 2 * (self.basis.shape[1] - 1) + N_EXTRAS

    @cached_property
    def grams(self) -> Tensor:
        """G [segment, component * component]: B^T B of each segment."""
        pieces = self.basis.view(N_SEGMENTS, -1, self.basis.shape[1])
        return (pieces.transpose(1, 2) @ pieces).flatten(1)

    @cached_property
    def use(self) -> Tensor:
        """1 where a pixel of the rest grid is seen, 0 on emission lines [pixel]."""
        return (self.basis[:, 0] != 0).double()

    def encode(
        self, flux: Tensor, weight: Tensor, conditions: Conditions, generator: torch.Generator
    ) -> Tensor:
        """Features [batch, n_features], float32, of spectra on the rest grid.

        Parameters
        ----------
        flux : luminosity density on the rest grid [batch, pixel], Lsun/Å; any value without data
        weight : inverse variance of its pixels per segment [batch, segment]; 0 without data
        conditions : of the observations
        generator : for the noise that limits the precision
        """
        y, w = flux.double(), weight.double()
        w_pixel = torch.repeat_interleave(w, y.shape[1] // N_SEGMENTS, dim=1) * self.use
        level = calc_level(y, w_pixel)
        y, w_pixel, w = y / level[:, None], w_pixel * level[:, None] ** 2, w * level[:, None] ** 2
        k = self.basis.shape[1]
        information = (w @ self.grams).view(-1, k, k)
        right = (w_pixel * (y - self.basis[:, 0])) @ self.basis
        noise = torch.randn(right.shape, generator=generator, dtype=torch.float64) / MAX_SNR
        right = right + (information @ noise[..., None])[..., 0]
        n_good = (w_pixel > 0).sum(1).clamp(min=1)
        snr = (w_pixel.sum(1) / n_good).sqrt()
        coverage = (w > 0).double().mean(1)
        return self.features(information, right, level, snr, coverage, conditions)

    def features(
        self,
        information: Tensor,
        right: Tensor,
        level: Tensor,
        snr: Tensor,
        coverage: Tensor,
        conditions: Conditions,
    ) -> Tensor:
        """Features [batch, n_features], float32; every argument but `right` may have batch 1.

        Parameters
        ----------
        information : M = B^T W B [batch, component, component] of spectra divided by `level`
        right : B^T W (y - B c0) + M e [batch, component]
        level : normalisation [batch], Lsun/Å
        snr : rms signal-to-noise ratio per rest-grid pixel [batch]
        coverage : share of segments with data [batch]
        conditions : of the observations
        """
        k, cap = self.basis.shape[1], MAX_SNR**2
        eye = torch.eye(k, dtype=torch.float64)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(eye + (1 + 1 / cap) * information))
        c = (inverse @ right[..., None])[..., 0]
        amplitude = (1 + c[:, 0]).clamp(min=0.05)
        variance = (1 + cap * inverse.diagonal(dim1=1, dim2=2)) / (cap + 1)
        spread = variance.clamp(min=1e-14).sqrt()
        extras = [
            (level * amplitude).log10() - 6.0,
            snr.clamp(min=1e-3).log10() - 1.3,
            coverage * 2 - 1,
            spread[:, 0].log10(),
            (conditions.cosmic_time - 12.0) / 2.0,
            conditions.lsf_extra / 100.0,
            conditions.calibration * 30.0,
        ]
        features = [
            c[:, 1:] / amplitude[:, None],
            spread[:, 1:].log().expand(len(c), -1),
            torch.stack([e.expand(len(c)) for e in extras], 1),
        ]
        return torch.cat(features, dim=1).float()

    def at(self, wave_rest: NDArray[np.float64]) -> tuple[Tensor, float]:
        """(B [wave, component] at rest wavelengths in vacuum Å, mean offset in km/s).

        A pixel takes the row of the rest pixel it falls into, so that finer pixels are averaged
        as in training; interpolation would make their lines look narrower than B's. Where the
        pixels fall off-centre by an offset, the spectrum seen is at a velocity lower by it.
        0 outside the grid and on lines.
        """
        position = np.log10(wave_rest / WAVE_MIN) / LOG_STEP - 0.5
        index = np.round(position).astype(int)
        inside = (index >= 0) & (index < len(self.basis))
        rows = self.basis[np.clip(index, 0, len(self.basis) - 1)]
        offset = float((position - index)[inside].mean()) * PIXEL_KMS if inside.any() else 0.0
        return torch.where(torch.from_numpy(inside)[:, None], rows, 0.0), offset

    def to_weights(self) -> dict[str, Tensor]:
        """For safetensors; float32 is enough for the network's input."""
        return {"encoder.basis": self.basis.float()}

    @classmethod
    def from_weights(cls, weights: dict[str, Any]) -> Encoder:
        """The inverse of `to_weights`."""
        return cls(weights["encoder.basis"])


def calc_level(flux: Tensor, weight: Tensor) -> Tensor:
    """Mean [batch] of noisy spectra [batch, pixel] where their inverse variance is positive.

    The mean of a noisy spectrum can be near zero or below; its scatter bounds it.
    """
    good = weight > 0
    n_good = good.sum(1).clamp(min=1)
    mean = (flux * good).sum(1) / n_good
    scatter = (good / weight.clamp(min=1e-300)).sum(1).sqrt() / n_good
    return torch.maximum(mean, scatter)


def count_segments(wave_rest: NDArray[np.float64], ivar: NDArray[np.float64]) -> int:
    """How many segments of the rest grid pixels at these wavelengths (vacuum Å) fill."""
    return int((to_rest_grid(wave_rest, np.ones_like(ivar), ivar)[1] > 0).sum())


def to_rest_grid(
    wave_rest: NDArray[np.float64],
    flux: NDArray[np.float64],
    ivar: NDArray[np.float64],
) -> tuple[Tensor, Tensor]:
    """(flux [1, pixel], weight [1, segment]) of an observation at rest wavelengths (vacuum Å).

    `flux` and `ivar` in any unit; ivar 0 marks pixels not to be used. Observed pixels are averaged
    into those of the rest grid. Holes inside a segment that is at least half covered are bridged;
    a segment that the spectrum's end cuts is left out, as there is nothing beyond to bridge to.
    """
    grid, segment = rest_grid(), segment_of_pixel()
    index = np.round(np.log10(wave_rest / WAVE_MIN) / LOG_STEP - 0.5).astype(int)
    inside = (index >= 0) & (index < len(grid)) & (ivar > 0)
    index, f, w = index[inside], flux[inside], ivar[inside]
    total = np.bincount(index, w, len(grid))
    # coarse pixels leave rest pixels empty: information is spread by the bridging below
    y = np.bincount(index, w * f, len(grid)) / np.where(total > 0, total, 1)
    lines = ~calc_line_mask(grid)
    have = (total > 0) & ~lines
    need = np.maximum(np.bincount(segment, ~lines, N_SEGMENTS), 1)
    count = np.bincount(segment, have, N_SEGMENTS)
    spacing = np.median(np.diff(np.log10(np.sort(wave_rest)))) / LOG_STEP
    covered = count * max(1.0, spacing) >= 0.5 * need
    if not have.any():
        return torch.zeros(1, len(grid)), torch.zeros(1, N_SEGMENTS)
    pixel, known = np.arange(len(grid)), np.flatnonzero(have)
    beyond = ~lines & ((pixel < known[0]) | (pixel > known[-1]))
    covered &= np.bincount(segment, beyond, N_SEGMENTS) <= MAX_BEYOND * need
    y = np.interp(pixel, known, y[have])
    weight = np.where(covered, np.bincount(segment, total * have, N_SEGMENTS) / need, 0.0)
    return torch.from_numpy(y)[None], torch.from_numpy(weight)[None]
