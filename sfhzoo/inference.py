"""`sfhzoo.infer`: from a spectrum and the names of a prior and a grid to a Posterior.

The one place that wires artifacts, masks, forward model and sampler together.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfhzoo import __version__
from sfhzoo.diagnostics.predictive import calc_predictive_check
from sfhzoo.engines import Observation, SamplerName, choose_engine
from sfhzoo.errors import DataError, UsageError
from sfhzoo.forward.csp import calc_metallicity_weights, calc_surviving_fraction
from sfhzoo.forward.kinematics import calc_resolution_sigma
from sfhzoo.forward.model import COARSE_FWHM, ForwardModel, is_coarse
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import calc_mass_formed_per_bin
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import calc_calibration_rows, choose_order
from sfhzoo.likelihood.options import Options
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.posterior import Observed, Parameter, Posterior
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.posterior_network import PosteriorNetwork
from sfhzoo.spectra.masks import build_mask
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.timebins import TimeBins
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, load_grid, load_prior

MIN_PIXELS = 50


def infer(
    spectrum: Spectrum,
    prior: str | Path | Prior = DEFAULT_PRIOR,
    grid: str | Path | SSPGrid = DEFAULT_GRID,
    *,
    redshift: float | None = None,
    samples: int = 100,
    sampler: SamplerName = "auto",
    network: str | Path | PosteriorNetwork | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    allow_no_data: bool = False,
    **options: Any,
) -> Posterior:
    """Posterior of a galaxy's star formation and metallicity history given its spectrum.

    Parameters
    ----------
    spectrum : with a redshift, unless `redshift` gives one
    prior, grid : names or paths of artifacts, or loaded ones
    samples : number of posterior samples, >= 2
    sampler : "amortized" (a posterior network completed by the exact likelihood), "pnpdm" (split
        Gibbs with the prior's score), "mmps" (moment matching), "cla" (the convolved likelihood
        approximation), or "auto": the first where a network fits, else the second
    network : posterior network for this prior and grid, or its directory; by default the bundled
    seed : of all random numbers; same seed and machine, same samples
    device : "cpu", "cuda" or "auto", for the prior's network; all else runs on the CPU
    allow_no_data : accept a spectrum without usable pixels; the result is then the prior
    options : fields of `Options`: a_v, sigma_v, calibration_order, calibration_rms,
        redshift_offset, jitter, lines, exclude, wave_range

    Raises
    ------
    DataError : the spectrum cannot be fitted; ArtifactError : prior or grid; SamplingError
    """
    start = time.perf_counter()
    if samples < 2:
        raise UsageError(f"expected at least 2 samples, got {samples}")
    chosen = Options(**options)
    if sampler == "cla":
        chosen = _without_calibration(chosen)
    device = _resolve_device(device)
    loaded_prior = prior if isinstance(prior, Prior) else load_prior(prior)
    loaded_grid = grid if isinstance(grid, SSPGrid) else load_grid(grid)
    spectrum = _with_redshift(spectrum, redshift)
    generator = torch.Generator().manual_seed(seed)
    sampling_start = time.perf_counter()
    setup = _prepare(spectrum, loaded_prior, loaded_grid, chosen, allow_no_data)
    engine = choose_engine(
        sampler, loaded_prior, loaded_grid, network, setup.observation, device, progress
    )
    draws = engine.sampler.sample(setup.problem, samples, generator)
    sampling = time.perf_counter() - sampling_start
    provenance = {
        "object": spectrum.name,
        "prior": {"name": loaded_prior.name, "sha256": loaded_prior.sha256},
        "grid": {"name": loaded_grid.name, "sha256": loaded_grid.sha256},
        "sampler": engine.name,
        "seed": seed,
        "device": engine.device,
        "nfe": draws.nfe,
        "versions": _versions(),
        "input": dict(spectrum.meta),
        "options": {k: v for k, v in vars(chosen).items()},
        "facts": dict(draws.facts),
        "cosmology": str(loaded_prior.bins.cosmology),
        "wall_s": {"sampling": round(sampling, 3)},
    }
    warnings = [*spectrum.warnings, *setup.warnings, *engine.notes, *draws.warnings]
    posterior = _assemble(spectrum, setup, draws, loaded_grid, provenance, warnings)
    provenance["wall_s"]["total"] = round(time.perf_counter() - start, 3)
    return posterior


@dataclass(frozen=True)
class _Setup:
    observation: Observation
    full: ForwardModel
    used: NDArray[np.bool_]
    reasons: dict[str, NDArray[np.bool_]]
    bins: TimeBins
    warnings: tuple[str, ...]

    @property
    def problem(self) -> Problem:
        return self.observation.problem


def _without_calibration(options: Options) -> Options:
    if options.calibration_order not in ("auto", 0):
        raise UsageError("the sampler cla has no calibration polynomial; use order 0")
    return replace(options, calibration_order=0)


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used here ({reason[:80]}); try cpu") from e
    return device


def _with_redshift(spectrum: Spectrum, redshift: float | None) -> Spectrum:
    if redshift is not None:
        return replace(spectrum, redshift=redshift)
    if spectrum.redshift is None:
        raise DataError("the spectrum has no redshift; give one with --redshift")
    return spectrum


def _prepare(
    spectrum: Spectrum, prior: Prior, grid: SSPGrid, options: Options, allow_no_data: bool
) -> _Setup:
    """Mask, forward model and problem of one spectrum."""
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
    number = lambda v: None if v == "free" else float(v)  # noqa: E731
    problem = Problem(
        model=model,
        flux=torch.from_numpy(np.where(ivar > 0, spectrum.flux, 0.0)[used]),
        ivar=torch.from_numpy(ivar[used]),
        scaling=prior.scaling,
        a_v=number(options.a_v),
        sigma_v=number(options.sigma_v),
        velocity=None if options.redshift_offset == "free" else 0.0,
        fit_error_scale=options.jitter == "free" and bool((ivar[used] > 0).any()),
        calibration_order=_calibration_order(options, model.wave_obs),
        calibration_rms=options.calibration_rms,
    )
    factor = calc_flux_factor(
        redshift, bins.luminosity_distance_cm(redshift), grid.solar_luminosity
    )
    extra = _calc_lsf_extra(lsf, used, fwhm, rest)
    observation = Observation(problem, extra, 1 / factor)
    return _Setup(observation, full, used, reasons, bins, tuple(warnings))


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


def _versions() -> dict[str, str]:
    names = ("torch", "score_models", "numpy")
    return {
        "sfhzoo": __version__,
        "python": platform.python_version(),
        **{n: version(n) for n in names},
    }


def _assemble(
    spectrum: Spectrum,
    setup: _Setup,
    draws: Draws,
    grid: SSPGrid,
    provenance: dict[str, Any],
    warnings: list[str],
) -> Posterior:
    problem, bins = setup.problem, setup.bins
    d = 2 * problem.n_bins
    x = draws.state[:, :d].view(-1, 2, problem.n_bins)
    sfr, logzsol = problem.scaling.from_x(x)
    physical = nuisance.to_physical(draws.state[:, d : d + nuisance.N_NUISANCE])
    surviving = _calc_mass_surviving(sfr, logzsol, grid, bins, problem.model.cosmic_time)
    parameters = {
        "a_v": Parameter(physical.a_v.numpy(), "mag", "V-band attenuation"),
        "sigma_v": Parameter(physical.sigma_v.numpy(), "km/s", "Stellar velocity dispersion"),
        "velocity_offset": Parameter(
            physical.velocity.numpy(), "km/s", "Velocity relative to the given redshift"
        ),
        "error_scale": Parameter(draws.error_scale.numpy(), "1", "Factor on the file's errors"),
    }
    observed = Observed(
        spectrum.wave_obs, spectrum.flux, spectrum.ivar, setup.used, dict(setup.reasons)
    )
    predicted = _predict(spectrum, setup, draws)
    warnings = [*warnings, *_object_warnings(draws)]
    if bool((problem.ivar > 0).any()):
        check = calc_predictive_check(
            spectrum.wave_obs, spectrum.flux, spectrum.ivar, setup.used, predicted,
            draws.error_scale.numpy(), problem.model.redshift,
        )  # fmt: skip
        provenance["predictive"] = check.to_dict()
        warnings += check.format_warnings()
    provenance["warnings"] = warnings
    return Posterior(
        sfr=sfr.numpy(),
        logzsol=logzsol.numpy(),
        parameters=parameters,
        mass_surviving=surviving,
        bins=bins,
        redshift=problem.model.redshift,
        model_flux=predicted,
        observed=observed,
        sample_stats=dict(draws.stats),
        provenance=provenance,
    )


def _predict(spectrum: Spectrum, setup: _Setup, draws: Draws) -> NDArray[np.float64]:
    """Posterior spectra [sample, wave] on every pixel; NaN outside the grid."""
    problem = setup.problem
    d = 2 * problem.n_bins
    sfr, logzsol = problem.scaling.from_x(draws.state[:, :d].view(-1, 2, problem.n_bins))
    p = nuisance.to_physical(draws.state[:, d : d + nuisance.N_NUISANCE])
    flux = setup.full(sfr, logzsol, p.a_v, p.sigma_v, p.velocity).numpy()
    wave, used_wave = setup.full.wave_obs, problem.model.wave_obs
    if problem.calibration_order:
        rows = calc_calibration_rows(
            wave, (used_wave[0], used_wave[-1]), problem.calibration_order
        )
        c = draws.state[:, d + nuisance.N_NUISANCE :].numpy()
        flux = flux * (1 + c @ rows)
    predicted = np.full((len(flux), len(spectrum.wave_obs)), np.nan)
    predicted[:, ~setup.reasons["outside the grid"]] = flux
    return predicted


def _calc_mass_surviving(
    sfr: torch.Tensor, logzsol: torch.Tensor, grid: SSPGrid, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    fraction = torch.from_numpy(calc_surviving_fraction(grid, bins, cosmic_time))
    nodes = torch.from_numpy(grid.logzsol[grid.valid])
    per_bin = (calc_metallicity_weights(logzsol, nodes) * fraction).sum(-1).numpy()
    return (calc_mass_formed_per_bin(sfr.numpy(), bins, cosmic_time) * per_bin).sum(-1)


def _object_warnings(draws: Draws) -> list[str]:
    scale = float(draws.error_scale.median())
    if scale > 2.0:
        return [
            f"the model misses the data by {scale:.1f} times the file's errors: is it a galaxy "
            "without strong emission, at the right redshift?"
        ]
    return []
