"""Options that several commands share, and their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

_READING = (
    click.option("--air", is_flag=True, help="Wavelengths of the file are in air."),
    click.option("--lsf", help="Line-spread function, R=2000 or FWHM=2.5A; wins over the file's."),
    click.option(
        "--flux-unit", help="Flux unit of a table without one, e.g. '1e-17 erg/s/cm2/AA'."
    ),
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Same seed, same machine: same result.",
)


def reading_options(command: Command) -> Command:
    """--air, --lsf and --flux-unit: how the file of a spectrum is read."""
    for option in reversed(_READING):
        command = option(command)
    return command


def check_units(lsf: str | None, flux_unit: str | None) -> None:
    """Wrong usage is found before the file is read."""
    import numpy as np

    from sfhzoo.errors import DataError
    from sfhzoo.spectra.table import calc_flux_scale, calc_lsf_sigma, parse_unit

    wave = np.array([5000.0])
    checks: tuple[tuple[str, str | None, Callable[[str], object]], ...] = (
        ("--lsf", lsf, lambda text: calc_lsf_sigma(text, wave)),
        ("--flux-unit", flux_unit, lambda text: calc_flux_scale(parse_unit(text), wave)),
    )
    for option, text, check in checks:
        try:
            if text is not None:
                check(text)
        except DataError as e:
            raise click.BadParameter(str(e), param_hint=option) from e
