"""One's own spectra: a FITS file with an image (or a one-column table) for each array.

| HDU                       | axes                     | unit (BUNIT or TUNIT1)        |
|---------------------------|--------------------------|-------------------------------|
| `LOGZSOL` or `Z`          | metallicity              | log10(Z / 0.0142), or Z       |
| `AGE`                     | age                      | yr, or another time           |
| `WAVE`                    | wave                     | Angstrom, or another length   |
| `FLUX`                    | metallicity, age, wave   | solLum / (Angstrom solMass),  |
|                           |                          | or what converts to it        |
| `SURVIVING_MASS_FRACTION` | metallicity, age         | none                          |
| `RESOLUTION_FWHM`         | wave                     | as WAVE                       |

The first unit is the one of a file that names none. The axes are in the order of NumPy: `FLUX` is
`fits.ImageHDU(flux, name="FLUX")` with flux of shape (metallicity, age, wave). The recipe's
parameters: `source` (relative to where the command runs), `keep_bits`, and if wanted
`source_sha256`, `air = true` (WAVE is in air), `invalid_logzsol` (nodes to leave out).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.grids.ssp import SSPGrid, calc_bit_rounded
from sfhzoo.grids.wheels import check_sha256
from sfhzoo.units import SOLAR_LUMINOSITY, Z_SUN
from sfhzoo.wavelengths import calc_vacuum_from_air

UNITS = {
    "AGE": "yr",
    "WAVE": "Angstrom",
    "FLUX": "solLum / (Angstrom solMass)",
    "RESOLUTION_FWHM": "Angstrom",
}
_DIMENSIONS = {"FLUX": 3, "SURVIVING_MASS_FRACTION": 2}


def build_from_table(recipe: dict[str, Any]) -> SSPGrid:
    """The grid of a recipe (the parsed TOML) whose `parameters.source` is such a file.

    Raises GridError where the file, an array or a unit is missing or wrong.
    """
    parameters = recipe["parameters"]
    source = Path(parameters["source"])
    arrays = read_arrays(source)
    if "source_sha256" in parameters:
        check_sha256(source, parameters["source_sha256"], parameters["source"])
    wave = arrays["WAVE"]
    logzsol = arrays["LOGZSOL"] if "LOGZSOL" in arrays else np.log10(arrays["Z"] / Z_SUN)
    left_out = np.asarray(parameters.get("invalid_logzsol", []), dtype=np.float64)
    near = np.abs(logzsol[:, None] - left_out[None]) < 1e-3
    if not near.any(axis=0).all():
        raise GridError(f"expected invalid_logzsol among {logzsol.tolist()}, got {left_out}")
    return SSPGrid(
        name=recipe["name"],
        logzsol=logzsol,
        age=arrays["AGE"],
        wave=calc_vacuum_from_air(wave) if parameters.get("air", False) else wave,
        flux=calc_bit_rounded(arrays["FLUX"].astype(np.float32), parameters["keep_bits"]),
        surviving_mass_fraction=arrays["SURVIVING_MASS_FRACTION"],
        resolution_fwhm=arrays["RESOLUTION_FWHM"],
        valid=np.asarray(~near.any(axis=1)),
        attributes={
            "solar_luminosity": SOLAR_LUMINOSITY,
            **recipe["provenance"],
            "engine": recipe["engine"],
            "z_sun": Z_SUN,
            "parameters": {**parameters, "source": source.name},
            "flux_relative_error": 2.0 ** -(parameters["keep_bits"] + 1),
        },
    )


def read_arrays(source: Path) -> dict[str, NDArray[np.float64]]:
    """The file's arrays in the units of a grid; GridError where they are not such arrays."""
    from astropy.io import fits

    wanted = ("AGE", "WAVE", "FLUX", "SURVIVING_MASS_FRACTION", "RESOLUTION_FWHM")
    arrays = {}
    try:
        with fits.open(source, memmap=False) as hdus:
            names = {hdu.name for hdu in hdus}
            axis = "LOGZSOL" if "LOGZSOL" in names else "Z"
            if missing := {axis, *wanted} - names:
                raise GridError(
                    f"{source}: expected the HDUs LOGZSOL (or Z), {', '.join(wanted)}, got a file "
                    f"without {', '.join(sorted(missing))}"
                )
            for name in (axis, *wanted):
                arrays[name] = _read_array(source, name, hdus[name])
    except (OSError, ValueError, TypeError) as error:
        raise GridError(f"{source}: expected a FITS file of SSPs, got {error}") from error
    return arrays


def _read_array(source: Path, name: str, hdu: Any) -> NDArray[np.float64]:
    from astropy import units

    is_table = getattr(hdu, "columns", None) is not None
    values = hdu.data[hdu.columns.names[0]] if is_table else hdu.data
    dimensions = _DIMENSIONS.get(name, 1)
    if values is None or np.ndim(values) != dimensions:
        raise GridError(
            f"{source}: expected {name} with {dimensions} axes, got "
            f"{None if values is None else np.shape(values)}"
        )
    values = np.array(values, dtype=np.float64)
    if name not in UNITS:
        return values
    unit = hdu.header.get("TUNIT1" if is_table else "BUNIT", UNITS[name])
    try:
        factor = units.Unit(unit).to(units.Unit(UNITS[name]))
    except (ValueError, units.UnitConversionError) as error:
        raise GridError(
            f"{source}: expected {name} in {UNITS[name]} or what converts to it, got {unit!r}"
        ) from error
    return values * factor
