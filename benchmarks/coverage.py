"""Coverage of the default sampler on mock SDSS spectra from held-out histories.

    python benchmarks/coverage.py TRAINING_SET --mocks 100 --snr 30 [--fraction 0.3]

Every nuisance parameter is drawn from the prior the fit uses; redshift 0.02 to 0.2. Prints, per
quantity, how often the central 50, 68, 90 and 95 % intervals hold the truth (binomial error at
68 % with 100 mocks: 4.7 %), the width, and the median error in units of the width.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from sfhzoo import histories
from sfhzoo.errors import SamplingError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.samplers.amortized import AmortizedSampler
from sfhzoo.simulations import trainingset
from sfhzoo.spectra.masks import calc_line_mask
from sfhzoo.zoo.artifacts import (
    DEFAULT_GRID,
    DEFAULT_PRIOR,
    find_posterior_network,
    load_grid,
    load_posterior_network,
)

LEVELS = (0.50, 0.68, 0.90, 0.95)
LSF_SIGMA = 69.0
"""km/s, one SDSS pixel"""


def calc_quantities(sfr, logzsol, u, bins, cosmic_time):
    """name -> [sample]; the specific SFR is per mass formed here."""
    formed = histories.calc_mass_formed(sfr, bins, cosmic_time)
    physical = nuisance.to_physical(u)
    return {
        "log_mass_formed": np.log10(formed),
        "age_mass_weighted": histories.calc_age_mass_weighted(sfr, bins, cosmic_time),
        "t50": histories.calc_formation_quantile(sfr, bins, cosmic_time, 0.5),
        "t90": histories.calc_formation_quantile(sfr, bins, cosmic_time, 0.9),
        "log_ssfr_1gyr": np.log10(histories.calc_ssfr(sfr, bins, cosmic_time, formed)),
        "logzsol_mass_weighted": histories.calc_logzsol_mass_weighted(
            sfr, logzsol, bins, cosmic_time
        ),
        "a_v": physical.a_v.numpy(),
        "sigma_v": physical.sigma_v.numpy(),
    }


class Mocks:
    """Noisy spectra of test histories."""

    def __init__(self, path: Path, grid, scaling, snr: float, seed: int) -> None:
        data = trainingset.load(path)
        self.sfr, self.logzsol = (torch.from_numpy(a).double() for a in data.histories("test"))
        self.bins, self.grid, self.scaling, self.snr, self.seed = (
            data.bins, grid, scaling, snr, seed,
        )  # fmt: skip
        self.wave = 10 ** np.arange(3.58, 3.964, 1e-4)

    def make(self, number: int):
        """(problem, luminosity factor, true quantities) of mock `number`."""
        rng = np.random.default_rng([self.seed, number])
        redshift, i = float(rng.uniform(0.02, 0.2)), int(rng.integers(len(self.sfr)))
        use = calc_line_mask(self.wave / (1 + redshift))
        lsf = np.full(use.sum(), LSF_SIGMA)
        model = ForwardModel(self.grid, self.wave[use], redshift, lsf_sigma=lsf, bins=self.bins)
        u = torch.from_numpy(rng.standard_normal((1, nuisance.N_NUISANCE)))
        one = slice(i, i + 1)
        flux = model(self.sfr[one], self.logzsol[one], *nuisance.to_physical(u))[0]
        error = (flux.median() / self.snr).expand_as(flux)
        noisy = flux + error * torch.from_numpy(rng.standard_normal(len(flux)))
        problem = Problem(model, noisy, error**-2, self.scaling)
        truth = calc_quantities(
            self.sfr[one].numpy(), self.logzsol[one].numpy(), u, self.bins, model.cosmic_time
        )
        distance = self.bins.luminosity_distance_cm(redshift)
        factor = calc_flux_factor(redshift, distance, self.grid.solar_luminosity)
        return problem, 1 / factor, truth


def measure(mocks: Mocks, network, n: int, samples: int, fraction: float) -> dict:
    """Ranks, widths and errors of every quantity; chi² and time per mock."""
    rows: list[dict] = []
    failed = 0
    for number in range(n):
        problem, luminosity, truth = mocks.make(number)
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(number)
        try:
            sampler = AmortizedSampler(network, 36.0, luminosity, fraction)
            draws: Draws = sampler.sample(problem, samples, generator)
        except SamplingError as e:
            print(f"mock {number}: {e}")
            failed += 1
            continue
        seconds = time.perf_counter() - start
        x = draws.state[:, : 2 * problem.n_bins].view(-1, 2, problem.n_bins)
        sfr, logzsol = (a.numpy() for a in problem.scaling.from_x(x))
        u = draws.state[:, 2 * problem.n_bins :][:, : nuisance.N_NUISANCE]
        found = calc_quantities(sfr, logzsol, u, mocks.bins, problem.model.cosmic_time)
        row = {"chi2": float(np.median(draws.stats["chi2"])) / len(problem.flux), "s": seconds,
               "shift": draws.facts["shift_per_coordinate"]}  # fmt: skip
        for name, values in found.items():
            width = float(values.std())
            row[name] = (
                (float((values < truth[name]).sum()) + 0.5) / (len(values) + 1),
                width,
                (float(np.median(values)) - float(truth[name][0])) / max(width, 1e-9),
            )
        rows.append(row)
    return {"rows": rows, "failed": failed}


def format_table(result: dict, title: str) -> str:
    """Markdown."""
    rows = result["rows"]
    numbers = ("chi2", "s", "shift")
    middle = {k: float(np.median([r[k] for r in rows])) for k in numbers}
    lines = [
        f"{title}: {len(rows)} mocks, {result['failed']} failed; median chi²/pixel "
        f"{middle['chi2']:.3f}, {middle['s']:.1f} s per mock, squared shift {middle['shift']:.2f}",
        "",
        "| quantity | 50 % | 68 % | 90 % | 95 % | width | median error / width |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in (k for k in rows[0] if k not in numbers):
        ranks, widths, errors = (np.array(c) for c in zip(*(r[name] for r in rows), strict=True))
        hits = " | ".join(f"{np.mean(np.abs(ranks - 0.5) < level / 2):.2f}" for level in LEVELS)
        lines.append(f"| {name} | {hits} | {np.median(widths):.4f} | {np.median(errors):+.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("training_set", type=Path)
    parser.add_argument("--mocks", type=int, default=100)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--snr", type=float, nargs="+", default=[10.0, 30.0, 60.0])
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="append the Markdown tables to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = find_posterior_network(DEFAULT_PRIOR, DEFAULT_GRID)
    if path is None:
        raise SystemExit("the bundled posterior network is missing")
    network, grid = load_posterior_network(path), load_grid(DEFAULT_GRID)
    for snr in args.snr:
        mocks = Mocks(args.training_set, grid, network.scaling, snr, args.seed)
        result = measure(mocks, network, args.mocks, args.samples, args.fraction)
        text = format_table(result, f"S/N {snr:g}, network's share {args.fraction:g}")
        print(text, flush=True)
        if args.out:
            with open(args.out, "a", encoding="utf-8") as f:
                f.write(text + "\n\n")
            raw = args.out.with_name(f"{args.out.stem}-snr{snr:g}-{args.fraction:g}.json")
            raw.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
