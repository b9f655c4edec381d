"""Particles per second and peak memory of `sfhzoo simulation build` on TNG's file layout.

    python benchmarks/tng_scale.py [--stars 24000000] [--out benchmarks/results/tng-scale.md]

Writes a simulation of subhalos with sizes as steep as in nature (n^-1.9) into a temporary folder
(12 bytes a star), builds its training set with one and with two processes, checks that no mass is
lost, and deletes it. The files come back from the page cache: this measures reading and summing,
not a disk.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import h5py
import numpy as np

from sfhzoo.simulations import trainingset
from sfhzoo.timebins import TimeBins

HUBBLE = 0.6774
FILES = 16
RECIPE = """name = "scale-v1"
[simulation]
engine = "tng"
n_test = 100
min_mass = 1e5
max_logzsol = 9.0
citation = "synthetic"
"""


def draw_sizes(rng: np.random.Generator, n_stars: int) -> np.ndarray:
    """Stars of each subhalo, power law from 2 to a twelfth of all, biggest first."""
    u = rng.random(n_stars // 4)
    sizes = np.minimum(2 * u ** (-1 / 0.9), n_stars / 12).astype(np.int64)
    return np.sort(sizes[np.cumsum(sizes) <= n_stars])[::-1]


def write_simulation(root: Path, n_stars: int) -> tuple[int, int, float]:
    """Number of stars and subhalos, and the mass formed (Msun) in them."""
    rng = np.random.default_rng(5)
    sizes = draw_sizes(rng, n_stars)
    n, total = len(sizes), int(sizes.sum())
    by_type = np.zeros((n, 6), np.int32)
    by_type[:, 4] = sizes
    mass = np.zeros((n, 6), np.float32)
    mass[:, 4] = 5e-6 * sizes
    (root / "groups_099").mkdir(parents=True)
    (root / "snapdir_099").mkdir()
    for i, some in enumerate(np.array_split(np.arange(n), FILES)):
        with h5py.File(root / f"groups_099/fof_subhalo_tab_099.{i}.hdf5", "w") as f:
            f.create_group("Header").attrs.update(
                NumFiles=FILES, HubbleParam=HUBBLE, Ngroups_ThisFile=len(some), Ngroups_Total=n,
                Nsubgroups_ThisFile=len(some), Nsubgroups_Total=n,
            )  # fmt: skip
            f["Group/GroupLenType"], f["Subhalo/SubhaloLenType"] = by_type[some], by_type[some]
            f["Group/Group_M_Crit200"] = 50 * mass[some, 4]
            f["Group/GroupFirstSub"], f["Subhalo/SubhaloGrNr"] = some, some
            f["Subhalo/SubhaloMassType"] = mass[some]
            f["Subhalo/SubhaloFlag"] = np.ones(len(some), bool)
    formed = 0.0
    for i, some in enumerate(np.array_split(np.arange(total), FILES)):
        with h5py.File(root / f"snapdir_099/snap_099.{i}.hdf5", "w") as f:
            number = np.zeros((2, 6), np.int64)
            number[:, 4] = len(some), total
            f.create_group("Header").attrs.update(
                NumFilesPerSnapshot=FILES, HubbleParam=HUBBLE, Time=1.0,
                NumPart_ThisFile=number[0], NumPart_Total=number[1],
            )  # fmt: skip
            masses = rng.uniform(8e-6, 1e-5, len(some)).astype(np.float32)
            metals = rng.uniform(0.001, 0.03, len(some)).astype(np.float32)
            f["PartType4/GFM_StellarFormationTime"] = rng.uniform(0.05, 1, len(some)).astype("f4")
            f["PartType4/GFM_InitialMass"], f["PartType4/GFM_Metallicity"] = masses, metals
            formed += masses.sum(dtype=float) * 1e10 / HUBBLE
    return total, n, formed


def measure(root: Path, workers: int) -> tuple[float, float, Path]:
    """Wall seconds, peak memory (GB) of the largest process, and the training set."""
    recipe, out = root / "recipe.toml", root / f"set-{workers}.zarr"
    recipe.write_text(RECIPE)
    code = (
        "import resource, sys\n"
        "from sfhzoo.cli import run\n"
        "if __name__ == '__main__':\n"
        "    code = run(sys.argv[1:])\n"
        "    peak = [resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF,"
        " resource.RUSAGE_CHILDREN)]\n"
        "    print(*peak)\n"
        "    sys.exit(code)\n"
    )
    script = root / "build.py"
    script.write_text(code)
    command = [sys.executable, script, "simulation", "build", recipe, "--source", root]
    command += ["--out", out, "--workers", str(workers), "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    wall = time.perf_counter() - start
    return wall, max(map(int, done.stdout.split()[-2:])) / 1024**2, out


def main() -> None:
    """Print the table, and write it to --out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stars", type=int, nargs="+", default=[6_000_000, 24_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    lines = [
        "| stars | galaxies | processes | seconds | million stars/s | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for n_stars in args.stars:
        with tempfile.TemporaryDirectory() as folder:
            total, n, formed = write_simulation(Path(folder), n_stars)
            for workers in args.workers:
                wall, memory, out = measure(Path(folder), workers)
                data = trainingset.load(out)
                found = data.sfr.sum(dtype=float) * TimeBins().width * 1e9
                if len(data.sfr) != n or abs(found / formed - 1) > 1e-6:
                    sys.exit(f"mass formed {formed:.8g}, in the set {found:.8g}")
                lines.append(
                    f"| {total / 1e6:.1f} million | {n} | {workers} | {wall:.1f} | "
                    f"{total / wall / 1e6:.2f} | {memory:.2f} GB |"
                )
    load = os.getloadavg()[1]
    lines += [
        "",
        f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f}, other "
        "work included; from start to end of the command. Memory is that of the largest process.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(f"# Building training sets from particles\n\n{text}")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
