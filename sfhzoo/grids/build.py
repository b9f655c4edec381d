"""From a recipe (TOML) to a grid file: picks the engine the recipe names.

name = "<name>-v<N>"        of the file, `<name>-v<N>.zarr.zip`
engine = "bc03"             one of `ENGINES`
[parameters]                the engine's: see its module
[provenance]                isochrones, library, imf, licence, citation, …: the attributes
base = "other.toml"         optional: a recipe beside this one, whose keys it takes over
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfhzoo.errors import GridError
from sfhzoo.grids.bc03 import build_bc03_miles
from sfhzoo.grids.fsps import build_fsps
from sfhzoo.grids.popstar import build_popstar
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.grids.table import build_from_table


@dataclass(frozen=True)
class BuildOptions:
    """How to build: processes (None: the engine's choice; only fsps has several), whether with a
    progress bar, and whether a file that is there is replaced."""

    workers: int | None = None
    progress: bool = False
    overwrite: bool = False


_KEYS = ("name", "engine", "parameters", "provenance")
"""Of a recipe; other tables, such as the [zoo] of its card, do not change the grid."""

Engine = Callable[[dict[str, Any], Path, BuildOptions], Path]


def _in_memory(build: Callable[[dict[str, Any]], SSPGrid]) -> Engine:
    """An engine that makes the grid at once."""
    return lambda recipe, path, options: build(recipe).write(path)


ENGINES: dict[str, Engine] = {
    "bc03": _in_memory(build_bc03_miles),
    "fsps": lambda recipe, path, options: build_fsps(
        recipe, path, options.workers, options.progress
    ),
    "popstar": _in_memory(build_popstar),
    "table": _in_memory(build_from_table),
}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The parsed recipe, with what its `base` says; GridError where it is not one."""
    path = Path(path)
    recipe = _read_toml(path)
    if "base" in recipe:
        base = _read_toml(path.parent / str(recipe["base"]))
        if "base" in base:
            raise GridError(f"{path}: expected a base that has none itself, got {recipe['base']}")
        recipe = _merge(base, recipe)
    missing = set(_KEYS) - recipe.keys()
    if missing:
        raise GridError(
            f"{path}: expected a grid recipe with {sorted(missing)}, which it lacks; "
            "see grids/bc03-miles-v1.toml"
        )
    if recipe["engine"] not in ENGINES:
        raise GridError(
            f"{path}: expected an engine among {sorted(ENGINES)}, got {recipe['engine']!r}"
        )
    return {key: recipe[key] for key in _KEYS}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GridError(f"{path}: expected a grid recipe, got {error.strerror}") from error
    except ValueError as error:
        raise GridError(f"{path}: expected a grid recipe in TOML, got {error}") from error


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, table by table."""
    both = {key: _merge(base[key], own[key]) for key in base if _are_tables(base, own, key)}
    return {**base, **own, **both}


def _are_tables(base: dict[str, Any], own: dict[str, Any], key: str) -> bool:
    return isinstance(base[key], dict) and isinstance(own.get(key), dict)


def build_grid(
    recipe_path: str | Path, out_dir: str | Path, options: BuildOptions | None = None
) -> Path:
    """Build the grid of a recipe into `out_dir/<name>.zarr.zip`; the same bytes each time.

    Raises GridError for a bad recipe, a missing engine or missing data, FileExistsError where the
    file is there and is not to be replaced.
    """
    recipe, options = read_recipe(recipe_path), options or BuildOptions()
    target = Path(out_dir) / f"{recipe['name']}.zarr.zip"
    if target.exists() and not options.overwrite:
        raise FileExistsError(f"{target} exists: use --overwrite or another --out")
    try:
        return ENGINES[recipe["engine"]](recipe, target, options)
    except KeyError as error:
        raise GridError(f"{recipe_path}: expected the parameter {error}, got none") from error
    except (TypeError, ValueError) as error:
        raise GridError(f"{recipe_path}: expected other parameters, got {error}") from error
