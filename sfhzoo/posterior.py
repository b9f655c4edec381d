"""The posterior of one galaxy: samples, derived quantities, provenance, and its files.

`Posterior.save` writes one directory, whole or not at all:

    posterior.zarr   xarray DataTree in the ArviZ schema (`arviz.InferenceData.from_datatree`)
    summary.json     the quantities' medians and intervals, and what made them
    summary.ecsv     the same as an astropy table
    histories.png, spectrum.png
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfhzoo import histories
from sfhzoo.errors import DataError
from sfhzoo.output import check_output, written_whole
from sfhzoo.timebins import TimeBins

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

SCHEMA = 1
PERCENTILES = {"median": 50.0, "p16": 16.0, "p84": 84.0, "p2_5": 2.5, "p97_5": 97.5}

DERIVED = {
    "log_mass_formed": ("log10(Msun)", "Stellar mass formed before the observation"),
    "log_mass_surviving": ("log10(Msun)", "Stellar mass surviving at the observation"),
    "age_mass_weighted": ("Gyr", "Mass-weighted stellar age before the observation"),
    "t50": ("Gyr", "Cosmic time at which half of the stars had formed"),
    "t90": ("Gyr", "Cosmic time at which 90 % of the stars had formed"),
    "logzsol_mass_weighted": ("log10(Z/Z_sun)", "Mass-weighted stellar metallicity"),
    "log_sfr_100myr": ("log10(Msun/yr)", "Mean star formation rate of the last 100 Myr"),
    "log_ssfr_1gyr": ("log10(1/yr)", "Specific star formation rate of the last Gyr"),
}
"""Unit and long name of each derived quantity."""


class Parameter(NamedTuple):
    """Samples of a scalar: values [sample], their unit ("1" if none) and a long name."""

    values: Array
    unit: str
    long_name: str


@dataclass(frozen=True)
class Observed:
    """The spectrum that was fitted, on its own pixels.

    Parameters
    ----------
    wave_obs : observed wavelength [wave], vacuum Å
    flux : [wave], erg/s/cm2/Å
    ivar : inverse variance [wave] of the file's own errors; 0 means no data
    mask : [wave], True = used in the fit
    mask_reasons : reason -> [wave], True = left out for this reason
    """

    wave_obs: Array
    flux: Array
    ivar: Array
    mask: NDArray[np.bool_]
    mask_reasons: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def used(self) -> NDArray[np.bool_]:
        """Pixels [wave] that carry data and were fitted."""
        return self.mask & (self.ivar > 0) & np.isfinite(self.flux)


@dataclass(frozen=True)
class BandFit:
    """The band fluxes that were fitted, and the model's.

    Parameters
    ----------
    names : filters, as in sedpy
    wave_pivot : [band] observed Å
    maggies, error : [band] AB, 1 = magnitude 0
    model : [sample, band] noiseless, maggies
    """

    names: tuple[str, ...]
    wave_pivot: Array
    maggies: Array
    error: Array
    model: Array

    @property
    def pull(self) -> Array:
        """(data - median model) / error [band]."""
        pull: Array = (self.maggies - np.median(self.model, axis=0)) / self.error
        return pull

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per band, for summary.json; fluxes in maggies."""
        median, p16, p84 = np.percentile(self.model, [50, 16, 84], axis=0)
        columns = (self.wave_pivot, self.maggies, self.error, median, p16, p84, self.pull)
        keys = ("wave_pivot", "observed", "error", "median", "p16", "p84", "pull")
        return [
            {"filter": name, **dict(zip(keys, map(float, row)))}
            for name, row in zip(self.names, np.transpose(columns))
        ]


@dataclass(frozen=True)
class Posterior:
    """Posterior samples of one galaxy's histories and of the nuisance parameters.

    Parameters
    ----------
    sfr : star formation rate [sample, bin], Msun/yr
    logzsol : log10(Z/Z_sun) [sample, bin]
    parameters : name -> Parameter, at least a_v, sigma_v, velocity_offset and error_scale
    mass_surviving : stellar mass at the observation [sample], Msun
    bins : the bins of cosmic time
    redshift : redshift of the galaxy
    model_flux : noiseless posterior spectra [sample, wave] on the data's pixels, erg/s/cm2/Å
    observed : the fitted spectrum
    sample_stats : name -> the sampler's statistics [sample]
    provenance : what made this posterior: object, prior and grid {name, sha256}, sampler, seed,
        device, nfe, wall_s {total, sampling}, warnings, versions, input, options
    bands : the fitted photometry, or None

    Raises ValueError where shapes disagree.
    """

    sfr: Array
    logzsol: Array
    parameters: Mapping[str, Parameter]
    mass_surviving: Array
    bins: TimeBins
    redshift: float
    model_flux: Array
    observed: Observed
    sample_stats: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    bands: BandFit | None = None

    def __post_init__(self) -> None:
        n, n_wave = len(self.sfr), len(self.observed.wave_obs)
        expected = {
            "sfr": (self.sfr, (n, self.bins.n)),
            "logzsol": (self.logzsol, (n, self.bins.n)),
            "mass_surviving": (self.mass_surviving, (n,)),
            "model_flux": (self.model_flux, (n, n_wave)),
            "flux": (self.observed.flux, (n_wave,)),
            "ivar": (self.observed.ivar, (n_wave,)),
            "mask": (self.observed.mask, (n_wave,)),
            **{f"mask of {k!r}": (v, (n_wave,)) for k, v in self.observed.mask_reasons.items()},
            **{k: (p.values, (n,)) for k, p in self.parameters.items()},
            **{k: (v, (n,)) for k, v in self.sample_stats.items()},
        }
        if self.bands is not None:
            of_band = (len(self.bands.names),)
            expected |= {f"bands.{k}": (getattr(self.bands, k), of_band)
                         for k in ("wave_pivot", "maggies", "error")}  # fmt: skip
            expected["bands.model"] = (self.bands.model, (n, *of_band))
        for name, (array, shape) in expected.items():
            if np.shape(array) != shape:
                raise ValueError(f"expected {name} of shape {shape}, got {np.shape(array)}")

    @property
    def object_name(self) -> str:
        """Name of the galaxy, or "unnamed"."""
        return str(self.provenance.get("object") or "unnamed")

    @property
    def n_samples(self) -> int:
        """Number of posterior samples."""
        return len(self.sfr)

    @property
    def cosmic_time(self) -> float:
        """Age of the universe at the observation, Gyr."""
        return self.bins.age_at(self.redshift)

    @property
    def median_flux(self) -> Array:
        """Posterior-median spectrum [wave], erg/s/cm2/Å."""
        return np.median(self.model_flux, axis=0)

    def quantities(self) -> dict[str, tuple[Array, str]]:
        """Every scalar quantity: name -> (values [sample], unit); formulas in `histories`.

        Values may be infinite or NaN in a sample without stars.
        """
        now, bins, sfr = self.cosmic_time, self.bins, self.sfr
        recent = histories.calc_sfr_recent(sfr, bins, now, window=0.1)
        with np.errstate(divide="ignore"):
            values = {
                "log_mass_formed": np.log10(histories.calc_mass_formed(sfr, bins, now)),
                "log_mass_surviving": np.log10(self.mass_surviving),
                "age_mass_weighted": histories.calc_age_mass_weighted(sfr, bins, now),
                "t50": histories.calc_formation_quantile(sfr, bins, now, 0.5),
                "t90": histories.calc_formation_quantile(sfr, bins, now, 0.9),
                "logzsol_mass_weighted": histories.calc_logzsol_mass_weighted(
                    sfr, self.logzsol, bins, now
                ),
                "log_sfr_100myr": np.log10(np.maximum(recent, histories.SFR_FLOOR)),
                "log_ssfr_1gyr": np.log10(
                    histories.calc_ssfr(sfr, bins, now, self.mass_surviving, window=1.0)
                ),
            }
        derived = {name: (values[name], unit) for name, (unit, _) in DERIVED.items()}
        return derived | {name: (p.values, p.unit) for name, p in self.parameters.items()}

    def calc_chi2_per_pixel(self) -> float:
        """Mean over the used pixels of (data - median spectrum)^2 x ivar; NaN without pixels."""
        used = self.observed.used
        if not used.any():
            return math.nan
        residual = (self.observed.flux - self.median_flux)[used]
        return float(np.mean(residual**2 * self.observed.ivar[used]))

    def summary(self) -> dict[str, Any]:
        """The content of summary.json: finite numbers, or null with a warning."""
        made = self.provenance
        warnings = [str(w) for w in made.get("warnings", ())]
        table: dict[str, dict[str, Any]] = {}
        for name, (values, unit) in self.quantities().items():
            finite = values[np.isfinite(values)]
            if finite.size < values.size:
                warnings.append(
                    f"{name} is undefined in {values.size - finite.size} of {values.size} samples"
                )
            levels = np.percentile(finite, list(PERCENTILES.values())) if finite.size else None
            row = dict(zip(PERCENTILES, [None] * 5 if levels is None else levels.tolist()))
            table[name] = {**row, "unit": unit}
        chi2 = self.calc_chi2_per_pixel()
        if not math.isfinite(chi2) and self.bands is None:
            warnings.append("chi2_per_pixel is undefined: no pixel was used")
        summary = {
            "schema": SCHEMA,
            "object": self.object_name,
            "redshift": self.redshift,
            "prior": made.get("prior"),
            "grid": made.get("grid"),
            "sampler": made.get("sampler"),
            "n_samples": self.n_samples,
            "seed": made.get("seed"),
            "device": made.get("device"),
            "versions": made.get("versions"),
            "nfe": made.get("nfe"),
            "wall_s": made.get("wall_s"),
            "n_pixels": int(self.observed.used.sum()),
            "chi2_per_pixel": chi2,
            "warnings": warnings,
            "options": made.get("options"),
            "input": made.get("input"),
            "cosmology": made.get("cosmology"),
            "predictive": made.get("predictive"),
            "facts": made.get("facts"),
            "quantities": table,
        }
        if self.bands is not None:
            summary["photometry"] = self.bands.rows()
        plain: dict[str, Any] = to_plain(summary)
        return plain

    def plot(self) -> tuple[Figure, Figure]:
        """The two figures: histories and spectrum."""
        from sfhzoo import plots

        return plots.plot_histories(self), plots.plot_spectrum(self)

    def save(self, directory: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the output directory, whole or not at all, and return its path.

        Raises OutputError where it exists (unless `overwrite` and it is an earlier output of
        sfhzoo) or cannot be written.
        """
        from sfhzoo import report

        target = check_output(directory, overwrite)
        summary = self.summary()
        with written_whole(target) as scratch:
            self.to_datatree().to_zarr(scratch / "posterior.zarr", zarr_format=2)
            text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
            (scratch / "summary.json").write_text(text + "\n", encoding="utf-8")
            report.write_ecsv(summary, scratch / "summary.ecsv")
            for figure, name in zip(self.plot(), ("histories.png", "spectrum.png")):
                figure.savefig(scratch / name)
        return target

    def to_datatree(self) -> xarray.DataTree:
        """The posterior as an xarray DataTree in the ArviZ schema; each variable has units."""
        from sfhzoo.datatree import build_datatree

        return build_datatree(self)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Posterior:
        """A saved posterior, from its output directory.

        Raises DataError where there is none, or one of a newer schema.
        """
        import xarray

        from sfhzoo.datatree import parse_datatree

        path = Path(directory) / "posterior.zarr"
        if not path.is_dir():
            raise DataError(
                f"expected an output directory of sfhzoo with posterior.zarr, got {directory}"
            )
        with xarray.open_datatree(path, engine="zarr") as tree:
            return parse_datatree(tree.load())


def to_plain(value: Any) -> Any:
    """`value` in JSON's own types; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_plain(v) for v in value]
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
