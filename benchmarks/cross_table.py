"""Truth from one population, prior from another: the bias that each choice of prior makes.

    python benchmarks/cross_table.py --prior NAME_OR_DIR[=NETWORK] ... --truth NAME=MOCKS ...
        [--mocks 100] [--samples 400] [--workers 2] [--work work/cross-table] [--table-only]

MOCKS is a file of `sfhzoo simulation mocks`, or "bundled". Each cell fits the first mocks of the
set "S/N 15-40" (redshift .02 to .2, median S/N 24) of one population under one prior, with the
same random numbers for noise, dust and calibration in every cell of a row. Every fit is kept in
--work, so that a stopped run goes on; --table-only makes the table of what is there.

Per quantity and cell: mean of posterior median minus truth and its standard error; the same of the
difference over the posterior's half width, in sigmas; and the share of central 68 % intervals that
hold the truth, with its binomial error. Writes benchmarks/results/cross-table.md.
"""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sfhzoo.diagnostics import mocks, scorecard
from sfhzoo.validation import FITS, Fitter, Run, fit_mocks, read_fits
from sfhzoo.zoo.artifacts import DEFAULT_GRID

RESULTS = Path(__file__).parent / "results" / "cross-table.md"
BAND = "S/N 15-40"
Row = dict[str, Any]
Cell = list[Row]


def parse_pair(text: str) -> tuple[str, str | None]:
    name, _, value = text.partition("=")
    return name, value or None


def calc_statistics(rows: Cell, name: str) -> dict[str, tuple[float, float]] | None:
    """Bias, sigmas and coverage of a quantity with their errors; None with fewer than 2 fits."""
    found = [row["quantities"][name] for row in rows]
    columns = {
        k: np.array([q[k] for q in found], float) for k in ("truth", "median", "p16", "p84")
    }
    good = np.all([np.isfinite(v) for v in columns.values()], axis=0)
    truth, median, low, high = (v[good] for v in columns.values())
    n = len(truth)
    if n < 2:
        return None
    error = median - truth
    pull = error / np.maximum(0.5 * (high - low), 1e-9)
    inside = float(np.mean((low <= truth) & (truth <= high)))
    return {
        "bias": (float(error.mean()), float(error.std(ddof=1) / np.sqrt(n))),
        "sigmas": (float(pull.mean()), float(pull.std(ddof=1) / np.sqrt(n))),
        # the error of the nominal share: that of a share of 0 or 1 would be 0
        "coverage": (inside, float(np.sqrt(0.68 * 0.32 / n))),
    }


def format_cell(statistics: dict[str, tuple[float, float]] | None, digits: int) -> str:
    if statistics is None:
        return "-"
    bias, sigmas, share = (statistics[k] for k in ("bias", "sigmas", "coverage"))
    return (
        f"{bias[0]:+.{digits}f} ± {bias[1]:.{digits}f}; {sigmas[0]:+.2f} ± {sigmas[1]:.2f} σ; "
        f"{100 * share[0]:.0f} %"
    )


def format_tables(cells: dict[tuple[str, str], Cell]) -> list[str]:
    """One table per quantity: rows are truths, columns priors."""
    truths = list(dict.fromkeys(t for t, _ in cells))
    priors = list(dict.fromkeys(p for _, p in cells))
    lines = []
    for name, (label, unit) in scorecard.QUANTITIES.items():
        digits = 1 if unit == "km/s" else 3
        lines += ["", f"## {label} ({unit})", ""]
        lines += [
            "| truth \\ prior | " + " | ".join(priors) + " |",
            "|---" * (len(priors) + 1) + "|",
        ]
        for truth in truths:
            row = [format_cell(calc_statistics(cells[truth, p], name), digits) for p in priors]
            lines.append(f"| {truth} | " + " | ".join(row) + " |")
    return lines


def format_report(cells: dict[tuple[str, str], Cell], failed: int, samplers: list[str]) -> str:
    n = sorted({len(rows) for rows in cells.values()})
    number = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    error = np.sqrt(0.68 * 0.32 / max(n[-1], 1))
    head = [
        "# Truth from one population, prior from another",
        "",
        f"{number} mocks per cell, {BAND}, everything free; {failed} fits failed. Sampler: "
        f"{', '.join(samplers) or 'none'}. {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, {datetime.now(UTC).date().isoformat()}; "
        "`python benchmarks/cross_table.py`.",
        "",
        "Mean of posterior median minus truth ± its standard error; the same in units of each "
        "posterior's half width; share of the 68 % intervals that hold the truth (binomial error "
        f"{100 * error:.0f} %).",
    ]
    return "\n".join([*head, *format_tables(cells)]) + "\n"


def run_cell(run: Run, out: Path, args: argparse.Namespace) -> list[Row]:
    """All lines of a cell, failed fits too."""
    fitter = Fitter(run)
    chosen = tuple(m for m in fitter.file.mocks if m.set == BAND)[: args.mocks]
    if not args.table_only:
        return fit_mocks(run, chosen, out, args.workers, not args.quiet, fitter)
    kept = read_fits(out / FITS, fitter.key)
    return [kept[m.number] for m in chosen if m.number in kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prior", type=parse_pair, action="append", required=True)
    parser.add_argument("--truth", type=parse_pair, action="append", required=True)
    parser.add_argument("--grid", default=DEFAULT_GRID)
    parser.add_argument("--mocks", type=int, default=100)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("work/cross-table"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table-only", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    cells: dict[tuple[str, str], Cell] = {}
    failed, samplers = 0, set()
    for truth, file in args.truth:
        file = str(mocks.BUNDLED_MOCKS) if file in (None, "bundled") else file
        for prior, network in args.prior:
            label = Path(prior).name
            run = Run(prior, args.grid, "auto", args.samples, args.seed, network, file)
            rows = run_cell(run, args.work / f"{truth}--{label}", args)
            cells[truth, label] = [r for r in rows if "error" not in r]
            failed += sum("error" in r for r in rows)
            samplers |= {r["sampler"] for r in rows if "sampler" in r}
            print(f"truth {truth}, prior {label}: {len(cells[truth, label])} fits", flush=True)
    text = format_report(cells, failed, sorted(samplers))
    args.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
