"""Fit real spectra with the bundled artifacts; a Markdown table of results and times.

    python benchmarks/real_spectra.py [FILE ...] --threads 2

Without files, the bundled spectrum of NGC 3522. The time is from a parsed spectrum with prior
and grid loaded to finished samples.
"""

from __future__ import annotations

import argparse

import torch

import sfhzoo
from sfhzoo.cli.infer import EXAMPLE

COLUMNS = ("log_mass_formed", "age_mass_weighted", "logzsol_mass_weighted", "a_v", "sigma_v",
           "error_scale")  # fmt: skip


def format_row(summary: dict) -> str:
    cells = [summary["object"], f"{summary['redshift']:.4f}"]
    for name in COLUMNS:
        row = summary["quantities"][name]
        cells.append(f"{row['median']:.3g} ± {(row['p84'] - row['p16']) / 2:.2g}")
    cells += [f"{summary['chi2_per_pixel']:.2f}", f"{summary['wall_s']['sampling']:.1f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", default=[str(EXAMPLE)])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    prior, grid = sfhzoo.load_prior(), sfhzoo.load_grid()
    print("| object | redshift | " + " | ".join(COLUMNS) + " | chi²/pixel | s |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    for file in args.files:
        spectrum = sfhzoo.Spectrum.read(file)
        posterior = sfhzoo.infer(spectrum, prior, grid, samples=args.samples, seed=args.seed)
        print(format_row(posterior.summary()), flush=True)
        for warning in posterior.provenance["warnings"]:
            print(f"<!-- {spectrum.name}: {warning} -->")


if __name__ == "__main__":
    main()
