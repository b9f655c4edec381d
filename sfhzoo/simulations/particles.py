"""Star particles -> histories: what all readers of a simulation's stars share.

    SFR of a bin      sum of initial masses of the stars formed in it / width of the bin
    log Z/Z_sun       of their mean metal mass fraction, weighted by initial mass

(Perry-Fagant et al.). Stars come in blocks, in any order; a block leaves sparse sums behind, so
memory does not grow with the number of stars: 0.5 kB per selected galaxy, and 1 kB while they
are put in order.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, Self, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.histories import fill_empty_metallicity
from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR, Z_SUN

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Columns = dict[str, NDArray[Any]]

BLOCK = 2**18
"""Stars that are read at once"""
SLACK = 1e-5
"""Of a formation time beyond today, and of a metallicity below 0: rounding in the source."""
MASS_RATIO = (0.1, 10.0)
"""Mass formed over surviving mass is 1.5 to 2; beyond these a unit is wrong."""
PILE = 2**22
"""Cells and rows of partial sums that may pile up, 100 MB"""
SMALLEST_Z = 1e-11
ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class ParticleOptions:
    """The keys of `[simulation]` that all particle readers know.

    Parameters
    ----------
    source : directory or file pattern, relative to the working directory
    n_test, seed : galaxies never trained on; the order of the galaxies, hence the split
    cosmology : astropy's name; of the bins and of scale factors
    min_mass : Msun, of the surviving stars (or as the reader says)
    min_stars : star particles, without wind
    max_logzsol : a galaxy with a bin above it is dropped whole
    empty_metallicity : metal mass fraction of bins without stars, or "carry" (the bin before)
    galaxies : table with `source_id` and further numbers of each galaxy, for readers without one
    expected : number of galaxies that somebody else found, to be shown beside the own
    """

    engine: str
    citation: str
    n_test: int
    source: str = ""
    seed: int = 0
    cosmology: str = "Planck15"
    min_mass: float = 0.0
    min_stars: int = 1
    max_logzsol: float = 0.5
    empty_metallicity: float | str = "carry"
    galaxies: str = ""
    expected: int = 0

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Self:
        """Checked against the known keys and types; DataError names the wrong one."""
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(table) - set(known)):
            raise DataError(f"[simulation] has unknown {unknown}; known are {sorted(known)}")
        hints = get_type_hints(cls)
        for name, f in known.items():
            if name not in table:
                if f.default is MISSING and f.default_factory is MISSING:
                    raise DataError(f"[simulation] needs {name}")
            elif not _has_type(table[name], hints[name]):
                raise DataError(f"[simulation] {name} cannot be {table[name]!r}")
        return cls(**table)

    def __post_init__(self) -> None:
        if isinstance(self.empty_metallicity, str) and self.empty_metallicity != "carry":
            raise DataError(
                f"expected empty_metallicity 'carry' or a number, got {self.empty_metallicity!r}"
            )
        if not isinstance(self.empty_metallicity, str) and not 0 < self.empty_metallicity <= 1:
            raise DataError(
                f"expected empty_metallicity above 0 and up to 1, got {self.empty_metallicity}"
            )
        least = {"n_test": 1, "seed": 0, "min_stars": 0, "min_mass": 0.0, "max_logzsol": -10.0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise DataError(
                    f"[simulation] {name} is {getattr(self, name)}, expected {low:g} or more"
                )


def _has_type(value: Any, hint: Any) -> bool:
    kinds = get_args(hint) or (hint,)
    if getattr(hint, "__origin__", None) is dict:
        return isinstance(value, dict)
    allowed = tuple(k for k in kinds if isinstance(k, type))
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (isinstance(value, int) and float in allowed)


class Stars(NamedTuple):
    """A block of star particles, one value each.

    `galaxy` is the row of its galaxy, -1 outside of all; `bin` the bin of its formation, -1 for
    what is no star (wind); `mass` the initial mass, Msun; `metals` the mass fraction Z.
    """

    galaxy: Index
    bin: Index
    mass: Array
    metals: Array


def calc_scale_factor_edges(bins: TimeBins) -> Array:
    """Edges [n + 1] of the bins as scale factors, 0 to 1."""
    from astropy import units as u
    from astropy.cosmology import z_at_value

    inner = np.atleast_1d(z_at_value(bins._flrw.age, bins.edges[1:-1] * u.Gyr).value)
    return np.concatenate([[0.0], 1.0 / (1.0 + inner), [1.0]])


def calc_bin_index(time: Array, edges: Array) -> Index:
    """The bin [star] of each formation time; `time` and `edges` share a unit.

    A star on an edge belongs to the later bin, one of today to the last.
    """
    index = np.searchsorted(edges, time, side="right") - 1
    return np.clip(index, 0, len(edges) - 2).astype(np.int64)


def check_range(
    where: str, name: str, values: Array, low: float, high: float, expected: str
) -> None:
    """DataError that names the first value outside [low, high], or not finite."""
    bad = ~((values >= low) & (values <= high))
    if bad.any():
        worst = values[np.argmax(bad)]
        raise DataError(
            f"{where}: {name} is {worst:g} at row {np.argmax(bad)} of those read, expected "
            f"{expected} ({bad.sum()} such values in a block of {len(values)}); "
            "a wrong column, unit or a damaged file"
        )


def sum_stars(stars: Stars, n_bins: int) -> Columns:
    """The sparse sums of a block: see `StarSums`."""
    inside = stars.galaxy >= 0
    formed = inside & (stars.bin >= 0)
    rows, local = np.unique(stars.galaxy[formed], return_inverse=True)
    cell = local * n_bins + stars.bin[formed]
    size, mass = len(rows) * n_bins, stars.mass[formed]
    total = np.bincount(cell, mass, size)
    metals = np.bincount(cell, mass * stars.metals[formed], size)
    full = np.flatnonzero(total)
    counts = [len(inside), int((~inside).sum()), int((inside & ~formed).sum())]
    return {
        "cell": rows[full // n_bins] * n_bins + full % n_bins,
        "mass": total[full],
        "metals": metals[full],
        "row": rows,
        "count": np.bincount(local, minlength=len(rows)),
        "stars": np.array(counts),
    }


def add_part(parts: list[Columns], part: Columns) -> None:
    """Append sums; piled up they become one, so that memory does not grow with the stars."""
    parts.append(part)
    if sum(len(p["cell"]) + len(p["row"]) for p in parts) > PILE:
        parts[:] = [_merge(join_sums(parts))]


def _merge(part: Columns) -> Columns:
    """Each cell and each row once."""
    cell, of_cell = np.unique(part["cell"], return_inverse=True)
    row, of_row = np.unique(part["row"], return_inverse=True)
    return {
        "cell": cell,
        "mass": np.bincount(of_cell, part["mass"], len(cell)),
        "metals": np.bincount(of_cell, part["metals"], len(cell)),
        "row": row,
        "count": np.bincount(of_row, part["count"], len(row)).astype(np.int64),
        "stars": part["stars"],
    }


def check_n_test(options: ParticleOptions, n: int, dropped: dict[str, int]) -> None:
    """DataError where no more than the test split is left of n galaxies."""
    if not n:
        raise DataError(f"no galaxy passes the selection; dropped: {_list(dropped)}")
    if options.n_test >= n:
        raise DataError(
            f"expected n_test < {n}, the galaxies kept, got {options.n_test}; of "
            f"{n + sum(dropped.values())} galaxies were dropped: {_list(dropped)}"
        )


def join_sums(parts: list[Columns]) -> Columns:
    """The sums of several blocks as those of one; a cell may appear more than once."""
    empty = sum_stars(Stars(*(np.zeros(0, t) for t in (int, int, float, float))), 1)
    joined = {k: np.concatenate([p[k] for p in [empty, *parts]]) for k in empty if k != "stars"}
    return {**joined, "stars": np.sum([empty["stars"], *(p["stars"] for p in parts)], axis=0)}


class StarSums:
    """Initial mass (Msun) and mass of metals [galaxy, bin] of all stars added so far."""

    def __init__(self, n_galaxies: int, n_bins: int) -> None:
        # single precision halves the memory; each value is a sum of few sums made in double
        self.mass = np.zeros((n_galaxies, n_bins), np.float32)
        self.metals = np.zeros((n_galaxies, n_bins), np.float32)
        self.count = np.zeros(n_galaxies, np.int64)
        self.read, self.outside, self.wind = 0, 0, 0

    def add(self, part: Columns) -> None:
        """Add the sums of `sum_stars` or `join_sums`."""
        np.add.at(self.mass.reshape(-1), part["cell"], part["mass"].astype(np.float32))
        np.add.at(self.metals.reshape(-1), part["cell"], part["metals"].astype(np.float32))
        np.add.at(self.count, part["row"], part["count"])
        read, outside, wind = part["stars"].tolist()
        self.read, self.outside, self.wind = (
            self.read + read,
            self.outside + outside,
            self.wind + wind,
        )

    def to_histories(
        self, bins: TimeBins, options: ParticleOptions
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """SFR and log Z/Z_sun [galaxy, bin], and the highest log Z [galaxy] of bins with stars.

        The sums are overwritten, to save the memory of a copy.
        """
        highest = np.full(len(self.mass), -np.inf, np.float32)
        for lo in range(0, len(self.mass), ROWS):
            some = slice(lo, lo + ROWS)
            mass = self.mass[some].astype(float)
            full = mass > 0
            z = np.divide(self.metals[some], mass, where=full, out=np.zeros_like(mass))
            logzsol = np.log10(np.maximum(z, SMALLEST_Z) / Z_SUN)
            highest[some] = np.where(full, logzsol, -np.inf).max(axis=1)
            if isinstance(options.empty_metallicity, str):
                logzsol = fill_empty_metallicity(mass, logzsol)
            else:
                logzsol[~full] = np.log10(options.empty_metallicity / Z_SUN)
            self.mass[some] = mass / (bins.width * YR_PER_GYR)
            self.metals[some] = logzsol
        return self.mass, self.metals, highest


def select_and_order(
    sums: StarSums,
    galaxies: Columns,
    dropped: dict[str, int],
    bins: TimeBins,
    options: ParticleOptions,
) -> tuple[Columns, dict[str, Any]]:
    """The columns of a training set and its checks, from the sums of all stars.

    `galaxies` holds one value per row of `sums`; `log_mass_surviving` (log10 Msun) where known
    is compared with the mass formed and, unless the reader has done so, cut at `min_mass`.
    `dropped` counts what the reader has left out, by reason. Raises DataError where no more
    than `n_test` galaxies are left, or the masses contradict each other.
    """
    formed = sums.mass.sum(axis=1, dtype=float) if len(sums.mass) else np.zeros(0)
    surviving = galaxies.get("log_mass_surviving")
    mass = formed if surviving is None else 10.0 ** np.asarray(surviving, float)
    ratio = _check_masses(formed, surviving)
    n_found = len(formed) + sum(dropped.values())
    sfr, logzsol, highest = sums.to_histories(bins, options)
    keep = np.ones(len(formed), bool)
    reasons = {
        "below the mass limit": mass < options.min_mass,
        "too few stars": sums.count < max(options.min_stars, 1),
        "metallicity above the limit": highest > options.max_logzsol,
    }
    dropped = dict(dropped)
    for reason, bad in reasons.items():
        dropped[reason] = dropped.get(reason, 0) + int((keep & bad).sum())
        keep &= ~bad
    order = np.random.default_rng(options.seed).permutation(np.flatnonzero(keep))
    check_n_test(options, len(order), dropped)
    columns: Columns = {"n_stars": sums.count[order]}
    columns |= {k: np.asarray(v)[order] for k, v in galaxies.items()}
    columns = {"sfr": sfr[order], "logzsol": logzsol[order], **columns}
    stars = {"read": sums.read, "outside the galaxies": sums.outside, "wind": sums.wind}
    checks: dict[str, Any] = {
        "galaxies": {"found": n_found, **dropped, "kept": len(order)},
        "stars": {**stars, "binned": int(sums.count.sum())},
        "formed_over_surviving": ratio,
    }
    return columns, checks | ({"expected": options.expected} if options.expected else {})


def _list(dropped: dict[str, int]) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in dropped.items() if n) or "none"


def _check_masses(formed: Array, surviving: NDArray[Any] | None) -> float | None:
    if surviving is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = formed / 10.0 ** np.asarray(surviving, float)
    ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
    if not len(ratio):
        return None
    median = float(np.median(ratio))
    if not MASS_RATIO[0] < median < MASS_RATIO[1]:
        raise DataError(
            f"the stars formed {median:.3g} times the galaxies' surviving mass (median), expected "
            "1.5 to 2: the units of one of them, or the offsets of the stars, are wrong"
        )
    return round(median, 4)


def format_counts(checks: dict[str, Any]) -> str:
    """One line on what was kept, and what was dropped and why."""
    galaxies = dict(checks["galaxies"])
    found, kept = galaxies.pop("found"), galaxies.pop("kept")
    stars = checks["stars"]
    expected = f" (published: {checks['expected']})" if "expected" in checks else ""
    return (
        f"kept {kept} of {found} galaxies{expected}; dropped: {_list(galaxies)}; "
        f"{stars['binned']} of {stars['read']} stars, {stars['wind']} wind particles left out"
    )
