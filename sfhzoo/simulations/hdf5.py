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


def read(
    f: Any, name: str, rows: slice = slice(None), ndim: tuple[int, ...] = (1,), width: int = 0
) -> NDArray[Any]:
    """Rows of a dataset of numbers; DataError where there is none.

    `ndim` are the numbers of dimensions, `width` the least number of columns, that it may have.
    """
    import h5py

    if name not in f:
        there = sorted(f[name.rpartition("/")[0]]) if name.rpartition("/")[0] in f else sorted(f)
        raise DataError(f"{f.filename}: expected a dataset {name}, got only {there}")
    found = f[name]
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "iufb":
        raise DataError(f"{f.filename}: expected numbers in {name}, got {found}")
    if found.ndim not in ndim or (width and found.shape[-1] < width):
        expected = f"{width} columns or more" if width else f"{' or '.join(map(str, ndim))} axes"
        raise DataError(f"{f.filename}: {name} has the shape {found.shape}, expected {expected}")
    return np.asarray(found[rows])


def read_length(f: Any, name: str) -> int:
    """Rows of a dataset; DataError where there is none."""
    read(f, name, slice(0, 0))
    return int(f[name].shape[0])


def read_attribute(f: Any, group: str, name: str) -> Any:
    """An attribute of a group; DataError where there is none."""
    if group not in f or name not in f[group].attrs:
        raise DataError(f"{f.filename}: expected the attribute {name} of {group}")
    return f[group].attrs[name]


def read_number(f: Any, group: str, name: str, index: int = 0) -> float:
    """A number of an attribute, or of its element `index`; DataError where it is none."""
    value = read_attribute(f, group, name)
    try:
        number = float(np.ravel(value)[index])
    except (TypeError, ValueError, IndexError) as e:
        raise DataError(f"{f.filename}: {name} of {group} cannot be {value!r}") from e
    if not np.isfinite(number):
        raise DataError(f"{f.filename}: {name} of {group} is {number}")
    return number
