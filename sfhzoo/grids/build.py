"""From a recipe (TOML) to a grid file: picks the engine the recipe names."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sfhzoo.errors import GridError
from sfhzoo.grids.bc03 import build_bc03_miles
from sfhzoo.grids.ssp import SSPGrid

ENGINES: dict[str, Callable[[dict[str, Any]], SSPGrid]] = {"bc03": build_bc03_miles}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The parsed recipe; GridError where it is not one."""
    path = Path(path)
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GridError(f"{path}: expected a grid recipe, got {error.strerror}") from error
    except ValueError as error:
        raise GridError(f"{path}: expected a grid recipe in TOML, got {error}") from error
    missing = {"name", "engine", "parameters", "provenance"} - recipe.keys()
    if missing:
        raise GridError(
            f"{path}: expected a grid recipe with {sorted(missing)}, which it lacks; "
            "see grids/bc03-miles-v1.toml"
        )
    if recipe["engine"] not in ENGINES:
        raise GridError(
            f"{path}: expected an engine among {sorted(ENGINES)}, got {recipe['engine']!r}"
        )
    return recipe


def build_grid(recipe_path: str | Path, out_dir: str | Path) -> Path:
    """Build the grid of a recipe into `out_dir/<name>.zarr.zip`; the same bytes each time.

    Raises GridError for a bad recipe or a missing engine.
    """
    recipe = read_recipe(recipe_path)
    try:
        grid = ENGINES[recipe["engine"]](recipe)
    except KeyError as error:
        raise GridError(f"{recipe_path}: expected the parameter {error}, got none") from error
    return grid.write(Path(out_dir) / f"{recipe['name']}.zarr.zip")
