"""The forward model: (SFR, metallicity, A_V, sigma_v) -> spectrum on the observed pixels.

    flux = Σ_bin SFR_bin Σ_k w_k(logzsol_bin) [P V(sigma_v, velocity) D(A_V) T_{bin,k}
                                               + P E absorbed_{bin,k}(A_V)]

T are the bins' templates in the observed frame at the instrument's resolution, w the metallicity
weights, D the dust, V the stellar velocities, P the pixels, E the dust's own light (beyond 1 µm).
T is made once per observation; all that follows is differentiable in every argument, and linear in
T. The dust's light is not broadened: its templates are ten times coarser than any velocity.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import DataError
from sfhzoo.forward.attenuation import Calzetti, Law, calc_attenuation
from sfhzoo.forward.csp import Interpolation, calc_bin_templates, calc_metallicity_weights
from sfhzoo.forward.dust_emission import SHORTEST, DustEmission
from sfhzoo.forward.integrals import Integrals, make_energy_response
from sfhzoo.forward.kinematics import (
    calc_broadened,
    calc_broadening_matrix,
    calc_lsf_difference,
    calc_resolution_sigma,
)
from sfhzoo.forward.pixels import calc_pixel_edges, calc_pixel_matrix
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import Cosmology, TimeBins
from sfhzoo.units import LN10, SPEED_OF_LIGHT

VELOCITY_STEP = 5e-5 * LN10 * SPEED_OF_LIGHT
"""km/s (34.5): half an SDSS pixel, and finer than the sampling of MILES."""

MAX_SIGMA_V = 500.0
COARSE_FWHM = 10.0
"""Å; a grid this coarse carries no stellar lines."""

Number = float | torch.Tensor


class ForwardModel:
    """The spectrum of a star formation and metallicity history, as one instrument sees it.

    Parameters
    ----------
    grid : SSPs
    wave_obs : [wave] pixel centres, vacuum Å, increasing; leave masked pixels in
    redshift : > 0
    lsf_sigma : [wave] or one number, the instrument's LSF sigma in km/s; None keeps the
        resolution of the grid
    bins : the history's bins; their cosmology also gives age and distance
    cosmology : for `bins=None` only (default Planck15)
    interpolation : flux linear in "log" Z or in "linear" Z
    velocity_step : of the fine grid, km/s
    law : attenuation (default Calzetti)
    dust_emission : shape of the dust's own light, or None; it costs nothing below 1 µm

    Attributes
    ----------
    templates : [bin, metallicity, fine] erg/s/cm²/Å per Msun/yr, without dust and velocities
    wave_fine : [fine] observed vacuum Å, equal steps in ln λ
    curve : [fine] A(λ)/A_V at the rest wavelength
    emission : [wave] E of the dust's own light on the pixels, 1/Å at rest; None where no pixel
        sees it
    nodes : [metallicity] logzsol of the usable nodes
    cosmic_time : age of the universe at the redshift, Gyr
    covered : [wave] bool, pixels inside the grid's wavelength range
    coarse : [wave] bool, covered pixels where the grid is too coarse (`is_coarse`)
    lsf_clipped_fraction : fraction of the covered, not coarse pixels at which the instrument is
        sharper than the grid

    Raises DataError for pixels, LSF or redshift that cannot be used.
    """

    def __init__(
        self,
        grid: SSPGrid,
        wave_obs: ArrayLike,
        redshift: float,
        *,
        lsf_sigma: ArrayLike | None = None,
        bins: TimeBins | None = None,
        cosmology: str | Cosmology | None = None,
        interpolation: Interpolation = "log",
        velocity_step: float = VELOCITY_STEP,
        law: Law | None = None,
        dust_emission: DustEmission | None = DustEmission(),  # noqa: B008  # frozen
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if bins is not None and cosmology is not None and bins.cosmology != cosmology:
            raise ValueError(
                f"expected one cosmology, got {bins.cosmology} in `bins` and {cosmology}; "
                "give it to TimeBins only"
            )
        self.bins = bins or TimeBins("Planck15" if cosmology is None else cosmology)
        self.wave_obs = _check_wave(wave_obs)
        self.redshift = float(redshift)
        self.interpolation = interpolation
        self.velocity_step = velocity_step
        self.law = law or Calzetti()
        self.device, self.dtype = torch.device(device), dtype
        factor = self._calc_flux_factor(grid)
        self.cosmic_time = self.bins.age_at(self.redshift)
        lsf = None if lsf_sigma is None else _check_lsf(lsf_sigma, self.wave_obs)

        edges = calc_pixel_edges(self.wave_obs)
        wave_fine = _calc_wave_fine(edges, lsf, velocity_step)
        rest = wave_fine / (1 + self.redshift)
        self._set_coverage(grid, edges, lsf)
        pixels = calc_pixel_matrix(wave_fine, edges)
        self._set_emission(grid, dust_emission, rest, pixels, factor)
        grid = _cut(grid, rest)
        operator = _calc_template_operator(grid, rest, self.wave_obs, lsf, velocity_step, redshift)
        templates = calc_bin_templates(grid, self.bins, self.cosmic_time) * factor
        fine = (operator @ templates.reshape(-1, len(grid.wave)).T).T

        self.templates = self._tensor(fine.reshape(*templates.shape[:2], -1))
        self.wave_fine = wave_fine
        self.curve = self._tensor(self.law(rest))
        self.nodes = self._tensor(grid.logzsol[grid.valid])
        self._pixels = self._sparse(pixels)

    def _calc_flux_factor(self, grid: SSPGrid) -> float:
        # astropy has its own error for redshifts below -1, and a distance of 0 at 0
        distance = self.bins.luminosity_distance_cm(self.redshift) if self.redshift > 0 else 0.0
        return calc_flux_factor(self.redshift, distance, grid.solar_luminosity)

    def _set_coverage(
        self, grid: SSPGrid, edges: NDArray[np.float64], lsf: NDArray[np.float64] | None
    ) -> None:
        rest = self.wave_obs / (1 + self.redshift)
        low, high = (edges / (1 + self.redshift)).T
        self.covered = (low >= grid.wave[0]) & (high <= grid.wave[-1])
        fwhm = np.interp(rest, grid.wave, grid.resolution_fwhm)
        self.coarse = self.covered & is_coarse(fwhm, rest, lsf)
        use = self.covered & ~self.coarse
        self.lsf_clipped_fraction = 0.0
        if lsf is not None and use.any():
            _, clipped = calc_lsf_difference(lsf, calc_resolution_sigma(fwhm, rest))
            self.lsf_clipped_fraction = float(clipped[use].mean())

    def _set_emission(
        self,
        grid: SSPGrid,
        dust_emission: DustEmission | None,
        rest: NDArray[np.float64],
        pixels: scipy.sparse.csr_array,
        factor: float,
    ) -> None:
        self.emission: torch.Tensor | None = None
        if dust_emission is None or self.wave_obs[-1] / (1 + self.redshift) <= SHORTEST:
            return
        self.emission = self._tensor(pixels @ dust_emission(rest))
        self._starlight = Integrals(
            grid, self.bins, self.cosmic_time, [make_energy_response(grid)], self.law, factor,
            self.device, self.dtype,
        )  # fmt: skip

    def _tensor(self, values: ArrayLike | torch.Tensor) -> torch.Tensor:
        if isinstance(values, torch.Tensor):
            return values.to(self.device, self.dtype)
        return torch.as_tensor(np.asarray(values), dtype=self.dtype, device=self.device)

    def _sparse(self, matrix: scipy.sparse.csr_array) -> torch.Tensor:
        coo = matrix.tocoo()
        index = torch.as_tensor(np.stack([coo.row, coo.col]).astype(np.int64))
        values = torch.as_tensor(coo.data, dtype=self.dtype)
        # the coordinates come from a matrix that has already been checked and summed
        sparse = torch.sparse_coo_tensor(
            index, values, size=coo.shape, check_invariants=False, is_coalesced=True
        )
        return sparse.to(self.device)

    def observe(
        self, spectra: torch.Tensor, a_v: Number, sigma_v: Number, velocity: Number = 0.0
    ) -> torch.Tensor:
        """Attenuation, stellar velocities and pixels: spectra [..., fine] -> [..., wave].

        `a_v` (mag), `sigma_v` and `velocity` (km/s) are numbers or tensors [...] that broadcast
        against the spectra's leading axes. Linear in the spectra.
        """
        a_v, sigma_v, velocity = (self._tensor(v) for v in (a_v, sigma_v, velocity))
        attenuated = spectra * calc_attenuation(a_v, self.curve)
        seen = calc_broadened(attenuated, sigma_v, velocity, self.velocity_step)
        flat = seen.reshape(-1, seen.shape[-1])
        pixels = torch.sparse.mm(self._pixels, flat.T).T
        return pixels.reshape(*seen.shape[:-1], -1)

    def at(self, a_v: Number, sigma_v: Number, velocity: Number = 0.0) -> torch.Tensor:
        """Templates on the pixels [..., bin, metallicity, wave] for numbers or tensors [...].

        erg/s/cm²/Å per Msun/yr; feed them to `calc_spectrum`.
        """
        values = [self._tensor(v)[..., None, None] for v in (a_v, sigma_v, velocity)]
        seen = self.observe(self.templates, *values)
        if self.emission is None:
            return seen
        return seen + self.calc_absorbed(a_v).unsqueeze(-1) * self.emission

    def calc_absorbed(self, a_v: Number) -> torch.Tensor:
        """Flux that dust takes from each template [..., bin, metallicity] at A_V [...] (mag).

        Over all wavelengths, erg/s/cm²/Å * Å (at rest) per Msun/yr; times `emission` it is the
        dust's own light.
        Raises ValueError for a model without `emission`.
        """
        if self.emission is None:
            raise ValueError("expected a model that sees dust emission (rest pixels beyond 1 µm)")
        a_v = self._tensor(a_v)
        return (self._starlight.at(torch.zeros_like(a_v)) - self._starlight.at(a_v))[..., 0]

    def __call__(
        self,
        sfr: torch.Tensor,
        logzsol: torch.Tensor,
        a_v: Number,
        sigma_v: Number,
        velocity: Number = 0.0,
    ) -> torch.Tensor:
        """Flux [..., wave], erg/s/cm²/Å.

        Parameters
        ----------
        sfr, logzsol : [..., bin] Msun/yr and log10(Z/Z_sun)
        a_v : [...] mag
        sigma_v, velocity : [...] km/s
        """
        sfr, logzsol = self._tensor(sfr), self._tensor(logzsol)
        weights = _calc_weights(sfr, logzsol, self.nodes, self.interpolation)
        seen = self.observe(weights @ self.templates.flatten(0, 1), a_v, sigma_v, velocity)
        if self.emission is None:
            return seen
        a_v = self._tensor(a_v)
        whole, rest = (self._starlight(weights, a) for a in (torch.zeros_like(a_v), a_v))
        return seen + (whole - rest) * self.emission


def is_coarse(
    fwhm: NDArray[np.float64], wave_rest: NDArray[np.float64], lsf_sigma: ArrayLike | None
) -> NDArray[np.bool_]:
    """Where [wave] a grid's resolution `fwhm` (Å) of 10 Å or more is wider than the instrument's.

    There the data have lines and the grid has none. `lsf_sigma` [wave] is in km/s; None: unknown.
    """
    sigma = np.asarray(0.0 if lsf_sigma is None else lsf_sigma)
    sharp = sigma < calc_resolution_sigma(fwhm, wave_rest)
    return np.asarray((fwhm >= COARSE_FWHM) & sharp)


def calc_spectrum(
    sfr: torch.Tensor,
    logzsol: torch.Tensor,
    templates: torch.Tensor,
    nodes: torch.Tensor,
    interpolation: Interpolation = "log",
) -> torch.Tensor:
    """Flux [..., wave] of histories [..., bin] for fixed templates [bin, metallicity, wave].

    `sfr` in Msun/yr, `logzsol` in log10(Z/Z_sun), `nodes` [metallicity] the templates'; the flux
    has the templates' unit times Msun/yr. One matrix product for all histories.
    """
    return _calc_weights(sfr, logzsol, nodes, interpolation) @ templates.flatten(0, 1)


def _calc_weights(
    sfr: torch.Tensor, logzsol: torch.Tensor, nodes: torch.Tensor, interpolation: Interpolation
) -> torch.Tensor:
    """SFR [..., bin * metallicity] of each template."""
    mix = calc_metallicity_weights(logzsol, nodes, interpolation)
    return (sfr.unsqueeze(-1) * mix).flatten(-2)


def _check_wave(wave_obs: ArrayLike) -> NDArray[np.float64]:
    wave = np.asarray(wave_obs, dtype=np.float64)
    if wave.ndim != 1 or len(wave) < 2 or not np.all(np.isfinite(wave)):
        raise DataError(
            f"expected at least two finite wavelengths, got an array of shape {wave.shape} with "
            f"{int(np.sum(~np.isfinite(wave)))} not finite; check the wavelength column"
        )
    if wave[0] <= 0 or not np.all(np.diff(wave) > 0):
        raise DataError(
            "expected positive, increasing wavelengths, got some that are not; sort the "
            "spectrum and drop duplicates"
        )
    return wave


def _check_lsf(lsf_sigma: ArrayLike, wave_obs: NDArray[np.float64]) -> NDArray[np.float64]:
    lsf = np.asarray(lsf_sigma, dtype=np.float64)
    if lsf.shape not in ((), wave_obs.shape) or not np.all(np.isfinite(lsf)) or np.any(lsf < 0):
        raise DataError(
            f"expected a finite LSF sigma >= 0 (km/s) for each of {len(wave_obs)} pixels or for "
            f"all, got shape {lsf.shape}, lowest {np.min(lsf)}; check the LSF column"
        )
    return np.broadcast_to(lsf, wave_obs.shape)


def _calc_wave_fine(
    edges: NDArray[np.float64], lsf: NDArray[np.float64] | None, velocity_step: float
) -> NDArray[np.float64]:
    """Observed wavelengths [fine] (Å) that hold the pixels and the wings of their lines."""
    widest = MAX_SIGMA_V if lsf is None else np.hypot(MAX_SIGMA_V, lsf.max())
    margin = 5 * widest / SPEED_OF_LIGHT
    step = velocity_step / SPEED_OF_LIGHT
    start, stop = np.log(edges[0, 0]) - margin, np.log(edges[-1, 1]) + margin
    return np.exp(start + step * np.arange(int(np.ceil((stop - start) / step)) + 1))


def _cut(grid: SSPGrid, rest: NDArray[np.float64]) -> SSPGrid:
    """The part of the grid that covers `rest` (Å), without copying."""
    start = max(int(np.searchsorted(grid.wave, rest[0])) - 1, 0)
    stop = min(int(np.searchsorted(grid.wave, rest[-1])) + 1, len(grid.wave))
    if stop - start < 2:
        raise DataError(
            f"expected rest wavelengths within the grid's {grid.wave[0]:.0f} to "
            f"{grid.wave[-1]:.0f} Å, got {rest[0]:.0f} to {rest[-1]:.0f} Å; check wavelength "
            "units and redshift"
        )
    keep = slice(start, stop)
    return SSPGrid(
        grid.name,
        grid.logzsol,
        grid.age,
        grid.wave[keep],
        grid.flux[:, :, keep],
        grid.surviving_mass_fraction,
        grid.resolution_fwhm[keep],
        grid.valid,
        grid.attributes,
        grid.sha256,
    )


def _calc_template_operator(
    grid: SSPGrid,
    rest: NDArray[np.float64],
    wave_obs: NDArray[np.float64],
    lsf: NDArray[np.float64] | None,
    velocity_step: float,
    redshift: float,
) -> scipy.sparse.csr_array:
    """Matrix [fine, grid wave]: the grid on the fine wavelengths at the instrument's LSF."""
    node = np.clip(np.searchsorted(grid.wave, rest) - 1, 0, len(grid.wave) - 2)
    share = np.clip((rest - grid.wave[node]) / (grid.wave[node + 1] - grid.wave[node]), 0, 1)
    row = np.arange(len(rest))
    resample = scipy.sparse.coo_array(
        (
            np.concatenate([1 - share, share]),
            (np.concatenate([row, row]), np.concatenate([node, node + 1])),
        ),
        shape=(len(rest), len(grid.wave)),
    ).tocsr()
    if lsf is None:
        return resample
    fwhm = np.interp(rest, grid.wave, grid.resolution_fwhm)
    lsf_fine = np.interp(rest * (1 + redshift), wave_obs, lsf)
    sigma, _ = calc_lsf_difference(lsf_fine, calc_resolution_sigma(fwhm, rest))
    return calc_broadening_matrix(sigma, velocity_step) @ resample
