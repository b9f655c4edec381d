"""A posterior as an xarray DataTree in the ArviZ schema, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from sfhzoo.errors import DataError
from sfhzoo.posterior import (
    DERIVED,
    SCHEMA,
    BandFit,
    Observed,
    Parameter,
    Posterior,
    to_plain,
)
from sfhzoo.timebins import TimeBins

if TYPE_CHECKING:
    import xarray


def build_datatree(posterior: Posterior) -> xarray.DataTree:
    """The DataTree of a posterior; each variable has units and a long name."""
    import xarray as xr

    def draws(values: Any, unit: str, long_name: str, *dims: str, **attrs: Any) -> Any:
        attrs = {"units": unit, "long_name": long_name, **attrs}
        return xr.Variable(("chain", "draw", *dims), np.asarray(values)[None], attrs)

    def along(dim: str, values: Any, unit: str, long_name: str, **attrs: Any) -> Any:
        return xr.Variable(dim, values, {"units": unit, "long_name": long_name, **attrs})

    p, seen, flux_unit = posterior, posterior.observed, "erg / (s cm2 Angstrom)"
    chain = {
        "chain": along("chain", [0], "1", "Chain"),
        "draw": along("draw", np.arange(p.n_samples), "1", "Posterior sample"),
    }
    wave = {"wave": along("wave", seen.wave_obs, "Angstrom", "Observed wavelength in vacuum")}
    bins = {"bin": along("bin", p.bins.centres, "Gyr", "Cosmic time at the centre of the bin")}
    samples = {
        "sfr": draws(p.sfr, "Msun / yr", "Star formation rate", "bin"),
        "logzsol": draws(p.logzsol, "log10(Z/Z_sun)", "Stellar metallicity", "bin"),
        "mass_surviving": draws(p.mass_surviving, "Msun", "Surviving stellar mass"),
        **{k: draws(v.values, v.unit, v.long_name, role="parameter")
           for k, v in p.parameters.items()},
    }  # fmt: skip
    quantities = p.quantities()
    for name, (unit, long_name) in DERIVED.items():
        samples[name] = draws(quantities[name][0], unit, long_name, role="derived")
    data = {
        "flux": along("wave", seen.flux, flux_unit, "Observed flux"),
        "ivar": along("wave", seen.ivar, f"1 / ({flux_unit})^2", "Inverse variance of the file"),
        "mask": along("wave", seen.mask, "1", "True where the pixel was used"),
    }
    for number, (reason, where) in enumerate(seen.mask_reasons.items()):
        data[f"masked_{number}"] = along("wave", where, "1", f"Left out: {reason}", reason=reason)
    model = {"flux": draws(p.model_flux, flux_unit, "Noiseless posterior spectrum", "wave")}
    dims = dict(wave)
    if p.bands is not None:
        fit = p.bands
        dims["band"] = xr.Variable("band", list(fit.names), {"long_name": "Filter, as in sedpy"})
        model["band_flux"] = draws(fit.model, "maggy", "Noiseless flux in a band", "band")
        data["band_flux"] = along("band", fit.maggies, "maggy", "Observed flux in a band")
        data["band_error"] = along("band", fit.error, "maggy", "Its error")
        data["band_wave"] = along("band", fit.wave_pivot, "Angstrom", "Pivot wavelength")
    stats = {k: draws(v, "1", k.replace("_", " ")) for k, v in p.sample_stats.items()}
    made_by = {
        "inference_library": "sfhzoo",
        "schema": SCHEMA,
        "redshift": float(p.redshift),
        "n_bins": p.bins.n,
        "cosmology": _format_cosmology(p.bins),
        "provenance": json.dumps(to_plain(p.provenance), ensure_ascii=False),
    }
    groups = {
        "/": xr.Dataset(attrs=made_by),
        "posterior": xr.Dataset(samples, chain | bins),
        "posterior_predictive": xr.Dataset(model, chain | dims),
        "observed_data": xr.Dataset(data, dims),
        "sample_stats": xr.Dataset(stats, chain),
    }
    return xr.DataTree.from_dict(groups, name=p.object_name)


def _format_cosmology(bins: TimeBins) -> str:
    if isinstance(bins.cosmology, str):
        return bins.cosmology
    return str(bins.cosmology.to_format("yaml"))


def _parse_cosmology(text: str) -> Any:
    if "\n" not in text:
        return text
    from astropy.cosmology import Cosmology

    return Cosmology.from_format(text, format="yaml")


def parse_datatree(tree: xarray.DataTree) -> Posterior:
    """The posterior that a DataTree was built from; DataError for another schema."""
    attrs = tree.attrs
    if attrs.get("schema") != SCHEMA:
        raise DataError(
            f"expected a posterior of schema {SCHEMA}, got {attrs.get('schema')}; update sfhzoo"
        )
    # plain datasets: an item of a tree may be a tree itself
    samples, data = tree["posterior"].to_dataset(), tree["observed_data"].to_dataset()
    predicted, stats = tree["posterior_predictive"].to_dataset(), tree["sample_stats"].to_dataset()
    reasons = {
        variable.attrs["reason"]: variable.values
        for variable in data.data_vars.values()
        if "reason" in variable.attrs
    }
    parameters = {
        str(name): Parameter(v.values[0], v.attrs["units"], v.attrs["long_name"])
        for name, v in samples.data_vars.items()
        if v.attrs.get("role") == "parameter"
    }
    observed = Observed(
        data["wave"].values, data["flux"].values, data["ivar"].values, data["mask"].values, reasons
    )
    bands = None
    if "band" in data.dims:
        bands = BandFit(
            names=tuple(str(name) for name in data["band"].values),
            wave_pivot=data["band_wave"].values,
            maggies=data["band_flux"].values,
            error=data["band_error"].values,
            model=predicted["band_flux"].values[0],
        )
    return Posterior(
        sfr=samples["sfr"].values[0],
        logzsol=samples["logzsol"].values[0],
        parameters=parameters,
        mass_surviving=samples["mass_surviving"].values[0],
        bins=TimeBins(_parse_cosmology(attrs["cosmology"]), int(attrs["n_bins"])),
        redshift=float(attrs["redshift"]),
        model_flux=predicted["flux"].values[0],
        observed=observed,
        sample_stats={str(name): v.values[0] for name, v in stats.data_vars.items()},
        provenance=json.loads(attrs["provenance"]),
        bands=bands,
    )
