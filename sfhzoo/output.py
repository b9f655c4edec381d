"""The output directory of a command: refused, or written whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from sfhzoo.errors import UsageError

OUTPUT_FILES = (
    "posterior.zarr",
    "summary.json",
    "summary.ecsv",
    "histories.png",
    "spectrum.png",
)


class Layout(NamedTuple):
    """What makes a directory an earlier output: names of its files, and keys of one of them."""

    files: tuple[str, ...]
    marker: str
    keys: tuple[str, ...]


POSTERIOR = Layout(OUTPUT_FILES, "summary.json", ("schema", "quantities"))


class OutputError(UsageError):
    """The output directory exists, holds foreign files, or cannot be written."""


def check_output(
    directory: str | os.PathLike[str], overwrite: bool = False, layout: Layout = POSTERIOR
) -> Path:
    """The absolute path of an output directory that may be written; raises OutputError if not.

    An existing directory is replaced only with `overwrite`, and only if sfhzoo wrote all of it.
    """
    target = Path(directory).resolve()
    if target.exists():
        _check_replaceable(target, overwrite, layout)
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    try:
        # permission bits do not tell of read-only file systems, nor bind a superuser
        tempfile.TemporaryDirectory(prefix=".sfhzoo", dir=parent).cleanup()
    except OSError as error:
        raise OutputError(
            f"cannot write into {parent} ({error.strerror}); choose another place for the output"
        ) from error
    return target


def _check_replaceable(target: Path, overwrite: bool, layout: Layout) -> None:
    if not target.is_dir():
        raise OutputError(f"expected a directory for the output, got the file {target}")
    names = sorted(p.name for p in target.iterdir())
    if not names:
        return
    if not overwrite:
        raise OutputError(f"{target} exists; remove it, choose another, or allow overwriting")
    foreign = [n for n in names if not any(fnmatch(n, pattern) for pattern in layout.files)]
    if foreign or not _is_output(target, layout):
        what = foreign[0] if foreign else f"no {layout.marker} of sfhzoo"
        raise OutputError(
            f"{target} is not an earlier output of sfhzoo alone ({what}); choose another"
        )


def _is_output(directory: Path, layout: Layout) -> bool:
    try:
        content = json.loads((directory / layout.marker).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(key in content for key in layout.keys)


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A scratch directory beside `target` that takes its place if the block succeeds."""
    scratch: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        content = scratch / "new"
        content.mkdir()
        yield content
        old = scratch / "old"
        try:
            if target.exists():
                target.rename(old)
            content.rename(target)
        finally:
            # whatever came between the two renames, an interruption too
            if old.exists() and not target.exists():
                old.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
