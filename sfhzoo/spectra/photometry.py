"""Broad-band photometry of one galaxy, read from a small table.

Columns `filter` (names of sedpy, e.g. `sdss_r0`), one of `mag` (AB), `maggies` or `flux` (with a
unit, e.g. uJy or nanomaggy), and `error` in the same unit; FITS, ECSV or CSV.

    maggies = 10^(-0.4 mag),    error of maggies = 0.4 ln(10) maggies * error of mag

A band without a finite value and error is kept but not used.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.forward.bands import Filter, load_filters
from sfhzoo.spectra.files import (
    decode,
    decompress,
    explained,
    read_bytes,
)
from sfhzoo.spectra.table import parse_unit
from sfhzoo.units import LN10

FILTER_NAMES = ("filter", "filters", "band", "bands", "filter_name")
VALUE_NAMES = ("maggies", "mag", "mag_ab", "magnitude", "flux")
MAGNITUDE_NAMES = ("mag", "mag_ab", "magnitude")
ERROR_SUFFIXES = ("_error", "_err", "_unc")
ERROR_NAMES = ("error", "err", "sigma", "uncertainty", "unc", "magerr", "emag")
MAX_BANDS = 1000
MAG_RANGE = (-5.0, 40.0)
"""AB; no galaxy is brighter, no survey deeper"""
JY_PER_MAGGY = 3631.0
SMALLEST_ERROR = 0.005
"""relative; calibrations and models of bands are not better than that"""
EXPECTED = "expected a table (FITS, ECSV, CSV) with columns filter, mag or maggies, and error"


@dataclass(frozen=True, eq=False)
class Photometry:
    """Fluxes of one galaxy in some bands. Arrays are [band], in the file's order.

    Parameters
    ----------
    filters : the bands' responses
    maggies : AB flux in units of magnitude 0; may be negative (a faint source in noise)
    error : of `maggies`, > 0 where used
    mask : True = use
    meta : where it came from
    warnings : what the user should know, one line each

    Raises DataError for arrays that are no photometry, a band named twice, or no usable band.
    """

    filters: tuple[Filter, ...]
    maggies: NDArray[np.float64]
    error: NDArray[np.float64]
    mask: NDArray[np.bool_] = None  # type: ignore[assignment]  # always an array afterwards
    meta: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        flux, error = (np.asarray(v, dtype=np.float64) for v in (self.maggies, self.error))
        n = len(self.filters)
        if flux.shape != (n,) or error.shape != (n,):
            raise DataError(
                f"expected a flux and an error for each of {n} bands, got shapes {flux.shape} "
                f"and {error.shape}"
            )
        names = self.names
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DataError(f"expected each filter once, got {', '.join(twice[:5])} twice or more")
        whole = np.isfinite(flux) & np.isfinite(error)
        if np.any(error[whole] <= 0):
            bad = names[int(np.flatnonzero(whole & (error <= 0))[0])]
            raise DataError(f"expected errors > 0, got one that is zero or negative, of {bad}")
        usable = whole if self.mask is None else np.asarray(self.mask, dtype=bool) & whole
        if usable.shape != (n,) or not usable.any():
            raise DataError("expected at least one band with a finite flux and error, got none")
        for key, value in (("maggies", flux), ("error", error), ("mask", usable)):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "meta", dict(self.meta or {}))
        object.__setattr__(self, "warnings", (*self.warnings, *_find_warnings(self)))

    @property
    def names(self) -> list[str]:
        """Names of the filters [band]."""
        return [f.name for f in self.filters]

    @property
    def wave_pivot(self) -> NDArray[np.float64]:
        """Pivot wavelengths [band], observed Å."""
        return np.array([f.wave_pivot for f in self.filters])

    @classmethod
    def read(cls, path: str | PathLike[str]) -> Photometry:
        """The same as `read_photometry`."""
        return read_photometry(path)


def read_photometry(path: str | PathLike[str]) -> Photometry:
    """The photometry in a FITS, ECSV or CSV table.

    Raises
    ------
    DataError : one line that names the file: no table, missing columns or units, an unknown
        filter (with the closest names), magnitudes or errors that cannot be
    """
    file = Path(path)
    with explained(file, EXPECTED):
        content = read_bytes(file)
        meta = {"file": file.name, "sha256": hashlib.sha256(content).hexdigest()}
        return _build(_parse(decompress(content)), meta)


def _parse(content: bytes) -> Any:
    """The astropy table of a file's content, column names in lower case."""
    import warnings

    from astropy.table import Table

    with warnings.catch_warnings():
        # what matters is checked below; unit strings are parsed by our own rules
        warnings.simplefilter("ignore")
        if content.startswith(b"SIMPLE  ="):
            table = Table.read(io.BytesIO(content), format="fits", unit_parse_strict="silent")
        else:
            text = decode(content, EXPECTED)
            kind = "ascii.ecsv" if text.startswith("# %ECSV") else "ascii.csv"
            table = Table.read(text.splitlines(), format=kind)
    names = [str(name).strip().lower() for name in table.colnames]
    if len(set(names)) < len(names):
        raise DataError("expected each column once; names differ by more than their case")
    if not 0 < len(table) <= MAX_BANDS:
        raise DataError(f"expected 1 to {MAX_BANDS} bands, one per row, got {len(table)} rows")
    table.rename_columns(table.colnames, names)
    return table


def _build(table: Any, meta: dict[str, Any]) -> Photometry:
    name = _find(table, FILTER_NAMES, "filter")
    value = _find(table, VALUE_NAMES, "mag or maggies")
    if also := [v for v in VALUE_NAMES if v in table.colnames and v != value]:
        raise DataError(f"expected one of mag, maggies and flux, got {value} and {also[0]}")
    own = tuple(value + suffix for suffix in ERROR_SUFFIXES)
    error = _find(table, own + ERROR_NAMES, "error")
    flux, spread = _as_numbers(table, value), _as_numbers(table, error)
    filters = load_filters(_as_names(table, name))
    unit = str(table[value].unit or "")
    if value in MAGNITUDE_NAMES:
        _check_magnitudes(flux, unit)
        flux = 10.0 ** (-0.4 * flux)
        spread = 0.4 * LN10 * flux * spread
    else:
        flux = flux * _calc_maggies_per_unit(unit, value)
        spread = spread * _calc_maggies_per_unit(str(table[error].unit or unit), value)
    return Photometry(filters, flux, spread, meta=meta)


def _find(table: Any, names: tuple[str, ...], what: str) -> str:
    found = next((name for name in names if name in table.colnames), None)
    if found is None:
        listing = ", ".join(table.colnames)[:200]
        raise DataError(f"expected a column {what}, got {listing}")
    return found


def _as_names(table: Any, column: str) -> list[str]:
    values = np.ma.filled(np.ma.asarray(table[column]).astype(str), "")
    if values.ndim != 1:
        raise DataError(f"expected one filter per row, got {column} of shape {values.shape}")
    return [str(v).strip() for v in values]


def _as_numbers(table: Any, column: str) -> NDArray[np.float64]:
    """A column as numbers; what is masked or empty becomes NaN."""
    values = np.ma.asarray(table[column])
    if values.ndim != 1:
        raise DataError(f"expected one number per row, got {column} of shape {values.shape}")
    if values.dtype.kind not in "fiu":
        first = next((v for v in values.compressed() if not _is_number(v)), values[0])
        raise DataError(f"expected numbers in {column}, got {str(first)[:40]!r}")
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _check_magnitudes(mag: NDArray[np.float64], unit: str) -> None:
    if unit.replace(" ", "").lower() not in ("", "mag", "mag(ab)", "abmag"):
        raise DataError(f"expected AB magnitudes, got the unit '{unit[:40]}'; convert them")
    known = mag[np.isfinite(mag)]
    low, high = MAG_RANGE
    wrong = known[(known < low) | (known > high)]
    if len(wrong):
        raise DataError(
            f"expected AB magnitudes from {low:g} to {high:g}, got {wrong[0]:g}; leave the cell "
            "empty where there is no measurement"
        )


def _calc_maggies_per_unit(unit: str, column: str) -> float:
    """Maggies per unit of a flux column; without a unit only `maggies` knows its own."""
    from astropy import units as u

    plain = unit.strip().lower().replace(" ", "")
    if plain in ("maggy", "maggies", "mgy") or (not plain and column == "maggies"):
        return 1.0
    if plain in ("nanomaggy", "nanomaggies", "nmgy"):
        return 1e-9
    if not plain:
        raise DataError(f"the column {column} has no unit; give it one (uJy, nanomaggy)")
    try:
        return float(parse_unit(unit).to(u.Jy)) / JY_PER_MAGGY
    except (u.UnitsError, AttributeError, TypeError) as error:
        raise DataError(
            f"expected {column} in maggies, nanomaggies or Jy, got '{unit[:40]}'"
        ) from error


def _find_warnings(photometry: Photometry) -> list[str]:
    names, notes = np.array(photometry.names), []
    if not photometry.mask.all():
        lost = ", ".join(names[~photometry.mask][:8])
        notes.append(f"bands without a finite flux and error are not used: {lost}")
    snr = photometry.maggies[photometry.mask] / photometry.error[photometry.mask]
    if np.any(snr > 1 / SMALLEST_ERROR):
        notes.append(
            f"errors below {SMALLEST_ERROR:.1%}: calibrations are rarely that good; add "
            "the systematic part"
        )
    return notes
