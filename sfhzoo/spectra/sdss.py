"""SDSS and BOSS `spec-PLATE-MJD-FIBER` files, full and lite.

HDU 1 has a row per pixel: `loglam` (log10 of vacuum Å), `flux`, `ivar`, `and_mask` and `wdisp`
(the line-spread function's Gaussian width in pixels of 1e-4 dex); a later HDU with one row has
`Z`, `ZWARNING`, `CLASS`. The header's COEFF0 is not read: it can be off by tens of pixels.
Fluxes are those of the fibre and carry the Galaxy's extinction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.units import LN10, SPEED_OF_LIGHT

if TYPE_CHECKING:
    from sfhzoo.spectra.files import ReadOptions, Source

PIXEL_DEX = 1e-4
PIXEL_KMS = PIXEL_DEX * LN10 * SPEED_OF_LIGHT
"""69.03 km/s"""

DEFAULT_FLUX_UNIT = "1e-17 erg/(s cm2 Angstrom)"

FATAL_BITS = {
    "NOPLUG": 0,
    "BADTRACE": 1,
    "BADFLAT": 2,
    "BADARC": 3,
    "LOWFLAT": 17,
    "FULLREJECT": 18,
    "SCATTEREDLIGHT": 20,
    "CROSSTALK": 21,
    "NOSKY": 22,
    "BRIGHTSKY": 23,
    "NODATA": 24,
    "COMBINEREJ": 25,
    "BADFLUXFACTOR": 26,
    "BADSKYCHI": 27,
    "REDMONSTER": 28,
}
"""Bits of `and_mask` that take a pixel out (SDSS DR8 bitmask SPPIXMASK).

The others do not make a flux wrong. Bits 4 to 15 are set over a whole arm of the spectrograph
(in a normal DR18 galaxy MANYBADCOLUMNS covers 1755 of 3838 pixels); NEARBADPIXEL and
PARTIALREJECT describe pixels whose loss is already in `ivar`.
"""
_FATAL = sum(1 << bit for bit in FATAL_BITS.values())
_WHOLE_ARM = {"MANYBADCOLUMNS": 4, "MANYREJECTED": 5, "LARGESHIFT": 6, "BADSKYFIBER": 7}


def is_sdss(hdu: Any) -> bool:
    """Whether a FITS table HDU is an SDSS coadded spectrum."""
    names = {name.lower() for name in hdu.columns.names}
    return {"loglam", "flux", "ivar"} <= names and bool(names & {"and_mask", "wdisp", "or_mask"})


def read_sdss(header: Any, tables: list[Any], options: ReadOptions, source: Source) -> Spectrum:
    """The spectrum in `tables[0]`, with the redshift of the table that has one row.

    Parameters
    ----------
    header : of the primary HDU
    tables : the file's table HDUs
    options, source : see `sfhzoo.spectra.files`

    Raises
    ------
    DataError : options that contradict the format, or unusable data
    """
    from sfhzoo.spectra.table import calc_flux_scale, calc_lsf_sigma, parse_unit

    if options.air:
        raise DataError("SDSS wavelengths are in vacuum; do not call them air wavelengths")
    columns = {name.lower(): tables[0].data[name] for name in tables[0].columns.names}
    wave = calc_wave_from_loglam(columns["loglam"])
    flux, ivar = (np.asarray(columns[key], dtype=np.float64) for key in ("flux", "ivar"))
    if np.ndim(columns["loglam"]) != 1:
        raise DataError("expected one number per row in loglam, got arrays")
    bits = np.asarray(columns.get("and_mask", np.zeros(wave.size)), dtype=np.int64)
    scale = calc_flux_scale(parse_unit(_find_flux_unit(header, options, source)), wave)
    row = _read_row(tables[1:])
    _note_flags(bits, source)
    _note_classification(row, source)
    lsf_sigma = (
        calc_lsf_sigma(options.lsf, wave)
        if options.lsf is not None
        else _read_lsf(columns.get("wdisp"), source)
    )
    return Spectrum(
        wave_obs=wave,
        flux=flux * scale,
        ivar=ivar / scale**2,
        # SDSS writes ivar = 0 for no data; some old reductions write -1
        mask=((bits & _FATAL) == 0) & ~(ivar < 0),
        lsf_sigma=lsf_sigma,
        redshift=source.choose_redshift(options.redshift, row.get("z")),
        name=_find_name(header, source),
        meta={**source.meta, "format": "SDSS"},
        warnings=tuple(source.warnings),
    )


def calc_wave_from_loglam(loglam: Any) -> NDArray[np.float64]:
    """Vacuum wavelengths [wave] (Å) of log10 wavelengths.

    The files hold float32, 1e-7 off the grid of 1e-4 dex; on that grid, rounding is exact.
    """
    exact = np.asarray(loglam, dtype=np.float64)
    on_grid = np.round(exact, 4)
    is_on_grid = bool(np.all(np.abs(exact - on_grid) < 2e-6))
    return np.asarray(10.0 ** (on_grid if is_on_grid else exact))


def _find_flux_unit(header: Any, options: ReadOptions, source: Source) -> str:
    if options.flux_unit is not None:
        return options.flux_unit
    if header.get("BUNIT"):
        return str(header["BUNIT"])
    source.warn(f"the file names no flux unit (BUNIT); SDSS's {DEFAULT_FLUX_UNIT} is assumed")
    return DEFAULT_FLUX_UNIT


def _read_row(tables: list[Any]) -> dict[str, Any]:
    """The one-row table of the redshift fit, keys in lower case; {} if there is none."""
    for table in tables:
        names = table.columns.names
        if "Z" in [name.upper() for name in names] and len(table.data) == 1:
            return {name.lower(): table.data[name][0] for name in names}
    return {}


def _read_lsf(wdisp: Any, source: Source) -> NDArray[np.float64] | None:
    """km/s per pixel; pixels without data have wdisp 0 and get their neighbours' value."""
    pixels = None if wdisp is None else np.asarray(wdisp, dtype=np.float64)
    known = None if pixels is None else np.isfinite(pixels) & (pixels > 0)
    if pixels is None or known is None or not known.any():
        source.warn("the file has no line-spread function (wdisp); give one (R=2000)")
        return None
    index = np.arange(pixels.size)
    return np.interp(index, index[known], pixels[known]) * PIXEL_KMS


def _note_flags(bits: NDArray[np.int64], source: Source) -> None:
    for name, bit in _WHOLE_ARM.items():
        count = int(np.count_nonzero(bits & (1 << bit)))
        if count:
            source.warn(f"SDSS flags {count} of {bits.size} pixels {name}; they are kept")


def _note_classification(row: dict[str, Any], source: Source) -> None:
    if not row:
        source.warn("the file has no table with redshift and class")
        return
    kind = str(row.get("class", "")).strip()
    for key in ("class", "subclass"):
        source.meta[key] = str(row.get(key, "")).strip()
    source.meta["zwarning"] = int(row.get("zwarning", 0))
    vdisp = float(row.get("vdisp", 0.0))
    if np.isfinite(vdisp) and vdisp > 0:
        source.meta["vdisp"] = vdisp
    if kind and kind != "GALAXY":
        source.warn(
            f"SDSS classifies this object as {kind}: it is not a galaxy, or its redshift is not"
        )
    if source.meta["zwarning"]:
        source.warn(f"ZWARNING = {source.meta['zwarning']}: SDSS doubts this redshift")


def _find_name(header: Any, source: Source) -> str:
    """OBJECT, or SDSS plate-mjd-fibre (NAME is the plate's), or the file's name."""
    name = str(header.get("OBJECT") or "").strip()
    if name:
        return name
    numbers = [header.get("PLATEID"), header.get("MJD"), header.get("FIBERID")]
    if all(isinstance(number, int) for number in numbers):
        return "SDSS {}-{}-{:04d}".format(*numbers)
    return source.stem
