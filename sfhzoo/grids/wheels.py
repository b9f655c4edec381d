"""Data files inside installed packages, found without importing the package."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from sfhzoo.errors import GridError


def find_in_wheel(engine: str, package: str, file: str | Path, wheel: str | None = None) -> Path:
    """Path of a `file` in the installed `package` (of the distribution `wheel`).

    Raises GridError where the package or the file is missing.
    """
    wheel = wheel or package
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise GridError(
            f"the engine {engine} expected the {wheel} wheel, which holds its data, got no such "
            "package; run: pip install 'sfhzoo[grids]'"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / file
    if not path.is_file():
        raise GridError(
            f"the engine {engine} expected {file} in the {wheel} wheel, got a wheel without it; "
            "run: pip install --force-reinstall 'sfhzoo[grids]'"
        )
    return path


def check_sha256(path: Path, expected: str, source: str) -> None:
    """GridError unless the content of `path` has this sha256; `source` is what to install."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise GridError(
            f"{path}: expected sha256 {expected} (the recipe's), got {found}; install "
            f"{source!r} as the recipe says, or write a new recipe"
        )
