"""The process in which FSPS runs: python -m sfhzoo.grids.fsps_worker DIRECTORY INDEX NODES

Writes the metallicities NODES (numbers, comma separated) of the build in DIRECTORY. A mistake
that can be told is left in DIRECTORY/worker-INDEX.error; the exit code proves nothing, because
the Fortran code ends a process with code 0.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import GridError
from sfhzoo.grids.fsps import SOLAR_LUMINOSITY, FSPSRecipe, calc_resolution
from sfhzoo.grids.partial import PartialGrid
from sfhzoo.units import YR_PER_GYR, Z_SUN


def main(directory: str, index: str, nodes: str) -> int:
    """Exit code: 0 fine, 4 a GridError that is in the file `worker-<index>.error`."""
    partial = PartialGrid(Path(directory))
    try:
        write_nodes(partial, [int(k) for k in nodes.split(",")])
    except GridError as error:
        (partial.directory / f"worker-{index}.error").write_text(str(error), encoding="utf-8")
        return error.exit_code
    return 0


def write_nodes(partial: PartialGrid, nodes: list[int]) -> None:
    """Start the engine, write the axes where they are missing, then the metallicities."""
    build = partial.build
    recipe = FSPSRecipe.parse(build["recipe"])
    engine = start_engine(recipe)
    ages = recipe.calc_ages(engine.ssp_ages)
    if not partial.ready:
        _create(partial, build, recipe, engine, ages)
    asked, _ = recipe.calc_engine_logzsol()
    parent = os.getppid()
    for k in nodes:
        # a parent that was killed starts again later; it must not meet its old workers
        if os.getppid() != parent:
            return
        partial.write_node(k, *calc_spectra(engine, float(asked[k]), ages), recipe.keep_bits)


def start_engine(recipe: FSPSRecipe) -> Any:
    """`fsps.StellarPopulation` as the recipe wants it; GridError where it is another one."""
    import fsps

    try:
        engine = fsps.StellarPopulation(**recipe.engine)
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise GridError(
            f"expected parameters of fsps.StellarPopulation in [parameters.engine], got {error}"
        ) from error
    found = tuple(name.decode().strip() for name in engine.libraries)
    if found != recipe.libraries:
        raise GridError(
            f"expected FSPS with the libraries {recipe.libraries} (the recipe's), got {found}; "
            "the wheel of fsps 0.4.8 has MIST and MILES, that of 0.5.0 MIST and C3K; for others "
            "build it from source"
        )
    z_sun = float(engine.solar_metallicity)
    if abs(z_sun / recipe.z_sun - 1) > 1e-5:
        raise GridError(
            f"expected isochrones with Z_sun = {recipe.z_sun} (the recipe's), got {z_sun:.6g}: "
            "another version of FSPS; install the one that the recipe names"
        )
    return engine


def calc_spectra(
    engine: Any, logzsol: float, ages: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flux [age, wave], Lsun/Å per Msun formed, and surviving mass fractions [age]."""
    engine.params["logzsol"] = logzsol
    flux = np.empty((len(ages), len(engine.wavelengths)))
    mass = np.empty(len(ages))
    for i, age in enumerate(ages):
        flux[i] = engine.get_spectrum(tage=age / YR_PER_GYR, peraa=True)[1]
        mass[i] = engine.stellar_mass
    return flux, mass


def _create(
    partial: PartialGrid,
    build: dict[str, Any],
    recipe: FSPSRecipe,
    engine: Any,
    ages: NDArray[np.float64],
) -> None:
    wave = np.asarray(engine.wavelengths, dtype=np.float64)
    _, valid = recipe.calc_engine_logzsol()
    axes = {
        "logzsol": np.asarray(recipe.logzsol),
        "age": ages,
        "wave": wave,
        "resolution_fwhm": calc_resolution(wave, engine.resolutions),
        "valid": valid,
    }
    attributes = {
        **build["recipe"]["provenance"],
        "engine": build["recipe"]["engine"],
        "version": build["engine_version"],
        "libraries": list(recipe.libraries),
        "engine_z_sun": recipe.z_sun,
        "z_sun": Z_SUN,
        "data_sha256": build["data_sha256"],
        "solar_luminosity": SOLAR_LUMINOSITY,
        "parameters": build["recipe"]["parameters"],
        "flux_relative_error": 2.0 ** -(recipe.keep_bits + 1),
    }
    partial.create(build["recipe"]["name"], axes, attributes)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
