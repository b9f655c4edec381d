"""Histories from cutouts of subhalos, as the web interface of IllustrisTNG delivers them.

One HDF5 file per subhalo, with a Header and the PartType4 of that subhalo alone, in the units of
the snapshot (see `tng.py`). The id is that of the header (CutoutID), else the last number in the
file's name (`cutout_535410.hdf5`). A cutout tells nothing of flags and halos: `galaxies` may name
a table with `source_id`, `flag`, `log_halo_mass`, `satellite` and whatever else is to be kept; the
surviving mass is the sum of Masses, where the cutout has them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.simulations import hdf5, particles, tng
from sfhzoo.simulations.chunks import Setting, content_hash, run_jobs, stamp
from sfhzoo.simulations.galaxies import read_galaxies
from sfhzoo.simulations.particles import Columns, ParticleOptions
from sfhzoo.timebins import TimeBins

PER_JOB = 200
NOW = f"PartType{tng.STARS}/Masses"


@dataclass(frozen=True, kw_only=True)
class CutoutOptions(ParticleOptions):
    """Keys of `[simulation]` with engine = "cutouts"; `source` is their directory."""


@dataclass(frozen=True)
class CutoutJob:
    """Some files, with the row of each galaxy."""

    paths: list[Path]
    rows: list[int]
    cosmology: str
    edges: NDArray[np.float64]

    @property
    def n(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class _Units:
    hubble: float
    latest: float
    edges: NDArray[np.float64]


def find_id(path: Path) -> int:
    """The subhalo of a cutout; DataError where neither header nor name tell."""
    with hdf5.open_hdf5(path) as f:
        header = f["Header"].attrs if "Header" in f else {}
        if "CutoutID" in header:
            return int(hdf5.read_number(f, "Header", "CutoutID"))
    numbers = re.findall(r"\d+", path.stem)
    if not numbers:
        raise DataError(f"{path}: expected the subhalo's id as the last number of the name")
    return int(numbers[-1])


def sum_cutouts(job: CutoutJob) -> Columns:
    """The sums of some cutouts, and their surviving mass [row] (Msun, NaN where not known)."""
    parts, surviving = [], []
    for path, row in zip(job.paths, job.rows, strict=True):
        part, mass = _sum_cutout(path, row, job)
        parts += part
        surviving.append(mass)
    return {**particles.join_sums(parts), "surviving": np.array(surviving)}


def _sum_cutout(path: Path, row: int, job: CutoutJob) -> tuple[list[Columns], float]:
    parts: list[Columns] = []
    surviving = 0.0
    with hdf5.open_hdf5(path) as f:
        hubble, time = tng.read_epoch(f, job.cosmology)
        units = _Units(hubble, time, job.edges)
        # a subhalo without stars has no group of them
        n = hdf5.read_length(f, tng.TIME) if f"PartType{tng.STARS}" in f else 0
        known = NOW in f or not n
        for lo in range(0, n, particles.BLOCK):
            some = slice(lo, lo + particles.BLOCK)
            columns = [hdf5.read(f, name, some) for name in (tng.TIME, tng.MASS, tng.METALS)]
            if known:
                columns.append(hdf5.read(f, NOW, some))
            if len({len(c) for c in columns}) != 1:
                raise DataError(f"{path}: columns of different lengths; fetch it again")
            rows = np.full(len(columns[0]), row)
            stars = tng.make_stars(str(path), rows, columns[:3], units)
            particles.add_part(parts, particles.sum_stars(stars, len(job.edges) - 1))
            if known:
                mass = np.asarray(columns[3], float)[columns[0] > 0]
                particles.check_range(str(path), NOW, mass, 0.0, 1e4, "1e10 Msun/h, >= 0")
                surviving += float(mass.sum()) * tng.MSUN / hubble
    return parts, surviving if known else np.nan


def collect(
    table: dict[str, Any], bins: TimeBins, setting: Setting
) -> tuple[Columns, dict[str, Any]]:
    """The galaxies of a directory of cutouts, as columns of a training set, and the checks.

    Raises DataError for files that are missing or damaged and values that cannot be.
    """
    options = CutoutOptions.from_table(table)
    options = replace(options, source=setting.source or options.source)
    folder = Path(options.source).expanduser().resolve()
    paths = sorted(folder.glob("*.hdf5")) if options.source else []
    if not paths:
        raise DataError(
            f"expected a directory of cutouts (*.hdf5), got {options.source!r}; name it with "
            "--source"
        )
    of_path = {find_id(path): path for path in paths}
    if len(of_path) != len(paths):
        raise DataError(f"{options.source}: two cutouts of the same subhalo")
    ids, galaxies, dropped = read_galaxies(options.galaxies, np.array(sorted(of_path)))
    edges = particles.calc_scale_factor_edges(bins)
    chosen = [of_path[i] for i in ids.tolist()]
    jobs = [
        CutoutJob(chosen[lo : lo + PER_JOB], rows, options.cosmology, edges)
        for lo in range(0, len(chosen), PER_JOB)
        for rows in [list(range(lo, min(lo + PER_JOB, len(chosen))))]
    ]
    particles.check_n_test(options, len(ids), dropped)
    identity = {
        "cosmology": options.cosmology,
        "galaxies": content_hash([ids]),
        "files": [stamp(path, 0) for path in chosen],
    }
    sums, surviving = particles.StarSums(len(ids), bins.n), []
    for part in run_jobs(sum_cutouts, jobs, identity, setting, unit="galaxy"):
        surviving.append(part.pop("surviving"))
        sums.add(part)
    mass = np.concatenate(surviving)
    without = ~np.isfinite(mass)
    if without.any() and not without.all():
        first = chosen[int(np.argmax(without))]
        raise DataError(f"{without.sum()} cutouts have no {NOW}, first {first}; fetch it")
    if "log_mass_surviving" not in galaxies and not without.any():
        with np.errstate(divide="ignore"):
            galaxies["log_mass_surviving"] = np.log10(mass)
    return particles.select_and_order(sums, galaxies, dropped, bins, options)
