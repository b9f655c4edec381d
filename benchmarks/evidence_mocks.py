"""Which prior wins on mocks of each: mean log Bayes factors and the confusion matrix.

    python benchmarks/evidence_mocks.py diffstarpop-tng-v1 \
        work/diffstarpop-galacticus-v1=work/diffstarpop-galacticus-v1.zarr \
        --network work/diffstarpop-galacticus-v1=work/galacticus-posterior --n 50 --workers 2

A prior is a name or a directory; after `=` its training set, whose test split gives the mocks, or
a file of mocks (the bundled prior has the bundled ones). Nuisance parameters, calibration and
noise of a mock are drawn from the fit's priors, at S/N 30 per pixel; the errors are known. Each
mock's evidence is taken under every prior with the same seed, as trained and with a common prior
of the mass. Truth and draws of a posterior are alike, so on average their chi² must agree: how
far it does not is printed too. One JSON line per mock and prior goes to --work, and is not made
again.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import sfhzoo
from sfhzoo.diagnostics import mocks
from sfhzoo.errors import SfhzooError
from sfhzoo.evidence import estimate_evidence
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.simulations import trainingset
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.zoo.artifacts import DEFAULT_GRID, DEFAULT_PRIOR, identity_of, load_grid, load_prior

SNR = 30.0
RESULT = Path(__file__).parent / "results" / "evidence-mocks.md"
KINDS = {"as trained": "log_evidence", "common mass prior": "log_evidence_common"}


@dataclass(frozen=True)
class Run:
    """What every evidence of a run shares; priors are names or paths."""

    grid: str
    mass_prior: str
    samples: int
    seed: int
    networks: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """Short hash of all that decides the numbers."""
        network = {p: identity_of(Path(n)) for p, n in self.networks}
        priors = {p: load_prior(p).sha256 for p, _ in self.files}
        files = {p: mocks.load(Path(f)).sha256 for p, f in self.files}
        parts = [sfhzoo.__version__, asdict(self), network, priors, files, SNR]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _load(prior: str) -> Any:
    return load_prior(prior)


@cache
def _load_mocks(path: str) -> tuple[mocks.Mock, ...]:
    """Those of the survey's redshifts with nuisance parameters drawn from the fit's priors."""
    return tuple(m for m in mocks.load(Path(path)).mocks if m.set in mocks.BANDS)


def fit(run: Run, truth: str, number: int, prior: str) -> dict[str, Any]:
    """The line of one mock, the `number`-th of `truth`, under one prior."""
    line = {"truth": truth, "mock": number, "prior": prior}
    grid, loaded = load_grid(run.grid), _load(prior)
    mock = replace(_load_mocks(dict(run.files)[truth])[number], snr=SNR, error_scale=1.0)
    spectrum = mocks.make_spectrum(mock, grid, _load(truth).bins)
    try:
        e = estimate_evidence(
            spectrum, loaded, grid, network=dict(run.networks).get(prior), samples=run.samples,
            mass_prior=run.mass_prior, seed=run.seed + number,
        )  # fmt: skip
    except (SfhzooError, ArithmeticError, RuntimeError) as error:
        return {**line, "failed": f"{type(error).__name__}: {error}"}
    return {**line, **asdict(e), "chi2_excess": e.chi2[-1] - calc_true_chi2(mock, spectrum, grid)}


def calc_true_chi2(mock: mocks.Mock, spectrum: Spectrum, grid: SSPGrid) -> float:
    """chi² of the truth on the pixels that the fit uses: that of the noise alone."""
    noise = np.random.default_rng(mock.seed).standard_normal(len(spectrum.flux))
    return float((noise[mocks.calc_used(spectrum, mock.redshift, grid)] ** 2).sum())


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def fit_all(
    run: Run, jobs: list[tuple[str, int, str]], path: Path, workers: int
) -> list[dict[str, Any]]:
    """Lines of all jobs: those in the file, then those still to make."""
    key = run.key
    done = _read(path, key)
    todo = [j for j in jobs if "failed" in done.get(j, {"failed": "not yet"})]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as f:
        for row in tqdm(_work(run, todo, workers), total=len(todo), unit="fit"):
            f.write(json.dumps({"run": key, **row}) + "\n")
            f.flush()
    done = _read(path, key)
    return [done[j] for j in jobs]


def _work(run: Run, jobs: list[tuple[str, int, str]], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (fit(run, *job) for job in jobs)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _one_thread) as pool:
        for future in as_completed([pool.submit(fit, run, *job) for job in jobs]):
            yield future.result()


def _read(path: Path, key: str) -> dict[tuple[str, int, str], dict[str, Any]]:
    """The last line of every job."""
    rows = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if row.get("run") == key:
            rows[row["truth"], row["mock"], row["prior"]] = row
    return rows


def collect(
    rows: list[dict[str, Any]], truth: str, priors: list[str], field: str
) -> NDArray[np.float64]:
    """ln Z [mock, prior] of the mocks of `truth` that have it under every prior."""
    of = {(r["mock"], r["prior"]): r[field] for r in rows if r["truth"] == truth and field in r}
    numbers = sorted({m for m, _ in of})
    whole = [m for m in numbers if all((m, p) in of for p in priors)]
    return np.array([[of[m, p] for p in priors] for m in whole]).reshape(len(whole), len(priors))


def format_tables(rows: list[dict[str, Any]], priors: list[str]) -> list[str]:
    """Bayes factors and confusion matrix, as trained and with the common prior of the mass."""
    names = [Path(p).name for p in priors]
    lines = []
    for kind, field in KINDS.items():
        tables = {p: collect(rows, p, priors, field) for p in priors}
        head = "| mocks of | n | " + " | ".join(names) + " |"
        rule = "|---" * (len(priors) + 2) + "|"
        lines += [f"## {kind}", "", "Mean ln Bayes factor of the mocks' own prior over each, with "
                  "its standard error:", "", head, rule]  # fmt: skip
        for i, (p, name) in enumerate(zip(priors, names, strict=True)):
            z = tables[p]
            cells = [_mean(z[:, i] - z[:, j]) if i != j else "0" for j in range(len(priors))]
            lines.append(f"| {name} | {len(z)} | {' | '.join(cells)} |")
        lines += ["", "Share of the mocks on which each wins, with its binomial error:", "", head,
                  rule]  # fmt: skip
        for p, name in zip(priors, names, strict=True):
            z = tables[p]
            wins: Any = np.bincount(z.argmax(1), minlength=len(priors)) if len(z) else []
            cells = [_share(int(w), len(z)) for w in wins] or ["-"] * len(priors)
            lines.append(f"| {name} | {len(z)} | {' | '.join(cells)} |")
        lines.append("")
    lines += [
        "## Check of the draws", "",
        "chi² of the posterior's draws less that of the truth, on a prior's own mocks: 0 for",
        "exact draws. ln Z is too low by half of it per e-fold of the inverse temperature at",
        "which it holds.", "",
    ]  # fmt: skip
    for p, name in zip(priors, names, strict=True):
        excess = np.array([r["chi2_excess"] for r in rows
                           if r["truth"] == r["prior"] == p and "chi2_excess" in r])  # fmt: skip
        lines.append(f"- {name}: {_mean(excess)} ({len(excess)} mocks)")
    lines.append("")
    made = [r for r in rows if "error" in r]
    failed = [r for r in rows if "failed" in r]
    if made:
        seconds = np.median([r["facts"]["seconds"] for r in made])
        error = np.median([r["error"] for r in made])
        lines.append(
            f"Median error of ln Z {error:.2f}, {seconds:.0f} s per mock and prior, "
            f"{len(failed)} of {len(rows)} failed."
        )
    return lines


def _mean(values: NDArray[np.float64]) -> str:
    if len(values) < 2:
        return "-"
    return f"{values.mean():+.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def _share(wins: int, n: int) -> str:
    # one more win and one more loss keep the error of 0 and 1 above zero
    p = (wins + 1) / (n + 2)
    return f"{wins / n:.2f} ± {(p * (1 - p) / (n + 2)) ** 0.5:.2f}"


def prepare_files(given: list[str], work: Path) -> dict[str, str]:
    """prior -> file of mocks; made from the training set where one is given."""
    files = {}
    for text in given:
        prior, _, source = text.partition("=")
        if not source and Path(prior).name != DEFAULT_PRIOR:
            raise SystemExit(f"expected PRIOR=TRAINING_SET or PRIOR=MOCKS, got {text}")
        path = Path(source) if source else mocks.BUNDLED_MOCKS
        if path.is_dir():
            made = work / f"mocks-{path.name.removesuffix('.zarr')}.safetensors"
            work.mkdir(parents=True, exist_ok=True)
            path = made if made.is_file() else mocks.make(trainingset.load(path), made)
        files[prior] = str(path)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("priors", nargs="+", metavar="PRIOR[=SOURCE]")
    parser.add_argument("--network", action="append", default=[], metavar="PRIOR=DIR")
    parser.add_argument("--grid", default=DEFAULT_GRID)
    parser.add_argument("--mass-prior", default="flat")
    parser.add_argument("--n", type=int, default=50, help="mocks of each prior")
    parser.add_argument("--samples", type=int, default=100, help="draws per node")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("work/evidence"))
    parser.add_argument("--out", type=Path, help=f"for the tables, e.g. {RESULT.name}")
    args = parser.parse_args()
    files = prepare_files(args.priors, args.work)
    networks = tuple(tuple(text.split("=", 1)) for text in args.network)
    run = Run(args.grid, args.mass_prior, args.samples, args.seed, networks,
              tuple(files.items()))  # fmt: skip
    priors = list(files)
    # all priors of a mock follow each other: a run that is stopped leaves whole mocks
    jobs = [(t, k, p) for k, t, p in itertools.product(range(args.n), priors, priors)]
    rows = fit_all(run, jobs, args.work / "evidence.jsonl", args.workers)
    lines = format_tables(rows, priors)
    print("\n".join(lines))
    if args.out:
        head = (
            f"# Which prior wins on mocks of each\n\n`benchmarks/evidence_mocks.py`, S/N {SNR:g}, "
            f"{args.samples} draws per node, common mass prior {args.mass_prior}, "
            f"{os.cpu_count()} cores ({platform.machine()}), {time.strftime('%Y-%m-%d')}.\n\n"
        )
        args.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
