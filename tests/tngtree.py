"""Small simulations in the file layout of IllustrisTNG, written star by star."""

from __future__ import annotations

from typing import NamedTuple

import h5py
import numpy as np

HUBBLE = 0.6774
NO_STARS = np.zeros((0, 3))


class Subhalo(NamedTuple):
    """`stars` [star, 3]: scale factor of formation, initial mass (1e10 Msun/h), metal fraction."""

    stars: np.ndarray
    flag: bool = True
    mass: float | None = None

    @property
    def mass_code(self):
        """Surviving mass in 1e10 Msun/h: 0.6 of what formed, with wind, unless given."""
        return 0.6 * self.stars[:, 1].sum() if self.mass is None else self.mass


class Group(NamedTuple):
    """Subhalos, the first of them central, and the stars bound to none."""

    subhalos: list[Subhalo]
    fuzz: np.ndarray = NO_STARS
    mass: float = 100.0


def lengths(counts):
    """[object, 6] particle counts by type, other types present too."""
    n = np.zeros((len(counts), 6), np.int32)
    n[:, 0], n[:, 1], n[:, 4] = 7, 11, counts
    return n


def write_catalogue(folder, snapshot, groups, n_files, flags):
    subhalos = [s for g in groups for s in g.subhalos]
    owner = np.repeat(np.arange(len(groups)), [len(g.subhalos) for g in groups])
    first = np.cumsum([0, *(len(g.subhalos) for g in groups)])[:-1]
    first = [f if g.subhalos else -1 for f, g in zip(first, groups, strict=True)]
    group_stars = [len(g.fuzz) + sum(len(s.stars) for s in g.subhalos) for g in groups]
    mass_type = np.zeros((len(subhalos), 6), np.float32)
    mass_type[:, 1] = 50.0
    mass_type[:, 4] = [s.mass_code for s in subhalos]
    folder.mkdir(parents=True)
    parts = zip(
        np.array_split(np.arange(len(groups)), n_files),
        np.array_split(np.arange(len(subhalos)), n_files), strict=True,
    )  # fmt: skip
    for i, (g, s) in enumerate(parts):
        with h5py.File(folder / f"fof_subhalo_tab_{snapshot:03d}.{i}.hdf5", "w") as f:
            f.create_group("Header").attrs.update(
                NumFiles=n_files, HubbleParam=HUBBLE, Time=1.0, Redshift=0.0,
                Ngroups_ThisFile=len(g), Ngroups_Total=len(groups),
                Nsubgroups_ThisFile=len(s), Nsubgroups_Total=len(subhalos),
            )  # fmt: skip
            group, subhalo = f.create_group("Group"), f.create_group("Subhalo")
            if len(g):
                group["GroupLenType"] = lengths(np.array(group_stars)[g])
                group["GroupFirstSub"] = np.array(first, np.int32)[g]
                group["Group_M_Crit200"] = np.array([x.mass for x in groups], np.float32)[g]
            if len(s):
                subhalo["SubhaloLenType"] = lengths(np.array([len(x.stars) for x in subhalos])[s])
                subhalo["SubhaloMassType"] = mass_type[s]
                subhalo["SubhaloGrNr"] = owner[s].astype(np.int32)
                if flags:
                    subhalo["SubhaloFlag"] = np.array([x.flag for x in subhalos])[s]


def write_snapshot(folder, snapshot, stars, counts):
    folder.mkdir(parents=True)
    total = np.array([0, 0, 0, 0, len(stars), 0], np.int64)
    for i, some in enumerate(np.split(stars, np.cumsum(counts)[:-1])):
        with h5py.File(folder / f"snap_{snapshot:03d}.{i}.hdf5", "w") as f:
            here = np.array([0, 0, 0, 0, len(some), 0], np.int32)
            f.create_group("Header").attrs.update(
                NumFilesPerSnapshot=len(counts), HubbleParam=HUBBLE, Time=1.0, Redshift=0.0,
                NumPart_ThisFile=here, NumPart_Total=total,
                NumPart_Total_HighWord=np.zeros(6, np.int32),
            )  # fmt: skip
            if len(some):
                for name, column in zip(
                    ("GFM_StellarFormationTime", "GFM_InitialMass", "GFM_Metallicity"), some.T
                ):
                    f[f"PartType4/{name}"] = column.astype(np.float32)


def write_offsets(path, groups, catalogue_files):
    """The file of offsets, as postprocessing/offsets holds it."""
    start, subhalo, group = 0, [], []
    for g in groups:
        group.append(start)
        for s in g.subhalos:
            subhalo.append(start)
            start += len(s.stars)
        start += len(g.fuzz)
    first = lambda n: np.cumsum([0, *(len(x) for x in np.array_split(range(n), catalogue_files))])  # noqa: E731
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as f:
        for name, offsets in (("Group", group), ("Subhalo", subhalo)):
            by_type = np.zeros((len(offsets), 6), np.int64)
            by_type[:, 4] = offsets
            f[f"{name}/SnapByType"] = by_type
            f[f"FileOffsets/{name}"] = first(len(offsets))[:-1]


def write_tree(
    root, groups, outer=NO_STARS, counts=None, snapshot=99, catalogue_files=2, flags=True,
    offsets=False,
):  # fmt: skip
    """The directory `root`/output; `counts` are the stars in each file of the snapshot."""
    stars = [a for g in groups for a in (*(s.stars for s in g.subhalos), g.fuzz)]
    stars = np.concatenate([*stars, outer])
    output = root / "output"
    write_catalogue(output / f"groups_{snapshot:03d}", snapshot, groups, catalogue_files, flags)
    counts = [len(stars)] if counts is None else [*counts, len(stars) - sum(counts)]
    write_snapshot(output / f"snapdir_{snapshot:03d}", snapshot, stars, counts)
    if offsets:
        path = root / "postprocessing" / "offsets" / f"offsets_{snapshot:03d}.hdf5"
        write_offsets(path, groups, catalogue_files)
        names = [f"snap_{snapshot:03d}.{i}.hdf5" for i in range(len(counts))]
        before = np.cumsum([0, *counts])[: len(names)]
        with h5py.File(path, "a") as f:
            by_type = np.zeros((len(names), 6), np.int64)
            by_type[:, 4] = before
            f["FileOffsets/SnapByType"] = by_type
    return output


def random_stars(rng, n, wind=0.1):
    """n stars at any time, some of them wind."""
    time = np.where(rng.random(n) < wind, -rng.random(n), rng.uniform(0.05, 1, n))
    metals = 0.0142 * 10 ** rng.uniform(-1.5, 0.2, n)
    return np.column_stack([time, rng.uniform(3e-5, 6e-5, n), metals])


def random_groups(rng, n_groups=60):
    """Groups of 0 to 6 subhalos of 0 to 300 stars, biggest first as in the simulation."""
    groups = []
    for i in range(n_groups):
        sizes = [int(s) for s in rng.integers(0, 300 // (1 + i // 10) + 1, rng.integers(0, 7))]
        subhalos = [
            Subhalo(random_stars(rng, n), flag=bool(rng.random() < 0.9))
            for n in sorted(sizes, reverse=True)
        ]
        groups.append(Group(subhalos, random_stars(rng, int(rng.integers(0, 9))), 1e3 / (i + 1)))
    return groups
