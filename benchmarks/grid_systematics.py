"""What a result owes to the stellar population models: one spectrum, several grids, one sampler.

    python benchmarks/grid_systematics.py bc03-miles-v1 popstar-v1.zarr.zip --work DIR

A grid of 20 Å steps cannot fit the lines of a spectrum that has them: both grids fit the spectrum
smoothed to --fwhm Å and sampled once per FWHM. Its own errors are propagated; what is left of
correlation between neighbours (0.25) is not. Emission lines are left out before the smoothing.

Prints a table (Markdown) of the posterior medians with their 68 % half-widths, and the difference
of each grid to the first one in units of the first one's half-width.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy.table import Table

from sfhzoo import Spectrum
from sfhzoo.spectra.masks import build_mask
from sfhzoo.units import FWHM_PER_SIGMA, SPEED_OF_LIGHT

QUANTITIES = (
    "log_mass_formed",
    "log_mass_surviving",
    "age_mass_weighted",
    "t50",
    "t90",
    "logzsol_mass_weighted",
    "a_v",
    "sigma_v",
    "log_sfr_100myr",
)


def smooth(path: str, fwhm: float, out: Path) -> str:
    """A table of the spectrum at a resolution of `fwhm` (Å, observed), sampled at that step."""
    spectrum = Spectrum.read(path)
    mask, _ = build_mask(spectrum, float(spectrum.redshift or 0.0))
    wave, use = spectrum.wave_obs, mask & (spectrum.ivar > 0)
    centres = np.arange(wave[0] + fwhm, wave[-1] - fwhm, fwhm)
    own = spectrum.lsf_sigma
    own_width = np.zeros(len(wave)) if own is None else own / SPEED_OF_LIGHT * wave
    width = np.sqrt((fwhm / FWHM_PER_SIGMA) ** 2 - np.interp(centres, wave, own_width) ** 2)
    kernel = np.exp(-0.5 * ((wave - centres[:, None]) / width[:, None]) ** 2)
    kernel *= np.gradient(wave)
    share = (kernel * use).sum(axis=1) / kernel.sum(axis=1)
    kernel *= use
    kernel /= kernel.sum(axis=1, keepdims=True)
    variance = np.divide(1.0, spectrum.ivar, out=np.zeros(len(wave)), where=use)
    table = Table(
        {
            "wavelength": centres * units.AA,
            "flux": kernel @ np.where(use, spectrum.flux, 0.0) * units.Unit("erg/(s cm2 AA)"),
            "error": np.sqrt(kernel**2 @ variance) * units.Unit("erg/(s cm2 AA)"),
            "lsf_sigma": fwhm / FWHM_PER_SIGMA / centres * SPEED_OF_LIGHT * units.km / units.s,
            "mask": share > 0.7,
        }
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    table.write(out, overwrite=True)
    return str(out)


def run(grid: str, spectrum: str, out: Path, options: list[str]) -> dict[str, Any]:
    """summary.json of a fit; the fit is kept and not repeated."""
    if not (out / "summary.json").is_file():
        command = [
            sys.executable, "-c", "from sfhzoo.cli import main; main()", "infer", spectrum,
            "--grid", grid, "--out", str(out), *options,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    content: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return content


def main() -> None:
    """Fit with each grid and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grids", nargs="+")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--spectrum", help="default: the bundled one")
    parser.add_argument("--sampler", default="pnpdm")
    parser.add_argument("--samples", default="100")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--fwhm", type=float, default=26.0, help="Å; 0 leaves the spectrum alone")
    options = parser.parse_args()
    command = [sys.executable, "-c", "from sfhzoo.cli import main; main()", "example"]
    spectrum = options.spectrum or subprocess.check_output(command, text=True).strip()
    extra = ["--sampler", options.sampler, "--samples", options.samples, "--seed", options.seed]
    if options.fwhm:
        redshift = str(Spectrum.read(spectrum).redshift)
        extra += ["--lines", "keep", "--sigma-v", "100", "--redshift", redshift]
        spectrum = smooth(spectrum, options.fwhm, options.work / "smoothed.ecsv")
    fits = [
        run(grid, spectrum, options.work / Path(grid).name.removesuffix(".zarr.zip"), extra)
        for grid in options.grids
    ]
    names = [fit["grid"]["name"] for fit in fits]
    resolution = f", smoothed to {options.fwhm:g} Å" if options.fwhm else ""
    print(f"{options.sampler}, {options.samples} samples, {Path(spectrum).name}{resolution}\n")
    print(
        "| quantity | "
        + " | ".join(names)
        + " | "
        + " | ".join(f"Δ {n}" for n in names[1:])
        + " |"
    )
    print("|---" * (2 * len(names)) + "|")
    for name in QUANTITIES:
        found = [fit["quantities"][name] for fit in fits]
        half = [0.5 * (q["p84"] - q["p16"]) for q in found]
        if half[0] == 0:
            continue
        cells = [f"{q['median']:.3f} ± {h:.3f}" for q, h in zip(found, half, strict=True)]
        for q in found[1:]:
            shift = q["median"] - found[0]["median"]
            cells.append(f"{shift:+.3f} ({shift / half[0]:+.1f} σ)")
        print(f"| {name} ({found[0]['unit']}) | " + " | ".join(cells) + " |")
    cells = [f"{fit['chi2_per_pixel']:.2f}" for fit in fits]
    print("| chi² per pixel | " + " | ".join(cells) + " |" + " |" * (len(fits) - 1))


if __name__ == "__main__":
    main()
