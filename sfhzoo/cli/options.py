"""Options that several commands share, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


class FreeOrValue(click.ParamType):
    """The word "free", or a number within a range."""

    name = "free|VALUE"

    def __init__(self, lowest: float, highest: float) -> None:
        self.lowest, self.highest = lowest, highest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "free":
            return value
        try:
            number = float(value)
        except ValueError:
            self.fail(f"expected 'free' or a number, got {value!r}", param, ctx)
        if not self.lowest <= number <= self.highest:
            self.fail(f"expected {self.lowest:g} to {self.highest:g}, got {value}", param, ctx)
        return number


class CalibrationOrder(click.ParamType):
    """The word "auto", or an order from 0 (none) to 30."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "auto" or isinstance(value, int):
            return value
        if not str(value).isdecimal() or int(value) > 30:
            self.fail(f"expected 'auto' or 0 to 30, got {value!r}", param, ctx)
        return int(value)


class WaveRange(click.ParamType):
    """A:B with A < B, observed Å."""

    name = "A:B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in value.split(":"))
        except ValueError:
            self.fail(f"expected A:B in Å, for example 5570:5590, got {value!r}", param, ctx)
        if not (0 <= low < high and math.isfinite(high)):
            self.fail(f"expected A < B, got {value!r}", param, ctx)
        return low, high


def _check_finite(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"expected a number, got {value}")
    return value


_READING = (
    click.option(
        "--ebv",
        type=click.FloatRange(0, 5),
        callback=_check_finite,
        help="Galactic E(B-V) to remove first, mag.",
    ),
    click.option("--air", is_flag=True, help="Wavelengths of the file are in air."),
    click.option("--lsf", help="Line-spread function, R=2000 or FWHM=2.5A; wins over the file's."),
    click.option(
        "--flux-unit", help="Flux unit of a table without one, e.g. '1e-17 erg/s/cm2/AA'."
    ),
)

_FIT = (
    click.option(
        "--av",
        type=FreeOrValue(0, 4),
        default="free",
        show_default=True,
        help="V-band attenuation, mag, 0 to 4.",
    ),
    click.option(
        "--sigma-v",
        type=FreeOrValue(1, 500),
        default="free",
        show_default=True,
        help="Stellar velocity dispersion, km/s, 1 to 500.",
    ),
    click.option(
        "--calibration-order",
        type=CalibrationOrder(),
        default="auto",
        show_default=True,
        help="Order of the multiplicative calibration polynomial; auto: one per 700 Å, at most 8.",
    ),
    click.option(
        "--calibration-rms",
        type=click.FloatRange(0, 0.2, min_open=True),
        default=0.02,
        show_default=True,
        help="Prior of each of its coefficients.",
    ),
    click.option(
        "--redshift-offset",
        type=click.Choice(["free", "fixed"]),
        default="free",
        show_default=True,
        help="Fit a velocity offset (100 km/s) from the redshift.",
    ),
    click.option(
        "--mask",
        "exclude",
        type=WaveRange(),
        multiple=True,
        help="Observed range to leave out, Å; may be repeated.",
    ),
    click.option(
        "--lines",
        type=click.Choice(["mask", "keep"]),
        default="mask",
        show_default=True,
        help="Emission lines.",
    ),
    click.option("--wave-range", type=WaveRange(), help="Observed range to use, Å."),
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Same seed, same machine: same result.",
)


def fit_options(command: Command) -> Command:
    """What is fitted beside the history, and to which pixels: `Options`, but --jitter."""
    for option in reversed(_FIT):
        command = option(command)
    return command


def reading_options(command: Command) -> Command:
    """--ebv, --air, --lsf and --flux-unit: how the file of a spectrum is read."""
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
