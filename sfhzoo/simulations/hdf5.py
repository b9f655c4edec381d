"""HDF5 files of simulations, with errors that say which file and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[Any]:
    """An h5py.File for reading; DataError where it is missing, truncated or unreadable."""
    import h5py

    if not Path(path).is_file():
        raise DataError(f"{path} is missing; fetch it, or correct the source")
    try:
        with h5py.File(path, "r") as f:
            yield f
    except OSError as e:
        reason = str(e).strip().splitlines()[0]
        raise DataError(f"{path} is no readable HDF5 file ({reason}); fetch it again") from e


def read(f: Any, name: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Rows of a dataset; DataError where there is none."""
    if name not in f:
        there = sorted(f[name.rpartition("/")[0]]) if name.rpartition("/")[0] in f else sorted(f)
        raise DataError(f"{f.filename}: expected a dataset {name}, got only {there}")
    return np.asarray(f[name][rows])


def read_attribute(f: Any, group: str, name: str) -> Any:
    """An attribute of a group; DataError where there is none."""
    if group not in f or name not in f[group].attrs:
        raise DataError(f"{f.filename}: expected the attribute {name} of {group}")
    return f[group].attrs[name]
