"""FSPS through python-fsps (Conroy, Gunn & White 2009; Conroy & Gunn 2010): any library set.

FSPS keeps one state per process and can end a process without an error, so it runs in child
processes (`fsps_worker.py`), each of which writes whole metallicities into a `PartialGrid`. A
build that was killed goes on where it stopped, and gives the same file.

Metallicities go to the engine in its own unit, log10(Z / Z_sun of its isochrones). Outside the
recipe's `logzsol_limits` it extrapolates without a word: it is asked for the limit there, and the
node is marked as not valid. Age 0 is the youngest age that the engine has.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.grids.fsps_data import check_data, find_home
from sfhzoo.grids.partial import PartialGrid
from sfhzoo.units import FWHM_PER_SIGMA, SPEED_OF_LIGHT, Z_SUN

SOLAR_LUMINOSITY = 3.839e33
"""erg/s, in `sps_vars.f90`"""
IMF_NAMES = {0: "Salpeter", 1: "Chabrier", 2: "Kroupa"}
"""The engine's `imf_type`, and the word that `provenance.imf` must hold."""
OWN_PARAMETERS = {"logzsol", "zmet", "tage", "zred"}
"""Set by the builder, not by a recipe."""
MAX_ENGINE_AGE = 1.9e10
"""yr; beyond 19.95 Gyr the engine's answers are wrong"""
_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class FSPSRecipe:
    """The [parameters] of a recipe of this engine; GridError where they make no sense.

    Parameters
    ----------
    libraries : isochrones, spectral library and dust model, as the engine names them
    z_sun : of the engine's isochrones
    logzsol : [metallicity] log10(Z / 0.0142) of the grid's nodes
    logzsol_limits : where the engine interpolates, in its own log10(Z / Z_sun)
    ages : "engine" for its own ages, or a number of ages evenly spaced from 0 to age_max
    age_max : yr; the engine's own ages end with the first one above
    keep_bits : mantissa bits of the stored flux
    engine : keywords of `fsps.StellarPopulation`
    files : {path below SPS_HOME: git blob id} of the data files, where pinned
    """

    libraries: tuple[str, str, str]
    z_sun: float
    logzsol: tuple[float, ...]
    logzsol_limits: tuple[float, float]
    ages: str | int
    age_max: float
    keep_bits: int
    engine: dict[str, Any]
    files: dict[str, str]

    @classmethod
    def parse(cls, recipe: dict[str, Any]) -> FSPSRecipe:
        """From the parsed TOML; KeyError where a parameter is missing."""
        given = recipe["parameters"]
        axis = given["logzsol"]
        self = cls(
            libraries=tuple(given["libraries"]),
            z_sun=float(given["z_sun"]),
            logzsol=tuple(np.linspace(axis["first"], axis["last"], axis["count"]).tolist()),
            logzsol_limits=tuple(given["logzsol_limits"]),
            ages=given["ages"],
            age_max=float(given["age_max"]),
            keep_bits=int(given["keep_bits"]),
            engine=dict(given["engine"]),
            files=dict(given.get("files", {})),
        )
        self._check(str(recipe["provenance"]["imf"]))
        return self

    def _check(self, imf: str) -> None:
        if taken := OWN_PARAMETERS & self.engine.keys():
            raise GridError(f"expected a recipe without {sorted(taken)}: the builder sets them")
        if len(self.libraries) != 3 or len(self.logzsol_limits) != 2 or len(self.logzsol) < 2:
            raise GridError(
                "expected three libraries, two logzsol_limits and two or more metallicities, got "
                f"{self.libraries}, {self.logzsol_limits} and {len(self.logzsol)}"
            )
        if self.ages != "engine" and not (isinstance(self.ages, int) and self.ages >= 2):
            raise GridError(f"expected ages = 'engine' or a number >= 2, got {self.ages!r}")
        if not 0 < self.age_max <= MAX_ENGINE_AGE:
            raise GridError(f"expected age_max of 0 to {MAX_ENGINE_AGE:g} yr, got {self.age_max}")
        name = IMF_NAMES.get(self.engine.get("imf_type", 2), "")
        if name not in imf:
            raise GridError(
                f"expected provenance.imf to say {name!r}, which imf_type means, got {imf!r}"
            )

    def calc_ages(self, log_age_nodes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Ages [age], yr, from the engine's own, log10 yr."""
        nodes = 10.0 ** np.asarray(log_age_nodes, dtype=np.float64)
        if self.ages == "engine":
            return nodes[: int(np.searchsorted(nodes, self.age_max)) + 1]
        ages = np.linspace(0.0, self.age_max, int(self.ages))
        ages[0] = nodes[0]
        return ages

    def calc_engine_logzsol(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What the engine is asked for at each node, and whether that is the node's own."""
        wanted = np.asarray(self.logzsol) + math.log10(Z_SUN / self.z_sun)
        asked = np.clip(wanted, *self.logzsol_limits)
        return asked, np.isclose(asked, wanted, rtol=0, atol=1e-9)


def calc_resolution(
    wave: NDArray[np.float64], dispersion: NDArray[np.float64]
) -> NDArray[np.float64]:
    """FWHM [wave], Å, of the engine's dispersions, km/s; negative ones are its estimates."""
    return np.abs(dispersion) / SPEED_OF_LIGHT * wave * FWHM_PER_SIGMA


def build_fsps(
    recipe: dict[str, Any], path: Path, workers: int | None = None, progress: bool = False
) -> Path:
    """Build the grid of a recipe into the file `path`, in `workers` processes (default: 2, or
    the number of cores where that is 1); each takes 0.8 GB.

    Raises GridError where the engine, a data file or the library set is not the recipe's, or a
    process ends without a result. What was done until then is kept for the next call.
    """
    _require_engine()
    wanted = FSPSRecipe.parse(recipe)
    data = check_data(find_home(), wanted.libraries[0], wanted.libraries[1], wanted.files)
    partial = PartialGrid.open(
        path, {"recipe": recipe, "data_sha256": data, "engine_version": _find_version()}
    )
    todo = sorted(set(range(len(wanted.logzsol))) - partial.done())
    if todo:
        n = min(workers or min(2, os.cpu_count() or 1), len(todo))
        _run_workers(partial, [todo[i::n] for i in range(n)], len(wanted.logzsol), progress)
    return partial.finish(path)


def _run_workers(
    partial: PartialGrid, shares: list[list[int]], n_nodes: int, progress: bool
) -> None:
    """Run a process per share; the first one alone until it has written the axes."""
    from tqdm import tqdm

    running: list[tuple[int, subprocess.Popen[bytes]]] = []
    done = n_nodes - sum(len(share) for share in shares)
    waiting = list(enumerate(shares))
    bar = tqdm(total=n_nodes, initial=done, unit="metallicity", disable=not progress)
    try:
        while waiting or running:
            if waiting and (partial.ready or not running):
                index, share = waiting.pop(0)
                running.append((index, _start_worker(partial, index, share)))
            for index, process in list(running):
                if process.poll() is not None:
                    running.remove((index, process))
                    _check_result(partial, index, shares[index], process.returncode)
            bar.update(len(partial.done()) - bar.n)
            time.sleep(_POLL_SECONDS)
    finally:
        bar.close()
        for _, process in running:
            process.terminate()
            process.wait()


def _start_worker(partial: PartialGrid, index: int, share: list[int]) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "sfhzoo.grids.fsps_worker",
        str(partial.directory), str(index), ",".join(map(str, share)),
    ]  # fmt: skip
    with _log(partial, index).open("wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _log(partial: PartialGrid, index: int) -> Path:
    return partial.directory / f"worker-{index}.log"


def _check_result(partial: PartialGrid, index: int, share: list[int], code: int) -> None:
    """GridError unless the process has handed back what it was asked for."""
    error = partial.directory / f"worker-{index}.error"
    if error.is_file():
        message = error.read_text(encoding="utf-8")
        error.unlink()
        raise GridError(message)
    if code != 0 or not set(share) <= partial.done():
        words = _log(partial, index).read_text(encoding="utf-8", errors="replace").split("\n")
        last = " / ".join(" ".join(word.split()) for word in words if word.strip())[-300:]
        raise GridError(
            f"expected FSPS to hand back {len(share)} metallicities, got a process that ended "
            f"with code {code}; its last words: {last or 'none'}. Check the files in SPS_HOME "
            "and build again: what was finished is kept"
        )


def _find_version() -> str:
    from importlib.metadata import version

    return f"python-fsps {version('fsps')}"


def _require_engine() -> None:
    # `import fsps` itself fails without SPS_HOME
    import importlib.util

    if importlib.util.find_spec("fsps") is None:
        raise GridError(
            "the engine fsps expected the package fsps, got none; run: pip install "
            "'sfhzoo[grids]', and get the FSPS data"
        )
