"""From a path to a `Spectrum`: tells formats apart by content and turns every failure into
one `DataError` line.

A file is read once, into memory, so that its sha256 is that of the bytes that were used.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import Spectrum, check_redshift

MAX_BYTES = 256 * 1024**2
"""A spectrum is smaller by far; a cube or a survey's catalogue is not."""

EXPECTED = "expected an SDSS spec file or a table (FITS, ECSV, CSV) with wavelength, flux, error"

PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What astropy and numpy raise on damaged files, as a fuzz of valid ones shows."""


@dataclass(frozen=True)
class ReadOptions:
    """What the user said about the file; None = the file knows."""

    redshift: float | None = None
    air: bool = False
    flux_unit: str | None = None
    lsf: str | None = None


@dataclass
class Source:
    """The file being read: its name, its provenance, and the warnings so far."""

    stem: str
    meta: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def warn(self, message: str) -> None:
        """Keep a line for the user."""
        self.warnings.append(message)

    def choose_redshift(self, option: float | None, from_file: Any) -> float | None:
        """The user's redshift, else the file's; None, with a warning, if it is no distance."""
        if option is not None:
            return check_redshift(option)
        if from_file is None or np.ma.is_masked(from_file):
            return None
        try:
            return check_redshift(float(from_file))
        except (DataError, TypeError, ValueError):
            self.warn(f"the file's redshift, {from_file}, gives no distance and is not used")
            return None


def read_spectrum(
    path: str | PathLike[str],
    *,
    redshift: float | None = None,
    air: bool = False,
    flux_unit: str | None = None,
    lsf: str | None = None,
    ebv: float | None = None,
) -> Spectrum:
    """The work of `Spectrum.read`, which documents the arguments."""
    from sfhzoo.spectra.extinction import deredden

    file = Path(path)
    options = ReadOptions(redshift, air, flux_unit, lsf)
    with explained(file, EXPECTED):
        spectrum = _parse(file, options)
        return spectrum if ebv is None else deredden(spectrum, ebv)


@contextmanager
def explained(file: Path, expected: str) -> Iterator[None]:
    """Whatever a damaged file raises within becomes one DataError that names it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{show(file)}: {one_line(error)}") from error
    except PARSE_ERRORS as error:
        raise DataError(
            f"{show(file)}: {expected}, got a file that cannot be read "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error


def _parse(file: Path, options: ReadOptions) -> Spectrum:
    import astropy.units  # noqa: F401  # its import replaces warnings.showwarning

    content = read_bytes(file)
    source = Source(file.name.removesuffix(".gz").rsplit(".", 1)[0] or file.name)
    source.meta["file"] = file.name
    source.meta["sha256"] = hashlib.sha256(content).hexdigest()
    content = decompress(content)
    with warnings.catch_warnings(record=True) as caught, np.errstate(all="ignore"):
        warnings.simplefilter("always")
        if content.startswith(b"SIMPLE  ="):
            spectrum = _parse_fits(content, options, source)
        else:
            from sfhzoo.spectra.table import read_text_table

            spectrum = read_text_table(decode(content), options, source)
    if not any("truncated" in str(w.message) for w in caught):
        return spectrum
    return replace(
        spectrum, warnings=(*spectrum.warnings, "the file is truncated; fetch it again")
    )


def read_bytes(file: Path) -> bytes:
    """The whole file; DataError if it is none, is empty, or is larger than `MAX_BYTES`."""
    if not file.exists():
        raise DataError("there is no such file; check the path")
    if not file.is_file():
        raise DataError("expected a file, got a directory or device")
    size = file.stat().st_size
    if size == 0:
        raise DataError("the file is empty")
    if size > MAX_BYTES:
        raise DataError(
            f"the file has {size / 1024**2:.0f} MiB, a spectrum less than "
            f"{MAX_BYTES / 1024**2:.0f}; give one spectrum per file"
        )
    return file.read_bytes()


def decompress(content: bytes) -> bytes:
    """The content of a gzip file, any other as it is."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    plain = unzip.decompress(content, MAX_BYTES)
    if not unzip.eof:
        raise DataError("the gzip file is truncated, or too large to be a spectrum's")
    return plain


def decode(content: bytes, expected: str = EXPECTED) -> str:
    """The text of a table; DataError, that says what was `expected`, if it is binary or HTML."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{expected}, got a binary file that is not FITS")
    if text.lstrip().startswith("<"):
        raise DataError(f"{expected}, got HTML or XML; was an error page saved in its place?")
    return text


def _parse_fits(content: bytes, options: ReadOptions, source: Source) -> Spectrum:
    from astropy.io import fits
    from astropy.io.fits.verify import VerifyError

    from sfhzoo.spectra.sdss import is_sdss, read_sdss
    from sfhzoo.spectra.table import read_fits_table

    try:
        with fits.open(io.BytesIO(content), memmap=False) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise DataError(f"{EXPECTED}, got a FITS file without a table")
            if is_sdss(tables[0]):
                return read_sdss(hdus[0].header, tables, options, source)
            return read_fits_table(hdus[0].header, tables, options, source)
    except VerifyError as error:
        raise DataError(f"the FITS file is damaged: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """The message of an error of whatever length, as one short line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + "…"


def show(file: Path) -> str:
    """A path as one printable line."""
    return (
        str(file).encode("unicode_escape").decode() if not str(file).isprintable() else str(file)
    )
