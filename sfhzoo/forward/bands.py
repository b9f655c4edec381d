"""Fluxes in broad bands: linear functionals of the spectrum, in maggies (AB).

    m = ∫ λ T f_λ dλ / (c f_0 ∫ T/λ dλ),    f_0 = 3631 Jy,    m_AB = -2.5 log10(m)

with T the response per photon (Fukugita et al. 1996, AJ 111, 1748; Oke & Gunn 1983, ApJ 266, 713).
A band is as good a datum as a pixel: `BandModel.at` gives the flux of each template in each band
at any A_V, exact for spectra linear between the grid's wavelengths, dust emission included. The
velocities and the line-spread function are far narrower than a band and left out; absorption by
the intergalactic medium (rest wavelengths below 1216 Å, redshifts above 1) is not modelled.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from sfhzoo.errors import DataError
from sfhzoo.forward.attenuation import Calzetti, Law
from sfhzoo.forward.csp import Interpolation, calc_metallicity_weights
from sfhzoo.forward.dust_emission import SHORTEST, DustEmission
from sfhzoo.forward.integrals import (
    Integrals,
    Response,
    calc_response_matrix,
    make_energy_response,
)
from sfhzoo.forward.redshift import calc_flux_factor
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.timebins import TimeBins
from sfhzoo.units import AB_ZERO, ANGSTROM_PER_KM, SPEED_OF_LIGHT

_MAX_MISSING = 1e-3
"""Share of a band's light that may fall outside the grid."""


@dataclass(frozen=True, eq=False)
class Filter:
    """One band's response.

    Parameters
    ----------
    name : as in sedpy, e.g. `sdss_r0`
    wave : [node] observed vacuum Å, increasing
    transmission : [node] response per photon in any unit, >= 0, linear between the nodes

    Raises DataError for arrays that are no response.
    """

    name: str
    wave: NDArray[np.float64]
    transmission: NDArray[np.float64]

    def __post_init__(self) -> None:
        wave, value = np.asarray(self.wave, float), np.asarray(self.transmission, float)
        whole = wave.ndim == 1 and wave.shape == value.shape and len(wave) > 1
        if not whole or not np.all(np.isfinite(wave)) or not np.all(np.isfinite(value)):
            raise DataError(f"filter {self.name!r}: expected finite arrays of one length")
        if wave[0] <= 0 or np.any(np.diff(wave) <= 0) or np.any(value < 0) or not value.any():
            raise DataError(
                f"filter {self.name!r}: expected increasing wavelengths and a response >= 0, "
                "somewhere positive"
            )
        object.__setattr__(self, "wave", wave)
        object.__setattr__(self, "transmission", value)

    @property
    def response(self) -> Response:
        """r(λ) with ∫ r f_λ dλ in maggies, f_λ in erg/s/cm²/Å."""
        zero = AB_ZERO * SPEED_OF_LIGHT * ANGSTROM_PER_KM * self._inverse_moment
        return Response(self.wave, self.transmission / zero, 1)

    @property
    def wave_pivot(self) -> float:
        """Pivot wavelength, Å: sqrt(∫ λ T dλ / ∫ T/λ dλ)."""
        photons = Response(self.wave, self.transmission, 1)
        first = float(calc_response_matrix(self.wave, [photons]).sum())
        return (first / self._inverse_moment) ** 0.5

    @property
    def _inverse_moment(self) -> float:
        """∫ T/λ dλ, in closed form on each piece."""
        slope = np.diff(self.transmission) / np.diff(self.wave)
        level = self.transmission[:-1] - slope * self.wave[:-1]
        return float(level @ np.diff(np.log(self.wave)) + np.diff(self.transmission).sum())


def load_filters(names: Iterable[str]) -> tuple[Filter, ...]:
    """The filters of these sedpy names, in their order.

    Raises DataError for a name sedpy does not have, with the closest ones.
    """
    from sedpy import observate

    known = set(observate.list_available_filters())
    filters = []
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(close)}?" if close else "see sedpy's list of filters"
            raise DataError(f"expected a filter that sedpy knows, got {name[:60]!r}; {hint}")
        raw = observate.Filter(name)
        wave, first = np.unique(raw.wavelength, return_index=True)
        filters.append(Filter(name, wave, raw.transmission[first]))
    return tuple(filters)


def calc_band_fluxes(
    wave_obs: ArrayLike, flux: ArrayLike, filters: Sequence[Filter]
) -> NDArray[np.float64]:
    """Maggies [..., band] of spectra `flux` [..., wave] (erg/s/cm²/Å) at `wave_obs` [wave] (Å).

    Exact for spectra linear between their wavelengths. Raises DataError where a spectrum does not
    cover a band.
    """
    wave = np.asarray(wave_obs, dtype=np.float64)
    _check_coverage(filters, wave, "the spectrum's")
    matrix = calc_response_matrix(wave, [f.response for f in filters])
    return np.asarray(flux, dtype=np.float64) @ matrix.T


class BandModel:
    """The band fluxes of a star formation and metallicity history.

    Parameters
    ----------
    grid : SSPs, with all their wavelengths
    filters : bands
    redshift : > 0
    bins : the history's bins; their cosmology also gives age and distance (default Planck15)
    interpolation : flux linear in "log" Z or in "linear" Z
    law : attenuation
    dust_emission : shape of the dust's own light, or None

    Attributes
    ----------
    nodes : [metallicity] logzsol of the usable nodes
    cosmic_time : age of the universe at the redshift, Gyr
    emission : [band] maggies of the dust's own light per erg/s/cm²/Å * Å (at rest) of absorbed
        flux; None where no band sees it

    Raises DataError for a redshift without a distance, or bands outside the grid.
    """

    def __init__(
        self,
        grid: SSPGrid,
        filters: Sequence[Filter],
        redshift: float,
        *,
        bins: TimeBins | None = None,
        interpolation: Interpolation = "log",
        law: Law | None = None,
        dust_emission: DustEmission | None = DustEmission(),  # noqa: B008  # frozen
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.bins = bins or TimeBins()
        self.filters, self.redshift = tuple(filters), float(redshift)
        self.interpolation, self.law = interpolation, law or Calzetti()
        distance = self.bins.luminosity_distance_cm(self.redshift) if self.redshift > 0 else 0.0
        factor = calc_flux_factor(self.redshift, distance, grid.solar_luminosity)
        self.cosmic_time = self.bins.age_at(self.redshift)
        stretch = 1 + self.redshift
        _check_coverage(self.filters, grid.wave * stretch, f"the grid {grid.name}'s")
        responses = [_to_rest(f.response, stretch) for f in self.filters]
        self.emission: torch.Tensor | None = None
        if dust_emission is not None and _sees_dust(self.filters, stretch):
            wave, template = dust_emission.calc_template()
            bands = calc_response_matrix(wave, responses) @ template
            self.emission = torch.as_tensor(bands, dtype=dtype, device=device)
            responses.append(make_energy_response(grid))
        self._integrals = Integrals(
            grid, self.bins, self.cosmic_time, responses, self.law, factor, device, dtype
        )
        self.nodes = torch.as_tensor(grid.logzsol[grid.valid], dtype=dtype, device=device)

    def at(self, a_v: float | torch.Tensor) -> torch.Tensor:
        """Templates [..., bin, metallicity, band], maggies per Msun/yr, at A_V [...] (mag)."""
        a_v = torch.as_tensor(a_v).to(self.nodes)
        light = self._integrals.at(a_v)
        if self.emission is None:
            return light
        total = self._integrals.at(torch.zeros_like(a_v))[..., -1:]
        return light[..., :-1] + (total - light[..., -1:]) * self.emission

    def __call__(
        self, sfr: torch.Tensor, logzsol: torch.Tensor, a_v: float | torch.Tensor
    ) -> torch.Tensor:
        """Maggies [..., band] of sfr, logzsol [..., bin] (Msun/yr, log10 Z/Z_sun), A_V [...]."""
        a_v = torch.as_tensor(a_v).to(self.nodes)
        sfr, logzsol = sfr.to(self.nodes), logzsol.to(self.nodes)
        mix = calc_metallicity_weights(logzsol, self.nodes, self.interpolation)
        weights = (sfr.unsqueeze(-1) * mix).flatten(-2)
        light = self._integrals(weights, a_v)
        if self.emission is None:
            return light
        total = self._integrals(weights, torch.zeros_like(a_v))[..., -1:]
        return light[..., :-1] + (total - light[..., -1:]) * self.emission


def _to_rest(response: Response, stretch: float) -> Response:
    """The same integral over rest wavelengths: dλ and each power of λ gain one `stretch`."""
    gain = stretch ** (1 + response.power)
    return Response(response.wave / stretch, response.value * gain, response.power)


def _sees_dust(filters: Sequence[Filter], stretch: float) -> bool:
    return any(f.wave[-1] / stretch > SHORTEST for f in filters)


def _check_coverage(filters: Sequence[Filter], wave: NDArray[np.float64], whose: str) -> None:
    for f in filters:
        inside = (f.wave >= wave[0]) & (f.wave <= wave[-1])
        missing = 1 - (f.transmission * inside).sum() / f.transmission.sum()
        if missing > _MAX_MISSING:
            raise DataError(
                f"expected the band {f.name}, {f.wave[0]:.0f} to {f.wave[-1]:.0f} Å, within "
                f"{whose} {wave[0]:.0f} to {wave[-1]:.0f} Å; leave the band out"
            )
