"""Galaxies made by hand, and the parts a sampler needs to fit them: no trained network."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch

import sfhzoo
from sfhzoo.forward.model import ForwardModel
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood.compression import CompressedLikelihood, Span
from sfhzoo.priors.network import SpectralMLP
from sfhzoo.priors.prior import Prior
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.timebins import TimeBins

BINS = TimeBins()
REDSHIFT = 0.05
DATA = Path(sfhzoo.__file__).parent / "data"
GRID_FILE = DATA / "bc03-miles-v1.zarr.zip"


def make_histories(n, seed):
    """Delayed exponentials with smooth scatter, and metallicities that rise: 1e9 to 1e11 Msun."""
    rng = np.random.default_rng(seed)
    time = BINS.centres
    tau = rng.uniform(1.0, 8.0, (n, 1))
    shape = time * np.exp(-time / tau)
    waves = np.cos(np.pi * np.arange(1, 7)[:, None] * time / BINS.age_today)
    scatter = 0.15 * rng.standard_normal((n, 6)) @ waves
    mass = 10.0 ** rng.uniform(9.0, 11.0, (n, 1))
    sfr = mass * shape / (shape.sum(1, keepdims=True) * BINS.width * 1e9) * 10.0**scatter
    last = rng.uniform(-0.4, 0.3, (n, 1))
    logzsol = last - 1.2 * np.exp(-time / rng.uniform(1.0, 3.0, (n, 1))) + 0.05 * scatter
    return sfr, logzsol


@cache
def load_grid():
    return SSPGrid.read(GRID_FILE)


@cache
def make_scaling():
    return HistoryScaling.fit(*make_histories(2000, 0))


@cache
def make_model(n_pixels=600, redshift=REDSHIFT):
    """Forward model on pixels of 193 km/s from 4000 Å."""
    wave = 4000.0 * 10.0 ** (2.8e-4 * np.arange(n_pixels))
    return ForwardModel(load_grid(), wave, redshift, bins=BINS)


def make_x(n, seed):
    return torch.from_numpy(make_scaling().to_x(*make_histories(n, seed)))


def make_states(n, seed, a_v, sigma_v, velocity):
    """States [n, 131]; each nuisance parameter is a pair (lo, hi) of a uniform distribution."""
    from sfhzoo.likelihood.nuisance import to_coordinates

    rng = np.random.default_rng(seed + 1)
    values = (torch.from_numpy(rng.uniform(*r, n)) for r in (a_v, sigma_v, velocity))
    return torch.cat([make_x(n, seed).flatten(1), to_coordinates(*values)], dim=1)


def calc_exact_flux(state, model):
    """The forward model's own spectra [n, wave], past all compression."""
    from sfhzoo.likelihood.nuisance import to_physical

    sfr, logzsol = make_scaling().from_x(state[:, :128].view(-1, 2, 64))
    return model(sfr, logzsol, *to_physical(state[:, 128:131]))


def make_observation(seed=11, snr=50.0, a_v=0.4, sigma_v=150.0, velocity=20.0, **of_model):
    """(model, truth [131], noiseless flux, error [wave], noisy flux) of one galaxy."""
    model = make_model(**of_model)
    truth = make_states(1, seed, (a_v, a_v), (sigma_v, sigma_v), (velocity, velocity))
    flux = calc_exact_flux(truth, model)[0]
    error = flux.median() / snr * torch.linspace(1.3, 0.8, len(flux), dtype=torch.float64)
    noise = torch.randn(len(flux), generator=torch.Generator().manual_seed(seed)).double()
    return model, truth[0], flux, error, flux + error * noise


def make_likelihood(model, flux, error, span=None):
    sfr = torch.from_numpy(make_histories(200, 5)[0].mean(0))
    return CompressedLikelihood(
        model,
        flux,
        error**-2,
        make_scaling(),
        span or Span((0.2, 0.6), (120.0, 180.0), (-30.0, 60.0)),
        sfr,
        torch.Generator().manual_seed(3),
    )


def make_normal_prior():
    """A prior that is N(0, 1) in every coordinate: an untrained network is its exact denoiser."""
    schedule = NoiseSchedule()
    config = {
        "name": "normal", "sde": schedule.to_dict(), "scaling": make_scaling().to_dict(),
        "cosmology": "Planck15", "n_bins": 64,
    }  # fmt: skip
    return Prior(SpectralMLP(width=16, blocks=1, schedule=schedule), config)
