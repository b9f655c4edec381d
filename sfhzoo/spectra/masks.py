"""Which pixels a stellar model can be asked to fit: emission lines, sky, the user's ranges.

The grids hold stars only, so a pixel is left out where gas emits (or, for Na I D, absorbs) and
where the atmosphere leaves residuals.

The half width of a line's mask must cover the gas at its own dispersion, up to 300 km/s, times
an instrument of 70 km/s, and an offset from the stars' redshift of about 50 km/s. At the default
600 km/s a weak line (its peak a few per cent of the continuum) leaves less than 1 % beyond the
edge even at 300 km/s; strong lines get 1.5 times that, three dispersions. H ε and bluer Balmer
lines get 0.75: their gas is weak, the stellar wings beside it tell the age.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.spectra.spectrum import Spectrum
from sfhzoo.units import SPEED_OF_LIGHT

HALF_WIDTH_KMS = 600.0

_STRONG, _WEAK, _HIGH_BALMER = 1.5, 1.0, 0.75


class EmissionLine(NamedTuple):
    """Name, rest vacuum wavelength (Å), and its half width in units of the common one."""

    name: str
    wave_rest: float
    width: float


EMISSION_LINES = (
    EmissionLine("Lyα", 1215.67, _STRONG),
    EmissionLine("C IV", 1549.48, _STRONG),
    EmissionLine("He II 1640", 1640.42, _WEAK),
    EmissionLine("[C III]", 1906.68, _WEAK),
    EmissionLine("C III]", 1908.73, _WEAK),
    EmissionLine("Mg II 2796", 2796.35, _WEAK),
    EmissionLine("Mg II 2803", 2803.53, _WEAK),
    EmissionLine("[O II] 3727", 3727.09, _STRONG),
    EmissionLine("[O II] 3729", 3729.88, _STRONG),
    EmissionLine("H10", 3798.98, _HIGH_BALMER),
    EmissionLine("H9", 3836.47, _HIGH_BALMER),
    EmissionLine("[Ne III] 3869", 3869.86, _WEAK),
    EmissionLine("H8", 3890.15, _HIGH_BALMER),
    EmissionLine("[Ne III] 3968", 3968.59, _HIGH_BALMER),
    EmissionLine("Hε", 3971.20, _HIGH_BALMER),
    EmissionLine("Hδ", 4102.89, _WEAK),
    EmissionLine("Hγ", 4341.68, _WEAK),
    EmissionLine("[O III] 4363", 4364.44, _WEAK),
    EmissionLine("He I 4471", 4472.73, _HIGH_BALMER),
    EmissionLine("He II 4686", 4687.02, _WEAK),
    EmissionLine("Hβ", 4862.68, _STRONG),
    EmissionLine("[O III] 4959", 4960.30, _STRONG),
    EmissionLine("[O III] 5007", 5008.24, _STRONG),
    EmissionLine("[N I] 5198", 5199.35, _WEAK),
    EmissionLine("[N I] 5200", 5201.70, _WEAK),
    EmissionLine("He I 5876", 5877.25, _WEAK),
    EmissionLine("Na D 5890", 5891.58, _WEAK),  # interstellar absorption, winds
    EmissionLine("Na D 5896", 5897.56, _WEAK),
    EmissionLine("[O I] 6300", 6302.05, _WEAK),
    EmissionLine("[O I] 6364", 6365.54, _WEAK),
    EmissionLine("[N II] 6548", 6549.85, _STRONG),
    EmissionLine("Hα", 6564.61, _STRONG),
    EmissionLine("[N II] 6584", 6585.27, _STRONG),
    EmissionLine("He I 6678", 6680.00, _WEAK),
    EmissionLine("[S II] 6716", 6718.29, _STRONG),
    EmissionLine("[S II] 6731", 6732.67, _STRONG),
    EmissionLine("[Ar III] 7136", 7137.76, _WEAK),
    EmissionLine("[O II] 7320", 7322.01, _WEAK),
    EmissionLine("[O II] 7330", 7332.21, _WEAK),
    EmissionLine("[Ar III] 7751", 7753.24, _WEAK),
    EmissionLine("[S III] 9069", 9071.09, _WEAK),
    EmissionLine("[S III] 9531", 9533.21, _STRONG),
)

SKY_RANGES = {
    "[O I] 5577": (5570.0, 5590.0),
    "O2 B": (6860.0, 6950.0),
    "O2 A": (7590.0, 7720.0),
}
"""Observed vacuum Å: the brightest sky line and the two deep telluric oxygen bands."""

Range = tuple[float, float]


def calc_line_mask(
    wave_rest: NDArray[np.float64], half_width_kms: float = HALF_WIDTH_KMS
) -> NDArray[np.bool_]:
    """True [wave] where no line of `EMISSION_LINES` is within its half width of `wave_rest`.

    `wave_rest` in vacuum Å; `half_width_kms` is that of a weak line, in km/s.
    """
    use = np.ones(np.shape(wave_rest), dtype=bool)
    for line in EMISSION_LINES:
        velocity = (np.asarray(wave_rest) / line.wave_rest - 1.0) * SPEED_OF_LIGHT
        use &= np.abs(velocity) > line.width * half_width_kms
    return use


def calc_sky_mask(wave_obs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True [wave] outside `SKY_RANGES`; `wave_obs` in vacuum Å, seen from the ground."""
    return ~_is_inside(wave_obs, list(SKY_RANGES.values()))


def parse_ranges(ranges: Sequence[str | Range]) -> list[Range]:
    """Wavelength ranges (Å, observed) of strings "A:B"; pairs of numbers pass.

    DataError if a string is no range, or its end is not above its start.
    """
    parsed = []
    for item in ranges:
        fields: Sequence[str | float]
        fields = re.split(r"\s*:\s*", item.strip()) if isinstance(item, str) else item
        try:
            start, end = (float(field) for field in fields)
        except (TypeError, ValueError) as error:
            raise DataError(f"expected a range A:B in Å, as 5570:5590, got {item!r}") from error
        if not 0 <= start < end < np.inf:
            raise DataError(f"expected a range A:B in Å with 0 <= A < B, got {item!r}")
        parsed.append((start, end))
    return parsed


def build_mask(
    spectrum: Spectrum,
    redshift: float,
    lines: Literal["mask", "keep"] = "mask",
    exclude: Sequence[str | Range] = (),
    wave_range: str | Range | None = None,
    *,
    sky: bool = True,
    half_width_kms: float = HALF_WIDTH_KMS,
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.bool_]]]:
    """The pixels to fit, and for each reason those it takes out.

    Parameters
    ----------
    spectrum : its own mask is kept
    redshift : places the emission lines
    lines : "mask" leaves emission lines out, "keep" does not
    exclude : ranges "A:B" or (A, B) in observed Å to leave out
    wave_range : the range in observed Å to stay in
    sky : leave out `SKY_RANGES`; False for spectra from space
    half_width_kms : of a weak line's mask

    Returns
    -------
    mask : True = use, [wave]; it may be empty
    reasons : name -> True = out for this reason, [wave]; "no data", "flagged",
        "emission lines", "sky", "excluded", "wave range"; the ones that apply nowhere too

    Raises
    ------
    DataError : a malformed range
    """
    if lines not in ("mask", "keep"):
        raise DataError(f"expected lines 'mask' or 'keep', got {lines!r}")
    wave, none = spectrum.wave_obs, np.zeros(spectrum.wave_obs.size, dtype=bool)
    no_data = spectrum.ivar <= 0
    rest = wave / (1.0 + redshift)
    stay = [] if wave_range is None else parse_ranges([wave_range])
    reasons = {
        "no data": no_data,
        "flagged": ~np.asarray(spectrum.mask) & ~no_data,
        "emission lines": ~calc_line_mask(rest, half_width_kms) if lines == "mask" else none,
        "sky": ~calc_sky_mask(wave) if sky else none,
        "excluded": _is_inside(wave, parse_ranges(exclude)),
        "wave range": ~_is_inside(wave, stay) if stay else none,
    }
    return ~np.logical_or.reduce(list(reasons.values())), reasons


def _is_inside(wave: NDArray[np.float64], ranges: list[Range]) -> NDArray[np.bool_]:
    inside = np.zeros(np.shape(wave), dtype=bool)
    for start, end in ranges:
        inside |= (np.asarray(wave) >= start) & (np.asarray(wave) <= end)
    return inside
