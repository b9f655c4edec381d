"""Tables for people and programs, from the dictionary of `Posterior.summary`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

COLUMNS = ("median", "p16", "p84", "p2_5", "p97_5")


def format_table(summary: Mapping[str, Any]) -> str:
    """A short text table: each quantity's median, distances to its 16 and 84 %, and unit."""
    head = (
        f"{summary['object']}  redshift {_number(summary['redshift'], 4)}  "
        f"{summary['n_samples']} samples  {summary['n_pixels']} pixels  "
        f"chi2/pixel {_number(summary['chi2_per_pixel'], 2)}"
    )
    rows = [("quantity", "median", "+", "-", "unit")]
    rows += [_format_row(name, row) for name, row in summary["quantities"].items()]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    return "\n".join([head, "", *lines])


def _format_row(name: str, row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    unit = "" if row["unit"] == "1" else row["unit"]
    median, low, high = row["median"], row["p16"], row["p84"]
    if median is None:
        return name, "-", "-", "-", unit
    digits = 3 if max(high - low, abs(median)) < 100 else 1
    return (
        name,
        _number(median, digits),
        _number(high - median, digits),
        _number(median - low, digits),
        unit,
    )


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    # a rounded zero keeps no sign
    return f"{round(value, digits) + 0.0:.{digits}f}"


def write_ecsv(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the quantities as an astropy ECSV table; the rest of the summary is its meta.

    Missing values are masked. The unit is a column, since each row has its own.
    """
    import numpy as np
    from astropy.table import MaskedColumn, Table

    quantities = summary["quantities"]
    table = Table(meta={k: v for k, v in summary.items() if k != "quantities"})
    table["quantity"] = list(quantities)
    for column in COLUMNS:
        values = [row[column] for row in quantities.values()]
        missing = [value is None for value in values]
        filled = np.array([np.nan if value is None else value for value in values], float)
        table[column] = MaskedColumn(filled, mask=missing) if any(missing) else filled
    table["unit"] = [row["unit"] for row in quantities.values()]
    table.write(path, format="ascii.ecsv")
