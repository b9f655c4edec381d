"""The evidence of a prior for a spectrum, by thermodynamic integration.

    Z = ∫ p(x) p(c) L(x, c) dx dc,    L = prod_i (ivar_i / 2 pi)^1/2 exp(-chi²(x, c) / 2)

x are history, dust and kinematics, c the calibration; the errors are those of the file times one
given factor. With the misfit tempered, p_beta ~ p(x) p(c) exp(-beta chi² / 2) (Kirkwood 1935;
Lartillot & Philippe 2006, Syst. Biol. 55, 195),

    ln Z = sum_i ln(ivar_i / 2 pi) / 2 + ln Z(beta_0) - 1/2 ∫_beta_0^1 <chi²>_beta dbeta

and p_beta is the posterior of the same spectrum with errors 1 / sqrt(beta) times larger, which
every sampler here draws. The integral is taken over ln beta, where beta <chi² - chi²_min> is about
the number of parameters that the data fix, a smooth function. ln Z(beta_0) = ln <exp(-beta_0 chi²
/ 2)> over draws of the prior, beta_0 so small that enough of them count.

The integral adds up what the sampler's draws have in chi² too much: those of the default sampler
are slightly too wide, and ln Z comes out too low, by 0.1 of the integral over chi² above its
lowest (`error_sampler` in the facts; benchmarks/evidence_direct.py). The draws of another prior
are too wide in a like way, so it is not in `error`; how much of it cancels in a Bayes factor has
not been measured.

Given x, chi² is quadratic in c and p(c) Gaussian: c is integrated out exactly in both parts, which
halves the variance of chi². Its model is exact here, the polynomial times the model spectrum.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfhzoo.densities import Density
from sfhzoo.engines import Engine, Observation, calc_snr_per_rest_pixel, choose_engine
from sfhzoo.errors import DataError, UsageError
from sfhzoo.forward.model import calc_spectrum
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.options import Options
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.massprior import (
    draw_histories,
    parse_mass_prior,
    weigh_histories,
)
from sfhzoo.preparation import prepare_spectrum
from sfhzoo.priors.prior import Prior
from sfhzoo.samplers.amortized import AmortizedSampler
from sfhzoo.samplers.posterior_network import PosteriorNetwork
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.tempering import (
    Importance,
    Misfit,
    Node,
    calc_importance,
    find_start,
    integrate,
    place_nodes,
)
from sfhzoo.zoo.artifacts import load_grid, load_prior

Array = NDArray[np.float64]

ENSEMBLE, GROUPS = 250, 50
"""Draws of the posterior network per node, and views; fewer of both than where one node is all."""
EXTRA_NOISE = 2.0
"""Of the views. A few of the network's draws miss the data: where it sees all of poor data, mean
chi² at S/N 0.2 is 2 to 3 too high, with this 0.4 (intervals do not feel a few draws)."""
MIN_EFFECTIVE, FEW_EFFECTIVE = 100, 25
"""Effective draws of the prior at beta_0: wanted, and taken where the network's domain ends."""
LARGE_ERROR = 0.5
DRAWS_EXCESS = 0.1
"""Of the integral over chi² above its lowest: what the default sampler's draws have too much."""
CHUNK = 250


@dataclass(frozen=True)
class Evidence:
    """ln Z of a prior for a spectrum, natural logarithm; the flux in erg/s/cm²/Å.

    log_evidence, error : as the prior was trained; sampling, quadrature and importance together,
        without the sampler's own (`error_sampler`)
    log_evidence_common, error_common : with a common prior of the mass; None without one
    ln_beta, chi2 : nodes, rising, and <chi²> there
    n_pixels : in use
    facts : parts of the error, beta_0, effective numbers, samplers, seconds
    """

    log_evidence: float
    error: float
    log_evidence_common: float | None
    error_common: float | None
    ln_beta: tuple[float, ...]
    chi2: tuple[float, ...]
    n_pixels: int
    facts: Mapping[str, Any]
    warnings: tuple[str, ...]


def estimate_evidence(
    spectrum: Spectrum,
    prior: str | Path | Prior,
    grid: str | Path | SSPGrid,
    *,
    network: str | Path | PosteriorNetwork | None = None,
    redshift: float | None = None,
    error_scale: float = 1.0,
    mass_prior: str | None = None,
    seed: int = 0,
    samples: int = 100,
    progress: bool = False,
    **options: Any,
) -> Evidence:
    """ln Z of a prior for a spectrum; see the module's text.

    Parameters
    ----------
    prior, grid : names or paths of artifacts, or loaded ones
    network : posterior network, as `infer` takes it; nodes outside its domain take pnpdm
    redshift : wins over the spectrum's
    error_scale : factor on the file's errors, the same for all priors that are compared
    mass_prior : the common prior of the mass, e.g. "flat" (`massprior`); None for none
    samples : draws per node, >= 20
    options : fields of `Options`; `jitter` is fixed

    Raises what `infer` raises. The pixels, hence Z, depend on spectrum, grid, redshift and
    options, not on the prior: only then do two priors compare.
    """
    if samples < 20 or not (error_scale > 0 and math.isfinite(error_scale)):
        raise UsageError(
            f"expected at least 20 samples and a positive factor on the errors, got {samples} "
            f"and {error_scale}"
        )
    if options.get("jitter", "fixed") != "fixed":
        raise UsageError("the evidence needs fixed errors; give their factor as error_scale")
    start, wanted = time.perf_counter(), parse_mass_prior(mass_prior or "as-trained")
    loaded = prior if isinstance(prior, Prior) else load_prior(prior)
    loaded_grid = grid if isinstance(grid, SSPGrid) else load_grid(grid)
    if redshift is not None:
        spectrum = replace(spectrum, redshift=redshift)
    if spectrum.redshift is None:
        raise DataError("the spectrum has no redshift; give one with --redshift")
    chosen = Options(**{**options, "jitter": "fixed"})
    setup = prepare_spectrum(spectrum, loaded, loaded_grid, chosen, allow_no_data=False)
    problem = replace(setup.problem, ivar=setup.problem.ivar / error_scale**2)
    ladder = _Ladder(
        replace(setup.observation, problem=problem), loaded, loaded_grid, network, samples,
        torch.Generator().manual_seed(seed),
    )  # fmt: skip
    result = ladder.run(progress)
    if wanted is not None:
        result = _add_mass_prior(result, ladder.last, problem, loaded, wanted)
    seconds = round(time.perf_counter() - start, 3)
    return replace(result, facts={**result.facts, "seconds": seconds})


def _add_mass_prior(
    result: Evidence, draws: Draws, problem: Problem, prior: Prior, wanted: Density
) -> Evidence:
    """ln Z' = ln Z + ln <pi / p_M> over the posterior's draws."""
    sfr = problem.to_histories(draws.state).sfr
    weights = weigh_histories(sfr, prior, problem.model.cosmic_time, wanted)
    gain, error = weights.log_mean
    facts = {
        "mass_prior": wanted.name, "mass_prior_effective": weights.effective,
        "mass_prior_unsupported": weights.unsupported,
    }  # fmt: skip
    told: tuple[str, ...] = ()
    if weights.unsupported > 0.01:
        told = (f"{prior.name} has practically no galaxies of this mass: the common prior of the "
                "mass has no hold",)  # fmt: skip
    return replace(
        result, log_evidence_common=result.log_evidence + gain,
        error_common=math.hypot(result.error, error), facts={**result.facts, **facts},
        warnings=(*result.warnings, *told),
    )  # fmt: skip


@dataclass
class _Ladder:
    """Tempered posteriors of one observation; `last` are the draws at beta = 1."""

    observation: Observation
    prior: Prior
    grid: SSPGrid
    network: str | Path | PosteriorNetwork | None
    samples: int
    generator: torch.Generator

    def run(self, progress: bool) -> Evidence:
        """Everything but the common prior of the mass."""
        from tqdm import tqdm

        problem = self.observation.problem
        misfit = draw_prior_misfit(problem, self.prior, self.generator)
        ln_start = self._choose_start(misfit)
        begin = calc_importance(misfit.calc_log_likelihood(math.exp(ln_start)))
        nodes, names = [], []
        notes: list[str] = []
        told: list[str] = []
        bar = tqdm(place_nodes(ln_start), desc="evidence", unit="node", disable=not progress)
        for ln_beta in bar:
            draws, engine = self._draw(ln_beta)
            chi2 = calc_energies(problem, draws, math.exp(ln_beta))
            nodes.append(Node(ln_beta, chi2, float(draws.facts.get("ess", len(chi2)))))
            names.append(engine.name)
            notes += engine.notes
            told += draws.warnings
        self.last = draws
        integral = integrate(nodes)
        lowest = float(min(n.chi2.min() for n in nodes))
        excess = -integral.value - 0.5 * lowest * (1 - math.exp(ln_start))
        used = problem.ivar[problem.ivar > 0]
        constant = 0.5 * float((used / (2 * math.pi)).log().sum())
        error = math.hypot(integral.sampling, integral.quadrature, begin.error)
        facts = {
            "error_sampling": integral.sampling, "error_quadrature": integral.quadrature,
            "error_importance": begin.error, "prior_effective": begin.effective,
            "error_sampler": DRAWS_EXCESS * excess, "chi2_lowest": lowest,
            "beta_0": math.exp(ln_start), "samplers": dict(Counter(names)),
            "samples_per_node": self.samples,
        }  # fmt: skip
        return Evidence(
            log_evidence=constant + begin.value + integral.value,
            error=error,
            log_evidence_common=None,
            error_common=None,
            ln_beta=tuple(n.ln_beta for n in nodes),
            chi2=tuple(float(n.chi2.mean()) for n in nodes),
            n_pixels=len(used),
            facts=facts,
            warnings=_summarise(len(nodes), notes, told, begin, error),
        )

    def _choose_start(self, misfit: Misfit) -> float:
        """ln beta_0: where enough draws of the prior count, or fewer, where a network ends."""
        ln_start = find_start(misfit, MIN_EFFECTIVE)
        sampler = self._choose(self._temper(0.0)).sampler
        if isinstance(sampler, AmortizedSampler):
            lowest = sampler.network.config["domain"]["snr"][0]
            ends = 2 * math.log(lowest / calc_snr_per_rest_pixel(self.observation.problem)) + 1e-6
            if ln_start < ends <= find_start(misfit, FEW_EFFECTIVE):
                return ends
        return ln_start

    def _temper(self, ln_beta: float) -> Observation:
        problem = self.observation.problem
        tempered = replace(problem, ivar=problem.ivar * math.exp(ln_beta), fit_error_scale=False)
        return replace(self.observation, problem=tempered)

    def _choose(self, tempered: Observation) -> Engine:
        engine = choose_engine("auto", self.prior, self.grid, self.network, tempered, "cpu", False)
        sampler = engine.sampler
        if isinstance(sampler, AmortizedSampler):
            sampler = replace(sampler, ensemble=ENSEMBLE, groups=GROUPS, extra_noise=EXTRA_NOISE)
        return engine._replace(sampler=sampler)

    def _draw(self, ln_beta: float) -> tuple[Draws, Engine]:
        tempered = self._temper(ln_beta)
        return self._choose(tempered).draw(tempered.problem, self.samples, self.generator)


def calc_energies(problem: Problem, draws: Draws, beta: float) -> Array:
    """chi² [sample] of tempered draws with the file's errors, calibration integrated out.

    The samplers see compressed spectra, and their draws fit those: what chi² that misstates is
    orthogonal to the residuals on average and would come on top, so it is taken off.
    """
    loss = draws.stats.get("compression_loss", np.zeros(len(draws.flux)))
    return Misfit(problem, draws.flux).calc_expected(beta) - loss / beta


def draw_prior_misfit(problem: Problem, prior: Prior, generator: torch.Generator) -> Misfit:
    """Misfit of draws of the prior, histories and nuisance parameters."""
    drawn = draw_histories(prior)
    n, fixed = len(drawn.sfr), problem.fixed_coordinates()
    u = torch.randn((n, nuisance.N_NUISANCE), generator=generator, dtype=torch.float64)
    physical = nuisance.to_physical(torch.where(fixed.isnan(), u, fixed))
    model, parts = problem.model, []
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        fine = calc_spectrum(drawn.sfr[part], drawn.logzsol[part], model.templates, model.nodes)
        parts.append(model.observe(fine, *(value[part] for value in physical)))
    return Misfit(problem, torch.cat(parts))


def _summarise(
    n: int, notes: list[str], told: list[str], begin: Importance, error: float
) -> tuple[str, ...]:
    """What the user should know, one line each."""
    warnings = []
    if notes:
        warnings.append(f"{len(notes)} of {n} nodes lie outside the network ({notes[0]})")
    if told:
        warnings.append(f"the sampler warned {len(told)} times at {n} nodes, first: {told[0]}")
    if begin.effective < FEW_EFFECTIVE:
        warnings.append(
            f"only {begin.effective:.0f} draws of the prior count at the first node: the evidence "
            "may be too low"
        )
    if error > LARGE_ERROR:
        warnings.append(f"the error of the log evidence is {error:.2f}: take more samples")
    return tuple(warnings)
