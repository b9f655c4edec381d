"""`sfhzoo grid`: build, show, check and compare grids."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.group("grid")
def grid_group() -> None:
    """Grids of simple stellar populations (SSPs).

    GRID is a name (bc03-miles-v1) or a .zarr.zip file.
    """


@grid_group.command("build")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default=True,
    help="Directory for <name>.zarr.zip.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Processes of the engine fsps, 0.8 GB each [default: 2, or the number of cores].",
)
@click.option("--overwrite", is_flag=True, help="Replace a grid of this name in --out.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def build_command(
    recipe: Path, out: Path, workers: int | None, overwrite: bool, quiet: bool
) -> None:
    """Build the grid of RECIPE (TOML, see grids/) and print its path.

    A build with FSPS that was interrupted goes on where it stopped.
    """
    from sfhzoo.grids.build import BuildOptions, build_grid

    path = build_grid(recipe, out, BuildOptions(workers, not quiet, overwrite))
    click.echo(str(path))


@grid_group.command("show")
@click.argument("grid")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
def show_command(grid: str, as_json: bool) -> None:
    """Axes and provenance of GRID."""
    from sfhzoo.zoo.artifacts import load_grid

    read = load_grid(grid)
    if as_json:
        content = {
            "name": read.name,
            "sha256": read.sha256,
            "logzsol": read.logzsol.tolist(),
            "valid": read.valid.tolist(),
            "age": read.age.tolist(),
            "wave": {"n": len(read.wave), "first": read.wave[0], "last": read.wave[-1]},
            "attributes": read.attributes,
        }
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
        return
    nodes = ", ".join(
        f"{z:.3f}{'' if ok else ' (unused)'}"
        for z, ok in zip(read.logzsol, read.valid, strict=True)
    )
    click.echo(f"{read.name}  sha256 {read.sha256}")
    click.echo(f"logzsol  {len(read.logzsol)}: {nodes}")
    click.echo(f"age      {len(read.age)} from {read.age[0]:.3g} to {read.age[-1]:.4g} yr")
    click.echo(
        f"wave     {len(read.wave)} from {read.wave[0]:.4g} to {read.wave[-1]:.4g} Å, vacuum"
    )
    for key, value in read.attributes.items():
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        click.echo(f"{key:24s} {text}")


@grid_group.command("check")
@click.argument("grid")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def check_command(ctx: click.Context, grid: str, as_json: bool) -> None:
    """Check GRID: axes, units, zero points, light, masses, provenance.

    Exit code 1 when a check fails, 4 when the file cannot be read at all.
    """
    from sfhzoo.grids.check import check_grid
    from sfhzoo.zoo.artifacts import load_grid

    read = load_grid(grid)
    results = check_grid(read)
    passed = all(result.passed for result in results)
    if as_json:
        content = {
            "name": read.name,
            "sha256": read.sha256,
            "passed": passed,
            "checks": [result._asdict() for result in results],
        }
        click.echo(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        for result in results:
            mark = "ok  " if result.passed else "FAIL"
            click.echo(f"{mark} {result.name:24s} {result.found}")
            if not result.passed:
                click.echo(f"     {'':24s} expected {result.expected}")
    if not passed:
        ctx.exit(1)


@grid_group.command("compare")
@click.argument("first")
@click.argument("second")
@click.option(
    "--logzsol",
    type=float,
    default=0.0,
    show_default=True,
    help="Metallicity of the table, log10(Z / 0.0142); the figure has this one and -0.5 around.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory for compare.png and compare.json [default: FIRST--SECOND.compare].",
)
@click.option("--overwrite", is_flag=True, help="Replace what is in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def compare_command(
    first: str, second: str, logzsol: float, out: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Compare two grids: spectra, colours, M/L, D4000 and Hδ_A against age.

    Both are brought to the coarser resolution of the two before lines are measured.
    """
    from sfhzoo.grids.compare import compare_grids
    from sfhzoo.zoo.artifacts import load_grid

    grids = load_grid(first), load_grid(second)
    out = out or Path(f"{grids[0].name}--{grids[1].name}.compare")
    comparison = compare_grids(*grids, logzsol=logzsol)
    written = comparison.write(out, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(comparison.as_dict(), indent=1, ensure_ascii=False))
    else:
        for line in comparison.as_lines():
            click.echo(line)
        click.echo(f"figure: {written}")
