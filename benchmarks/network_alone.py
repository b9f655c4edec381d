"""Coverage of the posterior network alone: its draws given one view of each mock, no update.

    python benchmarks/network_alone.py TRAINING_SET [--mocks 300] [--seed 7] [--bundled]

The network is shown all that it can resolve of a spectrum, with the factor on the errors as the
sampler takes it. Its draws are then calibrated if it is: the exact likelihood has no part in them.
A fit takes 0.4 s, so that bands of many mocks can be had, of which the bundled ones are a sample.
Writes benchmarks/results/network-alone.md; --bundled adds the bundled mocks.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm import tqdm

from sfhzoo import engines
from sfhzoo.diagnostics import mocks, scorecard
from sfhzoo.diagnostics.coverage import LEVELS, calc_binomial_error
from sfhzoo.likelihood.calibration import calc_calibration_columns
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.samplers.amortized import AmortizedSampler, calc_span_scale
from sfhzoo.simulations import trainingset
from sfhzoo.validation import Fitter, Run

RESULTS = Path(__file__).parent / "results" / "network-alone.md"
SAMPLES = 60
NO_NOISE = 1e-6
"""Variance added to a view, in units of the data's."""


class NetworkAlone(AmortizedSampler):
    """The draws that the sampler begins with, of one view that holds all of the data."""

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        view = self._view(problem)
        columns = calc_calibration_columns(problem)
        scale = calc_span_scale(problem, view.functionals, columns)
        one = replace(self, ensemble=1, groups=1, extra_noise=NO_NOISE)
        state = one._look(problem, view, scale, n, generator).state
        none = torch.zeros(n, problem.calibration_order, dtype=state.dtype)
        flux = torch.zeros(n, len(problem.flux), dtype=state.dtype)
        factor = torch.full((n,), scale, dtype=state.dtype)
        return Draws(torch.cat([state, none], dim=1), flux, factor, one.network.nfe)


def format_band(name: str, rows: list[scorecard.Row]) -> list[str]:
    done = [r for r in rows if "error" not in r]
    found = scorecard.calc_set_metrics(scorecard.Results.from_rows(done))
    error = calc_binomial_error(0.68, len(done))
    head = " | ".join(f"{100 * level:.0f} %" for level in LEVELS)
    lines = [
        "", f"## {name}, {len(done)} mocks", "",
        f"Binomial error at 68 %: {float(error):.3f}; {len(rows) - len(done)} failed.", "",
        f"| quantity | {head} |", "|---" * (len(LEVELS) + 1) + "|",
    ]  # fmt: skip
    for quantity, q in found["quantities"].items():
        shares = " | ".join(f"{v:.3f}" for v in q["coverage"].values())
        lines.append(f"| {scorecard.QUANTITIES[quantity][0]} | {shares} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("training_set", type=Path)
    parser.add_argument("--mocks", type=int, default=300, help="per S/N band")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--bundled", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    engines.AmortizedSampler = NetworkAlone  # type: ignore[misc]
    lines = [
        "# The posterior network alone",
        "",
        f"`benchmarks/network_alone.py`, one view of each mock, {SAMPLES} draws, no update; share "
        f"of truths in central intervals. {datetime.now(UTC).date().isoformat()}.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        wanted = tuple(replace(s, n=args.mocks) for s in mocks.SETS if s.name in mocks.BANDS)
        path = Path(folder) / "mocks.safetensors"
        data = trainingset.load(args.training_set)
        files = [("fresh", str(mocks.make(data, path, (args.seed,), wanted)))]
        files += [("bundled", None)] if args.bundled else []
        for label, file in files:
            fitter = Fitter(Run(sampler="amortized", samples=SAMPLES, mocks=file))
            for band in mocks.BANDS:
                numbers = [m.number for m in fitter.file.mocks if m.set == band]
                rows = [fitter.fit(n) for n in tqdm(numbers, desc=f"{label} {band}")]
                lines += format_band(f"{band}, {label}", rows)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
