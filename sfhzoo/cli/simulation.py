"""`sfhzoo simulation`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.group("simulation")
def simulation_group() -> None:
    """Training sets of simulated histories."""


@simulation_group.command("build")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Zarr directory.")
@click.option(
    "--source",
    metavar="PATH",
    help="Where the particle data is, if not where the recipe says: the directory with groups_099 "
    "and snapdir_099, a directory of cutouts, or a pattern of star tables.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes that read particle data [default: one per CPU].",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Dask scheduler (tcp://host:8786) whose workers read instead; they must see the files.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def build_command(
    recipe: Path,
    out: Path,
    source: str | None,
    workers: int | None,
    scheduler: str | None,
    quiet: bool,
) -> None:
    """Make the training set of RECIPE's [simulation] table.

    From particle data this can be interrupted: run the same command again and it continues. What
    was dropped, and why, is printed on stderr and kept with the set.
    """
    from sfhzoo.simulations.particles import format_counts
    from sfhzoo.simulations.trainingset import build, load

    path = build(recipe, out, not quiet, source, workers or os.cpu_count() or 1, scheduler)
    checks = load(path).attributes.get("checks")
    if checks:
        click.echo(format_counts(checks), err=True)
    click.echo(str(path))


@simulation_group.command("check")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Directory for the figure and the table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of the table.")
def check_command(training_set: Path, out: Path, as_json: bool) -> None:
    """Compare the population of TRAINING_SET with published relations.

    Prints a table; population.md, .json and .png go into --out.
    """
    from sfhzoo.simulations.checks import check, format_table

    result = check(training_set, out)
    click.echo(json.dumps(result, indent=1) if as_json else format_table(result), nl=as_json)
    click.echo(f"written: {out}", err=True)


@simulation_group.command("mocks")
@click.argument("training_set", type=click.Path(exists=True, path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A .safetensors file.")
@click.option(
    "--seed",
    "seeds",
    type=click.IntRange(0),
    multiple=True,
    default=(20261122,),
    show_default=True,
    help="May be repeated: each after the first adds as many mocks to the S/N bands.",
)
def mocks_command(training_set: Path, out: Path, seeds: tuple[int, ...]) -> None:
    """Draw mock galaxies from the test split of TRAINING_SET, for `sfhzoo validate --mocks`.

    No network was trained on them. An existing file is not overwritten.
    """
    from sfhzoo.diagnostics.mocks import make
    from sfhzoo.simulations.trainingset import load

    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    click.echo(str(make(load(training_set), out, seeds)))
