"""Spectra as generic tables: columns `wavelength`, `flux`, `error` (or `ivar`), optionally
`lsf_sigma` (km/s) and `mask` (True = use), in FITS (a row per pixel, or one row of arrays),
ECSV or CSV.

Flux densities per wavelength or per frequency become erg/s/cm²/Å, f_λ = f_ν c / λ²; wavelengths
in any unit of length, or frequencies, become vacuum Å.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import MAX_PIXELS, Spectrum
from sfhzoo.units import FWHM_PER_SIGMA, SPEED_OF_LIGHT
from sfhzoo.wavelengths import calc_vacuum_from_air

if TYPE_CHECKING:
    from sfhzoo.spectra.files import ReadOptions, Source

LOG_WAVE_NAMES = ("loglam", "log_lambda", "logwave", "log_wave")
WAVE_NAMES = (
    "wavelength",
    "wave",
    "lambda",
    "lam",
    "wave_obs",
    "wavelength_vac",
    "wave_vac",
    "wavelength_air",
    "wave_air",
    *LOG_WAVE_NAMES,
)
FLUX_NAMES = ("flux", "flam", "f_lambda", "fnu", "f_nu", "flux_density")
ERROR_NAMES = ("error", "err", "sigma", "flux_error", "flux_err", "uncertainty", "unc")
IVAR_NAMES = ("ivar", "flux_ivar", "inverse_variance")
REDSHIFT_NAMES = ("redshift", "z")

FLUX_UNIT_HINT = "give flux_unit (--flux-unit), e.g. '1e-17 erg/s/cm2/AA' or 'uJy'"
LONGEST_NM = 1100.0
"""No galaxy is seen below 1100 Å without a UV instrument; optical nm end here."""


@dataclass(frozen=True)
class Columns:
    """A table's columns by lower-case name, their units where given, and its header."""

    values: Mapping[str, NDArray[np.float64]]
    units: Mapping[str, str]
    meta: Mapping[str, Any]

    def find(self, names: tuple[str, ...]) -> str | None:
        """The first of `names` that is a column."""
        return next((name for name in names if name in self.values), None)


# ---- units --------------------------------------------------------------------------------------


def parse_unit(text: str) -> Any:
    """The astropy unit of `text`, with the spellings found in spectra's headers.

    `A` and `Ang` are Å (never ampere). DataError if it is no unit.
    """
    from astropy import units as u

    plain = re.sub(r"(?<![A-Za-z])(A|Ang|Angs|[Aa]ngstroms)(?![A-Za-z])", "Angstrom", text.strip())
    plain = re.sub(r"(?<![A-Za-z])ergs(?![A-Za-z])", "erg", plain)
    plain = re.sub(r"(?i)micro-?(jy|jansky)", "uJy", plain)
    try:
        with warnings.catch_warnings():
            # "erg/s/cm2/AA" is bad style to astropy, and what everybody writes
            warnings.simplefilter("ignore", u.UnitsWarning)
            return u.Unit(plain)
    except (ValueError, TypeError) as error:
        raise DataError(f"expected a unit, got {text[:80]!r}; {FLUX_UNIT_HINT}") from error


def calc_flux_scale(unit: Any, wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """erg/s/cm²/Å per `unit` at each `wave` [wave] (vacuum Å): f_λ = f_ν c / λ².

    DataError if `unit` is not that of a flux density (magnitudes are not).
    """
    from astropy import units as u

    target = u.erg / (u.s * u.cm**2 * u.AA)
    if not isinstance(unit, u.UnitBase):
        # astropy converts magnitudes too, but a flux is not a number of magnitudes times a scale
        raise DataError(f"expected a unit of flux density, got '{unit}'; {FLUX_UNIT_HINT}")
    try:
        return np.asarray(
            unit.to(target, np.ones(wave.size), equivalencies=u.spectral_density(wave * u.AA))
        )
    except (u.UnitsError, AttributeError, TypeError) as error:
        raise DataError(
            f"expected a unit of flux density, got '{unit}'; {FLUX_UNIT_HINT}"
        ) from error


def calc_lsf_sigma(lsf: str, wave_obs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian line-spread widths [wave] (km/s) of 'R=2000' (λ/FWHM) or 'FWHM=2.5A' (observed Å).

    DataError if `lsf` is neither.
    """
    number = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)"
    match = re.fullmatch(
        rf"\s*(?:R\s*=\s*{number}|FWHM\s*=\s*{number}\s*(?:A|AA|Å|Ang(?:strom)?)?)\s*",
        lsf,
        flags=re.IGNORECASE,
    )
    value = float(match[1] or match[2]) if match else 0.0
    if match is None or not 0 < value < 1e7:
        raise DataError(f"expected a line-spread function as R=2000 or FWHM=2.5A, got {lsf!r}")
    velocity = SPEED_OF_LIGHT / FWHM_PER_SIGMA
    return np.full(wave_obs.shape, velocity / value) if match[1] else velocity * value / wave_obs


# ---- readers ------------------------------------------------------------------------------------


def read_fits_table(
    header: Any, tables: list[Any], options: ReadOptions, source: Source
) -> Spectrum:
    """The spectrum in the first of the FITS `tables` that has wavelengths and flux.

    Parameters
    ----------
    header : of the primary HDU; the table's own keywords win
    options, source : see `sfhzoo.spectra.files`

    Raises
    ------
    DataError : no such table, or unusable data
    """
    known = {*WAVE_NAMES, *FLUX_NAMES, *ERROR_NAMES, *IVAR_NAMES, "lsf_sigma", "mask"}
    for table in tables:
        names = {name.lower(): name for name in table.columns.names}
        if not (set(names) & set(WAVE_NAMES) and set(names) & set(FLUX_NAMES)):
            continue
        wanted = {low: name for low, name in names.items() if low in known}
        one_row = len(table.data) == 1
        values = {
            low: np.asarray(table.data[name][0] if one_row else table.data[name], dtype=np.float64)
            for low, name in wanted.items()
        }
        units = {low: str(table.columns[name].unit or "") for low, name in wanted.items()}
        meta = {key.lower(): value for h in (header, table.header) for key, value in h.items()}
        # virtual-observatory tables say air in the column's UCD, not in a keyword
        if any("obs.atmos" in str(v) for k, v in meta.items() if k.startswith("tucd")):
            meta["airorvac"] = "air"
        return build_spectrum(Columns(values, units, meta), options, source)
    found = ", ".join(tables[0].columns.names[:12])
    raise DataError(f"expected columns wavelength and flux, got {found or 'none'}")


def read_text_table(text: str, options: ReadOptions, source: Source) -> Spectrum:
    """The spectrum in a table of text: ECSV, CSV, or columns divided by blanks.

    Outside ECSV the first line names the columns, units in brackets (`flux [uJy]`), and comment
    lines may hold `# redshift = 0.05`. DataError if it is no table, or its data are unusable.
    """
    columns = _parse_ecsv(text) if text.startswith("# %ECSV") else _parse_plain(text)
    return build_spectrum(columns, options, source)


def _parse_ecsv(text: str) -> Columns:
    from astropy.io import ascii as astropy_ascii

    table = astropy_ascii.read(text, format="ecsv")
    values, units = {}, {}
    for name in table.colnames:
        column = table[name]
        if getattr(column, "dtype", np.dtype(object)).kind not in "fiub" or np.ndim(column) != 1:
            continue
        data = np.ma.asarray(getattr(column, "value", column), dtype=np.float64)
        values[name.lower()] = np.ma.filled(data, np.nan)
        units[name.lower()] = str(column.unit or "")
    return Columns(values, units, {str(key).lower(): value for key, value in table.meta.items()})


def _parse_plain(text: str) -> Columns:
    lines = [line for line in text.splitlines() if line.strip()]
    comments = [line.lstrip("# \t") for line in lines if line.startswith("#")]
    rows = [line for line in lines if not line.startswith("#")]
    if len(rows) > MAX_PIXELS:
        raise DataError(f"expected at most {MAX_PIXELS} rows, got {len(rows)}")
    if rows and not _is_number(re.split(r"[,;\s]+", rows[0].strip())[0]):
        head = rows.pop(0)
    else:
        head = next((c for c in reversed(comments) if c.lower().startswith(WAVE_NAMES)), "")
    delimiter = next((d for d in ",;\t" if d in head), None)
    names, units = _parse_head(head, delimiter)
    if not (set(names) & set(WAVE_NAMES)) or not rows:
        raise DataError(
            "expected a first line naming the columns (wavelength, flux, error) and rows of "
            f"numbers, got {lines[0][:60] if lines else ''!r} and {len(rows)} rows"
        )
    data = np.array([_parse_row(row, delimiter, len(names)) for row in rows])
    meta = {
        found[1].lower(): found[2]
        for comment in comments
        if (found := re.fullmatch(r"(\w+)\s*[:=]\s*(.+?)\s*", comment))
    }
    return Columns(dict(zip(names, data.T)), units, meta)


def _parse_head(head: str, delimiter: str | None) -> tuple[list[str], dict[str, str]]:
    """Names in lower case, and units; of a unit the case matters (mJy, MJy)."""
    names, units = [], {}
    for field in _split_head(head, delimiter):
        unit = re.search(r"[\[(](.*)[\])]", field)
        names.append((field[: unit.start()] if unit else field).strip().lower())
        units[names[-1]] = unit[1] if unit else ""
    return names, units


def _split_head(head: str, delimiter: str | None) -> list[str]:
    """Column heads; blanks inside brackets do not divide."""
    if delimiter is not None:
        return [field.strip().strip('"') for field in head.split(delimiter)]
    return re.findall(r"[^\s\[(]+(?:\s*[\[(][^\])]*[\])])?", head)


def _parse_row(row: str, delimiter: str | None, n_columns: int) -> list[float]:
    fields = row.split(delimiter)
    if len(fields) != n_columns:
        raise DataError(f"expected {n_columns} columns in every row, got {row[:60]!r}")
    words = {"true": 1.0, "false": 0.0, "": np.nan}
    try:
        return [words[w] if (w := f.strip().lower()) in words else float(w) for f in fields]
    except ValueError as error:
        raise DataError(f"expected numbers in every row, got {row[:60]!r}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# ---- from columns to a spectrum -----------------------------------------------------------------


def build_spectrum(columns: Columns, options: ReadOptions, source: Source) -> Spectrum:
    """The `Spectrum` of a table's columns; DataError says which column or unit is missing."""
    wave = _find_wave(columns, options, source)
    name = columns.find(FLUX_NAMES)
    if name is None:
        raise DataError(f"expected a column flux, got {', '.join(columns.values) or 'none'}")
    flux = columns.values[name]
    _check_lengths(columns)
    unit = options.flux_unit or columns.units.get(name, "")
    if not unit:
        raise DataError(f"the column {name} has no unit; {FLUX_UNIT_HINT}")
    scale = calc_flux_scale(parse_unit(unit), wave)
    redshift = next((columns.meta[k] for k in REDSHIFT_NAMES if k in columns.meta), None)
    titles = [columns.meta.get(key) for key in ("object", "name")]
    title = next((text for text in titles if isinstance(text, str)), "")
    mask = columns.values.get("mask")
    usable = np.ones(wave.size, dtype=bool) if mask is None else (mask > 0)
    if np.count_nonzero(usable) < usable.size / 2:
        source.warn("mask excludes most pixels; True (1) means use, not bad")
    return Spectrum(
        wave_obs=wave,
        flux=flux * scale,
        ivar=_find_ivar(columns, options, scale, wave),
        mask=usable,
        lsf_sigma=_find_lsf(columns, options, wave, source),
        redshift=source.choose_redshift(options.redshift, redshift),
        name=title.strip() or source.stem,
        meta={**source.meta, "format": "table"},
        warnings=tuple(source.warnings),
    )


def _check_lengths(columns: Columns) -> None:
    shapes = {name: value.shape for name, value in columns.values.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 1:
        listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise DataError(f"expected one spectrum, columns of one length, got {listing[:200]}")


def _find_wave(columns: Columns, options: ReadOptions, source: Source) -> NDArray[np.float64]:
    """Vacuum wavelengths (Å) from whatever the table has."""
    from astropy import units as u

    name = columns.find(WAVE_NAMES)
    if name is None:
        raise DataError(f"expected a column wavelength, got {', '.join(columns.values) or 'none'}")
    values = columns.values[name]
    if values.ndim != 1 or values.size == 0:
        raise DataError(f"expected a row per pixel, got {name} of shape {values.shape}")
    unit = columns.units.get(name, "")
    if name in LOG_WAVE_NAMES:
        wave = np.asarray(10.0**values)
    elif unit:
        try:
            wave = np.asarray(parse_unit(unit).to(u.AA, values, equivalencies=u.spectral()))
        except (u.UnitsError, AttributeError, TypeError) as error:
            raise DataError(f"expected {name} in a unit of length, got '{unit}'") from error
    else:
        wave = values
        if np.nanmax(wave) < LONGEST_NM:
            raise DataError(
                f"{name} has no unit and runs from {np.nanmin(wave):g} to {np.nanmax(wave):g}, "
                "which is not Å; give the column its unit (nm, um), or name it loglam"
            )
        source.warn(f"{name} has no unit; Å is assumed")
    if not _is_air(name, columns.meta, options, source):
        return wave
    return calc_vacuum_from_air(wave)


def _is_air(name: str, meta: Mapping[str, Any], options: ReadOptions, source: Source) -> bool:
    says_air = (
        name.endswith("_air")
        or str(meta.get("airorvac", "")).strip().lower() == "air"
        or str(meta.get("vacuum", "")).strip().lower() in ("false", "f", "0")
    )
    if says_air and not options.air:
        source.warn("the file says its wavelengths are in air; they were converted to vacuum")
    return says_air or options.air


def _find_ivar(
    columns: Columns, options: ReadOptions, scale: NDArray[np.float64], wave: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Inverse variance in (erg/s/cm²/Å)⁻²; `scale` is that of the flux column.

    The user's flux unit holds for the errors too. A negative error stays negative, for
    `Spectrum` to refuse: squaring would hide it.
    """
    error, ivar = columns.find(ERROR_NAMES), columns.find(IVAR_NAMES)
    name = error or ivar
    if name is None:
        raise DataError(
            f"expected a column error or ivar, got {', '.join(columns.values)}; "
            "a spectrum without errors cannot be fitted"
        )
    unit = "" if options.flux_unit else columns.units.get(name, "")
    if unit:
        own = parse_unit(unit)
        scale = calc_flux_scale(own if error else own**-0.5, wave)
    values = columns.values[name]
    if ivar and not error:
        return np.asarray(values / scale**2)
    # an error of 0 marks a pixel without data
    return np.where(values == 0, 0.0, np.sign(values) / (values * scale) ** 2)


def _find_lsf(
    columns: Columns, options: ReadOptions, wave: NDArray[np.float64], source: Source
) -> NDArray[np.float64] | None:
    if options.lsf is not None:
        return calc_lsf_sigma(options.lsf, wave)
    if "lsf_sigma" not in columns.values:
        source.warn(
            "no line-spread function: no broadening beyond the grid's own is assumed; "
            "give one (R=2000 or FWHM=2.5A)"
        )
        return None
    from astropy import units as u

    unit = columns.units.get("lsf_sigma") or "km/s"
    try:
        return np.asarray(parse_unit(unit).to(u.km / u.s, columns.values["lsf_sigma"]))
    except (u.UnitsError, AttributeError, TypeError) as error:
        raise DataError(f"expected lsf_sigma in km/s, got '{unit}'") from error
