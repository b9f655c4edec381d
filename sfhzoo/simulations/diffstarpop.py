"""Histories from DiffstarPop: the population models of `diffstar`, `diffmah` and `dsps`.

DiffmahPop draws halo assembly histories, DiffstarPop (Alarcon et al. 2023, Alarcon et al. 2025)
the star formation history in each, calibrated on a simulation. What those smooth models lack is
added here, with its size in the recipe:

    log SFR(t) += burst_rms * [OU(t; 0.1 Gyr) + OU(t; 1 Gyr)] / sqrt 2, at unchanged mean SFR
    log Z(t)    = MZR(M_surviving(t), t) + galaxy + OU(t; 1.5 Gyr) + burst_slope * d log SFR

The random numbers depend on the seed, the number of galaxies and the chunk size only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import SfhzooError
from sfhzoo.timebins import TimeBins, resolve_cosmology
from sfhzoo.units import YR_PER_GYR, Z_SUN

N_SUBSTEPS = 10
"""Midpoints per bin; the SFR of a bin is their mean. Never at cosmic time 0, where SFR is 0."""

CITATION = (
    "Alarcon et al. 2023 (Diffstar, doi:10.1093/mnras/stac3118); "
    "Hearin et al. 2021 (Diffmah, doi:10.21105/astro.2105.05859); "
    "Hearin et al. 2023 (DSPS, doi:10.1093/mnras/stad456)"
)
FITTED_TO = {
    "tng": "Pillepich et al. 2018 (IllustrisTNG, doi:10.1093/mnras/stx2656)",
    "smdpl_dr1": "Behroozi et al. 2019 (UniverseMachine, doi:10.1093/mnras/stz1182)",
    "galacticus": "Benson 2012 (Galacticus, doi:10.1016/j.newast.2011.07.004)",
}
"""Beginnings of the names of fits, and the simulation that each was calibrated on."""


def cite(fit: str) -> str:
    """What to cite for histories of a fit: the models, and the simulation behind them."""
    found = [text for start, text in FITTED_TO.items() if fit.startswith(start)]
    return "; ".join([CITATION, *found])


def calc_ornstein_uhlenbeck(
    rng: np.random.Generator, shape: tuple[int, int], step: float, timescale: float
) -> NDArray[np.float64]:
    """Stationary Ornstein-Uhlenbeck paths [galaxy, time] of unit variance.

    `step` and `timescale` share a unit; the correlation at lag k is exp(-k step / timescale).
    """
    from scipy.signal import lfilter

    decay = np.exp(-step / timescale)
    noise = rng.standard_normal(shape)
    noise[:, 1:] *= np.sqrt(1.0 - decay**2)
    return np.asarray(lfilter([1.0], [1.0, -decay], noise, axis=1), np.float64)


def calc_soft_cap(value: NDArray[np.float64], cap: float, width: float) -> NDArray[np.float64]:
    """`value` bent smoothly under `cap`: equal far below it, never above it."""
    return cap - width * np.logaddexp(0.0, (cap - value) / width)


def _import_engine() -> None:
    try:
        import diffmah  # noqa: F401
        import diffstar  # noqa: F401
        import dsps  # noqa: F401
    except ImportError as e:
        raise SfhzooError(
            f"the DiffstarPop population needs diffstar, diffmah, dsps and jax ({e}); "
            "install them with: pip install 'sfhzoo[simulations]'"
        ) from e


def _smooth_history_model(fit: str, bins: TimeBins) -> Callable[..., NDArray[np.float64]]:
    """A jitted function (log halo mass [galaxy], JAX key) -> smooth SFR [galaxy, substep]."""
    import jax
    import jax.numpy as jnp
    from diffmah.diffmah_kernels import logmh_at_t_obs
    from diffmah.diffmahpop_kernels import DEFAULT_DIFFMAHPOP_PARAMS, mc_diffmah_cenpop
    from diffstar import calc_sfh_galpop
    from diffstar.diffstarpop import SIMULATION_FIT_PARAMS, mc_diffstar_params_galpop
    from diffstar.diffstarpop.param_utils import mc_select_diffstar_params

    if fit not in SIMULATION_FIT_PARAMS:
        raise SfhzooError(f"expected fit to be one of {list(SIMULATION_FIT_PARAMS)}, got {fit!r}")
    params = SIMULATION_FIT_PARAMS[fit]
    cosmology = resolve_cosmology(bins.cosmology)
    baryon_fraction = float(cosmology.Ob0 / cosmology.Om0)
    log_today = float(np.log10(bins.age_today))
    times = jnp.asarray(_substep_times(bins), jnp.float32)

    @jax.jit
    def model(log_halo_mass: Any, key: Any) -> Any:
        n = log_halo_mass.shape[0]
        key_halo, key_galaxy = jax.random.split(key)
        today = jnp.full(n, bins.age_today, jnp.float32)
        halo = mc_diffmah_cenpop(
            DEFAULT_DIFFMAHPOP_PARAMS, log_halo_mass, today, key_halo, log_today
        ).mah_params
        # DiffmahPop scatters the final mass by about 0.08 dex; the mass asked for is the mass
        shift = logmh_at_t_obs(halo, today, log_today) - log_halo_mass
        halo = halo._replace(logm0=halo.logm0 - shift)
        zeros = jnp.zeros(n)
        # centrals (upid -1); the infall model is not calibrated, -99 Gyr since infall is never
        main, quenched, _, is_quenched = mc_diffstar_params_galpop(
            params,
            log_halo_mass,
            halo.t_peak,
            jnp.full(n, -1),
            zeros - 1.0,
            zeros + 13.0,
            zeros - 99.0,
            key_galaxy,
        )
        chosen = mc_select_diffstar_params(quenched, main, is_quenched)
        return calc_sfh_galpop(chosen, halo, times, lgt0=log_today, fb=baryon_fraction)

    return lambda lgm, key: np.asarray(model(jnp.asarray(lgm, jnp.float32), key), np.float64)


def _substep_times(bins: TimeBins) -> NDArray[np.float64]:
    step = bins.width / N_SUBSTEPS
    return (np.arange(bins.n * N_SUBSTEPS, dtype=np.float64) + 0.5) * step


def _bin_mean(values: NDArray[np.float64], bins: TimeBins) -> NDArray[np.float64]:
    return values.reshape(len(values), bins.n, N_SUBSTEPS).mean(axis=2)


def calc_burst_modulation(
    rng: np.random.Generator, n: int, bins: TimeBins, rms: float, timescales: list[float]
) -> NDArray[np.float64]:
    """Change of log10 SFR [galaxy, substep], dex: OU processes of equal variance, total `rms`."""
    step = bins.width / N_SUBSTEPS
    shape = (n, bins.n * N_SUBSTEPS)
    paths = [calc_ornstein_uhlenbeck(rng, shape, step, tau) for tau in timescales]
    return rms / np.sqrt(len(paths)) * np.sum(paths, axis=0)


def calc_metallicity(
    rng: np.random.Generator,
    sfr: NDArray[np.float64],
    burst: NDArray[np.float64],
    bins: TimeBins,
    recipe: dict[str, Any],
) -> NDArray[np.float64]:
    """log10(Z/Z_sun) [galaxy, bin] of the stars formed in each bin.

    `sfr` (Msun/yr) and `burst` (dex) are [galaxy, bin]; `recipe` is `[simulation.metallicity]`.
    """
    import jax.numpy as jnp
    from dsps.metallicity import umzr

    p = umzr.DEFAULT_MZR_PARAMS
    mass = sfr * bins.width * YR_PER_GYR
    # 100 Msun keeps the logarithm finite before the first star; the floor applies there
    log_mass = np.log10(np.maximum((np.cumsum(mass, 1) - 0.5 * mass) * recipe["surviving"], 1e2))
    today = umzr.mzr_model_t0(
        jnp.asarray(log_mass),
        recipe["ytp"],
        p.mzr_t0_x0,
        p.mzr_t0_k,
        recipe["slope_lo"],
        recipe["slope_hi"],
    )
    evolution = umzr.mzr_evolution_model(
        jnp.asarray(log_mass),
        jnp.asarray(bins.centres)[None, :],
        p.c0_y_at_tlook_c,
        p.c1_y_at_tlook_c,
        p.c0_early_time_slope,
        p.c1_early_time_slope,
    )
    # the model's Z is absolute; its own solar value of 0.012 has cancelled by now
    relation = np.asarray(today + recipe["evolution"] * evolution, float) - np.log10(Z_SUN)
    n = len(sfr)
    scatter = recipe["galaxy_rms"] * rng.standard_normal((n, 1)) + recipe["time_rms"] * (
        calc_ornstein_uhlenbeck(rng, (n, bins.n), bins.width, recipe["time_timescale"])
    )
    # the mean is floored above the hard floor, or half of the scatter would pile up on the latter
    relation = -calc_soft_cap(-relation, -recipe["relation_floor"], recipe["cap_width"])
    logzsol = relation + scatter + recipe["burst_slope"] * burst
    logzsol = calc_soft_cap(logzsol, recipe["cap"], recipe["cap_width"])
    return np.maximum(logzsol, recipe["floor"])


def generate(recipe: dict[str, Any], bins: TimeBins) -> Iterator[dict[str, NDArray[Any]]]:
    """Chunks of galaxies of the recipe's `[simulation]` table, in order.

    Each chunk holds `sfr` and `logzsol` [galaxy, bin] and `log_halo_mass` [galaxy], float32;
    galaxies that form more than `max_baryon_fraction` of the halo's baryons are left out.
    """
    _import_engine()
    import jax

    model = _smooth_history_model(recipe["fit"], bins)
    cosmology = resolve_cosmology(bins.cosmology)
    baryon_fraction = float(cosmology.Ob0 / cosmology.Om0)
    size, (lo, hi) = recipe["chunk"], recipe["log_halo_mass"]
    mean_correction = 0.5 * np.log(10.0) * recipe["burst_rms"] ** 2
    index = 0
    while True:
        rng = np.random.default_rng([recipe["seed"], index])
        key = jax.random.fold_in(jax.random.key(recipe["seed"]), index)
        log_halo_mass = rng.uniform(lo, hi, size)
        burst = calc_burst_modulation(
            rng, size, bins, recipe["burst_rms"], recipe["burst_timescales"]
        )
        sfr = _bin_mean(model(log_halo_mass, key) * 10.0 ** (burst - mean_correction), bins)
        logzsol = calc_metallicity(rng, sfr, _bin_mean(burst, bins), bins, recipe["metallicity"])
        formed = sfr.sum(axis=1) * bins.width * YR_PER_GYR
        limit = recipe["max_baryon_fraction"] * baryon_fraction * 10.0**log_halo_mass
        good = (formed <= limit) & np.isfinite(sfr).all(1) & np.isfinite(logzsol).all(1)
        index += 1
        yield {
            "sfr": sfr[good].astype(np.float32),
            "logzsol": logzsol[good].astype(np.float32),
            "log_halo_mass": log_halo_mass[good].astype(np.float32),
        }
