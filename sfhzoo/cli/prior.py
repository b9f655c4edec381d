"""`sfhzoo prior`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("prior")
def prior_group() -> None:
    """Trained priors."""


@prior_group.command("evaluate")
@click.argument("prior")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON file.")
@click.option("--draws", type=click.IntRange(100), default=20_000, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.pass_context
def evaluate_command(
    ctx: click.Context, prior: str, training_set: Path, out: Path, draws: int, seed: int
) -> None:
    """Compare draws of PRIOR with the held-out histories of TRAINING_SET.

    Exit code 1 when a threshold is missed.
    """
    from sfhzoo.diagnostics.quality import evaluate, format_report

    result = evaluate(prior, training_set, out, n_draws=draws, seed=seed)
    click.echo(format_report(result))
    ctx.exit(0 if result["passed"] else 1)
