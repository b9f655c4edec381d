"""A grid on its way to its file: written one metallicity at a time, continued after a crash.

    <name>.partial/
      build.json        what is being built; a directory of another build is started afresh
      grid/             the Zarr group of the grid, chunk for chunk as the file will hold it
      nodes/007.json    the mass fractions of a metallicity whose chunks are all written

Every file appears whole (written beside, then renamed), so that a build that was killed leaves
only whole metallicities, and memory never holds more than one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.grids.ssp import calc_bit_rounded, create_array, create_group, write_zip
from sfhzoo.zoo.artifacts import write_json

# 20 times faster than the bundled grid's level, and 10 % larger
_ZSTD_LEVEL = 9


class PartialGrid:
    """The directory of a build; several processes may write different metallicities of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._group: Any = None

    @classmethod
    def open(cls, path: Path, build: dict[str, Any]) -> PartialGrid:
        """The build of the file `path`: continued where `build` (any JSON) is the same, else new.

        Raises GridError where the place is taken by something that is no build.
        """
        directory = path.with_name(path.name.removesuffix(".zarr.zip") + ".partial")
        record = directory / "build.json"
        if directory.exists() and not record.is_file():
            raise GridError(
                f"{directory}: expected the directory of an unfinished build, got something "
                "else; move it away"
            )
        if record.is_file() and record.read_text(encoding="utf-8") != _as_text(build):
            shutil.rmtree(directory)
        if not directory.exists():
            (directory / "nodes").mkdir(parents=True)
            write_json(record, build)
        return cls(directory)

    @property
    def build(self) -> dict[str, Any]:
        """What is being built."""
        content: dict[str, Any] = json.loads((self.directory / "build.json").read_text("utf-8"))
        return content

    @property
    def ready(self) -> bool:
        """Whether the axes are written, so that metallicities can be."""
        return (self.directory / "axes.json").is_file()

    def create(self, name: str, axes: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> None:
        """Write everything but the spectra and the mass fractions.

        `axes` holds `logzsol`, `age`, `wave`, `resolution_fwhm` and `valid` of `SSPGrid`.
        """
        from zarr.storage import LocalStore

        shutil.rmtree(self.directory / "grid", ignore_errors=True)
        group = create_group(LocalStore(self.directory / "grid"), name, attributes)
        for key, values in axes.items():
            create_array(group, key, values.shape, values.dtype)[...] = values
        shape = tuple(len(axes[key]) for key in ("logzsol", "age", "wave"))
        create_array(group, "flux", shape, np.float32, _ZSTD_LEVEL)
        write_json(self.directory / "axes.json", {"shape": shape})

    def write_node(
        self, k: int, flux: NDArray[Any], mass: NDArray[np.float64], keep_bits: int
    ) -> None:
        """Write metallicity `k`: flux [age, wave], Lsun/Å per Msun formed, and mass fractions
        [age]; GridError where they cannot be those of stars."""
        _check_node(k, flux, mass)
        self._open()["flux"][k] = calc_bit_rounded(flux.astype(np.float32), keep_bits)
        write_json(self._node(k), mass.tolist())

    def done(self) -> set[int]:
        """The metallicities that are written."""
        return {int(path.stem) for path in (self.directory / "nodes").glob("[0-9]*.json")}

    def finish(self, path: Path) -> Path:
        """Pack the file and remove the directory; the same grid gives the same bytes."""
        group = self._open()
        nodes = range(group["logzsol"].shape[0])
        mass = np.array([json.loads(self._node(k).read_text("utf-8")) for k in nodes])
        if "surviving_mass_fraction" not in group:
            create_array(group, "surviving_mass_fraction", mass.shape, mass.dtype)
        group["surviving_mass_fraction"][...] = mass
        write_zip(path, self._members())
        shutil.rmtree(self.directory)
        return path

    def _open(self) -> Any:
        if self._group is None:
            import zarr

            self._group = zarr.open_group(self.directory / "grid", mode="r+", zarr_format=3)
        return self._group

    def _node(self, k: int) -> Path:
        return self.directory / "nodes" / f"{k:03d}.json"

    def _members(self) -> Iterator[tuple[str, bytes]]:
        root = self.directory / "grid"
        # a process that was killed may leave a file it had not renamed yet
        files = [p for p in root.rglob("*") if p.is_file() and p.suffix != ".partial"]
        for key in sorted(p.relative_to(root).as_posix() for p in files):
            yield key, (root / key).read_bytes()


def _as_text(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _check_node(k: int, flux: NDArray[Any], mass: NDArray[np.float64]) -> None:
    good = np.isfinite(flux).all() and np.min(flux) >= 0 and np.all(np.max(flux, axis=1) > 0)
    if not good:
        raise GridError(
            f"metallicity {k}: expected spectra that are finite, not negative and not dark, got "
            f"values from {np.min(flux):.3g} to {np.max(flux):.3g}; a data file of the engine "
            "is damaged: fetch it again"
        )
    if not (np.all(mass > 0) and np.all(mass <= 1)):
        raise GridError(
            f"metallicity {k}: expected surviving mass fractions in (0, 1], got "
            f"{np.min(mass):.4g} to {np.max(mass):.4g}; a data file of the engine is damaged"
        )
