"""What it costs to build a grid: wall and CPU time, memory of all processes, and whether a build
that is killed half-way goes on and ends equal.

    SPS_HOME=... python benchmarks/grid_build.py grids/mist-miles-v1.toml --work DIR [--kill]

The recipe's metallicities that are done are what the kill waits for. Without the FSPS data, a
synthetic SPS_HOME serves: python tests/sps_home.py DIR, and a recipe without [parameters.files].
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from sfhzoo.grids.build import read_recipe

PAGE = os.sysconf("SC_PAGE_SIZE")


def processes_of(root: int) -> list[int]:
    """`root` and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found.extend(child for child, parent in parents.items() if parent == pid)
    return found


def memory_of(pids: list[int]) -> int:
    """Resident bytes of processes together."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


def run(recipe: Path, out: Path, workers: int, stop_after: int | None = None) -> dict[str, float]:
    """Run a build; kill all of it when `stop_after` metallicities are done."""
    command = [
        sys.executable, "-c", "from sfhzoo.cli import main; main()", "grid", "build", str(recipe),
        "--out", str(out), "--workers", str(workers), "--quiet",
    ]  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        pids = processes_of(process.pid)
        peak = max(peak, memory_of(pids))
        done = len(list(out.glob("*.partial/nodes/*.json")))
        if stop_after is not None and done >= stop_after:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            process.wait()
        time.sleep(0.1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return {"wall": time.monotonic() - start, "cpu": cpu, "peak": peak / 1e9}


def main() -> None:
    """Build, and where asked kill and build again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    name = read_recipe(options.recipe)["name"]
    count = read_recipe(options.recipe)["parameters"]["logzsol"]["count"]
    print("| build | wall, s | CPU, s | peak memory, GB | metallicities | sha256 |")
    print("|---|---|---|---|---|---|")
    kinds = [("whole", [None])] + (
        [("killed half-way, run again", [count // 2, None])] * options.kill
    )
    for label, stops in kinds:
        out = options.work / label.split()[0]
        shutil.rmtree(out, ignore_errors=True)
        for stop in stops:
            cost = run(options.recipe, out, options.workers, stop)
            file = out / f"{name}.zarr.zip"
            done = len(list(out.glob("*.partial/nodes/*.json"))) or count
            digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12] if file.is_file() else "-"
            print(
                f"| {label} | {cost['wall']:.0f} | {cost['cpu']:.0f} | {cost['peak']:.2f} | "
                f"{done} of {count} | {digest} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
