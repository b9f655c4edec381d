"""Work on many files: in parallel, with progress, and resumed after a kill.

Each job leaves one file of sums, written beside and renamed. Whoever starts the same work again
does only what is missing. `--scheduler` sends the jobs to a Dask scheduler, whose workers must see
the same files; without it they go to processes of this machine (the executors of both have one
interface, and for jobs that share nothing Dask has no more to give on one machine).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sfhzoo import __version__
from sfhzoo.errors import UsageError
from sfhzoo.simulations.particles import Columns

OWN = re.compile(r"plan\.json|chunk_\d+\.npz(\.partial-\d+)?")
"""What a folder of partial results holds."""


@dataclass(frozen=True)
class Setting:
    """Where and how to build, as opposed to what: nothing here changes the result.

    `source` replaces the recipe's; `folder` takes the partial results.
    """

    folder: Path
    source: str | None = None
    workers: int = 1
    scheduler: str | None = None
    progress: bool = False


class Job(Protocol):
    """One file, or some: `n` is its size in the progress bar's unit."""

    @property
    def n(self) -> int: ...


def run_jobs(
    work: Callable[[Any], Columns],
    jobs: Sequence[Job],
    identity: dict[str, Any],
    setting: Setting,
    unit: str = "star",
) -> Iterator[Columns]:
    """The results of `work(job)`, in the order of the jobs.

    Results on disk are taken if they were made under the same `identity` (JSON). `work` must be
    importable: jobs go to other processes.
    """
    folder = _prepare(setting.folder, identity)
    paths = [folder / f"chunk_{i:05d}.npz" for i in range(len(jobs))]
    todo = [i for i, path in enumerate(paths) if not path.exists()]
    _run(work, jobs, paths, todo, setting, unit)
    for i, path in enumerate(paths):
        try:
            yield _load(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            work_and_save(work, jobs[i], path)
            yield _load(path)


def stamp(path: Path, n: int) -> list[Any]:
    """What tells a file of n rows from another, without reading it."""
    found = path.stat()
    return [str(path.resolve()), n, found.st_size, found.st_mtime_ns]


def content_hash(arrays: Sequence[NDArray[Any]]) -> str:
    """sha256 of the content of arrays."""
    digest = hashlib.sha256()
    for a in arrays:
        digest.update(np.ascontiguousarray(a).tobytes())
    return digest.hexdigest()


def work_and_save(work: Callable[[Any], Columns], job: Job, path: Path) -> None:
    """One job, in whatever process; the file appears whole or not at all."""
    beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with open(beside, "wb") as f:
            np.savez(f, allow_pickle=False, **work(job))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _load(path: Path) -> Columns:
    # numpy would leave a file open that it cannot read
    with open(path, "rb") as f, np.load(f, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _prepare(folder: Path, identity: dict[str, Any]) -> Path:
    plan = folder / "plan.json"
    text = json.dumps({**identity, "sfhzoo": __version__}, sort_keys=True)
    if folder.exists() and not (plan.exists() and plan.read_text(encoding="utf-8") == text):
        foreign = [p.name for p in folder.iterdir() if not OWN.fullmatch(p.name)]
        if foreign:
            raise UsageError(f"{folder} is needed for partial results and holds {foreign[0]!r}")
        # another selection or other files: what was done for them is of no use
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan.write_text(text, encoding="utf-8")
    return folder


def _run(
    work: Callable[[Any], Columns],
    jobs: Sequence[Job],
    paths: list[Path],
    todo: list[int],
    setting: Setting,
    unit: str,
) -> None:
    from tqdm import tqdm

    total = sum(job.n for job in jobs)
    done = total - sum(jobs[i].n for i in todo)
    with (
        tqdm(
            total=total, initial=done, unit=unit, unit_scale=True, disable=not setting.progress
        ) as bar,
        _executor(setting, len(todo)) as executor,
    ):
        if executor is None:
            for i in todo:
                work_and_save(work, jobs[i], paths[i])
                bar.update(jobs[i].n)
            return
        futures: dict[Future[None], int] = {
            executor.submit(work_and_save, work, jobs[i], paths[i]): i for i in todo
        }
        try:
            for future in as_completed(futures):
                future.result()
                bar.update(jobs[futures[future]].n)
        finally:
            for future in futures:
                future.cancel()


@contextmanager
def _executor(setting: Setting, n_jobs: int) -> Iterator[Executor | None]:
    if setting.scheduler and n_jobs:
        from distributed import Client

        try:
            client = Client(setting.scheduler, timeout=10, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as e:
            raise UsageError(f"no Dask scheduler answers at {setting.scheduler} ({e})") from e
        with client:
            yield client.get_executor(pure=False)
    elif min(setting.workers, n_jobs) > 1:
        workers = min(setting.workers, n_jobs)
        # spawned, as a fork of a process with threads may hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool
    else:
        yield None
