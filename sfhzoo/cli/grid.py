"""`sfhzoo grid`."""

from __future__ import annotations

from pathlib import Path

import click


@click.group("grid")
def grid_group() -> None:
    """Grids of simple stellar populations."""


@grid_group.command("build")
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("."),
    show_default=True,
    help="Directory for <name>.zarr.zip.",
)
def build_command(recipe: Path, out: Path) -> None:
    """Build the grid of RECIPE (TOML, see grids/)."""
    from sfhzoo.grids.build import build_grid

    click.echo(str(build_grid(recipe, out)))


@grid_group.command("show")
@click.argument("name")
def show_command(name: str) -> None:
    """Axes and provenance of the grid NAME (a name or a .zarr.zip file)."""
    from sfhzoo.zoo.artifacts import load_grid

    grid = load_grid(name)
    nodes = ", ".join(
        f"{z:.3f}{'' if ok else ' (unused)'}"
        for z, ok in zip(grid.logzsol, grid.valid, strict=True)
    )
    click.echo(f"{grid.name}  sha256 {grid.sha256}")
    click.echo(f"logzsol  {nodes}")
    click.echo(f"age      {len(grid.age)} from {grid.age[0]:.3g} to {grid.age[-1]:.4g} yr")
    click.echo(
        f"wave     {len(grid.wave)} from {grid.wave[0]:.4g} to {grid.wave[-1]:.4g} Å, vacuum"
    )
    for key, value in grid.attributes.items():
        click.echo(f"{key:24s} {value}")
