"""Tables for people and programs, from the dictionary of `Posterior.summary`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sfhzoo.units import LN10

COLUMNS = ("median", "p16", "p84", "p2_5", "p97_5")


def format_table(summary: Mapping[str, Any]) -> str:
    """A short text table: each quantity's median, distances to its 16 and 84 %, and unit."""
    bands = summary.get("photometry", ())
    head = (
        f"{summary['object']}  redshift {_number(summary['redshift'], 4)}  "
        f"{summary['n_samples']} samples"
    )
    if summary["n_pixels"] or not bands:
        head += (
            f"  {summary['n_pixels']} pixels  chi2/pixel {_number(summary['chi2_per_pixel'], 2)}"
        )
    if bands:
        head += f"  {len(bands)} bands  chi2/band {_number(_calc_chi2_per_band(bands), 2)}"
    rows = [("quantity", "median", "+", "-", "unit")]
    rows += [_format_row(name, row) for name, row in summary["quantities"].items()]
    tables = [_format_columns(rows)]
    if bands:
        rows = [("band (AB mag)", "observed", "error", "model", "pull")]
        rows += [_format_band(row) for row in bands]
        tables.append(_format_columns(rows))
    return "\n\n".join([head, *tables])


def _format_columns(rows: list[tuple[str, str, str, str, str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}"
        f"  {row[3]:>{widths[3]}}  {row[4]}".rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _calc_chi2_per_band(bands: Sequence[Mapping[str, Any]]) -> float:
    return sum(row["pull"] ** 2 for row in bands) / len(bands)


def _format_band(row: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    """AB magnitudes; a dash for a flux that has none."""
    observed, model = (_to_magnitude(row[key]) for key in ("observed", "median"))
    error = None if observed is None else 2.5 / LN10 * row["error"] / row["observed"]
    return (
        row["filter"], _number(observed, 3), _number(error, 3), _number(model, 3),
        _number(row["pull"], 1),
    )  # fmt: skip


def _to_magnitude(maggies: float) -> float | None:
    return -2.5 * math.log10(maggies) if maggies > 0 else None


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
