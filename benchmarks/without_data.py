"""Without data the posterior is the prior: Kolmogorov-Smirnov distances between the two.

    python benchmarks/without_data.py [--samples 5000] [--sampler auto] [--out FILE]

The bundled spectrum with an inverse variance of 0 everywhere goes through `sfhzoo.infer(...,
allow_no_data=True)`. Histories of the prior itself are drawn by its network's probability flow, on
which the sampler does not rest; those of the nuisance parameters by their definition. The distance
between two sets of the prior is printed beside, as what agreement looks like.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp

import sfhzoo
from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.diagnostics.mocks import Mock, calc_truth
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.posterior import Posterior
from sfhzoo.priors.prior import Prior
from sfhzoo.spectra.spectrum import Spectrum

LIMIT = 0.05
STEPS = 100
QUANTITIES = ("log_mass_formed", "age_mass_weighted", "t50", "t90", "log_ssfr_1gyr",
              "logzsol_mass_weighted", "a_v", "sigma_v", "velocity_offset")  # fmt: skip


def draw_prior(
    prior: Prior, grid: SSPGrid, redshift: float, n: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Quantity -> values [n], by the posterior's own formulas."""
    g = torch.Generator().manual_seed(seed)
    drawn = prior.sample(n, g, STEPS)
    u = torch.randn((n, N_NUISANCE), generator=g, dtype=torch.float64)
    columns = (v.double().numpy() for v in (*drawn, u))
    rows = [
        calc_truth(Mock(i, "", *row, np.zeros(0), 1.0, redshift, 1.0, 0), grid, prior.bins)
        for i, row in enumerate(zip(*columns, strict=True))
    ]
    return {name: np.array([r[name] for r in rows]) for name in QUANTITIES}


def fit(prior: Prior, grid: SSPGrid, sampler: str, n: int, seed: int) -> Posterior:
    spectrum = Spectrum.read(EXAMPLE)
    nothing = replace(spectrum, ivar=np.zeros_like(spectrum.ivar))
    return sfhzoo.infer(nothing, prior, grid, samples=n, seed=seed,
                        sampler=sampler, allow_no_data=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    prior, grid = sfhzoo.load_prior(), sfhzoo.load_grid()
    start = time.perf_counter()
    posterior = fit(prior, grid, args.sampler, args.samples, args.seed)
    seconds = time.perf_counter() - start
    drawn, again = (
        draw_prior(prior, grid, posterior.redshift, args.samples, args.seed + i) for i in (1, 2)
    )
    lines = [
        "# Without data", "",
        f"`benchmarks/without_data.py`: {args.samples} samples of {prior.name} by "
        f"`{posterior.provenance['sampler']}` in {seconds:.0f} s, {time.strftime('%Y-%m-%d')}; "
        f"medians and standard deviations of the posterior and of the prior. Limit of KS {LIMIT}.",
        "", "| quantity | KS | prior against prior | medians | deviations | |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    found = posterior.quantities()
    for name in QUANTITIES:
        a, b = found[name][0], drawn[name]
        distance, floor = ks_2samp(a, b).statistic, ks_2samp(b, again[name]).statistic
        verdict = "pass" if distance <= LIMIT else "MISS"
        lines.append(
            f"| {name} | {distance:.3f} | {floor:.3f} | {np.median(a):.4g}, {np.median(b):.4g} | "
            f"{a.std():.3g}, {b.std():.3g} | {verdict} |"
        )
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
