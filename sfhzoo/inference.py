"""`sfhzoo.infer`: from a spectrum, photometry or both to a Posterior.

The one place that wires artifacts, masks, forward model and sampler together.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfhzoo import __version__
from sfhzoo.diagnostics.predictive import calc_predictive_check
from sfhzoo.engines import Engine, SamplerName, choose_engine
from sfhzoo.errors import DataError, SamplingError, UsageError
from sfhzoo.forward.csp import calc_metallicity_weights, calc_surviving_fraction
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import calc_mass_formed_per_bin
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.calibration import calc_calibration_rows
from sfhzoo.likelihood.options import Options
from sfhzoo.likelihood.problem import Draws, Problem, draw_error_scale_prior
from sfhzoo.massprior import AS_TRAINED
from sfhzoo.posterior import BandFit, Parameter, Posterior
from sfhzoo.preparation import Setup, prepare_bands, prepare_spectrum, with_bands
from sfhzoo.priors.prior import Prior
from sfhzoo.reweighting import OVERSAMPLING, OtherPriors, reweight
from sfhzoo.samplers.posterior_network import PosteriorNetwork
from sfhzoo.spectra.photometry import Photometry, read_photometry
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.timebins import TimeBins
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, load_grid, load_prior

MAX_AT_END = 0.1
"""Share of the samples with a parameter at the end of its range beyond which the user is told."""
MAX_PULL = 5.0
"""Of a band, in units of its error, beyond which the user is told."""


def infer(
    spectrum: Spectrum | None = None,
    prior: str | Path | Prior = DEFAULT_PRIOR,
    grid: str | Path | SSPGrid = DEFAULT_GRID,
    *,
    photometry: Photometry | str | Path | None = None,
    redshift: float | None = None,
    samples: int = 100,
    sampler: SamplerName = "auto",
    network: str | Path | PosteriorNetwork | None = None,
    mass_prior: str = AS_TRAINED,
    nuisance_priors: Mapping[str, str] = MappingProxyType({}),
    seed: int = 0,
    device: str = "auto",
    progress: bool = False,
    allow_no_data: bool = False,
    **options: Any,
) -> Posterior:
    """Posterior of a galaxy's star formation and metallicity history.

    Parameters
    ----------
    spectrum : with a redshift, unless `redshift` gives one; None for photometry alone
    photometry : band fluxes, or the file of a table of them; of the spectrum's aperture where
        there is a spectrum
    prior, grid : names or paths of artifacts, or loaded ones
    samples : number of posterior samples, >= 2
    sampler : "amortized" (a posterior network completed by the exact likelihood), "pnpdm" (split
        Gibbs with the prior's score), "mmps" (moment matching), "cla" (the convolved likelihood
        approximation), or "auto": the first where a network fits, else the second
    network : posterior network for this prior and grid, or its directory; by default the newest
        on this disk
    mass_prior : density of the log mass formed to put in the place of the prior's own
        (`massprior`): "as-trained", "flat", "flat:LOW,HIGH", "schechter", "normal:MEAN,SIGMA"
    nuisance_priors : densities of a_v (mag), sigma_v, velocity_offset (km/s) or error_scale to put
        in the place of their own (`likelihood.nuisance`): "flat:LOW,HIGH" or "normal:MEAN,SIGMA"
    seed : of all random numbers; same seed and machine, same samples
    device : "cpu", "cuda" or "auto", for the prior's network; all else runs on the CPU
    redshift : wins over the spectrum's; photometry alone needs it
    allow_no_data : accept a spectrum without usable pixels; the result is then the prior
    options : fields of `Options`: a_v, sigma_v, calibration_order, calibration_rms,
        redshift_offset, jitter, lines, exclude, wave_range

    Raises
    ------
    DataError : spectrum or photometry cannot be fitted; ArtifactError : prior or grid; UsageError;
    SamplingError
    """
    start = time.perf_counter()
    if samples < 2:
        raise UsageError(f"expected at least 2 samples, got {samples}")
    chosen, wanted = Options(**options), OtherPriors.parse(mass_prior, nuisance_priors)
    _check_sampler(sampler, spectrum, photometry)
    if sampler == "cla" and nuisance_priors:
        raise UsageError("the sampler cla does not sample nuisance parameters: they take no prior")
    if sampler == "cla":
        chosen = _without_calibration(chosen)
    device = resolve_device(device)
    loaded_prior = prior if isinstance(prior, Prior) else load_prior(prior)
    loaded_grid = grid if isinstance(grid, SSPGrid) else load_grid(grid)
    bands = read_photometry(photometry) if isinstance(photometry, str | Path) else photometry
    generator = torch.Generator().manual_seed(seed)
    sampling_start = time.perf_counter()
    setup = _prepare(spectrum, bands, redshift, (loaded_prior, loaded_grid), chosen, allow_no_data)
    if not _has_data(setup.problem) and sampler in ("amortized", "cla"):
        raise UsageError(f"the sampler {sampler} needs data; without any, use pnpdm")
    engine = choose_engine(
        sampler, loaded_prior, loaded_grid, network, setup.observation, device, progress
    )
    other: dict[str, Any] = {}
    n = OVERSAMPLING * samples if wanted else samples
    draws, engine = _draw(engine, setup, n, generator, spectrum)
    if not _has_data(setup.problem) and chosen.jitter == "free":
        scale = draw_error_scale_prior(len(draws.state), generator)
        draws = replace(draws, error_scale=scale)
    if wanted:
        draws, other = reweight(setup.problem, draws, loaded_prior, wanted, samples, generator)
    sampling = time.perf_counter() - sampling_start
    provenance: dict[str, Any] = {
        "object": _name_object(spectrum, bands),
        "prior": {"name": loaded_prior.name, "sha256": loaded_prior.sha256, **other},
        "grid": {"name": loaded_grid.name, "sha256": loaded_grid.sha256},
        "sampler": engine.name,
        "seed": seed,
        "device": engine.device,
        "nfe": draws.nfe,
        "versions": list_versions(),
        "input": _describe_input(spectrum, bands),
        "options": {k: v for k, v in vars(chosen).items()},
        "facts": dict(draws.facts),
        "cosmology": str(loaded_prior.bins.cosmology),
        "wall_s": {"sampling": round(sampling, 3)},
    }
    told = [w for data in (spectrum, bands) if data is not None for w in data.warnings]
    warnings = [*told, *setup.warnings, *engine.notes, *draws.warnings]
    posterior = _assemble(setup, draws, loaded_prior, loaded_grid, provenance, warnings)
    provenance["wall_s"]["total"] = round(time.perf_counter() - start, 3)
    return posterior


def _has_data(problem: Problem) -> bool:
    return problem.has_pixels or problem.bands is not None


def _draw(
    engine: Engine, setup: Setup, n: int, generator: torch.Generator, spectrum: Spectrum | None
) -> tuple[Draws, Engine]:
    """As `Engine.draw`; the error names what was wrong with the data from the start."""
    try:
        draws, engine = engine.draw(setup.problem, n, generator)
        if not bool((setup.problem.to_histories(draws.state).sfr > 0).any()):
            raise SamplingError("no sample has any stars; check the flux unit")
    except SamplingError as e:
        told = spectrum.warnings if spectrum is not None else ()
        raise SamplingError("; ".join([str(e), *told])) from e
    return draws, engine


def _without_calibration(options: Options) -> Options:
    if options.calibration_order not in ("auto", 0):
        raise UsageError("the sampler cla has no calibration polynomial; use order 0")
    return replace(options, calibration_order=0)


def resolve_device(device: str) -> str:
    """The device of a name, this machine's for "auto"; UsageError where it cannot be used."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0]
        raise UsageError(f"device {device!r} cannot be used here ({reason[:80]}); try cpu") from e
    return device


def _check_sampler(
    sampler: SamplerName, spectrum: Spectrum | None, photometry: Photometry | str | Path | None
) -> None:
    if spectrum is None and photometry is None:
        raise UsageError("expected a spectrum, photometry or both, got neither")
    if sampler == "cla" and photometry is not None:
        raise UsageError("the sampler cla fits no photometry; use pnpdm")
    if sampler == "amortized" and spectrum is None:
        raise UsageError("the sampler amortized needs a spectrum; photometry alone takes pnpdm")


def _prepare(
    spectrum: Spectrum | None,
    photometry: Photometry | None,
    redshift: float | None,
    artifacts: tuple[Prior, SSPGrid],
    options: Options,
    allow_no_data: bool,
) -> Setup:
    if spectrum is None:
        assert photometry is not None
        if redshift is None:
            raise UsageError("photometry alone has no redshift; give one with --redshift")
        return prepare_bands(photometry, redshift, *artifacts, options)
    if redshift is not None:
        spectrum = replace(spectrum, redshift=redshift)
    if spectrum.redshift is None:
        raise DataError("the spectrum has no redshift; give one with --redshift")
    setup = prepare_spectrum(spectrum, *artifacts, options, allow_no_data)
    return setup if photometry is None else with_bands(setup, photometry, *artifacts)


def _name_object(spectrum: Spectrum | None, photometry: Photometry | None) -> str:
    if spectrum is not None:
        return spectrum.name
    file = (photometry.meta or {}).get("file") if photometry is not None else None
    return Path(file).stem if file else "photometry"


def _describe_input(spectrum: Spectrum | None, photometry: Photometry | None) -> dict[str, Any]:
    described = {} if spectrum is None else dict(spectrum.meta)
    return described if photometry is None else {**described, "photometry": photometry.meta}


def list_versions() -> dict[str, str]:
    """Of what made a result, for its record."""
    names = ("torch", "score_models", "numpy")
    return {
        "sfhzoo": __version__,
        "python": platform.python_version(),
        **{n: version(n) for n in names},
    }


def _assemble(
    setup: Setup,
    draws: Draws,
    prior: Prior,
    grid: SSPGrid,
    provenance: dict[str, Any],
    warnings: list[str],
) -> Posterior:
    problem, bins, observed = setup.problem, prior.bins, setup.observed
    sfr, logzsol = problem.to_histories(draws.state)
    physical = problem.to_nuisance(draws.state)
    surviving = _calc_mass_surviving(sfr, logzsol, grid, bins, problem.model.cosmic_time)
    parameters = {
        "a_v": Parameter(physical.a_v.numpy(), "mag", "V-band attenuation"),
        "sigma_v": Parameter(physical.sigma_v.numpy(), "km/s", "Stellar velocity dispersion"),
        "velocity_offset": Parameter(
            physical.velocity.numpy(), "km/s", "Velocity relative to the given redshift"
        ),
        "error_scale": Parameter(draws.error_scale.numpy(), "1", "Factor on the file's errors"),
    }
    predicted = _predict(setup, draws)
    warnings = [*warnings, *_object_warnings(problem, draws)]
    if not problem.has_pixels and problem.bands is not None:
        warnings.append(
            "intervals from photometry alone are not calibrated yet: on mocks they were too narrow"
        )
    if problem.has_pixels:
        check = calc_predictive_check(
            observed.wave_obs, observed.flux, observed.ivar, observed.mask, predicted,
            draws.error_scale.numpy(), problem.model.redshift,
        )  # fmt: skip
        provenance["predictive"] = check.to_dict()
        warnings += check.format_warnings()
    bands = _predict_bands(setup, draws)
    if bands is not None:
        warnings += _warn_of_pulls(bands, problem.has_pixels)
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
        bands=bands,
    )


def _predict(setup: Setup, draws: Draws) -> NDArray[np.float64]:
    """Posterior spectra [sample, wave] on every pixel; NaN outside the grid."""
    problem = setup.problem
    sfr, logzsol = problem.to_histories(draws.state)
    p = problem.to_nuisance(draws.state)
    flux = setup.full(sfr, logzsol, p.a_v, p.sigma_v, p.velocity).numpy()
    wave, used_wave = setup.full.wave_obs, problem.model.wave_obs
    if problem.calibration_order:
        rows = calc_calibration_rows(
            wave, (used_wave[0], used_wave[-1]), problem.calibration_order
        )
        c = draws.state[:, 2 * problem.n_bins + nuisance.N_NUISANCE :].numpy()
        flux = flux * (1 + c @ rows)
    predicted = np.full((len(flux), len(setup.inside)), np.nan)
    predicted[:, setup.inside] = flux
    return predicted


def _predict_bands(setup: Setup, draws: Draws) -> BandFit | None:
    """The bands with their posterior fluxes, exact."""
    problem, bands = setup.problem, setup.problem.bands
    if bands is None:
        return None
    sfr, logzsol = problem.to_histories(draws.state)
    a_v = problem.to_nuisance(draws.state).a_v
    return BandFit(
        tuple(f.name for f in bands.model.filters),
        np.array([f.wave_pivot for f in bands.model.filters]),
        bands.maggies.numpy(),
        bands.error.numpy(),
        bands.model(sfr, logzsol, a_v).numpy(),
    )


def _warn_of_pulls(bands: BandFit, with_spectrum: bool) -> list[str]:
    far = [(n, p) for n, p in zip(bands.names, bands.pull) if abs(p) > MAX_PULL]
    if not far:
        return []
    where = ", ".join(f"{name} ({pull:+.1f})" for name, pull in far[:8])
    why = ": are they of the spectrum's aperture?" if with_spectrum else ""
    return [f"bands far from the model in units of their errors: {where}{why}"]


def _calc_mass_surviving(
    sfr: torch.Tensor, logzsol: torch.Tensor, grid: SSPGrid, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    fraction = torch.from_numpy(calc_surviving_fraction(grid, bins, cosmic_time))
    nodes = torch.from_numpy(grid.logzsol[grid.valid])
    per_bin = (calc_metallicity_weights(logzsol, nodes) * fraction).sum(-1).numpy()
    return (calc_mass_formed_per_bin(sfr.numpy(), bins, cosmic_time) * per_bin).sum(-1)


def _object_warnings(problem: Problem, draws: Draws) -> list[str]:
    told, scale = [], float(draws.error_scale.median())
    if scale > 2.0 and _has_data(problem):
        told.append(
            f"the model misses the data by {scale:.1f} times the file's errors: is it a galaxy "
            "without strong emission, at the right redshift?"
        )
    free = problem.fixed_coordinates().isnan().tolist()
    at_end = nuisance.is_at_end(problem.to_nuisance(draws.state))
    for name, is_free, ends in zip(nuisance.NAMES, free, at_end, strict=True):
        share = float(ends.double().mean())
        if is_free and share > MAX_AT_END:
            low, high = nuisance.RANGES[name]
            told.append(
                f"{name} is at the end of its range ({low:g} to {high:g}) in {share:.0%} of the "
                "samples: check the redshift, and whether it is a galaxy"
            )
    return told
