"""`sfhzoo train` and `sfhzoo amortize`."""

from __future__ import annotations

from pathlib import Path

import click


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


@click.command("train")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Artifact directory; also holds the checkpoint.",
)
@click.option(
    "--resume/--restart",
    default=True,
    show_default=True,
    help="Continue from the checkpoint in --out.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
@click.option("--steps", type=click.IntRange(1), help="Override the recipe's number of steps.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train_command(
    recipe: Path, out: Path, resume: bool, threads: int | None,
    steps: int | None, device: str, quiet: bool,
) -> None:  # fmt: skip
    """Train the prior of RECIPE (TOML) by denoising score matching.

    Safe to interrupt: run the same command again and it continues.
    """
    from sfhzoo.inference import resolve_device
    from sfhzoo.priors.training import train

    _set_threads(threads)
    found = resolve_device(device)
    written = train(recipe, out, resume, not quiet, steps, found)
    click.echo(str(written))


@click.command("amortize")
@click.argument("prior")
@click.argument("grid")
@click.option(
    "--training-set",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="The prior's training set (Zarr).",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Artifact directory.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads [default: all].")
@click.option(
    "--pool",
    type=click.IntRange(1000),
    default=640_000,
    show_default=True,
    help="Simulated observations.",
)
@click.option("--steps", type=click.IntRange(1), default=24_000, show_default=True)
@click.option(
    "--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-3, show_default=True
)
@click.option(
    "--start",
    metavar="NETWORK",
    help="Posterior network (name or directory) whose weights are the first guess; a third of the "
    "steps at --learning-rate 3e-4 was then enough.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def amortize_command(
    prior: str, grid: str, training_set: Path, out: Path, threads: int | None, pool: int,
    steps: int, learning_rate: float, start: str | None, quiet: bool,
) -> None:  # fmt: skip
    """Train the posterior network of PRIOR with GRID on simulated observations.

    Safe to interrupt: run the same command again and it continues.
    """
    from sfhzoo.samplers.amortize import AmortizeOptions, amortize

    _set_threads(threads)
    options = AmortizeOptions(pool=pool, steps=steps, learning_rate=learning_rate, start=start)
    click.echo(str(amortize(prior, grid, training_set, out, options, progress=not quiet)))
