"""Fit real spectra: a Markdown table of results, the warnings, and predictive figures.

    python benchmarks/real_spectra.py [FILE ...] --figures docs/figures --out results.md

Without files: NGC 3522 (bundled), and NGC 3073 and a LEGA-C galaxy where the `ppxf` package is
installed. Each is fitted three times: by default, without the calibration polynomial, and only
where the grid's spectra are MILES stars. What the files of `ppxf` do not say (KNOWN) is from the
package's examples. The time is from a parsed spectrum with prior and grid loaded to finished
samples.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import sfhzoo
from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.diagnostics.predictive import PredictiveCheck, calc_predictive_check
from sfhzoo.errors import SfhzooError
from sfhzoo.posterior import Posterior

KNOWN: dict[str, dict[str, Any]] = {
    "NGC3073_SDSS_DR18.fits": {"redshift": 0.0038},
    "legac_M19_56670_v3.0.fits": {"redshift": 0.6686, "lsf": "R=3500"},
}
COLUMNS = {
    "log_mass_formed": 2, "log_mass_surviving": 2, "age_mass_weighted": 2, "t50": 2,
    "log_ssfr_1gyr": 2, "logzsol_mass_weighted": 3, "a_v": 3, "sigma_v": 0, "error_scale": 3,
}  # fmt: skip
"""Quantities and their decimals."""
MILES_END = 7349.0
"""Å; redward of it the grid's spectra come from other libraries."""
SMOOTH = 20
"""pixels of the running mean that is drawn"""


def find_files() -> list[Path]:
    spec = importlib.util.find_spec("ppxf")
    folder = Path(spec.origin).parent / "spectra" if spec and spec.origin else Path()
    return [Path(EXAMPLE), *(p for p in (folder / name for name in KNOWN) if p.exists())]


def check(posterior: Posterior) -> PredictiveCheck:
    seen = posterior.observed
    return calc_predictive_check(
        seen.wave_obs, seen.flux, seen.ivar, seen.used, posterior.model_flux,
        posterior.parameters["error_scale"].values, posterior.redshift,
    )  # fmt: skip


def format_row(summary: dict[str, Any], found: PredictiveCheck, label: str) -> str:
    cells = [summary["object"] + label, f"{summary['redshift']:.4f}", str(summary["n_pixels"])]
    for name, digits in COLUMNS.items():
        row = summary["quantities"][name]
        half = (row["p84"] - row["p16"]) / 2
        cells.append(f"{row['median']:.{digits}f} ± {half:.{digits}f}")
    cells += [f"{summary['chi2_per_pixel']:.2f}", str(found.n_structures), str(found.n_outliers),
              f"{summary['wall_s']['sampling']:.1f}"]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def draw(posterior: Posterior, found: PredictiveCheck) -> Figure:
    """Data and posterior spectra, and residuals with their running mean; structure is shaded."""
    figure = Figure(figsize=(10.0, 5.6), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1.3])
    seen = posterior.observed
    used, wave = seen.used, seen.wave_obs
    scale = float(np.median(posterior.parameters["error_scale"].values))
    unit = 10.0 ** np.floor(np.log10(np.median(np.abs(seen.flux[used]))))
    # NaN outside the grid stays NaN
    low, middle, high = np.percentile(posterior.model_flux, [2.5, 50, 97.5], axis=0) / unit
    top.plot(wave, np.where(seen.ivar > 0, seen.flux, np.nan) / unit, color="#b9b9b9", lw=0.5)
    top.plot(wave, np.where(used, seen.flux, np.nan) / unit, color="#222222", lw=0.6, label="used")
    top.fill_between(wave, low, high, color="#b5482f", alpha=0.4, lw=0)
    top.plot(wave, middle, color="#b5482f", lw=0.9, label="posterior median, 95 %")
    limits = np.percentile(seen.flux[used] / unit, [0.2, 99.8])
    top.set_ylim(min(0.0, limits[0]), 1.25 * limits[1])
    top.set_xlim(*wave[used][[0, -1]])
    top.set_ylabel(f"flux ({unit:.0e} erg/s/cm²/Å)")
    top.legend(loc="upper left", fontsize=8, ncols=2, frameon=False)

    chi = np.where(used, (seen.flux / unit - middle) * unit * np.sqrt(seen.ivar) / scale, 0.0)
    count = np.convolve(used, np.ones(SMOOTH), "same")
    mean = np.convolve(chi, np.ones(SMOOTH), "same") / np.sqrt(np.maximum(count, 1))
    bottom.plot(wave, np.where(used, chi, np.nan), ".", ms=1.2, color="#9a9a9a")
    bottom.plot(wave, np.where(count > SMOOTH / 2, mean, np.nan), color="#2b5c8a", lw=0.9)
    for s in found.structures:
        bottom.axvspan(s.low, s.high, color="#f2c77c", alpha=0.6, lw=0, zorder=0)
        bottom.annotate(f"{s.low_rest:.0f}", (s.low, 8.3), fontsize=7, rotation=60, va="bottom",
                        annotation_clip=False)  # fmt: skip
    bottom.axhline(0, color="#222222", lw=0.5)
    bottom.set_ylim(-8, 8)
    bottom.set_ylabel("residual / error,\nmean over 20 px / its error", fontsize=8)
    bottom.set_xlabel("observed wavelength in vacuum (Å); labels: rest wavelength of structure")
    figure.suptitle(f"{posterior.object_name}, redshift {posterior.redshift:.4f}", fontsize=11,
                    parse_math=False)  # fmt: skip
    return figure


def fit_file(file: Path, fit: Any, figures: Path | None) -> tuple[list[str], list[str]]:
    """(table rows, notes) of one file: the default fit and its variants."""
    spectrum = sfhzoo.Spectrum.read(file, **KNOWN.get(file.name, {}))
    redshift = float(spectrum.redshift or 0.0)
    variants: dict[str, dict[str, Any]] = {
        "": {},
        ", no calibration polynomial": {"calibration_order": 0},
    }
    end = MILES_END * (1 + redshift)
    if spectrum.wave_obs[spectrum.mask][-1] > end:
        variants[", rest below 7349 Å"] = {"wave_range": (100.0, end)}
    rows, notes = [], ["", f"**{spectrum.name}** (`{file.name}`)", ""]
    for label, options in variants.items():
        try:
            posterior = fit(spectrum, **options)
        except SfhzooError as e:
            notes.append(f"- refused{label}: {e}")
            continue
        found = check(posterior)
        rows.append(format_row(posterior.summary(), found, label))
        print(rows[-1], flush=True)
        if label:
            continue
        lines = [*posterior.provenance["warnings"], *found.format_warnings()]
        notes += [f"- {line}" for line in dict.fromkeys(lines)] or ["- no warnings"]
        if figures:
            name = "real-" + "".join(c if c.isalnum() else "-" for c in spectrum.name.lower())
            draw(posterior, found).savefig(figures / f"{name}.png")
    return rows, notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="directory for the figures")
    parser.add_argument("--out", type=Path, help="write the Markdown here")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prior, grid = sfhzoo.load_prior(), sfhzoo.load_grid()

    def fit(spectrum: sfhzoo.Spectrum, **options: Any) -> Posterior:
        return sfhzoo.infer(spectrum, prior, grid, samples=args.samples, seed=args.seed,
                            sampler=args.sampler, **options)  # fmt: skip

    if args.figures:
        args.figures.mkdir(parents=True, exist_ok=True)
    table = [
        "| object | redshift | pixels | " + " | ".join(COLUMNS)
        + " | chi²/pixel | structures | outliers | s |",
        "|---" * (len(COLUMNS) + 7) + "|",
    ]  # fmt: skip
    notes: list[str] = []
    for file in args.files or find_files():
        rows, lines = fit_file(file, fit, args.figures)
        table += rows
        notes += lines
    text = "\n".join([*table, *notes])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
