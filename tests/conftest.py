"""A plausible posterior made by hand: no network, no grid."""

from __future__ import annotations

import numpy as np
import pytest

from sfhzoo.posterior import Observed, Parameter, Posterior
from sfhzoo.timebins import TimeBins

N_SAMPLES = 100
REDSHIFT = 0.0873


def _make_histories(rng, bins):
    """Rising-and-falling histories with correlated scatter: a quenching 1e11 Msun galaxy."""
    time = bins.centres
    peak = 3.5 + 0.3 * rng.standard_normal((N_SAMPLES, 1))
    fall = 1.6 + 0.15 * rng.standard_normal((N_SAMPLES, 1))
    steps = rng.standard_normal((N_SAMPLES, bins.n)).cumsum(axis=1)
    scatter = 0.06 * (steps - steps.mean(axis=1, keepdims=True))
    log_sfr = 1.5 - 0.5 * ((time - peak) / fall) ** 2 / 2.3 + scatter
    sfr = np.maximum(10.0**log_sfr, 10.0 ** (-1.2 + scatter)) * np.clip(time / 0.6, 0, 1) ** 3
    logzsol = -1.4 + 1.6 * (1 - np.exp(-time / 2.0)) + 0.4 * scatter
    return sfr, logzsol


def _make_spectrum(rng):
    """A continuum with absorption lines, its errors and its masks, on SDSS-like pixels."""
    wave = 10.0 ** np.arange(3.58, 3.964, 4e-4)
    rest = wave / (1 + REDSHIFT)
    shape = 2.0 - np.exp(-(((rest - 3600) / 900) ** 2)) - 0.5 / (1 + np.exp((rest - 3990) / 20))
    for line, depth in ((3934.8, 0.5), (3969.6, 0.5), (4862.7, 0.2), (5176.0, 0.3), (5895.6, 0.2)):
        shape = shape * (1 - depth * np.exp(-0.5 * ((rest - line) / 8) ** 2))
    truth = 2e-16 * shape
    error = truth / (20 + 15 * np.exp(-(((wave - 6500) / 1800) ** 2)))
    flux = truth + error * rng.standard_normal(wave.size)
    ivar = error**-2.0
    reasons = {
        "emission lines": (np.abs(rest - 6564.6) < 40) | (np.abs(rest - 5008.2) < 12),
        "sky": np.abs(wave - 5578.5) < 10,
        "bad pixels": rng.random(wave.size) < 0.004,
    }
    ivar[reasons["bad pixels"]] = 0.0
    mask = ~np.any(list(reasons.values()), axis=0)
    return truth, Observed(wave, flux, ivar, mask, reasons)


@pytest.fixture
def posterior() -> Posterior:
    rng = np.random.default_rng(7)
    bins = TimeBins()
    sfr, logzsol = _make_histories(rng, bins)
    truth, observed = _make_spectrum(rng)
    wiggle = 1 + 0.003 * rng.standard_normal((N_SAMPLES, 1)) * np.linspace(-1, 1, truth.size)

    def parameter(mean, std, unit, long_name):
        return Parameter(mean + std * rng.standard_normal(N_SAMPLES), unit, long_name)

    mass = sfr @ bins.overlap(bins.age_at(REDSHIFT)) * 1e9
    return Posterior(
        sfr=sfr,
        logzsol=logzsol,
        parameters={
            "a_v": parameter(0.28, 0.02, "mag", "V-band attenuation"),
            "sigma_v": parameter(210.0, 6.0, "km/s", "Velocity dispersion"),
            "velocity_offset": parameter(4.0, 3.0, "km/s", "Velocity relative to the redshift"),
            "error_scale": parameter(1.05, 0.01, "1", "Factor on the file's errors"),
        },
        mass_surviving=0.56 * mass,
        bins=bins,
        redshift=REDSHIFT,
        model_flux=truth * wiggle,
        observed=observed,
        sample_stats={"chi2": rng.chisquare(900, N_SAMPLES)},
        provenance={
            "object": "J082926.47+224436.2",
            "prior": {"name": "diffstarpop-tng-v1", "sha256": "ab" * 32},
            "grid": {"name": "bc03-miles-v1", "sha256": "cd" * 32},
            "sampler": "by hand",
            "seed": 7,
            "device": "cpu",
            "nfe": 4000,
            "wall_s": {"total": 12.5, "sampling": 9.0},
            "warnings": ["the mock is not a galaxy"],
            "versions": {"sfhzoo": "0.1.0"},
            "input": {"name": "spectrum.fits", "sha256": "ef" * 32},
            "options": {"a_v": "free"},
        },
    )
