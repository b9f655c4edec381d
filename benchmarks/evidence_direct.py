"""The evidence against brute force: faint mocks, whose likelihood draws of the prior still reach.

    python benchmarks/evidence_direct.py [--network DIR] [--n 5] [--out FILE]

S/N 0.2 per pixel, 11 in total, real prior and forward model. `direct` is the mean likelihood of
4000 draws of the prior. `estimate` uses them only down the inverse temperature at which 1500 of
them count, and the sampler from there: the same draws in both, so that most of their own error is
common, and the difference is what the sampler's draws add.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sfhzoo import evidence
from sfhzoo.diagnostics import mocks
from sfhzoo.likelihood.options import Options
from sfhzoo.preparation import prepare_spectrum
from sfhzoo.tempering import calc_importance
from sfhzoo.zoo.artifacts import load_grid, load_prior

SNR, FIRST = 0.2, 213
EFFECTIVE = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", type=Path, help="posterior network that goes to low S/N")
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200, help="per node")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    evidence.MIN_EFFECTIVE = EFFECTIVE
    prior, grid, file = load_prior(), load_grid(), mocks.load()
    lines = [
        "| mock | direct | error | estimate | error | difference | e-folds | excess | CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    differences, shares = [], []
    for number in range(FIRST, FIRST + args.n):
        mock = replace(file.mocks[number], snr=SNR, error_scale=1.0)
        spectrum = mocks.make_spectrum(mock, grid, prior.bins)
        problem = prepare_spectrum(spectrum, prior, grid, Options(jitter="fixed"), False).problem
        # the seed of the estimate: its first random numbers are those of these draws
        drawn = evidence.draw_prior_misfit(problem, prior, torch.Generator().manual_seed(0))
        direct = calc_importance(drawn.calc_log_likelihood(1.0))
        start = time.process_time()
        e = evidence.estimate_evidence(
            spectrum, prior, grid, network=args.network, samples=args.samples, seed=0
        )
        seconds = time.process_time() - start
        constant = 0.5 * float((problem.ivar / (2 * math.pi)).log().sum())
        found, folds = e.log_evidence - constant, -e.ln_beta[0]
        excess = e.facts["error_sampler"] / evidence.DRAWS_EXCESS
        differences.append(found - direct.value)
        shares.append(-differences[-1] / excess)
        lines.append(
            f"| {number} | {direct.value:.2f} | {direct.error:.2f} | {found:.2f} | {e.error:.2f} "
            f"| {differences[-1]:+.2f} | {folds:.2f} | {excess:.2f} | {seconds:.0f} |"
        )
        print(lines[-1], flush=True)
    of = [f"{np.mean(v):+.2f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.2f}" for v in
          (differences, shares)]  # fmt: skip
    lines += ["", f"Mean difference {of[0]}; as a share of the integral over chi² above its "
              f"lowest (`excess`) {of[1]} too low."]  # fmt: skip
    print(lines[-1])
    if args.out:
        head = (
            f"# The evidence against brute force\n\n`benchmarks/evidence_direct.py --samples "
            f"{args.samples}`, {prior.name}, S/N {SNR:g} per pixel, {platform.machine()}, "
            f"{time.strftime('%Y-%m-%d')}. Natural logarithms, without the constant of the "
            "noise.\n\n"
        )
        args.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
