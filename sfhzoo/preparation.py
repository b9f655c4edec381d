"""Data made ready to fit: masks, forward model and problem of a spectrum, photometry or both."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from sfhzoo.engines import Observation
from sfhzoo.errors import DataError
from sfhzoo.forward.bands import BandModel
from sfhzoo.forward.kinematics import calc_resolution_sigma
from sfhzoo.forward.model import COARSE_FWHM, ForwardModel, is_coarse
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.likelihood.calibration import choose_order
from sfhzoo.likelihood.options import Free, Options
from sfhzoo.likelihood.problem import Bands, Problem
from sfhzoo.posterior import Observed
from sfhzoo.priors.prior import Prior
from sfhzoo.spectra.masks import build_mask
from sfhzoo.spectra.photometry import Photometry
from sfhzoo.spectra.spectrum import Spectrum

MIN_PIXELS = 50
N_DRAWN = 2000
"""Pixels of the spectrum that is drawn under photometry alone."""
LYMAN_ALPHA = 1216.0
"""Å; absorption between the galaxies begins below, at rest"""


@dataclass(frozen=True)
class Setup:
    """An observation ready to fit.

    observation : its problem, and what a posterior network must know besides
    full : forward model on all the pixels that the grid covers
    inside : [wave] bool, those pixels
    observed : the data, on all pixels
    warnings : what the user should know, one line each
    """

    observation: Observation
    full: ForwardModel
    inside: NDArray[np.bool_]
    observed: Observed
    warnings: tuple[str, ...]

    @property
    def problem(self) -> Problem:
        """What the samplers get."""
        return self.observation.problem


def prepare_spectrum(
    spectrum: Spectrum, prior: Prior, grid: SSPGrid, options: Options, allow_no_data: bool
) -> Setup:
    """Mask, forward model and problem of one spectrum with a redshift.

    Raises DataError where too few pixels are left.
    """
    bins = prior.bins
    redshift = float(spectrum.redshift or 0.0)
    mask, reasons = build_mask(
        spectrum, redshift, options.lines, options.exclude, options.wave_range
    )
    rest = spectrum.wave_obs / (1 + redshift)
    fwhm = np.interp(rest, grid.wave, grid.resolution_fwhm)
    outside = (rest < grid.wave[1]) | (rest > grid.wave[-2])
    outside |= is_coarse(fwhm, rest, spectrum.lsf_sigma)
    reasons = {**reasons, "outside the grid": outside}
    used, ivar = mask & ~outside, spectrum.ivar
    if allow_no_data and not used.any() and not outside.all():
        used, ivar = ~outside, np.zeros_like(ivar)
    elif not mask.any():
        counts = ", ".join(f"{name} {out.sum()}" for name, out in reasons.items() if out.any())
        raise DataError(f"no pixel of {mask.size} is left to fit; taken out by: {counts}")
    elif used.sum() < MIN_PIXELS:
        low, high = rest[[0, -1]]
        raise DataError(
            f"{used.sum()} usable pixels between {low:.0f} and {high:.0f} Å at rest, expected at "
            f"least {MIN_PIXELS}; check redshift, units and mask (the grid {grid.name} resolves "
            f"lines from {grid.wave[1]:.0f} to {grid.wave[_fwhm_limit(grid)]:.0f} Å)"
        )
    lsf = spectrum.lsf_sigma
    inside = ~outside
    full = ForwardModel(
        grid, spectrum.wave_obs[inside], redshift, bins=bins,
        lsf_sigma=None if lsf is None else lsf[inside],
    )  # fmt: skip
    model = ForwardModel(
        grid, spectrum.wave_obs[used], redshift, bins=bins,
        lsf_sigma=None if lsf is None else lsf[used],
    )  # fmt: skip
    warnings = []
    if lsf is None:
        warnings.append(
            "the line-spread function is unknown: no broadening beyond the grid's own is assumed "
            "and sigma_v includes the instrument's (give --lsf R=2000 or FWHM=2.5A)"
        )
    elif model.lsf_clipped_fraction > 0.5:
        warnings.append(
            f"the instrument is sharper than the grid in {model.lsf_clipped_fraction:.0%} of the "
            "pixels: sigma_v is a lower limit there"
        )
    problem = Problem(
        model=model,
        flux=torch.from_numpy(np.where(ivar > 0, spectrum.flux, 0.0)[used]),
        ivar=torch.from_numpy(ivar[used]),
        scaling=prior.scaling,
        a_v=_fixed(options.a_v),
        sigma_v=_fixed(options.sigma_v),
        velocity=None if options.redshift_offset == "free" else 0.0,
        fit_error_scale=options.jitter == "free" and bool((ivar[used] > 0).any()),
        calibration_order=_calibration_order(options, model.wave_obs),
        calibration_rms=options.calibration_rms,
    )
    factor = calc_flux_factor(
        redshift, bins.luminosity_distance_cm(redshift), grid.solar_luminosity
    )
    extra = _calc_lsf_extra(lsf, used, fwhm, rest)
    observed = Observed(spectrum.wave_obs, spectrum.flux, spectrum.ivar, used, reasons)
    return Setup(Observation(problem, extra, 1 / factor), full, inside, observed, tuple(warnings))


def prepare_bands(
    photometry: Photometry, redshift: float, prior: Prior, grid: SSPGrid, options: Options
) -> Setup:
    """Forward models and problem of photometry alone.

    Its problem has a few pixels without data. Raises DataError for a band outside the grid.
    """
    stretch, bins = 1 + redshift, prior.bins
    bands = make_bands(photometry, redshift, prior, grid)
    ends = np.array([f.wave[i] for f in bands.model.filters for i in (0, -1)])
    low = max(0.95 * ends.min(), 1.01 * grid.wave[1] * stretch)
    high = min(1.05 * ends.max(), 0.99 * grid.wave[-2] * stretch)
    wave = np.geomspace(low, high, N_DRAWN)
    model = ForwardModel(grid, stretch * np.linspace(5400.0, 5600.0, 20), redshift, bins=bins)
    none = torch.zeros(len(model.wave_obs), dtype=torch.float64)
    problem = Problem(
        model=model,
        flux=none,
        ivar=none,
        scaling=prior.scaling,
        a_v=_fixed(options.a_v),
        sigma_v=_fixed(options.sigma_v),
        velocity=None if options.redshift_offset == "free" else 0.0,
        fit_error_scale=False,
        bands=bands,
    )
    inside, nothing = np.ones(N_DRAWN, bool), np.zeros(N_DRAWN)
    observed = Observed(wave, np.full(N_DRAWN, np.nan), nothing, ~inside)
    warning = "without a spectrum sigma_v and velocity_offset are the prior's"
    return Setup(
        Observation(problem, 0.0, 1.0), ForwardModel(grid, wave, redshift, bins=bins), inside,
        observed, (warning, *_warn_of_bands(bands)),
    )  # fmt: skip


def with_bands(setup: Setup, photometry: Photometry, prior: Prior, grid: SSPGrid) -> Setup:
    """A spectrum's setup with photometry as further data.

    Raises DataError for a band outside the grid.
    """
    bands = make_bands(photometry, setup.problem.model.redshift, prior, grid)
    observation = replace(setup.observation, problem=replace(setup.problem, bands=bands))
    warnings = (*setup.warnings, *_warn_of_bands(bands))
    return replace(setup, observation=observation, warnings=warnings)


def make_bands(photometry: Photometry, redshift: float, prior: Prior, grid: SSPGrid) -> Bands:
    """The bands in use and their model; DataError for one outside the grid."""
    use = np.flatnonzero(photometry.mask)
    model = BandModel(grid, [photometry.filters[i] for i in use], redshift, bins=prior.bins)
    return Bands(
        model, torch.from_numpy(photometry.maggies[use]), torch.from_numpy(photometry.error[use])
    )


def _warn_of_bands(bands: Bands) -> list[str]:
    limit = LYMAN_ALPHA * (1 + bands.model.redshift)
    names = [f.name for f in bands.model.filters if f.wave_pivot < limit]
    if not names:
        return []
    return [
        f"absorption by gas below {LYMAN_ALPHA:.0f} Å at rest is not modelled: consider leaving "
        f"out {', '.join(names)}"
    ]


def _fixed(value: Free) -> float | None:
    return None if value == "free" else float(value)


def _calibration_order(options: Options, wave: NDArray[np.float64]) -> int:
    order = options.calibration_order
    return choose_order(wave) if order == "auto" else order


def _fwhm_limit(grid: SSPGrid) -> int:
    """Index of the reddest wavelength at which the grid resolves lines."""
    fine = np.flatnonzero(grid.resolution_fwhm < COARSE_FWHM)
    return int(fine[-1])


def _calc_lsf_extra(
    lsf: NDArray[np.float64] | None,
    used: NDArray[np.bool_],
    fwhm: NDArray[np.float64],
    rest: NDArray[np.float64],
) -> float:
    """Typical broadening (km/s) of the instrument beyond the grid's own resolution."""
    if lsf is None:
        return 0.0
    grid_sigma = calc_resolution_sigma(fwhm[used], rest[used])
    return float(np.sqrt(np.median(np.clip(lsf[used] ** 2 - grid_sigma**2, 0, None))))
