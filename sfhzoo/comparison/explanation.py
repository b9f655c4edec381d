"""Does any of the priors explain a spectrum?

A posterior always exists, also for a quasar. A prior does not explain a spectrum when

- `error_scale`: the fit needs errors more than twice the file's (chi2 per pixel above 4, with 1
  expected), or
- `structure`: a stretch of the residuals that noise does not explain (`diagnostics.predictive`)
  is off by more than 10 % of the model. Smaller structure is common at high S/N, as no templates
  are exact, and tells nothing of the prior. Or
- `tail`: fewer than 0.5 % of the prior's draws are as isolated among the others as the posterior
  is. The place of a galaxy is its five derived quantities at the redshift of the spectrum (log
  mass formed, t50, t90, log sSFR, log Z), each in units of the draws' spread; it is isolated by
  the distance to its 10th nearest draw, which falls with the density of the prior there. Each
  draw counts itself out. A galaxy drawn from the prior, its place known, fails this in 0.5 % of
  the cases; what it can tell is limited by the number of draws.

The first two are about the spectra that the prior and all else in the model can make, the third
about histories. A spectrum that no prior explains is flagged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo import histories as h
from sfhzoo.histories import Histories
from sfhzoo.posterior import Posterior
from sfhzoo.timebins import TimeBins

Array = NDArray[np.float64]

MAX_ERROR_SCALE = 2.0
MAX_STRUCTURE = 0.10
MIN_TAIL = 0.005
NEIGHBOURS = 10


class Explanation(NamedTuple):
    """What speaks against a prior: `why` is empty where nothing does.

    error_scale : posterior median
    n_structures, largest_structure : number, and |mean residual| over model of the largest
    tail : share of the prior's draws that are as isolated as the posterior
    """

    error_scale: float
    n_structures: int
    largest_structure: float
    tail: float
    why: tuple[str, ...]


def calc_place(drawn: Histories, bins: TimeBins, cosmic_time: float) -> Array:
    """The five quantities [galaxy, 5] of histories seen at `cosmic_time` (Gyr); NaN without stars.

    The sSFR is that of the last Gyr per mass formed.
    """
    mass = h.calc_mass_formed(drawn.sfr, bins, cosmic_time)
    mass = np.where(mass > 0, mass, np.nan)
    columns = (
        np.log10(mass),
        h.calc_formation_quantile(drawn.sfr, bins, cosmic_time, 0.5),
        h.calc_formation_quantile(drawn.sfr, bins, cosmic_time, 0.9),
        np.log10(h.calc_ssfr(drawn.sfr, bins, cosmic_time, mass)),
        h.calc_logzsol_mass_weighted(drawn.sfr, drawn.logzsol, bins, cosmic_time),
    )
    return np.stack(columns, axis=-1)


def calc_tail(draws: Array, samples: Array) -> float:
    """Share of draws [draw, d] at least as isolated among the draws as the samples [sample, d].

    The samples' isolation is the median of theirs. Rows with NaN are left out; 0 when no sample
    is left. A share of zero is given as 1 / (draws + 1).
    """
    from scipy.spatial import cKDTree

    draws, samples = (v[np.isfinite(v).all(axis=1)] for v in (draws, samples))
    if len(draws) <= NEIGHBOURS or not len(samples):
        return 0.0
    # the robust spread: a few wild draws must not shrink the rest
    low, high = np.percentile(draws, [16, 84], axis=0)
    spread = np.maximum(0.5 * (high - low), 1e-6)
    tree = cKDTree(draws / spread)
    own = tree.query(draws / spread, [NEIGHBOURS + 1])[0]
    isolation = float(np.median(tree.query(samples / spread, [NEIGHBOURS])[0]))
    return float((1 + (own >= isolation).sum()) / (1 + len(own)))


def explain(posterior: Posterior, drawn: Histories) -> Explanation:
    """How well a prior with draws `drawn` [galaxy, bin] explains the data of its posterior."""
    bins, now = posterior.bins, posterior.cosmic_time
    tail = calc_tail(
        calc_place(drawn, bins, now),
        calc_place(Histories(posterior.sfr, posterior.logzsol), bins, now),
    )
    predictive = posterior.provenance.get("predictive") or {}
    structures = [abs(s["relative"]) for s in predictive.get("structures", ())]
    scale = float(np.median(posterior.parameters["error_scale"].values))
    largest = max(structures, default=0.0)
    found = (
        (scale > MAX_ERROR_SCALE, f"it needs errors {scale:.1f} times the file's"),
        (largest > MAX_STRUCTURE, f"residuals of {100 * largest:.0f} % of the flux remain"),
        (tail < MIN_TAIL, f"{100 * tail:.2g} % of its galaxies are as unusual"),
    )
    n = int(predictive.get("n_structures", 0))
    return Explanation(scale, n, largest, tail, tuple(text for bad, text in found if bad))


def format_flag(object_name: str, explanations: dict[str, Explanation]) -> str | None:
    """One line when none of the priors (label -> Explanation) explains the spectrum, else None."""
    if not all(e.why for e in explanations.values()):
        return None
    reasons = "; ".join(f"{label}: {', '.join(e.why)}" for label, e in explanations.items())
    return f"{object_name}: none of the priors explains this spectrum ({reasons})"


def as_dict(explanation: Explanation) -> dict[str, Any]:
    """For JSON."""
    return {**explanation._asdict(), "why": list(explanation.why), "explains": not explanation.why}
