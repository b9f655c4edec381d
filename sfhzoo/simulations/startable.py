"""Histories from tables of star particles: EAGLE, SIMBA and whatever comes after them.

One row per star, in HDF5, Parquet or FITS files, in any order. The recipe names the columns and
their units:

    [simulation]
    engine = "stars"
    source = "stars_*.hdf5"               # one file or a pattern
    time_unit = "scale-factor"            # or redshift, age-gyr, age-yr, time-gyr, time-yr
    mass_unit = 1.4766e10                 # Msun
    metallicity_unit = "fraction"         # or logzsol, log10(Z/0.0142)
    [simulation.columns]
    galaxy = ["GroupNumber", "SubGroupNumber"]   # an integer, or two that count together
    time = "PartType4/StellarFormationTime"      # in HDF5 the path of the dataset
    mass = "PartType4/InitialMass"
    metallicity = "PartType4/Metallicity"

An age is before today, a time after the Big Bang. `galaxies` may name a table of what else is
known of them; then stars of other galaxies are left out.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.simulations import hdf5, particles
from sfhzoo.simulations.chunks import Setting, content_hash, run_jobs, stamp
from sfhzoo.simulations.galaxies import read_galaxies
from sfhzoo.simulations.particles import Columns, ParticleOptions, Stars
from sfhzoo.timebins import TimeBins

ROLES = ("galaxy", "time", "mass", "metallicity")
TIME_UNITS = {
    "scale-factor": 1.0,
    "redshift": 1.0,
    "age-gyr": 1.0,
    "age-yr": 1e-9,
    "time-gyr": 1.0,
    "time-yr": 1e-9,
}
"""Name in a recipe, and what times are multiplied with (to Gyr, where they have a unit)."""
METALLICITY_UNITS = ("fraction", "logzsol")
SECOND = 2**31
"""More galaxies than this no group has: ids of (group, galaxy) become one integer."""
MOST = 2**31
"""Of the first of two ids"""
EARLIEST = -0.1
"""Gyr before the Big Bang: ages of another cosmology may be a little too old"""


@dataclass(frozen=True, kw_only=True)
class StarTableOptions(ParticleOptions):
    """Keys of `[simulation]` with engine = "stars" (see the module).

    Parameters
    ----------
    columns : names of the columns of each role
    time_unit, mass_unit (Msun), metallicity_unit : of the columns
    metallicity_component : which of several in a two-dimensional column; 0 is often all metals
    unbound : the id of stars in no galaxy, besides negative ones
    """

    columns: dict[str, Any] = field(default_factory=dict)
    time_unit: str = "scale-factor"
    mass_unit: float = 1.0
    metallicity_unit: str = "fraction"
    metallicity_component: int = 0
    unbound: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(self.columns) != sorted(ROLES):
            raise DataError(
                f"expected [simulation.columns] with {', '.join(ROLES)}, got "
                f"{', '.join(sorted(self.columns)) or 'nothing'}"
            )
        if not all(_is_name(v) for v in self.columns.values()):
            raise DataError("[simulation.columns] must be names of columns")
        for name, known in (
            ("time_unit", list(TIME_UNITS)), ("metallicity_unit", METALLICITY_UNITS)
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise DataError(f"expected {name} of {known}, got {getattr(self, name)!r}")
        if not 0 < self.mass_unit < np.inf:
            raise DataError(f"expected mass_unit in Msun, got {self.mass_unit}")

    @property
    def galaxy_columns(self) -> list[str]:
        """The one or two columns that hold the id of a star's galaxy."""
        names = self.columns["galaxy"]
        return [names] if isinstance(names, str) else list(names)

    @property
    def star_columns(self) -> list[str]:
        """All columns that are read, the galaxy's first."""
        return self.galaxy_columns + [str(self.columns[role]) for role in ROLES[1:]]


def _is_name(value: Any) -> bool:
    several = isinstance(value, list) and 1 <= len(value) <= 2
    return isinstance(value, str) or (several and all(isinstance(v, str) for v in value))


@dataclass(frozen=True)
class TableJob:
    """One file of stars; `ids` are the sorted ids of the galaxies that count."""

    path: Path
    n: int
    ids: NDArray[np.int64]
    edges: NDArray[np.float64]
    age_today: float
    options: StarTableOptions


def read_blocks(path: Path, names: list[str]) -> Iterator[list[NDArray[Any]]]:
    """Columns `names` of a table, block by block; DataError for what cannot be read."""
    readers = {".hdf5": _read_hdf5, ".h5": _read_hdf5, ".parquet": _read_parquet}
    reader = readers.get(path.suffix, _read_fits if path.suffix == ".fits" else None)
    if reader is None:
        raise DataError(f"{path}: expected .hdf5, .h5, .parquet or .fits")
    n_before = 0
    for columns in reader(path, names):
        for name, column in zip(names, columns, strict=True):
            if column.dtype.kind not in "iufb" or column.ndim not in (1, 2):
                raise DataError(f"{path}: expected numbers in {name}, got {column.dtype}")
        if len({len(c) for c in columns}) != 1:
            lengths = dict(zip(names, map(len, columns), strict=True))
            raise DataError(f"{path}: columns of other lengths after row {n_before}: {lengths}")
        n_before += len(columns[0])
        yield columns


def _read_hdf5(path: Path, names: list[str]) -> Iterator[list[NDArray[Any]]]:
    with hdf5.open_hdf5(path) as f:
        for lo in range(0, hdf5.read_length(f, names[0]), particles.BLOCK):
            some = slice(lo, lo + particles.BLOCK)
            yield [hdf5.read(f, name, some, ndim=(1, 2)) for name in names]


def _read_parquet(path: Path, names: list[str]) -> Iterator[list[NDArray[Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as f:
            if missing := sorted(set(names) - set(f.schema_arrow.names)):
                raise DataError(f"{path}: no columns {missing}, only {f.schema_arrow.names}")
            for batch in f.iter_batches(particles.BLOCK, columns=sorted(set(names))):
                yield [batch.column(n).to_numpy(zero_copy_only=False) for n in names]
    except (OSError, pyarrow.ArrowInvalid) as e:
        raise DataError(f"{path} is no readable Parquet file ({_first_line(e)})") from e


def _read_fits(path: Path, names: list[str]) -> Iterator[list[NDArray[Any]]]:
    from astropy.io import fits

    try:
        with fits.open(path, memmap=True) as hdus:
            data = hdus[1].data
            if missing := sorted(set(names) - set(data.names)):
                raise DataError(f"{path}: no columns {missing}, only {data.names}")
            for lo in range(0, len(data), particles.BLOCK):
                some = slice(lo, lo + particles.BLOCK)
                yield [np.array(data[name][some]) for name in names]
    except (OSError, TypeError, IndexError, ValueError, AttributeError) as e:
        raise DataError(f"{path} is no readable FITS table ({_first_line(e)})") from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def calc_galaxy_id(columns: list[NDArray[Any]], unbound: int, where: str) -> NDArray[np.int64]:
    """One id [star] of one or two columns of integers; -1 for stars in no galaxy."""
    ids = []
    for column, most in zip(columns, [MOST, SECOND - 1] if len(columns) == 2 else [2**62]):
        as_float = np.asarray(column, float)
        if column.ndim != 1 or not np.all(
            np.isfinite(as_float) & (as_float == np.round(as_float)) & (as_float <= most)
        ):
            raise DataError(f"{where}: expected whole numbers as ids of galaxies, up to {most}")
        if column.dtype.kind == "f" and np.any(np.abs(as_float) > 2.0**53):
            raise DataError(f"{where}: ids above 2^53 need integers, got {column.dtype}")
        ids.append(np.asarray(column).astype(np.int64))
    outside = np.any([(i < 0) | (i == unbound) for i in ids], axis=0)
    # a single id keeps its value
    whole = ids[0] if len(ids) == 1 else ids[0] * SECOND + ids[1]
    return np.where(outside, -1, whole)


def find_ids(paths: list[Path], options: StarTableOptions) -> tuple[NDArray[np.int64], list[int]]:
    """Sorted ids of all galaxies with stars, and the number of rows of each file."""
    ids, counts = np.zeros(0, np.int64), []
    for path in paths:
        n = 0
        for columns in read_blocks(path, options.galaxy_columns):
            found = np.unique(calc_galaxy_id(columns, options.unbound, str(path)))
            ids = np.union1d(ids, found[found >= 0])
            n += len(columns[0])
        counts.append(n)
    return ids, counts


def sum_table(job: TableJob) -> Columns:
    """The sums of one file (see `particles.StarSums`)."""
    parts: list[Columns] = []
    n_ids = len(job.options.galaxy_columns)
    for columns in read_blocks(job.path, job.options.star_columns):
        galaxy = calc_galaxy_id(columns[:n_ids], job.options.unbound, str(job.path))
        row = np.minimum(np.searchsorted(job.ids, galaxy), len(job.ids) - 1)
        row = np.where((galaxy >= 0) & (job.ids[row] == galaxy), row, -1)
        stars = _make_stars(row, columns[n_ids:], job)
        particles.add_part(parts, particles.sum_stars(stars, job.edges.size - 1))
    return particles.join_sums(parts)


def _make_stars(row: NDArray[np.int64], columns: list[NDArray[Any]], job: TableJob) -> Stars:
    o, where = job.options, str(job.path)
    time, mass = (np.asarray(c, float) for c in columns[:2])
    metals = np.asarray(columns[2], float)
    if time.ndim != 1 or mass.ndim != 1:
        raise DataError(f"{where}: expected one time and one mass per star")
    if metals.ndim == 2:
        if not 0 <= o.metallicity_component < metals.shape[1]:
            raise DataError(
                f"{where}: the metallicity has {metals.shape[1]} components, "
                f"metallicity_component is {o.metallicity_component}"
            )
        metals = metals[:, o.metallicity_component]
    wind = (time <= 0) & (o.time_unit == "scale-factor")
    used = (row >= 0) & ~wind
    index = np.full(len(time), -1, np.int64)
    index[used] = _bin_of(time[used], job)
    name = f"the mass ({o.columns['mass']})"
    particles.check_range(where, name, mass[used], 0.0, 1e12 / o.mass_unit, "0 to 1e12 Msun")
    name = f"the metallicity ({o.columns['metallicity']})"
    if o.metallicity_unit == "logzsol":
        particles.check_range(where, name, metals[used], -30.0, 3.0, "log10(Z/0.0142), -30 to 3")
        metals = particles.Z_SUN * 10.0**metals
    else:
        low = -particles.SLACK
        particles.check_range(where, name, metals[used], low, 1.0, "a mass fraction, 0 to 1")
    return Stars(row, index, mass * o.mass_unit, np.maximum(metals, 0.0))


def _bin_of(time: NDArray[np.float64], job: TableJob) -> NDArray[np.int64]:
    """Bin [star] of formation; `job.edges` are scale factors or Gyr, as the unit needs."""
    o = job.options
    name = f"the time ({o.columns['time']}, {o.time_unit})"
    if o.time_unit == "redshift":
        particles.check_range(str(job.path), name, time, -particles.SLACK, 1e3, "0 to 1000")
        time = 1.0 / (1.0 + time)
    elif o.time_unit == "scale-factor":
        high = 1 + particles.SLACK
        particles.check_range(str(job.path), name, time, 0.0, high, "a scale factor, 0 to 1")
    else:
        time = time * TIME_UNITS[o.time_unit]
        low, high = EARLIEST, job.age_today - EARLIEST
        particles.check_range(
            str(job.path), name, time, low, high, f"0 to {job.age_today:.3f} Gyr"
        )
        time = job.age_today - time if o.time_unit.startswith("age") else time
    return particles.calc_bin_index(time, job.edges)


def collect(
    table: dict[str, Any], bins: TimeBins, setting: Setting
) -> tuple[Columns, dict[str, Any]]:
    """The galaxies of tables of stars, as columns of a training set, and the checks on the way.

    Raises DataError for files that are missing or damaged and values that cannot be.
    """
    options = StarTableOptions.from_table(table)
    options = replace(options, source=setting.source or options.source)
    pattern = str(Path(options.source).expanduser())
    paths = sorted(Path(p).resolve() for p in glob.glob(pattern))
    if not paths or not all(p.is_file() for p in paths):
        raise DataError(f"expected tables of stars at {options.source!r}; name them with --source")
    ids, counts = find_ids(paths, options)
    ids, galaxies, dropped = read_galaxies(options.galaxies, ids)
    of_scale = options.time_unit in ("scale-factor", "redshift")
    edges = particles.calc_scale_factor_edges(bins) if of_scale else bins.edges
    jobs = [
        TableJob(path, n, ids, edges, bins.age_today, options)
        for path, n in zip(paths, counts, strict=True)
    ]
    particles.check_n_test(options, len(ids), dropped)
    of_sums = {k: v for k, v in table.items() if k in ("cosmology", "columns", "unbound")}
    units = (options.time_unit, options.mass_unit, options.metallicity_unit)
    identity = {
        "recipe": {**of_sums, "units": units, "component": options.metallicity_component},
        "galaxies": content_hash([ids]),
        "files": [stamp(p, n) for p, n in zip(paths, counts, strict=True)],
    }
    sums = particles.StarSums(len(ids), bins.n)
    for part in run_jobs(sum_table, jobs, identity, setting):
        sums.add(part)
    return particles.select_and_order(sums, galaxies, dropped, bins, options)
