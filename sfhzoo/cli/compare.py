"""`sfhzoo compare`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from sfhzoo.cli.options import check_units, fit_options, reading_options, seed_option
from sfhzoo.zoo.artifacts import DEFAULT_GRID


class NetworkOfPrior(click.ParamType):
    """PRIOR=DIR, the prior as it is given on the command line."""

    name = "PRIOR=DIR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        prior, equals, directory = value.partition("=")
        if not (prior and equals and directory):
            self.fail(f"expected PRIOR=DIR, got {value!r}", param, ctx)
        return prior, Path(directory)


@click.command("compare")
@click.argument("priors", nargs=-1, metavar="PRIOR PRIOR...")
@click.option(
    "--spectrum",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Spectrum to fit under each prior; may be repeated.",
)
@click.option(
    "--redshift",
    type=click.FloatRange(0, 20, min_open=True, max_open=True),
    multiple=True,
    help="Redshift, one for each --spectrum in its order; wins over those in the files.",
)
@click.option("--grid", default=DEFAULT_GRID, show_default=True, help="Name or path of a grid.")
@click.option(
    "--network",
    "networks",
    type=NetworkOfPrior(),
    multiple=True,
    help="Posterior network of a prior; may be repeated [default: the newest on this disk].",
)
@click.option(
    "--draws",
    type=click.IntRange(400, 1_000_000),
    default=4000,
    show_default=True,
    help="Galaxies drawn from each prior.",
)
@click.option(
    "--samples",
    type=click.IntRange(20, 100_000),
    default=200,
    show_default=True,
    help="Posterior samples per spectrum and prior.",
)
@click.option("--no-evidence", is_flag=True, help="Leave out evidences and Bayes factors.")
@click.option(
    "--mass-prior",
    default="flat",
    show_default=True,
    help="Common mass prior of the second Bayes factors: flat, flat:LOW,HIGH, schechter or "
    "normal:MEAN,SIGMA.",
)
@fit_options
@reading_options
@seed_option
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("priors.compare"),
    show_default=True,
    help="Output directory.",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Print comparison.json instead of tables.")
@click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr.")
def compare_command(
    priors: tuple[str, ...],
    files: tuple[Path, ...],
    redshift: tuple[float, ...],
    networks: tuple[tuple[str, Path], ...],
    no_evidence: bool,
    av: Any,
    ebv: float | None,
    air: bool,
    lsf: str | None,
    flux_unit: str | None,
    out: Path,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare priors: their galaxies, and what a spectrum says under each of them.

    PRIOR is a name (diffstarpop-tng-v1) or a directory. Without --spectrum: histories, ages,
    main sequence, quenched fraction and metallicity by mass, and distances between the priors.
    With it: posteriors side by side, Bayes factors as trained and with a common mass prior, and
    a line where no prior explains the spectrum; one that cannot be fitted is left out and told.
    Writes comparison.json, comparison.md and figures into the output directory, whole or not at
    all.
    """
    if len(priors) < 2:
        raise click.UsageError(f"expected at least two priors, got {len(priors)}")
    if redshift and len(redshift) != len(files):
        raise click.UsageError(
            f"expected one --redshift for each --spectrum or none, got {len(redshift)} for "
            f"{len(files)}"
        )
    check_units(lsf, flux_unit)
    # before minutes of work: a missing package, a bad output, a bad option
    import sklearn  # noqa: F401

    from sfhzoo.comparison.report import format_short
    from sfhzoo.comparison.run import LAYOUT, compare
    from sfhzoo.output import check_output
    from sfhzoo.spectra.spectrum import Spectrum

    target = check_output(out, overwrite, LAYOUT)
    redshifts = redshift or (None,) * len(files)
    spectra = [
        Spectrum.read(file, redshift=z, air=air, lsf=lsf, flux_unit=flux_unit, ebv=ebv)
        for file, z in zip(files, redshifts)
    ]
    say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    comparison = compare(
        priors, spectra, networks=dict(networks), evidence=not no_evidence, say=say, a_v=av,
        progress=sys.stderr.isatty() and not quiet, **options,
    )  # fmt: skip
    comparison.write(target, overwrite=overwrite)
    for line in comparison.warnings():
        say(f"warning: {line}")
    result = comparison.result
    click.echo(
        json.dumps(result, indent=1, ensure_ascii=False) if as_json else format_short(result)
    )
    say(f"written to {target}")
