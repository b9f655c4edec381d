"""Simulated observations: pairs (history and nuisance, features) for a posterior network.

Every object draws its own redshift, dust, kinematics, calibration error, wavelength range, and
signal-to-noise ratio with its wavelength dependence. Spectra live on the encoder's rest grid, in
the span of the SSPs, so one costs well under a millisecond.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfhzoo.forward.attenuation import calc_calzetti_curve
from sfhzoo.forward.csp import calc_age_weights, calc_metallicity_weights
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood import nuisance
from sfhzoo.samplers.encoding import (
    LOG_STEP,
    N_SEGMENTS,
    PIXEL_KMS,
    Conditions,
    Encoder,
    rest_grid,
)
from sfhzoo.timebins import TimeBins
from sfhzoo.units import SPEED_OF_LIGHT

MARGIN = 48
"""Pixels beyond the encoder's grid, so that broadening and shifts find flux there."""
N_SSP_COMPONENTS = 160
N_REDSHIFTS = 240
OBJECTS_PER_REDSHIFT = 25


@dataclass(frozen=True)
class Domain:
    """What the simulated observations span, as recorded in the artifact."""

    redshift: tuple[float, float] = (0.001, 1.2)
    survey_redshift: float = 0.35
    """most objects lie below it, seen from 3800 to 9200 Å as SDSS does"""
    survey_share: float = 0.75
    survey_wave: tuple[float, float] = (3800.0, 9200.0)
    snr: tuple[float, float] = (0.1, 200.0)
    """median per 138 km/s pixel, log-uniform on either side of `survey_snr`"""
    survey_snr: float = 2.0
    bright_share: float = 0.8
    lsf_extra: tuple[float, float] = (0.0, 250.0)
    calibration: tuple[float, float] = (0.0, 0.04)
    min_segments: int = 8


class Simulator:
    """Draws observations of given histories.

    Parameters
    ----------
    grid, bins : populations and time bins
    scaling : of the prior's x
    domain : what to draw
    """

    def __init__(
        self, grid: SSPGrid, bins: TimeBins, scaling: HistoryScaling, domain: Domain
    ) -> None:
        self.scaling, self.domain, self.bins = scaling, domain, bins
        self.nodes = torch.from_numpy(grid.logzsol[grid.valid])
        self.wave = rest_grid(MARGIN)
        self.curve = torch.from_numpy(calc_calzetti_curve(self.wave)).float()
        ssp = _rebin(grid, self.wave)
        self.basis, coefficients = _factorise(ssp)
        # equal steps in cosmic time leave few objects nearby, equal steps in redshift few far
        z = np.geomspace(domain.redshift[0] + 0.02, domain.redshift[1] + 0.02, N_REDSHIFTS) - 0.02
        self.redshifts = np.maximum(z, domain.redshift[0])
        self.times = np.array([bins.age_at(z) for z in self.redshifts])
        weights = [calc_age_weights(grid.age, bins.lookback_edges(t)) for t in self.times]
        w = torch.from_numpy(np.stack(weights)).float()
        self.templates = torch.einsum("rba,zak->rbzk", w, coefficients.float())

    def spectra(self, x: Tensor, node: Tensor, u: Tensor, lsf_extra: Tensor) -> Tensor:
        """Noiseless luminosities [object, pixel] (Lsun/Å) on the encoder's grid.

        `x` [object, 2, bin]; `node` [object] indices of `redshifts`; `u` [object, 3] nuisance.
        """
        sfr, logzsol = self.scaling.from_x(x)
        weights = calc_metallicity_weights(logzsol, self.nodes) * sfr[..., None]
        light = torch.empty(len(x), self.basis.shape[0])
        for i in node.unique():
            pick = node == i
            light[pick] = torch.einsum("obz,bzk->ok", weights[pick], self.templates[i])
        flux = light @ self.basis
        a_v, sigma_v, velocity = nuisance.to_physical(u)
        flux = flux * torch.exp(-0.4 * math.log(10) * a_v[:, None] * self.curve)
        broad = torch.sqrt(sigma_v**2 + lsf_extra**2) / PIXEL_KMS
        shift = torch.log10(1 + velocity / SPEED_OF_LIGHT) / LOG_STEP
        return _convolve(flux, broad, shift)[:, MARGIN:-MARGIN]

    def draw(
        self, x: Tensor, encoder: Encoder, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """(u [object, 3], features [object, n_features]) of one observation per history."""
        d, n = self.domain, len(x)
        uniform = lambda lo, hi: lo + (hi - lo) * torch.rand(n, generator=generator)  # noqa: E731
        survey = torch.rand(n, generator=generator) < d.survey_share
        node = self._draw_nodes(survey, generator)
        u = torch.randn(n, 3, generator=generator)
        on = torch.rand(n, generator=generator) < 0.6
        lsf_extra = torch.where(
            torch.rand(n, generator=generator) < 0.7, uniform(0.0, 60.0), uniform(*d.lsf_extra)
        )
        calibration = uniform(*d.calibration) * on
        truth = self.spectra(x, node, u, lsf_extra)
        covered = self._draw_coverage(node, survey, generator)
        truth = truth * _calibration_curve(covered, calibration, generator)
        scatter = self._draw_errors(truth, covered, generator)
        per_pixel = torch.repeat_interleave(scatter, truth.shape[1] // N_SEGMENTS, dim=1)
        observed = truth + per_pixel * torch.randn(truth.shape, generator=generator)
        weight = torch.where(covered, scatter.double() ** -2, 0.0)
        times = torch.from_numpy(self.times)[node]
        return u, encoder.encode(
            observed, weight, Conditions(times, lsf_extra, calibration), generator
        )

    def _draw_nodes(self, survey: Tensor, generator: torch.Generator) -> Tensor:
        near = int(np.searchsorted(self.redshifts, self.domain.survey_redshift))
        # neighbours share a redshift so that their spectra are one matrix product
        groups = -(-len(survey) // OBJECTS_PER_REDSHIFT)
        pick_near = torch.randint(0, near, (groups,), generator=generator)
        pick_any = torch.randint(0, N_REDSHIFTS, (groups,), generator=generator)
        group = torch.arange(len(survey)) // OBJECTS_PER_REDSHIFT
        return torch.where(survey, pick_near[group], pick_any[group])

    def _draw_coverage(self, node: Tensor, survey: Tensor, generator: torch.Generator) -> Tensor:
        """Segments with data [object, segment]: the survey's range, or any; with some holes."""
        d, n = self.domain, len(node)
        edge = torch.from_numpy(rest_grid()).view(N_SEGMENTS, -1)
        lo, hi = edge[:, 0], edge[:, -1]
        one_plus_z = 1 + torch.from_numpy(self.redshifts)[node][:, None]
        inside = (lo * one_plus_z > d.survey_wave[0]) & (hi * one_plus_z < d.survey_wave[1])
        length = torch.randint(d.min_segments, N_SEGMENTS + 1, (n,), generator=generator)
        start = (torch.rand(n, generator=generator) * (N_SEGMENTS + 1 - length)).long()
        index = torch.arange(N_SEGMENTS)
        window = (index >= start[:, None]) & (index < (start + length)[:, None])
        enough = inside.sum(1) >= d.min_segments
        covered = torch.where((survey & enough)[:, None], inside, window)
        holes = torch.rand(n, N_SEGMENTS, generator=generator) < 0.03
        some = torch.rand(n, 1, generator=generator) < 0.4
        return covered & ~(holes & some)

    def _draw_errors(self, truth: Tensor, covered: Tensor, generator: torch.Generator) -> Tensor:
        """Noise per pixel [object, segment]: a level, a tilt, a steep blue end, and scatter."""
        d, n = self.domain, len(truth)
        means = truth.view(n, N_SEGMENTS, -1).mean(2)
        typical = (means * covered).sum(1) / covered.sum(1).clamp(min=1)
        ends = torch.tensor([d.snr[0], d.survey_snr, d.snr[1]]).log()
        bright = (torch.rand(n, generator=generator) < d.bright_share).long()
        share = torch.rand(n, generator=generator)
        snr = torch.exp(torch.lerp(ends[bright], ends[bright + 1], share))
        position = torch.linspace(-1, 1, N_SEGMENTS)
        tilt = 0.5 * torch.randn(n, 1, generator=generator) * position
        first = covered.float().argmax(1, keepdim=True)
        depth = torch.rand(n, 1, generator=generator) * 1.5
        blue = depth * torch.exp(-(torch.arange(N_SEGMENTS) - first).clamp(min=0) / 5.0)
        rough = 0.15 * torch.randn(n, N_SEGMENTS, generator=generator)
        return (typical / snr)[:, None] * torch.exp(tilt + blue + rough)


def _rebin(grid: SSPGrid, wave: np.ndarray) -> Tensor:
    """SSPs [metallicity, age, pixel] as means over the pixels of a log grid."""
    edges = np.concatenate([wave * 10 ** (-0.5 * LOG_STEP), wave[-1:] * 10 ** (0.5 * LOG_STEP)])
    flux = grid.flux[grid.valid].astype(float)
    # the integral of a linear interpolation is exact at the edges with the edges as extra nodes
    nodes = np.union1d(grid.wave[(grid.wave > edges[0]) & (grid.wave < edges[-1])], edges)
    right = np.searchsorted(grid.wave, nodes).clip(1, len(grid.wave) - 1)
    share = (nodes - grid.wave[right - 1]) / (grid.wave[right] - grid.wave[right - 1])
    values = flux[..., right - 1] * (1 - share) + flux[..., right] * share
    area = 0.5 * (values[..., 1:] + values[..., :-1]) * np.diff(nodes)
    total = np.concatenate([np.zeros((*area.shape[:2], 1)), np.cumsum(area, axis=-1)], axis=-1)
    at_edges = total[..., np.searchsorted(nodes, edges)]
    return torch.from_numpy(np.diff(at_edges, axis=-1) / np.diff(edges))


def _factorise(ssp: Tensor) -> tuple[Tensor, Tensor]:
    """SSPs = coefficients @ basis.

    Shapes: basis [component, pixel], coefficients [metallicity, age, component].
    """
    flat = ssp.flatten(0, 1)
    norm = flat.norm(dim=1, keepdim=True)
    _, _, axes = torch.linalg.svd(flat / norm, full_matrices=False)
    basis = axes[:N_SSP_COMPONENTS]
    return basis.float(), (flat @ basis.T).view(*ssp.shape[:2], -1)


def _convolve(flux: Tensor, sigma: Tensor, shift: Tensor) -> Tensor:
    """Gaussian of width `sigma` [object] and displacement `shift` [object], in pixels, by FFT."""
    n = flux.shape[1]
    k = 2 * math.pi * torch.fft.rfftfreq(2 * n)
    # mirrored, so that the ends do not see each other
    even = torch.cat([flux, flux.flip(1)], dim=1)
    kernel = torch.exp(-0.5 * (sigma[:, None] * k) ** 2).to(torch.complex64)
    phase = torch.polar(torch.ones(1), -shift[:, None] * k)
    return torch.fft.irfft(torch.fft.rfft(even) * kernel * phase, n=2 * n)[:, :n]


def _calibration_curve(covered: Tensor, rms: Tensor, generator: torch.Generator) -> Tensor:
    """1 + sum of Legendre polynomials of order 1 to 8 over the covered range [object, pixel]."""
    n_pixels = len(rest_grid())
    index = torch.arange(N_SEGMENTS)
    first = torch.where(covered, index, N_SEGMENTS).amin(1).clamp(max=N_SEGMENTS - 1)
    last = torch.where(covered, index, -1).amax(1).clamp(min=0)
    per = n_pixels // N_SEGMENTS
    lo, hi = (first * per)[:, None], ((last + 1) * per)[:, None]
    t = (2 * (torch.arange(n_pixels) - lo) / (hi - lo).clamp(min=1) - 1).clamp(-1, 1)
    c = rms[:, None] * torch.randn(len(rms), 8, generator=generator)
    total, before, now = torch.ones_like(t), torch.ones_like(t), t
    for order in range(1, 9):
        total = total + c[:, order - 1, None] * now
        before, now = now, ((2 * order + 1) * t * now - order * before) / (order + 1)
    return total
