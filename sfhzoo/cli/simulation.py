"""`sfhzoo simulation`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("simulation")
def simulation_group() -> None:
    """Training sets of simulated histories."""


@simulation_group.command("build")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Zarr directory.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def build_command(recipe: Path, out: Path, quiet: bool) -> None:
    """Generate the training set of RECIPE's [simulation] table."""
    from sfhzoo.simulations.trainingset import build

    click.echo(str(build(recipe, out, progress=not quiet)))


@simulation_group.command("check")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory for the figure and the table.",
)
def check_command(training_set: Path, out: Path) -> None:
    """Compare the population of TRAINING_SET with published relations."""
    from sfhzoo.simulations.checks import check

    check(training_set, out)
    click.echo(str(out))
