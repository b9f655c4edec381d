"""`sfhzoo validate`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from sfhzoo.zoo.artifacts import DEFAULT_GRID


def default_workers() -> int:
    """Cores this process may use."""
    # not every system can tell
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@click.command("validate")
@click.argument("prior")
@click.option("--grid", default=DEFAULT_GRID, show_default=True, help="Name or path of a grid.")
@click.option(
    "--sampler",
    type=click.Choice(["auto", "amortized", "pnpdm", "mmps", "cla"]),
    default="auto",
    show_default=True,
    help="As for infer.",
)
@click.option(
    "--network",
    type=click.Path(exists=True, file_okay=False),
    help="Directory of a posterior network [default: the newest one on this disk].",
)
@click.option(
    "--quick",
    is_flag=True,
    help="60 mocks of 150 samples, under five minutes with a network; wider thresholds.",
)
@click.option(
    "--mocks",
    "mock_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="Mock galaxies of another population, of `sfhzoo simulation mocks` [default: the bundled "
    "ones, of diffstarpop-tng-v1].",
)
@click.option(
    "--n-mocks",
    type=click.IntRange(min=6),
    help="Mocks in the three S/N bands together; the other sets in proportion [default: all].",
)
@click.option(
    "--samples", type=click.IntRange(20), help="Posterior samples per fit [default: 400]."
)
@click.option("--workers", type=click.IntRange(1), help="Processes [default: all cores].")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Output directory [default: PRIOR.validation]."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json instead of a table.")
@click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr.")
@click.pass_context
def validate_command(
    ctx: click.Context,
    prior: str,
    grid: str,
    sampler: str,
    network: str | None,
    quick: bool,
    mock_file: str | None,
    n_mocks: int | None,
    samples: int | None,
    workers: int | None,
    out: Path | None,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Fit mock galaxies with PRIOR and count how often the intervals hold the truth.

    Writes metrics.json, report.md, figures and fits.jsonl into the output directory. A run that
    was stopped goes on when it is started again with the same options. Exit code 1 when a
    threshold is missed.
    """
    from sfhzoo import validation
    from sfhzoo.diagnostics.scorereport import format_report, format_verdict

    samples = samples or (validation.QUICK_SAMPLES if quick else 400)
    run = validation.Run(prior, grid, sampler, samples, seed, network, mock_file)
    target = out or Path(f"{Path(prior).name}.validation")
    say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    metrics = validation.validate(
        run,
        target,
        n_mocks=n_mocks or (validation.QUICK_MOCKS if quick else None),
        bands_only=quick,
        workers=workers or default_workers(),
        progress=sys.stderr.isatty() and not quiet,
        say=say,
    )
    click.echo(json.dumps(metrics, indent=1) if as_json else _head(format_report(metrics)))
    if not as_json:
        click.echo(format_verdict(metrics))
    say(f"{target / 'report.md'} and figures written")
    ctx.exit(0 if metrics["passed"] else 1)


def _head(report: str) -> str:
    """What comes before the first section."""
    return report.partition("\n## ")[0]
