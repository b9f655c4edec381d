"""One spectrum under every prior: posteriors side by side, evidences, Bayes factors.

All fits share the pixels, the grid and the priors of everything that is not a history. Quantities
are compared with

    (m_2 - m_1) / sqrt(s_1^2 + s_2^2),     m the median, s half the distance of 16 and 84 %

Evidences need the same likelihood under each prior, so the factor on the file's errors is fixed:
to the smallest posterior median of it among the priors, but at least 1. The prior that fits best
says what the noise is; a factor below 1 would make much of residuals that the file's own errors
allow. ln B of two priors is the difference of their log evidences, its error adds theirs in
quadrature, and so does the sum over spectra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sfhzoo.comparison.explanation import Explanation, as_dict, explain, format_flag
from sfhzoo.comparison.populations import Population
from sfhzoo.errors import SamplingError, UsageError
from sfhzoo.evidence import Evidence, estimate_evidence
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.inference import infer
from sfhzoo.posterior import DERIVED, Posterior, to_plain
from sfhzoo.priors.prior import Prior
from sfhzoo.spectra.spectrum import Spectrum

ALSO_SHOWN = ("a_v", "sigma_v", "error_scale")


class Member(NamedTuple):
    """A prior of the comparison: what the user calls it, and its posterior network if given."""

    label: str
    prior: Prior
    network: Path | None = None


@dataclass(frozen=True)
class Fits:
    """Posteriors and evidences of one spectrum, by the label of the prior."""

    spectrum: Spectrum
    posteriors: dict[str, Posterior]
    explanations: dict[str, Explanation]
    error_scale: float
    evidences: dict[str, Evidence]
    warnings: tuple[str, ...] = ()

    @property
    def flag(self) -> str | None:
        """One line when none of the priors explains the spectrum."""
        return format_flag(self.spectrum.name, self.explanations)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: quantities, their differences, evidences and Bayes factors."""
        summaries = {k: p.summary() for k, p in self.posteriors.items()}
        first = next(iter(summaries.values()))
        content = {
            "object": self.spectrum.name,
            "input": dict(self.spectrum.meta),
            "redshift": first["redshift"],
            "n_pixels": first["n_pixels"],
            "snr": self.spectrum.snr,
            "explained": self.flag is None,
            "flag": self.flag,
            "priors": {
                k: {
                    "quantities": _select(s["quantities"]),
                    "chi2_per_pixel": s["chi2_per_pixel"],
                    "sampler": s["sampler"],
                    "seed": s["seed"],
                    "n_samples": s["n_samples"],
                    "wall_s": s["wall_s"],
                    "explanation": as_dict(self.explanations[k]),
                    "warnings": s["warnings"],
                }
                for k, s in summaries.items()
            },
            "differences": calc_differences({k: s["quantities"] for k, s in summaries.items()}),
            "error_scale": self.error_scale,
            "evidences": {k: _describe(e) for k, e in self.evidences.items()},
            "bayes_factors": calc_bayes_factors(self.evidences),
            "warnings": list(self.warnings),
        }
        plain: dict[str, Any] = to_plain(content)
        return plain


def _select(quantities: dict[str, Any]) -> dict[str, Any]:
    return {k: quantities[k] for k in (*DERIVED, *ALSO_SHOWN)}


def _describe(evidence: Evidence) -> dict[str, Any]:
    names = ("log_evidence", "error", "log_evidence_common", "error_common", "facts", "warnings")
    return {k: getattr(evidence, k) for k in names}


def fit_spectrum(
    spectrum: Spectrum,
    members: list[Member],
    populations: dict[str, Population],
    grid: SSPGrid,
    *,
    samples: int = 200,
    evidence: bool = True,
    mass_prior: str = "flat",
    seed: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> Fits:
    """Fit a spectrum, with a redshift, under every prior.

    Parameters
    ----------
    populations : draws of each prior, by label
    evidence : estimate that too
    mass_prior : the common one, a name of `sfhzoo.massprior`
    say : gets a line before each step
    options : fields of `Options` but `jitter`

    Raises DataError where the spectrum cannot be fitted, SamplingError where a posterior fails. An
    evidence that fails, or whose mass prior excludes the galaxy, becomes a warning.
    """
    posteriors = {}
    for m in members:
        say(f"{spectrum.name}: posterior under {m.label}")
        posteriors[m.label] = infer(
            spectrum, m.prior, grid, samples=samples, network=m.network, seed=seed,
            progress=progress, **options,
        )  # fmt: skip
    explanations = {k: explain(p, populations[k].histories) for k, p in posteriors.items()}
    scale = choose_error_scale(explanations)
    evidences: dict[str, Evidence] = {}
    warnings = []
    for m in members if evidence else ():
        say(f"{spectrum.name}: evidence of {m.label}")
        try:
            evidences[m.label] = estimate_evidence(
                spectrum, m.prior, grid, network=m.network, error_scale=scale,
                mass_prior=mass_prior, seed=seed, progress=progress, **options,
            )  # fmt: skip
        except (SamplingError, UsageError) as e:
            warnings.append(f"{spectrum.name}: no evidence of {m.label}: {e}")
            continue
        told = evidences[m.label].warnings
        warnings += [f"{spectrum.name}: evidence of {m.label}: {w}" for w in told]
    return Fits(spectrum, posteriors, explanations, scale, evidences, tuple(warnings))


def choose_error_scale(explanations: dict[str, Explanation]) -> float:
    """The common factor on the file's errors (see the module's head)."""
    return max(1.0, min(e.error_scale for e in explanations.values()))


def calc_differences(quantities: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Per pair of priors: second minus first, and that in units of both errors; None where unset.

    `quantities` are those of summary.json, by label.
    """
    rows = []
    for first, second in combinations(quantities, 2):
        row: dict[str, Any] = {"first": first, "second": second, "quantities": {}}
        for name in DERIVED:
            a, b = quantities[first][name], quantities[second][name]
            row["quantities"][name] = _calc_difference(a, b)
        rows.append(row)
    return rows


def _calc_difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float] | None:
    if a["median"] is None or b["median"] is None:
        return None
    difference = b["median"] - a["median"]
    error = float(np.hypot(*(0.5 * (q["p84"] - q["p16"]) for q in (a, b))))
    return {"difference": difference, "in_errors": difference / max(error, 1e-12)}


def calc_bayes_factors(evidences: dict[str, Evidence]) -> list[dict[str, Any]]:
    """Per pair: ln of the first's evidence over the second's and its error, as trained and with
    the common mass prior."""
    return [
        {
            "first": first,
            "second": second,
            "ln_b": a.log_evidence - b.log_evidence,
            "error": float(np.hypot(a.error, b.error)),
            "ln_b_common": _subtract(a.log_evidence_common, b.log_evidence_common),
            "error_common": _add_errors(a.error_common, b.error_common),
        }
        for (first, a), (second, b) in combinations(evidences.items(), 2)
    ]


def _subtract(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _add_errors(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else float(np.hypot(a, b))


def sum_bayes_factors(spectra: list[dict[str, Any]], labels: list[str]) -> list[dict[str, Any]]:
    """Per pair, over the spectra (of `Fits.as_dict`) that have both evidences; `n` of them."""
    rows = []
    for first, second in combinations(labels, 2):
        found = [
            b for s in spectra for b in s["bayes_factors"]
            if (b["first"], b["second"]) == (first, second)
        ]  # fmt: skip
        row: dict[str, Any] = {"first": first, "second": second, "n": len(found)}
        for value, error in (("ln_b", "error"), ("ln_b_common", "error_common")):
            known = [b for b in found if b[value] is not None and b[error] is not None]
            row[value] = sum(b[value] for b in known) if len(known) == len(found) else None
            row[error] = float(np.sqrt(sum(b[error] ** 2 for b in known))) if known else None
        rows.append(row)
    return [row for row in rows if row["n"]]
