"""Histories from the particle data of IllustrisTNG and Illustris.

The files as published (Nelson et al. 2019, doi:10.1186/s40668-019-0028-x), under `source`:

    groups_099/fof_subhalo_tab_099.N.hdf5    friends-of-friends groups and their subhalos
    snapdir_099/snap_099.N.hdf5              particles, of which PartType4 are stars and wind

The stars of a snapshot follow the groups: group by group, in each the stars of its subhalos in
their order, then those bound to none; after the last group all others. So the first star of
subhalo s of group g is

    offset(s) = sum of GroupLenType before g  +  sum of SubhaloLenType before s within g

or what the file of offsets says, where there is one. Formation times are scale factors (wind has
times <= 0), masses are in 1e10 Msun/h, metallicities are mass fractions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.simulations import hdf5, particles
from sfhzoo.simulations.chunks import Setting, content_hash, run_jobs, stamp
from sfhzoo.simulations.particles import Columns, ParticleOptions, Stars
from sfhzoo.timebins import TimeBins, resolve_cosmology

STARS = 4
"""PartType of stars and wind"""
MSUN = 1e10
"""Msun/h, the unit of masses"""
TIME, MASS, METALS = (
    f"PartType{STARS}/{name}"
    for name in ("GFM_StellarFormationTime", "GFM_InitialMass", "GFM_Metallicity")
)
HUBBLE_SLACK = 0.005
TODAY_SLACK = 1e-3
"""Of the scale factor today"""


@dataclass(frozen=True, kw_only=True)
class TngOptions(ParticleOptions):
    """Keys of `[simulation]` with engine = "tng".

    Parameters
    ----------
    snapshot : its number; 99 is redshift 0 of TNG, 135 of Illustris
    subhalo_flag : leave out what SubhaloFlag says is no galaxy (Illustris has no such flag)
    mass : that `min_mass` refers to: "stars" (SubhaloMassType, with wind) or "total"
    """

    snapshot: int = 99
    subhalo_flag: bool = True
    mass: str = "stars"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mass not in ("stars", "total"):
            raise DataError(f"expected mass 'stars' or 'total', got {self.mass!r}")


class Catalogue(NamedTuple):
    """Subhalos [subhalo] and groups [group]; masses in Msun, `n_stars` counts wind too."""

    group: NDArray[np.int64]
    n_stars: NDArray[np.int64]
    mass_stars: NDArray[np.float32]
    mass_total: NDArray[np.float32]
    flag: NDArray[np.bool_] | None
    group_stars: NDArray[np.int64]
    group_mass: NDArray[np.float32]
    first_subhalo: NDArray[np.int64]


@dataclass(frozen=True)
class ChunkJob:
    """The stars of one snapshot file; rows from `first_row` on start and stop where they say."""

    path: Path
    n: int
    hubble: float
    edges: NDArray[np.float64]
    latest: float
    first_row: int
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


def find_file(source: Path, kind: str, snapshot: int, index: int) -> Path:
    """File `index` of the catalogue ("groups") or the snapshot ("snapdir"), whatever its name."""
    folder = source / f"{kind}_{snapshot:03d}"
    names = {"groups": ("fof_subhalo_tab", "groups"), "snapdir": ("snap", "snapshot")}[kind]
    paths = [folder / f"{name}_{snapshot:03d}.{index}.hdf5" for name in names]
    return next((p for p in paths if p.is_file()), paths[0])


def _read_field(f: Any, name: str, n: int, width: int = 0) -> NDArray[Any]:
    values = hdf5.read(f, name, ndim=(2,) if width else (1,), width=width)
    if len(values) != n:
        raise DataError(f"{f.filename}: {name} has {len(values)} rows, its header says {n}")
    return values


def _read_catalogue_file(path: Path, options: TngOptions) -> tuple[Columns, int]:
    """Columns of one file, with the number of files of its header."""
    columns: Columns = {}
    with hdf5.open_hdf5(path) as f:
        header = lambda name: hdf5.read_number(f, "Header", name)  # noqa: E731
        n_groups, n_subhalos = int(header("Ngroups_ThisFile")), int(header("Nsubgroups_ThisFile"))
        hubble = header("HubbleParam")
        check_cosmology(hubble, options.cosmology, str(path))
        # a file without groups or subhalos has no datasets of them
        if n_groups:
            lengths = _read_field(f, "Group/GroupLenType", n_groups, STARS + 1)
            columns["group_stars"] = lengths[:, STARS].astype(np.int64)
            mass = _read_field(f, "Group/Group_M_Crit200", n_groups)
            columns["group_mass"] = (mass * (MSUN / hubble)).astype(np.float32)
            first = _read_field(f, "Group/GroupFirstSub", n_groups)
            # unsigned in some releases, where 2^32 - 1 stands for none
            columns["first_subhalo"] = first.astype(np.int64)
        if n_subhalos:
            lengths = _read_field(f, "Subhalo/SubhaloLenType", n_subhalos, STARS + 1)
            columns["n_stars"] = lengths[:, STARS].astype(np.int64)
            mass = _read_field(f, "Subhalo/SubhaloMassType", n_subhalos, STARS + 1)
            mass = mass * (MSUN / hubble)
            if not np.all(np.isfinite(mass)):
                raise DataError(f"{path}: Subhalo/SubhaloMassType has values that are no numbers")
            columns["mass_stars"] = mass[:, STARS].astype(np.float32)
            columns["mass_total"] = mass.sum(axis=1).astype(np.float32)
            group = _read_field(f, "Subhalo/SubhaloGrNr", n_subhalos)
            columns["group"] = group.astype(np.int64)
            if options.subhalo_flag:
                columns["flag"] = _read_field(f, "Subhalo/SubhaloFlag", n_subhalos).astype(bool)
        return columns, int(header("NumFiles"))


def read_catalogue(source: Path, options: TngOptions) -> Catalogue:
    """All groups and subhalos of the snapshot; DataError for a missing or contradictory file."""
    parts: list[Columns] = []
    n_files = 1
    while len(parts) < n_files:
        path = find_file(source, "groups", options.snapshot, len(parts))
        part, n_files = _read_catalogue_file(path, options)
        parts.append(part)
    with hdf5.open_hdf5(find_file(source, "groups", options.snapshot, 0)) as f:
        totals = {
            "group_stars": int(hdf5.read_number(f, "Header", "Ngroups_Total")),
            "n_stars": int(hdf5.read_number(f, "Header", "Nsubgroups_Total")),
        }
    names = set().union(*parts)
    joined = {k: np.concatenate([p[k] for p in parts if k in p]) for k in names}
    for name, total in totals.items():
        found = len(joined.get(name, ()))
        if found != total or not found:
            what = "groups" if name == "group_stars" else "subhalos"
            raise DataError(f"{source}: {found} {what} in {n_files} files, expected {total}")
    columns: dict[str, Any] = {"flag": None, **joined}
    return Catalogue(**columns)


def calc_offsets(catalogue: Catalogue) -> NDArray[np.int64]:
    """The first star [subhalo] of each subhalo within the snapshot (the module's equation)."""
    group, n_stars = catalogue.group, catalogue.n_stars
    if np.any(np.diff(group) < 0) or group[-1] >= len(catalogue.group_stars):
        raise DataError("expected subhalos in the order of their groups (SubhaloGrNr)")
    before_group = np.cumsum(catalogue.group_stars) - catalogue.group_stars
    before = np.cumsum(n_stars) - n_stars
    first_of_group = np.searchsorted(group, group)
    within = before - before[first_of_group]
    offset = before_group[group] + within
    over = within + n_stars > catalogue.group_stars[group]
    if over.any():
        raise DataError(
            f"group {group[np.argmax(over)]} has fewer stars than its subhalos ({over.sum()} such "
            "subhalos); a file of the catalogue is of another run"
        )
    return offset


def read_offsets(source: Path, options: TngOptions, catalogue: Catalogue) -> NDArray[np.int64]:
    """`calc_offsets`, or what postprocessing/offsets beside or in `source` says."""
    name = f"postprocessing/offsets/offsets_{options.snapshot:03d}.hdf5"
    for path in (source / name, source.resolve().parent / name):
        if path.is_file():
            with hdf5.open_hdf5(path) as f:
                found = hdf5.read(f, "Subhalo/SnapByType", ndim=(2,), width=STARS + 1)
            if len(found) != len(catalogue.n_stars):
                raise DataError(
                    f"{path} has {len(found)} subhalos, the catalogue {len(catalogue.n_stars)}"
                )
            return found[:, STARS].astype(np.int64)
    return calc_offsets(catalogue)


def read_epoch(f: Any, cosmology: str) -> tuple[float, float]:
    """(h, scale factor) of a file's header; DataError for another cosmology or redshift than 0."""
    hubble = hdf5.read_number(f, "Header", "HubbleParam")
    time = hdf5.read_number(f, "Header", "Time")
    check_cosmology(hubble, cosmology, str(f.filename))
    if abs(time - 1) > TODAY_SLACK:
        raise DataError(
            f"{f.filename} is at the scale factor {time:.4g}; histories to today need redshift 0"
        )
    return hubble, time


def _count_stars(
    source: Path, options: TngOptions
) -> tuple[list[tuple[Path, int]], dict[str, float]]:
    """(path, number of stars and wind) of all files of the snapshot, and its header."""
    files: list[tuple[Path, int]] = []
    n_files, header = 1, {}
    while len(files) < n_files:
        path = find_file(source, "snapdir", options.snapshot, len(files))
        with hdf5.open_hdf5(path) as f:
            read = lambda name, i=0: int(hdf5.read_number(f, "Header", name, i))  # noqa: E731
            files.append((path, read("NumPart_ThisFile", STARS)))
            hubble, time = read_epoch(f, options.cosmology)
            if len(files) == 1:
                n_files, total = read("NumFilesPerSnapshot"), read("NumPart_Total", STARS)
                if "NumPart_Total_HighWord" in f["Header"].attrs:
                    total += read("NumPart_Total_HighWord", STARS) << 32
                header = {"total": total, "time": time, "hubble": hubble}
            if hubble != header["hubble"] or time != header["time"]:
                raise DataError(f"{path} and the first file differ in HubbleParam or Time")
    found = sum(n for _, n in files)
    if found != header["total"]:
        raise DataError(
            f"{source}: {found} stars in {n_files} snapshot files, expected {header['total']}"
        )
    return files, header


def check_cosmology(hubble: float, cosmology: str, where: str) -> None:
    """DataError when a file's h is not that of the recipe's cosmology."""
    expected = resolve_cosmology(cosmology).h
    if abs(hubble - expected) > HUBBLE_SLACK:
        raise DataError(
            f"{where}: the simulation has h = {hubble:g}, {cosmology} has {expected:g}; give "
            "[simulation] the simulation's cosmology"
        )


def select(catalogue: Catalogue, options: TngOptions) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Subhalos whose stars are worth reading, and how many were dropped, by reason."""
    n = len(catalogue.n_stars)
    mass = catalogue.mass_stars if options.mass == "stars" else catalogue.mass_total
    flagged = np.zeros(n, bool) if catalogue.flag is None else ~catalogue.flag
    light = ~flagged & (mass <= options.min_mass)
    few = ~flagged & ~light & (catalogue.n_stars < max(options.min_stars, 1))
    dropped = {
        "flagged as no galaxy": int(flagged.sum()),
        "below the mass limit": int(light.sum()),
        "too few stars": int(few.sum()),
    }
    return np.flatnonzero(~(flagged | light | few)), dropped


def _describe(catalogue: Catalogue, chosen: NDArray[np.int64]) -> Columns:
    group = catalogue.group[chosen]
    with np.errstate(divide="ignore"):
        mass = np.log10(catalogue.mass_stars[chosen])
        halo = np.log10(catalogue.group_mass[group])
    return {
        "source_id": chosen,
        "log_mass_surviving": mass,
        # a group too small to have a virial radius
        "log_halo_mass": np.where(np.isfinite(halo), halo, np.nan).astype(np.float32),
        "satellite": catalogue.first_subhalo[group] != chosen,
    }


def make_jobs(
    files: list[tuple[Path, int]], start: NDArray[np.int64], stop: NDArray[np.int64], **common: Any
) -> Iterator[ChunkJob]:
    """One job per snapshot file with stars; `start` and `stop` count in the snapshot."""
    if np.any(start[1:] < stop[:-1]):
        raise DataError("the stars of two subhalos overlap; the offsets are of another snapshot")
    before = 0
    for path, n in files:
        lo, hi = np.searchsorted(stop, before, "right"), np.searchsorted(start, before + n, "left")
        some = slice(int(lo), max(int(lo), int(hi)))
        if n:
            yield ChunkJob(
                path, n, first_row=some.start, start=start[some] - before,
                stop=stop[some] - before, **common,
            )  # fmt: skip
        before += n
    if len(stop) and stop[-1] > before:
        raise DataError(f"the last subhalo ends at star {stop[-1]}, the snapshot has {before}")


def _label(job: ChunkJob, lo: int, hi: int) -> NDArray[np.int64]:
    """The row [star] of each star lo ... hi of the file, -1 outside of all."""
    row = np.full(hi - lo, -1, np.int64)
    a, b = np.searchsorted(job.stop, lo, "right"), np.searchsorted(job.start, hi, "left")
    start, stop = np.maximum(job.start[a:b], lo) - lo, np.minimum(job.stop[a:b], hi) - lo
    length = np.maximum(stop - start, 0)
    within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    row[np.repeat(start, length) + within] = np.repeat(job.first_row + np.arange(a, b), length)
    return row


def sum_chunk(job: ChunkJob) -> Columns:
    """The sums of one snapshot file, read in blocks (see `particles.StarSums`)."""
    parts: list[Columns] = []
    with hdf5.open_hdf5(job.path) as f:
        for name in (TIME, MASS, METALS):
            found = hdf5.read_length(f, name)
            if found != job.n:
                less = "fewer" if found < job.n else "more"
                raise DataError(
                    f"{job.path}: {less} stars than the {job.n} its header says ({name}: {found})"
                )
        for lo in range(0, job.n, particles.BLOCK):
            some = slice(lo, min(lo + particles.BLOCK, job.n))
            columns = [hdf5.read(f, name, some) for name in (TIME, MASS, METALS)]
            row = _label(job, lo, some.stop)
            stars = make_stars(str(job.path), row, columns, job)
            particles.add_part(parts, particles.sum_stars(stars, len(job.edges) - 1))
    return particles.join_sums(parts)


def make_stars(where: str, row: NDArray[np.int64], columns: list[NDArray[Any]], job: Any) -> Stars:
    """Stars of formation time (scale factor), initial mass (1e10 Msun/h) and metallicity.

    DataError names the first value that cannot be one, of a star in a galaxy.
    """
    time, mass, metals = (np.asarray(c, float) for c in columns)
    wind = time <= 0
    used = (row >= 0) & ~wind
    edge = job.latest * (1 + particles.SLACK)
    latest = f"a scale factor up to {job.latest:.4g}"
    particles.check_range(where, TIME, time[used], 0.0, edge, latest)
    particles.check_range(where, MASS, mass[used], 0.0, 1e4, "1e10 Msun/h, >= 0")
    z = metals[used]
    particles.check_range(where, METALS, z, -particles.SLACK, 1.0, "a mass fraction, 0 to 1")
    index = np.full(len(time), -1, np.int64)
    index[used] = particles.calc_bin_index(time[used], job.edges)
    return Stars(row, index, mass * (MSUN / job.hubble), np.maximum(metals, 0.0))


def collect(
    table: dict[str, Any], bins: TimeBins, setting: Setting
) -> tuple[Columns, dict[str, Any]]:
    """The galaxies of a snapshot, as columns of a training set, and the checks on the way.

    Raises DataError for files that are missing, damaged or contradict each other.
    """
    options = TngOptions.from_table(table)
    options = replace(options, source=setting.source or options.source)
    source = Path(options.source).expanduser().resolve()
    if not options.source or not source.is_dir():
        raise DataError(
            f"expected a directory with groups_{options.snapshot:03d} and snapdir_"
            f"{options.snapshot:03d}, got {options.source!r}; name it with --source"
        )
    catalogue = read_catalogue(source, options)
    files, header = _count_stars(source, options)
    chosen, dropped = select(catalogue, options)
    particles.check_n_test(options, len(chosen), dropped)
    start = read_offsets(source, options, catalogue)[chosen]
    chosen, start = (a[np.argsort(start, kind="stable")] for a in (chosen, start))
    common = {
        "hubble": header["hubble"],
        "edges": particles.calc_scale_factor_edges(bins),
        "latest": header["time"],
    }
    stop = start + catalogue.n_stars[chosen]
    jobs = list(make_jobs(files, start, stop, **common))
    # what the sums depend on: the rest of a recipe may change and they still hold
    identity = {
        "cosmology": options.cosmology,
        "galaxies": content_hash([chosen, start, stop]),
        "files": [stamp(path, n) for path, n in files],
    }
    sums = particles.StarSums(len(chosen), bins.n)
    for part in run_jobs(sum_chunk, jobs, identity, setting):
        sums.add(part)
    galaxies = _describe(catalogue, chosen)
    # the limit was applied by `select`
    options = replace(options, min_mass=0.0)
    return particles.select_and_order(sums, galaxies, dropped, bins, options)
