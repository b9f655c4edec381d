"""Training sets: histories of a simulated population in one Zarr directory.

    sfr[galaxy, bin]              Msun/yr
    logzsol[galaxy, bin]          log10(Z/Z_sun)
    test[galaxy]                  True for the test split: no network is ever trained on it
    log_halo_mass[galaxy]         log10 Msun at z = 0, of the host
    log_mass_surviving[galaxy]    log10 Msun, of the stars alive
    satellite[galaxy]             False for the central galaxy of its halo
    source_id[galaxy], n_stars[galaxy]    in the simulation

The histories are always there, of the others those that the source knows. The attributes hold the
recipe, the citation, the checks made on the way (what was dropped, and why) and the sha256 of the
content. The last `n_test` galaxies are the test split.
"""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, DataError, Incompatible, UsageError
from sfhzoo.simulations import classical, cutouts, diffstarpop, startable, table, tng
from sfhzoo.simulations.chunks import Setting, content_hash
from sfhzoo.timebins import TimeBins
from sfhzoo.zoo.cards import is_name

FORMAT_VERSION = 1
ENGINES = {
    "diffstarpop": diffstarpop.generate,
    "table": table.generate,
    **dict.fromkeys(classical.OWN, classical.generate),
}
"""They draw or list histories, chunk by chunk."""
PARTICLES = {"tng": tng.collect, "cutouts": cutouts.collect, "stars": startable.collect}
"""They sum star particles into histories."""
UNITS = {
    "sfr": "Msun/yr",
    "logzsol": "log10(Z/0.0142)",
    "log_halo_mass": "log10(Msun)",
    "log_mass_surviving": "log10(Msun)",
}


@dataclass(frozen=True)
class TrainingSet:
    """Histories and their split; `sfr` and `logzsol` are [galaxy, bin], float32."""

    sfr: NDArray[np.float32]
    logzsol: NDArray[np.float32]
    n_test: int
    attributes: dict[str, Any]
    galaxy: dict[str, NDArray[Any]]

    @property
    def sha256(self) -> str:
        """Of the content (both arrays), independent of compression."""
        return self.attributes["sha256"]

    @property
    def bins(self) -> TimeBins:
        return TimeBins(self.attributes["cosmology"], self.sfr.shape[1])

    def split(self, which: str) -> slice:
        """The galaxies of "train" or "test"."""
        n_train = len(self.sfr) - self.n_test
        return {"train": slice(0, n_train), "test": slice(n_train, None)}[which]

    def histories(self, which: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(sfr, logzsol) of the train or test split."""
        return self.sfr[self.split(which)], self.logzsol[self.split(which)]


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A TOML recipe; DataError when it cannot be read."""
    try:
        with open(path, "rb") as f:
            return tomllib.load(f)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise DataError(f"expected a TOML recipe at {path}: {e}") from e


def _collect(recipe: dict[str, Any], bins: TimeBins, progress: bool) -> dict[str, NDArray[Any]]:
    from tqdm import tqdm

    chunks, done = [], 0
    n = int(recipe["n"]) if "n" in recipe else None
    with tqdm(total=n, unit="galaxy", disable=not progress) as bar:
        for chunk in ENGINES[recipe["engine"]](recipe, bins):
            chunks.append(chunk)
            done += len(chunk["sfr"])
            bar.update(len(chunk["sfr"]) if n is None else min(len(chunk["sfr"]), n - bar.n))
            if n is not None and done >= n:
                break
    return {k: np.concatenate([c[k] for c in chunks])[:n] for k in chunks[0]}


def build(
    recipe_path: str | Path,
    out_path: str | Path,
    progress: bool = False,
    source: str | None = None,
    workers: int = 1,
    scheduler: str | None = None,
) -> Path:
    """Write the training set of a recipe's `[simulation]` table; returns its path.

    `source`, `workers` and `scheduler` are for particle data: see `chunks.Setting`. Their partial
    results lie beside `out_path` until it is whole.

    Raises DataError for an unreadable recipe, an engine nobody knows or bad input,
    FileExistsError when `out_path` exists.
    """
    # workers of a scheduler may have another working directory
    recipe, out_path = read_recipe(recipe_path), Path(out_path).resolve()
    simulation = recipe.get("simulation", {})
    if not isinstance(simulation, dict):
        raise DataError(f"{recipe_path}: expected a table [simulation], got {simulation!r}")
    engine, known = simulation.get("engine"), [*ENGINES, *PARTICLES]
    if engine not in known:
        raise DataError(
            f"{recipe_path}: expected [simulation] engine to be one of {known}, got {engine!r}"
        )
    if not is_name(str(recipe.get("name"))):
        raise DataError(
            f"{recipe_path}: expected name, of the prior to be trained, as <name>-v<N>, got "
            f"{recipe.get('name')!r}"
        )
    if out_path.exists():
        raise FileExistsError(f"{out_path} exists; remove it or choose another --out")
    _check_writable(out_path.parent)
    folder = out_path.with_name(out_path.name + ".chunks")
    checks: dict[str, Any] = {}
    if engine in PARTICLES:
        bins = _particle_bins(simulation, recipe_path)
        setting = Setting(folder, source, workers, scheduler, progress)
        data, checks = PARTICLES[engine](simulation, bins, setting)
    else:
        bins = TimeBins("Planck15")
        data = _collect(simulation, bins, progress)
    n_test = int(simulation["n_test"])
    attributes = {
        "format_version": FORMAT_VERSION,
        "name": recipe["name"],
        "recipe": json.dumps(simulation, sort_keys=True),
        "cosmology": bins.cosmology,
        "edges_gyr": bins.edges.tolist(),
        "n_test": n_test,
        "sha256": content_hash([data["sfr"], data["logzsol"]]),
        "citation": _cite(simulation),
        "sampling": _find_sampling(engine),
        "checks": checks,
        "sfhzoo_version": __version__,
    }
    n = len(data["sfr"])
    _write(out_path, {**data, "test": np.arange(n) >= n - n_test}, attributes)
    shutil.rmtree(folder, ignore_errors=True)
    return out_path


def _check_writable(folder: Path) -> None:
    """UsageError before hours of reading, not after them."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryDirectory(prefix=".sfhzoo", dir=folder).cleanup()
    except OSError as e:
        raise UsageError(f"cannot write into {folder} ({e.strerror}); choose another --out") from e


def _cite(simulation: dict[str, Any]) -> str:
    """The recipe's own word, or else what its engine rests on."""
    if citation := simulation.get("citation"):
        return str(citation)
    engine = simulation["engine"]
    return classical.CITATIONS.get(engine) or diffstarpop.cite(str(simulation.get("fit")))


def _find_sampling(engine: str) -> str:
    """How galaxies of a mass are represented: as in a volume, or evenly in the log of a mass."""
    if engine in PARTICLES:
        return "volume"
    return "log-mass-formed" if engine in classical.OWN else "log-halo-mass"


def _particle_bins(simulation: dict[str, Any], where: str | Path) -> TimeBins:
    try:
        return TimeBins(simulation.get("cosmology", "Planck15"))
    except ValueError as e:
        raise DataError(f"{where}: [simulation] cosmology: {e}") from e


def _write(path: Path, data: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
    import zarr

    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    try:
        group = zarr.open_group(partial, mode="w", attributes=attributes)
        for key, values in data.items():
            chunks = (min(16384, len(values)), *values.shape[1:])
            array = group.create_array(key, shape=values.shape, dtype=values.dtype, chunks=chunks)
            array[...] = values
            array.attrs["units"] = UNITS.get(key, "")
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(path: str | Path) -> TrainingSet:
    """Read a training set; ArtifactError when it is not one or its content has changed."""
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r")
        attributes: dict[str, Any] = dict(group.attrs)
        data = {k: np.asarray(array[...]) for k, array in group.arrays()}
        sfr, logzsol = data.pop("sfr"), data.pop("logzsol")
        data.pop("test", None)
        attributes["n_test"] = n_test = int(attributes["n_test"])
        TimeBins(attributes["cosmology"], sfr.shape[1])
        if not 0 <= n_test < len(sfr) or sfr.shape != logzsol.shape:
            raise ValueError(f"{n_test} test galaxies of {len(sfr)}")
    # zarr raises RuntimeError for a damaged chunk
    except (OSError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as e:
        raise ArtifactError(f"expected a training set (Zarr) at {path}: {e!r}") from e
    if (version := int(attributes.get("format_version", 1))) > FORMAT_VERSION:
        raise Incompatible(
            f"{path}: format {version}, this sfhzoo reads up to {FORMAT_VERSION}; upgrade it"
        )
    found = content_hash([sfr, logzsol])
    if attributes.get("sha256") != found:
        raise ArtifactError(
            f"{path}: sha256 expected {attributes.get('sha256')}, got {found}; build it again"
        )
    return TrainingSet(sfr, logzsol, n_test, attributes, data)
