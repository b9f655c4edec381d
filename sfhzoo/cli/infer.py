"""`sfhzoo infer` and `sfhzoo example`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sfhzoo.cli.options import check_units, fit_options, reading_options, seed_option
from sfhzoo.zoo.artifacts import BUNDLED, DEFAULT_GRID, DEFAULT_PRIOR

EXAMPLE = BUNDLED / "spec-NGC3522.fits"


class MassPriorText(click.ParamType):
    """The name of a mass prior."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "as-trained":
            return value
        from sfhzoo.errors import UsageError
        from sfhzoo.massprior import parse_mass_prior

        try:
            parse_mass_prior(value)
        except UsageError as e:
            self.fail(str(e), param, ctx)
        return value


class NuisancePrior(click.ParamType):
    """NAME=DENSITY of a nuisance parameter."""

    name = "NAME=DENSITY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        from sfhzoo.errors import UsageError
        from sfhzoo.reweighting import OtherPriors

        name, equals, density = value.partition("=")
        if not equals:
            self.fail(f"expected NAME=DENSITY, e.g. a_v=normal:0.3,0.1, got {value!r}", param, ctx)
        try:
            OtherPriors.parse("as-trained", {name: density})
        except UsageError as e:
            self.fail(str(e), param, ctx)
        return name, density


def default_output(data: Path) -> Path:
    """`<stem>.sfhzoo` in the current directory, for a spectrum or a table of photometry."""
    name = data.name
    for suffix in (".gz", ".fits", ".fit", ".ecsv", ".csv", ".txt", ".dat"):
        name = name.removesuffix(suffix)
    return Path(f"{name or 'spectrum'}.sfhzoo")


def _check_bands_alone(redshift: float | None, **of_spectrum: object) -> None:
    """Options that photometry alone needs, or cannot use."""
    if redshift is None:
        raise click.UsageError("photometry alone has no redshift; give one with --redshift")
    given = [f"--{name.replace('_', '-')}" for name, value in of_spectrum.items() if value]
    if given:
        raise click.UsageError(f"{given[0]} is of a spectrum, and there is none")


def _read_bands(path: Path, ebv: float | None) -> Any:
    """The photometry of a file, without the Galaxy's extinction if `ebv` says so."""
    from sfhzoo.spectra.photometry import read_photometry

    photometry = read_photometry(path)
    if not ebv:
        return photometry
    from sfhzoo.spectra.extinction import deredden_bands

    return deredden_bands(photometry, ebv)


@contextmanager
def _status(text: str, shown: bool) -> Iterator[None]:
    """A line on the terminal for as long as the block runs: an error then stands alone."""
    if shown:
        click.echo(text, err=True, nl=False)
    try:
        yield
    finally:
        if shown:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.command("infer")
@click.argument("spectrum", type=click.Path(path_type=Path), required=False)
@click.option(
    "--photometry",
    type=click.Path(path_type=Path),
    help="Table of band fluxes (filter, mag, maggies or flux, error), of SPECTRUM's aperture.",
)
@click.option("--prior", default=DEFAULT_PRIOR, show_default=True, help="Name or path of a prior.")
@click.option(
    "--grid",
    default=DEFAULT_GRID,
    show_default=True,
    help="Name or path of a grid of stellar populations.",
)
@click.option("--redshift", type=float, help="Redshift (0 to 20); wins over the file's.")
@click.option(
    "--samples",
    type=click.IntRange(2, 100_000),
    default=100,
    show_default=True,
    help="Number of posterior samples.",
)
@click.option(
    "--sampler",
    type=click.Choice(["auto", "amortized", "pnpdm", "mmps", "cla"]),
    default="auto",
    show_default=True,
    help="auto: amortized where a posterior network fits, else pnpdm.",
)
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    help="Posterior network of this prior and grid [default: the newest on this disk].",
)
@click.option(
    "--mass-prior",
    type=MassPriorText(),
    default="as-trained",
    show_default=True,
    help="Prior of the log mass formed, in place of the training set's: flat, flat:LOW,HIGH, "
    "schechter (the local mass function) or normal:MEAN,SIGMA.",
)
@click.option(
    "--nuisance-prior",
    "nuisance_priors",
    type=NuisancePrior(),
    multiple=True,
    help="Prior of a_v (mag), sigma_v, velocity_offset (km/s) or error_scale in place of its own: "
    "flat:LOW,HIGH or normal:MEAN,SIGMA, e.g. a_v=normal:0.3,0.1; may be repeated.",
)
@click.option(
    "--jitter",
    type=click.Choice(["free", "fixed"]),
    default="free",
    show_default=True,
    help="Fit a factor on the errors of SPECTRUM.",
)
@fit_options
@reading_options
@seed_option
@click.option(
    "--device",
    default="auto",
    show_default=True,
    help="cpu, cuda or auto, for samplers that use the prior's score; amortized runs on the CPU.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output directory [default: <stem of the file>.sfhzoo].",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier output.")
@click.option("--json", "as_json", is_flag=True, help="Print summary.json instead of a table.")
@click.option("--quiet", is_flag=True, help="No progress and no warnings on stderr.")
def infer_command(
    spectrum: Path | None,
    photometry: Path | None,
    out: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    av: Any,
    air: bool,
    lsf: str | None,
    flux_unit: str | None,
    ebv: float | None,
    redshift: float | None,
    nuisance_priors: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Posterior star formation and metallicity history of the galaxy in SPECTRUM.

    SPECTRUM is an SDSS spec-*.fits file or a table (FITS, ECSV, CSV) with columns wavelength,
    flux and error (or ivar). Photometry joins it, or is fitted alone (with --redshift). Writes
    posterior.zarr, summary.json, summary.ecsv, histories.png and spectrum.png into the output
    directory, whole or not at all.
    """
    from sfhzoo.output import check_output

    data = spectrum or photometry
    if data is None:
        raise click.UsageError("expected SPECTRUM, --photometry TABLE or both, got neither")
    if spectrum is None:
        _check_bands_alone(redshift, air=air, lsf=lsf, flux_unit=flux_unit)
    if redshift is not None and not 0 < redshift < 20:
        raise click.BadParameter(
            f"expected above 0 and below 20, got {redshift}", param_hint="--redshift"
        )
    check_units(lsf, flux_unit)
    target = check_output(out or default_output(data), overwrite)
    observed = None
    if spectrum is not None:
        from sfhzoo.spectra.spectrum import Spectrum

        observed = Spectrum.read(
            spectrum, redshift=redshift, air=air, flux_unit=flux_unit, lsf=lsf, ebv=ebv
        )
    bands = None if photometry is None else _read_bands(photometry, ebv)
    live = sys.stderr.isatty() and not quiet
    name = data.stem if observed is None else observed.name
    with _status(f"fitting {name} …", live):
        from sfhzoo.inference import infer

        posterior = infer(
            observed, photometry=bands, redshift=redshift, a_v=av, progress=live,
            nuisance_priors=dict(nuisance_priors), **options,
        )  # fmt: skip
    say = (lambda text: None) if quiet else (lambda text: click.echo(text, err=True))
    facts = [f"redshift {posterior.redshift:g}"]
    if observed is not None:
        facts += [f"{observed.n_pixels} pixels", f"median S/N {observed.snr:.1f}"]
    if posterior.bands is not None:
        facts.append(f"{len(posterior.bands.names)} bands")
    say(f"{name}: {', '.join(facts)}")
    posterior.save(target, overwrite=overwrite)
    summary = posterior.summary()
    for warning in summary["warnings"]:
        say(f"warning: {warning}")
    if as_json:
        click.echo(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        from sfhzoo.report import format_table

        click.echo(format_table(summary))
    say(
        f"prior {summary['prior']['name']}, grid {summary['grid']['name']}, "
        f"{summary['wall_s']['total']:.1f} s; written to {target}"
    )


@click.command("example")
def example_command() -> None:
    """Print the path of the bundled spectrum: NGC 3522 from SDSS DR18."""
    click.echo(str(EXAMPLE))
