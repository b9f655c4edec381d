"""The published experiment (Perry-Fagant et al.) repeated, and measured on more than one mock.

    python benchmarks/seed.py TRAINING_SET --rows seed.jsonl [--coverage 8] [--drift 6]

The mock: a massive galaxy (log mass formed 10.9 to 11.2, from held-out histories), A_V 0.2,
redshift 0.05, 3600 to 9200 Å, no line-spread function and no velocity dispersion, constant noise.
The noise is printed as Sigma_y = (E[y] / 50) I; read as a standard deviation of E[y] / 50.

cla        120 samples with A_V, velocities and errors fixed at the truth; mass, wall time, and
           coverage, of all samples and of the 100 with the smallest mean |y - S(x)|
drift      metallicity and mass with A_V fixed at .281, .339 and .506 (the published appendix)
           where the truth is .339, and with A_V free: cla, and the default sampler

Rows go to a file, one JSON line each; a row that is there is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from named_samplers import build_sampler
from simulation_oracle import QUANTITIES, calc_quantities

import sfhzoo
from sfhzoo.errors import SamplingError
from sfhzoo.forward.model import ForwardModel
from sfhzoo.likelihood.problem import Draws, Problem
from sfhzoo.simulations import trainingset

REDSHIFT, SNR, A_V = 0.05, 50.0, 0.2
NO_DISPERSION = 1.0
"""km/s; far below the grid's resolution"""
MASSES = (10.9, 11.2)
PUBLISHED_MASS = 1.056e11
"""Msun, TNG 535410"""
N_DRAWN, N_KEPT = 120, 100
DRIFT_TRUTH, DRIFT_A_V = 0.339, (0.281, 0.339, 0.506)
LEVELS = (0.5, 0.68, 0.95)


class Experiment:
    """Massive held-out galaxies, seen as the published mock was."""

    def __init__(self, training_set: Path, seed: int, network: Path | None) -> None:
        self.network = network
        self.prior, self.grid = sfhzoo.load_prior(), sfhzoo.load_grid()
        wave = 10 ** np.arange(3.5563, 3.9638, 1e-4)
        self.model = ForwardModel(self.grid, wave, REDSHIFT, bins=self.prior.bins)
        self.seed = seed
        sfr, logzsol = (a.astype(float) for a in trainingset.load(training_set).histories("test"))
        mass = calc_quantities(sfr, logzsol, self.model)[0]
        massive = np.flatnonzero((mass > MASSES[0]) & (mass < MASSES[1]))
        pick = np.random.default_rng(seed).permutation(massive)
        # the first is the one closest to the published galaxy's mass
        first = np.argmin(np.abs(mass[pick] - np.log10(PUBLISHED_MASS)))
        pick[[0, first]] = pick[[first, 0]]
        self.sfr, self.logzsol = sfr[pick], logzsol[pick]
        self.truth = calc_quantities(self.sfr, self.logzsol, self.model)

    def build(self, i: int, true_a_v: float, fixed_a_v: float | None) -> Problem:
        """Mock i with A_V `true_a_v` (mag), to be fitted with `fixed_a_v`, None = free."""
        one = torch.from_numpy(self.sfr[i : i + 1]), torch.from_numpy(self.logzsol[i : i + 1])
        flux = self.model(*one, true_a_v, NO_DISPERSION)[0]
        error = flux.mean() / SNR
        noise = np.random.default_rng([self.seed, i]).standard_normal(len(flux))
        return Problem(
            model=self.model, flux=flux + error * torch.from_numpy(noise),
            ivar=(error**-2).expand_as(flux), scaling=self.prior.scaling, a_v=fixed_a_v,
            sigma_v=NO_DISPERSION, velocity=0.0, fit_error_scale=False,
        )  # fmt: skip

    def measure(self, problem: Problem, draws: Draws) -> np.ndarray:
        """Quantities [quantity, sample]."""
        x = draws.state[:, : 2 * problem.n_bins].view(-1, 2, problem.n_bins)
        sfr, logzsol = (a.numpy().astype(float) for a in problem.scaling.from_x(x))
        return calc_quantities(sfr, logzsol, self.model)

    def run(self, name: str, problem: Problem, n: int, seed: int) -> tuple[Draws, float]:
        """Draws and wall seconds of a sampler."""
        sampler = build_sampler(name, self.prior, self.grid, self.model, None, self.network)
        start = time.perf_counter()
        draws = sampler.sample(problem, n, torch.Generator().manual_seed(seed))
        return draws, time.perf_counter() - start


def select_best(problem: Problem, draws: Draws) -> np.ndarray:
    """Indices of the N_KEPT samples with the smallest mean absolute residual."""
    residual = (problem.flux - draws.flux).abs().mean(dim=1).numpy()
    return np.argsort(residual)[:N_KEPT]


def summarise(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Per quantity: truth, mean, standard deviation, median and the truth's normalised rank."""
    rank = ((found < truth[:, None]).sum(1) + 0.5) / (found.shape[1] + 1)
    rows = zip(QUANTITIES, truth, found.mean(1), found.std(1), np.median(found, 1), rank)
    keys = ("truth", "mean", "std", "median", "rank")
    return {name: dict(zip(keys, map(float, values))) for name, *values in rows}


def run_published(experiment: Experiment, name: str, i: int) -> dict[str, Any]:
    """One mock with everything but the histories fixed at the truth."""
    problem = experiment.build(i, A_V, A_V)
    draws, seconds = experiment.run(name, problem, N_DRAWN, i)
    found, truth = experiment.measure(problem, draws), experiment.truth[:, i]
    chi2 = ((problem.flux - draws.flux) ** 2 * problem.ivar).sum(1) / len(problem.flux)
    mass = 10.0 ** found[0]
    return {
        "all": summarise(found, truth),
        "selected": summarise(found[:, select_best(problem, draws)], truth),
        "mass": [float(10.0 ** truth[0]), float(mass.mean()), float(mass.std())],
        "chi2_per_pixel": float(chi2.median()), "seconds": seconds, "nfe": draws.nfe,
    }  # fmt: skip


def run_drift(experiment: Experiment, name: str, i: int, a_v: float | None) -> dict[str, Any]:
    """One mock of A_V .339 with A_V fixed at `a_v`, or free."""
    problem = experiment.build(i, DRIFT_TRUTH, a_v)
    draws, seconds = experiment.run(name, problem, N_DRAWN, i)
    chi2 = ((problem.flux - draws.flux) ** 2 * problem.ivar).sum(1) / len(problem.flux)
    found = summarise(experiment.measure(problem, draws), experiment.truth[:, i])
    return {"all": found, "chi2_per_pixel": float(chi2.median()), "seconds": seconds}


class Rows:
    """JSON lines by key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.values = {r.pop("key"): r for r in map(json.loads, lines)}

    def make(self, key: str, function: Callable[[], dict[str, Any]]) -> None:
        """Add the row unless it is there; a sampler's failure is a row too."""
        if key in self.values:
            return
        try:
            row = function()
        except SamplingError as e:
            row = {"failed": str(e)}
        self.values[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"key": key, **row}) + "\n")
        print(key, row.get("failed", f"{row.get('seconds', 0):.0f} s"), flush=True)

    def of(self, prefix: str) -> list[dict[str, Any]]:
        """Rows that did not fail, in order."""
        return [r for k, r in self.values.items() if k.startswith(prefix) and "failed" not in r]

    def failed(self, prefix: str) -> int:
        return sum(k.startswith(prefix) and "failed" in r for k, r in self.values.items())


def format_published(rows: Rows, names: list[str]) -> list[str]:
    lines = ["## The published mock and its likes", "",
             "| sampler | samples | mocks | failed | chi²/pixel | s | "
             + " | ".join(f"{q}: 50 / 68 / 95 %, |error| / width" for q in QUANTITIES) + " |",
             "|" + "---|" * (len(QUANTITIES) + 6)]  # fmt: skip
    for name in names:
        found, failed = rows.of(f"published {name} "), rows.failed(f"published {name} ")
        for which in ("all", "selected") if found else ():
            cells = []
            for q in QUANTITIES:
                rank = np.array([r[which][q]["rank"] for r in found])
                pull = [(r[which][q]["median"] - r[which][q]["truth"]) / r[which][q]["std"]
                        for r in found]  # fmt: skip
                hits = " / ".join(f"{np.mean(np.abs(rank - 0.5) < h / 2):.2f}" for h in LEVELS)
                cells.append(f"{hits}, {np.median(np.abs(pull)):.1f}")
            size = N_DRAWN if which == "all" else f"{N_KEPT} of {N_DRAWN}"
            chi2, seconds = (np.median([r[k] for r in found])
                             for k in ("chi2_per_pixel", "seconds"))  # fmt: skip
            lines.append(f"| {name} | {size} | {len(found)} | {failed} | {chi2:.3f} | "
                         f"{seconds:.0f} | " + " | ".join(cells) + " |")  # fmt: skip
    lines += ["", "The first mock, mass formed (1e11 Msun; published: truth 1.056, inferred "
              "1.067 ± 0.058):", ""]  # fmt: skip
    for name in names:
        for row in rows.of(f"published {name} 0"):
            truth, mean, std = (v / 1e11 for v in row["mass"])
            lines.append(f"- {name}: truth {truth:.3f}, inferred {mean:.3f} ± {std:.3f}")
    return lines


def format_drift(rows: Rows, names: list[str]) -> list[str]:
    lines = ["", f"## A_V fixed at a wrong value (truth {DRIFT_TRUTH})", "",
             "Median over the mocks of posterior median minus truth (standard error of the mean).",
             "", "| sampler | A_V | mocks | failed | chi²/pixel | "
             + " | ".join(QUANTITIES) + " |",
             "|" + "---|" * (len(QUANTITIES) + 5)]  # fmt: skip
    for name in names:
        for a_v in (*DRIFT_A_V, "free"):
            prefix = f"drift {name} {a_v} "
            found = rows.of(prefix)
            if not found:
                continue
            errors = np.array([[r["all"][q]["median"] - r["all"][q]["truth"] for q in QUANTITIES]
                               for r in found])  # fmt: skip
            cells = [f"{m:+.3f}" for m in np.median(errors, 0)]
            if len(found) > 1:
                spread = errors.std(0, ddof=1) / len(found) ** 0.5
                cells = [f"{cell} ({s:.3f})" for cell, s in zip(cells, spread)]
            chi2 = np.median([r["chi2_per_pixel"] for r in found])
            lines.append(f"| {name} | {a_v} | {len(found)} | {rows.failed(prefix)} | {chi2:.3f} | "
                         + " | ".join(cells) + " |")  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("training_set", type=Path)
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines, continued")
    parser.add_argument("--out", type=Path, help="write the Markdown here")
    parser.add_argument("--sampler", nargs="+", default=["cla", "amortized"])
    parser.add_argument("--coverage", type=int, default=8, help="mocks of the published kind")
    parser.add_argument("--drift", type=int, default=6, help="mocks with a wrong A_V")
    parser.add_argument("--network", type=Path, help="posterior network; default: the bundled one")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment, rows = Experiment(args.training_set, args.seed, args.network), Rows(args.rows)
    for name in args.sampler:
        for i in range(args.coverage):
            rows.make(f"published {name} {i}", lambda: run_published(experiment, name, i))  # noqa: B023
        for i in range(args.drift):
            # cla cannot sample A_V: where it is free, cla fixes it at a fit's value
            for a_v in (*DRIFT_A_V, None):
                key = f"drift {name} {'free' if a_v is None else a_v} {i}"
                rows.make(key, lambda: run_drift(experiment, name, i, a_v))  # noqa: B023
    known = list(dict.fromkeys(k.split()[1] for k in rows.values))
    text = "\n".join([*format_published(rows, known), *format_drift(rows, known)])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
