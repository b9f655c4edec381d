"""Histories from a table: one row per galaxy, made by whoever has the simulation.

    sfr[time]        Msun/yr, the mean over each interval
    logzsol[time]    log10(Z/Z_sun) of the stars formed in it, Z_sun = 0.0142
    ...              any other column of one number per galaxy is kept (log_halo_mass, ...)

in a file that astropy reads (FITS, ECSV, Parquet). The intervals are sfhzoo's own 64 bins, or
lie between the `edges_gyr` of the recipe; then the mass formed and the mass-weighted mean of Z are
carried over to the bins, and nothing finer than the intervals is invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.timebins import TimeBins

KEYS = {"engine", "file", "n", "n_test", "seed", "edges_gyr", "citation"}
LOGZSOL_RANGE = (-6.0, 2.0)
"""Beyond these the column is not log10(Z/Z_sun): Z itself, say, or a logarithm of zero."""
WEIGHT_FLOOR = 1e-4
"""Msun/yr, so that the mean metallicity of an interval without stars is defined."""


def calc_rebinning(edges: NDArray[np.float64], bins: TimeBins) -> NDArray[np.float64]:
    """Time [interval, bin] that the intervals between `edges` share with the bins, Gyr."""
    low = np.maximum(edges[:-1, None], bins.edges[None, :-1])
    high = np.minimum(edges[1:, None], bins.edges[None, 1:])
    return np.clip(high - low, 0.0, None)


def generate(recipe: dict[str, Any], bins: TimeBins) -> Iterator[dict[str, NDArray[Any]]]:
    """All galaxies of a recipe's table as one chunk, in an order drawn with its `seed`.

    The order is drawn because the last galaxies become the test split, and simulations list
    theirs by mass. Raises DataError for a table or a recipe that cannot be used.
    """
    where = recipe.get("file")
    if unknown := sorted(set(recipe) - KEYS):
        raise DataError(f"[simulation] has unknown {unknown}; known are {sorted(KEYS)}")
    if not isinstance(where, str) or not recipe.get("citation"):
        raise DataError(
            "[simulation] needs file, the table of histories, and citation, its source"
        )
    columns = _read(Path(where))
    edges = _check_edges(recipe.get("edges_gyr"), columns["sfr"].shape[1], bins, where)
    sfr, logzsol = _rebin(columns.pop("sfr"), columns.pop("logzsol"), edges, bins)
    n = len(sfr)
    if not 0 < int(recipe.get("n_test", 0)) < min(n, int(recipe.get("n", n))):
        raise DataError(f"{where}: expected 0 < n_test < {n} galaxies, got {recipe.get('n_test')}")
    order = np.random.default_rng(int(recipe.get("seed", 0))).permutation(n)
    data = {"sfr": sfr.astype(np.float32), "logzsol": logzsol.astype(np.float32), **columns}
    yield {name: values[order] for name, values in data.items()}


def _read(path: Path) -> dict[str, NDArray[Any]]:
    from astropy.io.registry import IORegistryError
    from astropy.table import Table

    try:
        table = Table.read(path)
    except (OSError, ValueError, TypeError, ImportError, IORegistryError) as e:
        reason = str(e).strip().splitlines()[0]
        raise DataError(f"expected a table of histories at {path}: {reason}") from e
    columns = {name: np.ma.asarray(table[name]) for name in table.colnames}
    histories = {}
    for name in ("sfr", "logzsol"):
        if name not in columns or columns[name].ndim != 2:
            got = columns[name].shape if name in columns else f"only {sorted(columns)}"
            raise DataError(f"{path}: expected a column {name} [galaxy, time], got {got}")
        histories[name] = np.ma.filled(columns.pop(name).astype(np.float64), np.nan)
    sfr, logzsol = histories["sfr"], histories["logzsol"]
    if sfr.shape != logzsol.shape:
        raise DataError(f"{path}: sfr is {sfr.shape}, logzsol {logzsol.shape}; expected the same")
    _check_values(path, "sfr", sfr, 0.0, np.inf, "Msun/yr, >= 0")
    _check_values(path, "logzsol", logzsol, *LOGZSOL_RANGE, "log10(Z/0.0142), -6 to 2")
    others = {
        # FITS stores the other byte order
        k: np.asarray(v).astype(v.dtype.newbyteorder("="))
        for k, v in columns.items()
        if v.ndim == 1 and v.dtype.kind in "iuf"
    }
    return {**histories, **others}


def _check_values(
    path: Path, name: str, values: NDArray[np.float64], low: float, high: float, expected: str
) -> None:
    bad = ~(np.isfinite(values) & (values >= low) & (values <= high))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            f"{path}: {name}[{row}, {column}] is {values[row, column]:g}, expected {expected} "
            f"({bad.sum()} such values)"
        )


def _check_edges(
    edges_gyr: Any, n_intervals: int, bins: TimeBins, where: str
) -> NDArray[np.float64]:
    if edges_gyr is None:
        if n_intervals != bins.n:
            raise DataError(
                f"{where}: {n_intervals} times, expected the {bins.n} bins; give edges_gyr, the "
                f"{n_intervals + 1} edges of the intervals in Gyr of cosmic time"
            )
        return bins.edges
    edges = np.asarray(edges_gyr, np.float64)
    if edges.shape != (n_intervals + 1,) or np.any(np.diff(edges) <= 0):
        raise DataError(
            f"{where}: {n_intervals} times, expected as many edges_gyr and one, increasing, "
            f"got {edges.size}"
        )
    # another cosmology has another age of the universe, by less than this
    if edges[0] != 0.0 or abs(edges[-1] - bins.age_today) > 0.1:
        raise DataError(
            f"expected edges_gyr from 0 (the Big Bang; sfr 0 before the first galaxy) to "
            f"{bins.age_today:.3f} (today), got {edges[0]:g} to {edges[-1]:g}"
        )
    return edges * (bins.age_today / edges[-1])


def _rebin(
    sfr: NDArray[np.float64], logzsol: NDArray[np.float64], edges: NDArray[np.float64],
    bins: TimeBins,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    if edges is bins.edges:
        return sfr, logzsol
    shared = calc_rebinning(edges, bins)
    weight = sfr + WEIGHT_FLOOR
    metals = (weight * 10.0**logzsol) @ shared
    return sfr @ shared / bins.width, np.log10(metals / (weight @ shared))
