"""From the fits of mocks to numbers, thresholds and a verdict.

| check                     | what must hold, per S/N band unless said otherwise             |
|---------------------------|----------------------------------------------------------------|
| mean deviation            | mean over quantities and levels of |coverage - nominal|        |
| largest deviation         | the worst of them                                              |
| TARP deviation            | largest |expected coverage - credibility|                      |
| rank histograms           | number of p-values below 0.01, and the least, over all bands   |
| signed deviation at 68 %  | pooled, in its own standard errors: over- and under-confidence |
| log mass                  | median absolute error in the band of the highest S/N           |
| metallicity against A_V   | slope of the error over estimated A_V, in its standard errors  |

With fewer mocks than a full run the limits are widened by what the binomial error has grown.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.diagnostics import coverage
from sfhzoo.diagnostics.coverage import LEVELS, N_REFERENCES
from sfhzoo.diagnostics.mocks import BANDS

Array = NDArray[np.float64]
Row = dict[str, Any]

SCHEMA = 1
QUANTITIES = {
    "log_mass_formed": ("log mass formed", "dex"),
    "age_mass_weighted": ("mass-weighted age", "Gyr"),
    "t50": ("t50", "Gyr"),
    "t90": ("t90", "Gyr"),
    "log_ssfr_1gyr": ("log sSFR", "dex"),
    "logzsol_mass_weighted": ("mass-weighted log Z", "dex"),
    "a_v": ("A_V", "mag"),
    "sigma_v": ("sigma_v", "km/s"),
}
"""name -> (as written in reports, unit)"""

STATISTICS = ("truth", "median", "p16", "p84", "p2_5", "p97_5", "rank")
SIGNED_LEVEL = 0.68
SLOPES = ("log_mass_formed", "logzsol_mass_weighted")
"""Quantities whose error must not depend on A_V."""


@dataclass(frozen=True)
class Thresholds:
    """What the posteriors must show."""

    mean_deviation: float = 0.03
    largest_deviation: float = 0.10
    tarp_deviation: float = 0.05
    low_p: float = 0.01
    n_low_p: int = 1
    least_p: float = 0.001
    signed_errors: float = 2.0
    log_mass_error: float = 0.05
    slope_errors: float = 3.0
    full_band: int = 200
    """mocks per band for which the limits above are meant"""

    def widened(self, n: int) -> Thresholds:
        """The limits for n mocks per band: more room by the growth of the binomial error."""
        if n >= self.full_band:
            return self
        growth = coverage.calc_binomial_error(LEVELS, n) - coverage.calc_binomial_error(
            LEVELS, self.full_band
        )
        return Thresholds(
            **{
                **asdict(self),
                "mean_deviation": self.mean_deviation + float(growth.mean()),
                # the worst of 32 fractions lies about three errors out
                "largest_deviation": self.largest_deviation + 3 * float(growth.max()),
                "tarp_deviation": self.tarp_deviation + float(growth.max()),
            }
        )


@dataclass(frozen=True)
class Results:
    """Arrays of all mocks of a run, in the order of their numbers.

    set, snr, redshift : [mock]
    failed : [mock] bool; a failed fit is NaN in everything the fit gives
    truth, median, p16, p84, p2_5, p97_5, rank : [mock, quantity] in the order of QUANTITIES
    tarp : [mock, reference]
    chi2_per_pixel, wall_s, ess : [mock]; ess is NaN where the sampler does not tell
    """

    set: NDArray[np.str_]
    snr: Array
    redshift: Array
    failed: NDArray[np.bool_]
    truth: Array
    median: Array
    p16: Array
    p84: Array
    p2_5: Array
    p97_5: Array
    rank: Array
    tarp: Array
    chi2_per_pixel: Array
    wall_s: Array
    ess: Array

    @classmethod
    def from_rows(cls, rows: list[Row]) -> Results:
        """Of the lines of a run; see `row_of` in sfhzoo.validation."""
        rows = sorted(rows, key=lambda r: int(r["mock"]))
        plain = {k: np.array([_number(r.get(k)) for r in rows])
                 for k in ("snr", "redshift", "chi2_per_pixel", "wall_s", "ess")}  # fmt: skip
        tables = {
            k: np.array([[_number(_value(r, q, k)) for q in QUANTITIES] for r in rows])
            for k in STATISTICS
        }
        nothing = [math.nan] * N_REFERENCES
        return cls(
            set=np.array([r["set"] for r in rows]),
            failed=np.array(["error" in r for r in rows]),
            tarp=np.array([r.get("tarp", nothing) for r in rows], float),
            **plain,
            **tables,
        )

    def __len__(self) -> int:
        return len(self.set)

    def at(self, where: NDArray[np.bool_]) -> Results:
        """The mocks where `where` [mock] is True."""
        return Results(**{k: v[where] for k, v in vars(self).items()})

    def of_set(self, *names: str) -> Results:
        """The mocks of these sets."""
        return self.at(np.isin(self.set, names))

    def column(self, name: str) -> int:
        """Position of a quantity."""
        return list(QUANTITIES).index(name)


def _value(row: Row, quantity: str, statistic: str) -> Any:
    return row.get("quantities", {}).get(quantity, {}).get(statistic)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


# ---- numbers ------------------------------------------------------------------------------------


def calc_set_metrics(r: Results) -> dict[str, Any]:
    """Coverage, rank tests, errors and times of the mocks of one set."""
    found = np.stack([coverage.calc_coverage(r.rank[:, k]) for k in range(len(QUANTITIES))])
    deviation = np.abs(found - np.array(LEVELS))
    return {
        "n": len(r),
        "n_failed": int(r.failed.sum()),
        "mean_deviation": float(deviation.mean()),
        "largest_deviation": float(deviation.max()),
        "tarp_deviation": coverage.calc_tarp_deviation(r.tarp),
        "chi2_per_pixel": _median(r.chi2_per_pixel),
        "wall_s": _median(r.wall_s),
        "ess": _median(r.ess),
        "quantities": {
            name: {
                "coverage": dict(zip(map(str, LEVELS), found[k].tolist(), strict=True)),
                "p": coverage.calc_histogram_p(r.rank[:, k]),
                **_calc_recovery(r, k),
            }
            for k, name in enumerate(QUANTITIES)
        },
    }


def _calc_recovery(r: Results, k: int) -> dict[str, float | None]:
    """Errors of the posterior median of quantity k; `pull` is in units of the 68 % half width."""
    error = r.median[:, k] - r.truth[:, k]
    width = 0.5 * (r.p84[:, k] - r.p16[:, k])
    pull = error[width > 0] / width[width > 0]
    return {
        "median_absolute_error": _median(np.abs(error)),
        "bias": _median(error),
        "width": _median(width),
        "pull": _median(pull),
    }


def _median(values: Array) -> float | None:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if len(values) else None


def calc_slope_over_a_v(r: Results, name: str) -> dict[str, float | None]:
    """Slope of a quantity's error over the *estimated* A_V, and its standard error.

    Over the true A_V even exact posteriors have a slope: their medians regress to the prior's.
    """
    k = r.column(name)
    slope, error = coverage.calc_slope(
        r.median[:, r.column("a_v")], r.median[:, k] - r.truth[:, k]
    )
    return {"value": _plain(slope), "error": _plain(error)}


def calc_metrics(
    rows: list[Row], thresholds: Thresholds | None = None, seed: int = 0
) -> dict[str, Any]:
    """All numbers of a run and the checks on them; `seed` is that of the bootstrap.

    Raises ValueError where an S/N band has no mock.
    """
    results = Results.from_rows(rows)
    per_band = min(len(results.of_set(b)) for b in BANDS)
    if not per_band:
        raise ValueError("expected mocks in every S/N band, got a band without")
    wanted = thresholds or Thresholds()
    limits = wanted.widened(per_band)
    names = list(dict.fromkeys(results.set.tolist()))
    sets = {name: calc_set_metrics(results.of_set(name)) for name in names}
    bands = results.of_set(*BANDS)
    signed, error = coverage.calc_signed_deviation(
        bands.rank, np.random.default_rng(seed), SIGNED_LEVEL
    )
    slopes = {q: calc_slope_over_a_v(bands, q) for q in SLOPES}
    metrics = {
        "schema": SCHEMA,
        "n_mocks": len(results),
        "n_failed": int(results.failed.sum()),
        "mocks_per_band": per_band,
        "widened": limits != wanted,
        "signed_deviation": {"value": signed, "error": error},
        "slope_over_a_v": slopes,
        "sets": sets,
    }
    checks = _check_bands(sets, limits) + _check_pooled(metrics, limits)
    return {**metrics, "checks": checks, "passed": all(c["passed"] for c in checks)}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check(name: str, value: float | None, limit: float, at_least: bool = False) -> dict[str, Any]:
    """One line of the verdict; a number that could not be measured is a miss."""
    passed = value is not None and (value >= limit if at_least else value <= limit)
    relation = ">=" if at_least else "<="
    return {"name": name, "value": value, "relation": relation, "limit": limit, "passed": passed}


def _check_bands(sets: dict[str, Any], limits: Thresholds) -> list[dict[str, Any]]:
    return [
        _check(f"{band}: {key.replace('_', ' ').replace('tarp', 'TARP')}", sets[band][key], limit)
        for band in BANDS
        for key, limit in (
            ("mean_deviation", limits.mean_deviation),
            ("largest_deviation", limits.largest_deviation),
            ("tarp_deviation", limits.tarp_deviation),
        )
    ]


def _check_pooled(metrics: dict[str, Any], limits: Thresholds) -> list[dict[str, Any]]:
    p = [q["p"] for band in BANDS for q in metrics["sets"][band]["quantities"].values()]
    signed = metrics["signed_deviation"]
    slope = metrics["slope_over_a_v"]["logzsol_mass_weighted"]
    mass = metrics["sets"][BANDS[-1]]["quantities"]["log_mass_formed"]
    in_errors = lambda d: abs(d["value"]) / d["error"] if d["error"] else None  # noqa: E731
    return [
        _check(f"rank histograms with p < {limits.low_p:g}, of {len(p)}",
               sum(v < limits.low_p for v in p), limits.n_low_p),
        _check("least p of the rank histograms", min(p), limits.least_p, at_least=True),
        _check("|signed deviation at 68 %| in standard errors", in_errors(signed),
               limits.signed_errors),
        _check(f"{BANDS[-1]}: median |error| of log mass (dex)",
               mass["median_absolute_error"], limits.log_mass_error),
        _check("|slope of log Z's error over A_V| in standard errors", in_errors(slope),
               limits.slope_errors),
    ]  # fmt: skip
