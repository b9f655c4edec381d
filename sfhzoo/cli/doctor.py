"""`sfhzoo doctor`: does everything work here?

Each check returns one line of text about what it found and raises a SfhzooError that says what to
do. The device check compares the prior's network with its own result on the CPU, so that a GPU is
tested and not only seen.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sfhzoo.errors import ArtifactError, HashMismatch, SamplingError, SfhzooError, UsageError

if TYPE_CHECKING:
    from sfhzoo.priors.prior import Prior

N_SAMPLES = 5
DEVICE_TOLERANCE = 1e-3
"""Of the score, relative; far above rounding in float32 (6e-8 an operation)."""
CHI2_LIMIT = 3.0
"""Per pixel; the bundled spectrum leaves 0.84."""
FAILURES = (
    SfhzooError, ImportError, OSError, RuntimeError, ValueError, LookupError, ArithmeticError,
    AttributeError, TypeError,
)  # fmt: skip
"""What a broken installation raises; the other checks still tell something."""


@dataclass(frozen=True)
class Check:
    """The outcome of one check."""

    name: str
    ok: bool
    text: str
    seconds: float


@click.command("doctor")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Directory of pulled artifacts [default: SFHZOO_CACHE_DIR, else the Hub's].",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_context
def doctor_command(ctx: click.Context, cache_dir: Path | None, as_json: bool) -> None:
    """Check this installation: versions, device, cache, bundled artifacts, and a small fit.

    Needs no network and writes nothing. Exit code 1 when a check fails; its line says what to do.
    """
    checks = []
    for name, check in list_checks(cache_dir):
        checks.append(run_check(name, check))
        if not as_json:
            click.echo(_format(checks[-1]))
    failed = [check.name for check in checks if not check.ok]
    if as_json:
        content = {"ok": not failed, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    elif failed:
        click.echo(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}", err=True)
    ctx.exit(1 if failed else 0)


def list_checks(cache_dir: Path | None = None) -> list[tuple[str, Callable[[], str]]]:
    """(name, check) in the order in which they are run."""
    return [
        ("versions", check_versions),
        ("threads", check_threads),
        ("cache", lambda: check_cache(cache_dir)),
        ("artifacts", check_artifacts),
        ("device", check_device),
        ("inference", check_inference),
    ]


def run_check(name: str, check: Callable[[], str]) -> Check:
    """A check's outcome; what it raises becomes the text of a failed one."""
    start = time.perf_counter()
    try:
        ok, text = True, check()
    except FAILURES as e:
        ok, text = False, str(e) if isinstance(e, SfhzooError) else f"{type(e).__name__}: {e}"
    return Check(name, ok, " ".join(text.split()), round(time.perf_counter() - start, 2))


def _format(check: Check) -> str:
    state = (
        click.style("ok", fg="green") if check.ok else click.style("failed", fg="red", bold=True)
    )
    return f"{state}{' ' * (8 - len('ok' if check.ok else 'failed'))}{check.name:<11}{check.text}"


def check_versions() -> str:
    """Installed versions against those that the package asks for; UsageError names the wrong."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    needed = [Requirement(text) for text in requires("sfhzoo") or ()]
    found, wrong = [f"sfhzoo {version('sfhzoo')}", f"Python {platform.python_version()}"], []
    for requirement in needed:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement} (missing)")
            continue
        found.append(f"{requirement.name} {have}")
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement} (got {have})")
    if wrong:
        raise UsageError(f"expected {', '.join(wrong)}; install with pip install --upgrade sfhzoo")
    return ", ".join(found)


def check_threads() -> str:
    """Threads of torch against the cores that this process may use."""
    import torch

    from sfhzoo.cli.validate import default_workers

    limit = os.environ.get("OMP_NUM_THREADS")
    note = f" (OMP_NUM_THREADS={limit})" if limit else ""
    return f"{torch.get_num_threads()} of torch on {default_workers()} cores{note}"


def check_cache(cache_dir: Path | None = None) -> str:
    """Place, size and writability of the cache; UsageError where it can never be made."""
    from sfhzoo.zoo.hub import cache_root

    root = Path(cache_root(cache_dir))
    if root.is_dir():
        n_bytes = sum(p.lstat().st_size for p in root.rglob("*") if not p.is_dir())
        text = f"{root}, {n_bytes / 1e6:.1f} MB"
        return text if os.access(root, os.W_OK) else f"{text}, read-only: `pull` cannot add to it"
    parent = next(p for p in root.parents if p.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UsageError(
            f"{root} cannot be made: {parent} is not a writable directory; name a place with "
            "--cache-dir or SFHZOO_CACHE_DIR"
        )
    return f"{root}, made by the first `pull`"


def check_artifacts() -> str:
    """Every bundled artifact against its manifest and the catalogue's identity."""
    from sfhzoo.zoo.artifacts import identity_of, locate, verify
    from sfhzoo.zoo.catalogue import load_catalogue

    good = []
    for card in load_catalogue():
        if not card.bundled:
            continue
        path = locate(card.name, ".zarr.zip" if card.kind == "grid" else "")
        if path.is_dir():
            verify(path)
        found = identity_of(path)
        if found != card.identity:
            raise HashMismatch(
                f"{path}: sha256 expected {card.identity}, got {found}; install sfhzoo again"
            )
        good.append(card.name)
    if not good:
        raise ArtifactError("the catalogue names no bundled artifact; install sfhzoo again")
    return f"{', '.join(good)}: sha256 as in the catalogue"


def check_device() -> str:
    """The prior's score on the GPU, where there is one, against that on the CPU."""
    import torch

    from sfhzoo.zoo.artifacts import load_prior

    built = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        seen = f", built for CUDA {torch.version.cuda}, sees no GPU" if torch.version.cuda else ""
        return f"cpu ({built}{seen})"
    error = calc_score_error(load_prior(), "cuda")
    name = torch.cuda.get_device_name()
    if not error < DEVICE_TOLERANCE:
        raise SamplingError(
            f"{name}: the score differs from the CPU's by {error:.1e} of its norm, expected less "
            f"than {DEVICE_TOLERANCE:g}; use --device cpu and check driver and torch's CUDA"
        )
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"cuda: {name}, {memory:.0f} GiB ({built}); score as on the CPU to {error:.0e}"


def calc_score_error(prior: Prior, device: str) -> float:
    """Norm of the difference between the scores on `device` and on the CPU, relative."""
    import torch

    x = torch.randn((64, *prior.shape), generator=torch.Generator().manual_seed(0))
    sigma_t = torch.logspace(-2, 1, 64)
    with torch.no_grad():
        expected = prior.to("cpu").score(x, sigma_t)
        got = prior.to(device).score(x.to(device), sigma_t.to(device)).cpu()
    return float((got - expected).norm() / expected.norm())


def check_inference() -> str:
    """A fit of the bundled spectrum with the default prior, grid and posterior network."""
    from sfhzoo.cli.infer import EXAMPLE
    from sfhzoo.inference import infer
    from sfhzoo.spectra.spectrum import Spectrum

    start = time.perf_counter()
    # not "auto": another sampler must not hide a broken network
    posterior = infer(Spectrum.read(EXAMPLE), samples=N_SAMPLES, sampler="amortized")
    chi2 = posterior.calc_chi2_per_pixel()
    if not chi2 < CHI2_LIMIT:
        raise SamplingError(
            f"expected chi2 per pixel below {CHI2_LIMIT:g} for {EXAMPLE.name}, got {chi2:.3g}; "
            "`sfhzoo infer` would be wrong on this machine"
        )
    mass = posterior.summary()["quantities"]["log_mass_formed"]["median"]
    seconds = time.perf_counter() - start
    return (
        f"{N_SAMPLES} samples for {EXAMPLE.stem} in {seconds:.1f} s: log mass formed {mass:.2f}, "
        f"chi2 per pixel {chi2:.2f}"
    )
