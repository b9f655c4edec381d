"""What else is known of galaxies whose stars come without a catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.simulations.particles import Columns

NEEDED = {"source_id", "flag", "satellite"}
"""Without gaps, where they are there at all."""
RESERVED = {"sfr", "logzsol", "test", "n_stars"}


def read_galaxies(
    path: str, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Columns, dict[str, int]]:
    """Ids of the galaxies that count, their columns, and how many were dropped, by reason.

    The table at `path` (FITS, ECSV, Parquet) has `source_id` and any columns of numbers:
    `log_mass_surviving` and `log_halo_mass` (log10 Msun), `satellite`, ...; galaxies whose `flag`
    is false and those not in the table are dropped. Without a path all ids count and nothing else
    is known. Raises DataError for an unusable table or one that knows none of the ids.
    """
    if not len(ids):
        raise DataError("no star is in a galaxy: check the column of ids and `unbound`")
    if not path:
        return ids, {"source_id": ids}, {}
    table = _read(path)
    known = table["source_id"].astype(np.int64)
    if len(np.unique(known)) != len(known):
        raise DataError(f"{path}: expected each source_id once")
    good = table.pop("flag", np.ones(len(known), bool)).astype(bool)
    here = np.isin(ids, known)
    order = np.argsort(known)
    row = order[np.searchsorted(known[order], ids[here])]
    dropped = {
        "not in the table of galaxies": int((~here).sum()),
        "flagged as no galaxy": int((~good[row]).sum()),
    }
    row = row[good[row]]
    if not len(row):
        raise DataError(f"{path}: none of its galaxies is among the {len(ids)} with stars")
    return known[row], {k: v[row] for k, v in table.items()}, dropped


def _read(path: str) -> Columns:
    from astropy.io.registry import IORegistryError
    from astropy.table import Table

    try:
        table = Table.read(Path(path).expanduser())
    except (OSError, ValueError, TypeError, ImportError, IORegistryError) as e:
        reason = str(e).strip().splitlines()[0]
        raise DataError(f"expected a table of galaxies at {path}: {reason}") from e
    columns = {}
    for name in table.colnames:
        values = np.ma.asarray(table[name])
        if name in NEEDED or name.startswith("log_"):
            if values.ndim != 1 or values.dtype.kind not in "iufb":
                raise DataError(
                    f"{path}: expected numbers (or FITS and Parquet booleans; 0 and 1 in text) in "
                    f"{name}, got {values.dtype}"
                )
            gaps = np.ma.getmaskarray(values) | ~np.isfinite(np.ma.getdata(values))
            if name in NEEDED and gaps.any():
                raise DataError(f"{path}: {name} has gaps")
        if values.ndim == 1 and values.dtype.kind in "iufb" and name not in RESERVED:
            filled = values.filled(np.nan) if values.dtype.kind == "f" else np.asarray(values)
            # FITS stores the other byte order
            columns[name] = filled.astype(filled.dtype.newbyteorder("="))
    if "source_id" not in columns or columns["source_id"].dtype.kind not in "iu":
        raise DataError(f"{path}: expected a column source_id of integers, got {sorted(columns)}")
    if "log_mass_surviving" in columns and not np.all(np.isfinite(columns["log_mass_surviving"])):
        raise DataError(f"{path}: log_mass_surviving has gaps; leave those galaxies out")
    return columns
