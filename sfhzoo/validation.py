"""Fit mock observations with a prior, a grid and a sampler; keep every result; judge them.

One line of JSON per fit is appended to `fits.jsonl` as soon as the fit is done, with the identity
of the run, so that a killed run goes on where it stopped. A fit that fails leaves a line too, and
is tried again by the next run.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sfhzoo import __version__, inference
from sfhzoo.diagnostics import coverage, mocks, scorecard
from sfhzoo.diagnostics.figures import plot_all
from sfhzoo.diagnostics.mocks import Mock
from sfhzoo.diagnostics.scorereport import format_report
from sfhzoo.engines import find_matching_network
from sfhzoo.errors import SamplingError, SfhzooError
from sfhzoo.posterior import PERCENTILES, Posterior
from sfhzoo.zoo.artifacts import (
    DEFAULT_GRID,
    DEFAULT_PRIOR,
    identity_of,
    load_grid,
    load_prior,
    write_json,
)

FITS = "fits.jsonl"
ALSO_RECORDED = ("velocity_offset", "error_scale")

QUICK_MOCKS, QUICK_SAMPLES = 60, 150


@dataclass(frozen=True)
class Run:
    """What is validated: names or paths of prior and grid, sampler, samples per fit, seed.

    network : directory of a posterior network; None for the one on this disk
    mocks : file of mocks; None for the bundled one
    """

    prior: str = DEFAULT_PRIOR
    grid: str = DEFAULT_GRID
    sampler: str = "auto"
    samples: int = 400
    seed: int = 0
    network: str | None = None
    mocks: str | None = None


class Fitter:
    """Fits mocks one by one, with everything loaded once."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.prior, self.grid = load_prior(run.prior), load_grid(run.grid)
        self.file = mocks.load(Path(run.mocks) if run.mocks else mocks.BUNDLED_MOCKS)
        self.identity = self._calc_identity()

    def _calc_identity(self) -> dict[str, Any]:
        network = self.run.network or find_matching_network(self.prior, self.grid)
        return {
            "sfhzoo": __version__,
            "prior": {"name": self.prior.name, "sha256": self.prior.sha256},
            "grid": {"name": self.grid.name, "sha256": self.grid.sha256},
            "posterior_network": identity_of(Path(network)) if network else None,
            "mocks": self.file.sha256,
            **{k: v for k, v in asdict(self.run).items() if k in ("sampler", "samples", "seed")},
        }

    @property
    def key(self) -> str:
        """Short hash of the run's identity."""
        text = json.dumps(self.identity, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def notes(self) -> list[str]:
        """What the reader of the result should know."""
        theirs = self.file.attributes["training_set"]
        if self.prior.training_set == theirs["sha256"]:
            return []
        return [
            f"the mocks are galaxies of {theirs['name']}, not of the population that "
            f"{self.prior.name} was trained on: misses may be the prior's, not the sampler's"
        ]

    def fit(self, number: int) -> scorecard.Row:
        """The line of one mock; a failed fit has an "error" instead of results."""
        mock = self.file.mocks[number]
        seeds = np.random.SeedSequence([self.run.seed, mock.draw])
        seed, tie_seed = seeds.generate_state(2).tolist()
        line = {"run": self.key, "mock": number, "set": mock.set, "redshift": mock.redshift,
                "snr": mock.snr}  # fmt: skip
        start = time.perf_counter()
        try:
            spectrum = mocks.make_spectrum(mock, self.grid, self.prior.bins)
            posterior = inference.infer(
                spectrum, self.prior, self.grid, samples=self.run.samples,
                sampler=self.run.sampler, network=self.run.network, seed=seed,  # type: ignore[arg-type]
            )  # fmt: skip
        # whatever the numerics of one galaxy throw must not end the run
        except (SfhzooError, ArithmeticError, RuntimeError, ValueError, IndexError) as e:
            return {**line, "error": f"{type(e).__name__}: {e}"}
        line["wall_s"] = round(time.perf_counter() - start, 3)
        truth = mocks.calc_truth(mock, self.grid, self.prior.bins)
        return {**line, **row_of(posterior, truth, np.random.default_rng(tie_seed))}


def row_of(
    posterior: Posterior, truth: dict[str, float], rng: np.random.Generator
) -> dict[str, Any]:
    """What is kept of a fit: per quantity truth, percentiles and rank; TARP ranks; how it went."""
    found = posterior.quantities()
    quantities = {}
    for name in (*scorecard.QUANTITIES, *ALSO_RECORDED):
        values = found[name][0]
        levels = np.nanpercentile(values, list(PERCENTILES.values())).tolist()
        rank = coverage.calc_rank(values, truth[name], rng)
        quantities[name] = {"truth": truth[name], "rank": rank, **dict(zip(PERCENTILES, levels))}
    names = list(scorecard.QUANTITIES)
    samples = np.stack([found[q][0] for q in names], axis=1)
    tarp = coverage.calc_tarp_ranks(samples, [truth[q] for q in names], rng)
    made = posterior.provenance
    return {
        "quantities": quantities,
        "tarp": tarp.round(6).tolist(),
        "chi2_per_pixel": posterior.calc_chi2_per_pixel(),
        "ess": _find_ess(posterior),
        "sampler": str(made.get("sampler")),
        "facts": {k: v for k, v in made.get("facts", {}).items() if isinstance(v, int | float)},
        "warnings": list(made.get("warnings", ())),
    }


def _find_ess(posterior: Posterior) -> float | None:
    """The smallest effective sample size, where the sampler tells it as "ess"."""
    told = (posterior.provenance.get("facts", {}).get("ess"), posterior.sample_stats.get("ess"))
    values = [float(np.min(v)) for v in told if v is not None]
    return min(values) if values else None


# ---- many fits ----------------------------------------------------------------------------------

_fitter: Fitter | None = None
"""That of a worker process, set when it starts."""


def _end_with_parent() -> None:
    """A run that is killed must not leave workers waiting for work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _start_worker(run: Run) -> None:
    import torch

    global _fitter
    # an interrupt is the parent's to handle
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _fitter = Fitter(run)


def _fit_in_worker(number: int) -> scorecard.Row:
    assert _fitter is not None
    return _fitter.fit(number)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started within use one thread for linear algebra."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _fit_in_pool(run: Run, numbers: list[int], workers: int) -> Iterator[scorecard.Row]:
    context = multiprocessing.get_context("spawn")
    with _one_thread_each():
        pool = ProcessPoolExecutor(workers, context, _start_worker, (run,))
        try:
            for future in as_completed([pool.submit(_fit_in_worker, n) for n in numbers]):
                yield future.result()
        except BrokenProcessPool as e:
            raise SamplingError(
                "a worker process died (out of memory?); the same command goes on where it "
                "stopped, fewer --workers need less memory"
            ) from e
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def read_fits(path: Path, key: str) -> dict[int, scorecard.Row]:
    """Mock number -> the last line of this run; a line cut short by a kill is ignored."""
    rows: dict[int, scorecard.Row] = {}
    if not path.is_file():
        return rows
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(text)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("run") == key:
            rows[int(row["mock"])] = row
    return rows


def _append(path: Path, row: scorecard.Row) -> None:
    cut_short = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as f:
        text = json.dumps(_finite(row), ensure_ascii=False, allow_nan=False)
        f.write(("\n" if cut_short else "") + text + "\n")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def fit_mocks(
    run: Run,
    selection: tuple[Mock, ...],
    out: Path,
    workers: int = 1,
    progress: bool = False,
    fitter: Fitter | None = None,
) -> list[scorecard.Row]:
    """The lines of all mocks of a selection: those on disk, then those still to fit.

    `workers` > 1 are processes of one thread each; 1 fits in this process.
    """
    from tqdm import tqdm

    fitter = fitter or Fitter(run)
    out.mkdir(parents=True, exist_ok=True)
    path, key = out / FITS, fitter.key
    done = {n for n, row in read_fits(path, key).items() if "error" not in row}
    wanted = [m.number for m in selection]
    todo = [n for n in wanted if n not in done]
    fits: Iterator[scorecard.Row] = map(fitter.fit, todo)
    if workers > 1 and len(todo) > 1:
        fits = _fit_in_pool(run, todo, min(workers, len(todo)))
    bar = tqdm(total=len(wanted), initial=len(wanted) - len(todo), unit="mock",
               disable=not progress, smoothing=0)  # fmt: skip
    with bar:
        for row in fits:
            _append(path, row)
            bar.update()
    rows = read_fits(path, key)
    return [rows[n] for n in wanted]


def validate(
    run: Run,
    out: Path,
    *,
    n_mocks: int | None = None,
    bands_only: bool = False,
    workers: int = 1,
    progress: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Fit the mocks, write `metrics.json`, `report.md` and figures into `out`.

    Parameters
    ----------
    n_mocks : of the three S/N bands together, the other sets in proportion; None = all
    bands_only : leave the other sets out
    workers : processes
    say : gets the notes for the user

    Returns the metrics (`wall_s` is of all fits together); raises what loading the artifacts
    raises.
    """
    fitter = Fitter(run)
    for note in fitter.notes:
        say(f"warning: {note}")
    selection = fitter.file.select(n_mocks, bands_only)
    rows = fit_mocks(run, selection, out, workers, progress, fitter)
    samplers = sorted({r["sampler"] for r in rows if "sampler" in r})
    metrics = {
        **scorecard.calc_metrics(rows, seed=run.seed),
        "run": fitter.identity,
        "samplers_used": samplers,
        "notes": fitter.notes,
        "failures": {str(r["mock"]): r["error"] for r in rows if "error" in r},
        "warnings": _count_warnings(rows),
        "wall_s": round(sum(r.get("wall_s", 0.0) for r in rows), 1),
        "workers": workers,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).date().isoformat(),
    }
    write_json(out / "metrics.json", metrics)
    (out / "report.md").write_text(format_report(metrics) + "\n", encoding="utf-8")
    for name, figure in plot_all(scorecard.Results.from_rows(rows)).items():
        figure.savefig(out / f"{name}.png")
    return metrics


def _count_warnings(rows: list[scorecard.Row]) -> dict[str, int]:
    """How many fits gave each kind of warning; numbers in the texts are left out."""
    kinds = [re.sub(r"\d[\d.,]*", "#", w) for r in rows for w in set(r.get("warnings", ()))]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
