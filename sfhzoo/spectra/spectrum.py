"""One observed spectrum: vacuum wavelengths, flux, inverse variance, what to use, what to know.

A pixel is used when `mask` is True, and `mask` is never True where `ivar` is 0. What the file
said and what was mended on the way is in `warnings`; where it came from is in `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError

MAX_PIXELS = 1_000_000
HIGHEST_REDSHIFT = 20.0
SHORTEST_WAVE, LONGEST_WAVE = 90.0, 1e8
"""Å, the range in which the forward model is defined."""

FLUX_RANGE = (1e-24, 1e-8)
"""erg/s/cm²/Å; the deepest and the brightest galaxy spectra lie well inside."""
SMALLEST_ERROR = 1e-3
"""Of the median error; one pixel with less would decide the whole fit."""
SNR_RANGE = (1.0, 1e5)
"""median signal-to-noise ratio per pixel outside which the user should look again"""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """A spectrum as `sfhzoo.infer` takes it. Arrays are [wave], float64, sorted by wavelength.

    Parameters
    ----------
    wave_obs : observed vacuum wavelengths, Å
    flux : erg/s/cm²/Å; not finite means no data there
    ivar : inverse variance of `flux`; 0 or infinite means no data there
    mask : True = use; by default every pixel with data
    lsf_sigma : Gaussian width of the instrument's line-spread function, km/s, per pixel or one
        number for all; None if unknown
    redshift : or None if unknown
    name : of the object
    meta : where the spectrum came from
    warnings : what the user should know, one line each

    Raises
    ------
    DataError : arrays of unequal length, wavelengths that are not positive or occur twice,
        negative or NaN errors in pixels to be used, or pixels to be used without any flux
    """

    wave_obs: NDArray[np.float64]
    flux: NDArray[np.float64]
    ivar: NDArray[np.float64]
    mask: NDArray[np.bool_] = None  # type: ignore[assignment]  # always an array afterwards
    lsf_sigma: NDArray[np.float64] | None = None
    redshift: float | None = None
    name: str = "spectrum"
    meta: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arrays = _as_arrays(self)
        notes = list(self.warnings)
        wave = arrays["wave_obs"]
        _check_wavelengths(wave)
        if np.any(np.diff(wave) < 0):
            if not np.all(np.diff(wave) < 0):
                notes.append("wavelengths were not in order; the pixels were sorted")
            order = np.argsort(wave, kind="stable")
            arrays = {key: value[order] for key, value in arrays.items()}
        _check_distinct(arrays["wave_obs"])
        _resolve_missing_data(arrays)
        notes += _check_plausible(arrays)
        if self.redshift is not None:
            object.__setattr__(self, "redshift", check_redshift(self.redshift))
        for key, value in arrays.items():
            object.__setattr__(self, key, value)
        object.__setattr__(self, "meta", dict(self.meta))
        # replace() constructs anew, and what was noted once should not be noted twice
        object.__setattr__(self, "warnings", tuple(dict.fromkeys(notes)))

    @classmethod
    def read(
        cls,
        path: str | PathLike[str],
        *,
        redshift: float | None = None,
        air: bool = False,
        flux_unit: str | None = None,
        lsf: str | None = None,
        ebv: float | None = None,
    ) -> Spectrum:
        """Read an SDSS `spec-PLATE-MJD-FIBER` file or a generic table (FITS, ECSV, CSV).

        Parameters
        ----------
        path : the file, plain or gzipped; its content, not its name, tells the format
        redshift : wins over the one in the file
        air : the file's wavelengths are in air
        flux_unit : wins over the unit in the file, e.g. "1e-17 erg/s/cm2/AA" or "uJy"
        lsf : wins over the file: "R=2000" or "FWHM=2.5A"
        ebv : E(B-V) of the Galaxy in mag; its extinction is removed

        Raises
        ------
        DataError : whatever is wrong with the file or an option, in one line
        """
        from sfhzoo.spectra.files import read_spectrum

        return read_spectrum(
            path, redshift=redshift, air=air, flux_unit=flux_unit, lsf=lsf, ebv=ebv
        )

    @property
    def n_pixels(self) -> int:
        """Number of pixels in use."""
        return int(np.count_nonzero(self.mask))

    @property
    def snr(self) -> float:
        """Median signal-to-noise ratio per pixel in use; NaN where none is."""
        if not self.mask.any():
            return float("nan")
        return float(np.median(self.flux[self.mask] * np.sqrt(self.ivar[self.mask])))


def check_redshift(redshift: float) -> float:
    """`redshift` as a float, if a luminosity distance follows from it; DataError otherwise."""
    if not (np.isfinite(redshift) and 0.0 < redshift < HIGHEST_REDSHIFT):
        raise DataError(
            f"expected a redshift above 0 and below {HIGHEST_REDSHIFT:g}, got {redshift}; "
            "give the galaxy's cosmological redshift"
        )
    return float(redshift)


def _as_arrays(spectrum: Spectrum) -> dict[str, NDArray[Any]]:
    """Fresh 1-D arrays of one length; an absent mask is all True."""
    arrays: dict[str, NDArray[Any]] = {}
    for key in ("wave_obs", "flux", "ivar", "mask", "lsf_sigma"):
        value = getattr(spectrum, key)
        if value is None:
            continue
        try:
            arrays[key] = np.array(value, dtype=bool if key == "mask" else np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected numbers in {key}, got something else: {error}") from error
    n_wave = arrays["wave_obs"].size
    if "lsf_sigma" in arrays and arrays["lsf_sigma"].ndim == 0:
        arrays["lsf_sigma"] = np.full(n_wave, float(arrays["lsf_sigma"]))
    arrays.setdefault("mask", np.ones(n_wave, dtype=bool))
    shapes = {key: value.shape for key, value in arrays.items()}
    if set(shapes.values()) != {(n_wave,)}:
        listing = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
        raise DataError(f"expected one-dimensional arrays of equal length, got {listing}")
    if not 2 <= n_wave <= MAX_PIXELS:
        raise DataError(f"expected a spectrum of 2 to {MAX_PIXELS} pixels, got {n_wave}")
    return arrays


def _check_wavelengths(wave: NDArray[np.float64]) -> None:
    bad = ~(np.isfinite(wave) & (wave > 0))
    if bad.any():
        raise DataError(
            f"expected positive wavelengths, got {bad.sum()} that are not, "
            f"first {wave[bad][0]} in pixel {int(np.argmax(bad))}; remove these pixels"
        )
    if wave.min() < SHORTEST_WAVE or wave.max() > LONGEST_WAVE:
        raise DataError(
            f"expected wavelengths in Å from {SHORTEST_WAVE:g} to {LONGEST_WAVE:g}, "
            f"got {wave.min():g} to {wave.max():g}; are they in nm or µm, or logarithms?"
        )


def _check_distinct(wave: NDArray[np.float64]) -> None:
    twice = np.flatnonzero(np.diff(wave) == 0)
    if twice.size:
        raise DataError(
            f"expected every wavelength once, got {twice.size} repeated, first "
            f"{wave[twice[0]]:g} Å; give one spectrum per file"
        )


def _resolve_missing_data(arrays: dict[str, NDArray[Any]]) -> None:
    """Give pixels without data ivar 0, flux 0 (0 · NaN is NaN in a sum) and mask False."""
    flux, ivar, mask = arrays["flux"], arrays["ivar"], arrays["mask"]
    has_flux = np.isfinite(flux)
    broken = has_flux & mask & (np.isnan(ivar) | (ivar < 0))
    if broken.any():
        raise DataError(
            f"expected errors above 0 (or 0 for no data), got {broken.sum()} pixels with negative "
            f"or NaN errors, first at {arrays['wave_obs'][broken][0]:.2f} Å; mask or mend them"
        )
    has_data = has_flux & np.isfinite(ivar) & (ivar > 0)
    arrays["flux"] = np.where(has_flux, flux, 0.0)
    arrays["ivar"] = np.where(has_data, ivar, 0.0)
    arrays["mask"] = mask & has_data
    lsf_sigma = arrays.get("lsf_sigma")
    if lsf_sigma is not None and not np.all(np.isfinite(lsf_sigma) & (lsf_sigma >= 0)):
        raise DataError("expected lsf_sigma of 0 km/s or more in every pixel, got negative or NaN")


def _check_plausible(arrays: dict[str, NDArray[Any]]) -> list[str]:
    """Warnings about flux and errors that may be in the wrong unit; no flux at all is an error."""
    good, notes = arrays["mask"], []
    if not good.any():
        return []
    tiny = good & (arrays["ivar"] > np.median(arrays["ivar"][good]) / SMALLEST_ERROR**2)
    if tiny.any():
        good = arrays["mask"] = good & ~tiny
        notes.append(
            f"{tiny.sum()} pixels have errors below {SMALLEST_ERROR:g} of the median and are not "
            f"used, first at {arrays['wave_obs'][tiny][0]:.2f} Å"
        )
    flux, snr = arrays["flux"][good], arrays["flux"][good] * np.sqrt(arrays["ivar"][good])
    if not np.any(flux > 0):
        what = "is zero" if not np.any(flux) else "is negative or zero"
        raise DataError(f"the flux {what} in all {flux.size} pixels; this is no galaxy's spectrum")
    typical = float(np.median(np.abs(flux)))
    if not FLUX_RANGE[0] < typical < FLUX_RANGE[1]:
        notes.append(
            f"the median flux, {typical:.2g} erg/s/cm²/Å, is not a galaxy's; check the flux unit"
        )
    median_snr = float(np.median(snr))
    if not SNR_RANGE[0] < median_snr < SNR_RANGE[1]:
        notes.append(f"the median signal-to-noise ratio is {median_snr:.2g}; check the errors")
    return notes
