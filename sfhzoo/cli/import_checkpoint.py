"""`sfhzoo import-checkpoint`."""

from __future__ import annotations

from pathlib import Path

import click


def _print_template(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sfhzoo.zoo.about import TEMPLATE

        click.echo(TEMPLATE, nl=False)
        ctx.exit()


@click.command("import-checkpoint")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name of the prior, for example tng50-v1.")
@click.option(
    "--about",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="TOML file with what the checkpoint does not know; see --template.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Artifact directory.")
@click.option(
    "--scaling",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="NumPy .npz with mean and std [2, bin], instead of those in --about.",
)
@click.option(
    "--checkpoint",
    default="last",
    show_default=True,
    metavar="last|best|N",
    help="The highest number, the lowest loss, or a number.",
)
@click.option(
    "--template",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_template,
    help="Print an --about file to fill in, and exit.",
)
def import_command(
    directory: Path, name: str, about: Path, out: Path, scaling: Path | None, checkpoint: str
) -> None:
    """Make a prior of a checkpoint DIRECTORY that score_models wrote.

    The only place where a .pt file is opened, and only its tensors are read: a file that asks for
    anything else is refused. Needs no network.
    """
    from sfhzoo.output import check_output, written_whole
    from sfhzoo.zoo.about import read_about
    from sfhzoo.zoo.checkpoints import import_checkpoint

    target = check_output(out)
    known = read_about(about, scaling)
    with written_whole(target) as scratch:
        found = import_checkpoint(directory, name, scratch, known, checkpoint)
    click.echo(f"{found.path.name} (loss {found.loss:.4g}) -> {target}")
    click.echo(f"try: sfhzoo infer SPECTRUM --prior {out} --sampler pnpdm", err=True)
