"""Training of posterior networks: afresh, resumed, from another, and what it refuses."""

from __future__ import annotations

import json

import fakegrid
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sfhzoo.errors import DataError, Incompatible
from sfhzoo.histories import HistoryScaling
from sfhzoo.samplers import amortize as amortize_module
from sfhzoo.samplers import simulator
from sfhzoo.samplers.amortize import AmortizeOptions, train_posterior_network
from sfhzoo.simulations import trainingset
from sfhzoo.zoo.artifacts import load_posterior_network, verify

SMALL = {"pool": 300, "batch": 64, "network": {"width": 32, "blocks": 1}}


def make_set(path, seed):
    """Falling and rising histories with metallicities that grow."""
    rng = np.random.default_rng(seed)
    time = np.arange(64) / 64
    sfr = 10 ** (rng.normal(0, 0.5, (300, 1)) + rng.normal(0, 1, (300, 1)) * (time - 0.5))
    logzsol = -1 + time + 0.2 * rng.standard_normal((300, 1))
    sfr, logzsol = sfr.astype(np.float32), logzsol.astype(np.float32)
    attributes = {
        "name": path.stem, "recipe": json.dumps({"engine": "by hand"}), "cosmology": "Planck15",
        "n_test": 50, "sha256": trainingset.content_hash([sfr, logzsol]),
    }  # fmt: skip
    halo = np.zeros(300, np.float32)
    trainingset._write(path, {"sfr": sfr, "logzsol": logzsol, "log_halo_mass": halo}, attributes)
    return trainingset.load(path)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains in a folder of this name, on the set of this seed."""
    monkeypatch.setattr(simulator, "N_REDSHIFTS", 8)
    monkeypatch.setattr(amortize_module, "N_REDSHIFTS", 8)
    monkeypatch.setattr(amortize_module, "N_BASIS_SPECTRA", 400)
    grid = fakegrid.make_grid()

    def train(name, seed=1, steps=4, **options):
        path = tmp_path / f"set-{seed}.zarr"
        data = trainingset.load(path) if path.exists() else make_set(path, seed)
        scaling = HistoryScaling.fit(*data.histories("train"))
        chosen = AmortizeOptions(steps=steps, **{**SMALL, **options})
        out = tmp_path / name
        train_posterior_network(data, grid, "toy-v1", scaling, out, chosen)
        return out

    return train


def test_a_trained_network_is_a_verified_artifact_that_draws(train):
    out = train("first")
    verify(out)
    network = load_posterior_network(out)
    assert network.name == "toy-v1--fake-v1-posterior-v1"
    features = load_file(out / "pool.safetensors")["features"][:7]
    draws = network.draw(features, torch.Generator().manual_seed(1), 8)
    assert draws.shape == (7, 131) and bool(torch.isfinite(draws).all())


def test_a_network_begins_with_another_and_keeps_its_encoder(train):
    first = load_posterior_network(train("first"))
    # at a rate of nothing the weights stay; the variances are those of the new population
    second = load_posterior_network(
        train("second", seed=2, start=str(train("first")), learning_rate=1e-12)
    )
    assert second.config["training"]["start"] == {"name": first.name, "sha256": first.sha256}
    for name, value in first.encoder.to_weights().items():
        assert torch.equal(second.encoder.to_weights()[name], value)
    before, after = first.network.state_dict(), second.network.state_dict()
    same = {n for n in before if torch.allclose(before[n], after[n], atol=1e-6)}
    assert set(before) - same == {"eigenvalues"}
    fresh = load_posterior_network(train("fresh", seed=2))
    assert fresh.config["training"]["start"] is None
    assert not torch.equal(
        fresh.encoder.to_weights()["encoder.basis"], first.encoder.to_weights()["encoder.basis"]
    )


def test_a_network_of_states_of_another_length_is_no_beginning(train):
    first = load_posterior_network(train("first"))
    with pytest.raises(Incompatible, match="expected states of 60 numbers, got 131"):
        amortize_module._begin_from(first, torch.zeros(5, 60))


def test_simulated_observations_are_made_once(train):
    pool = train("first") / "pool.safetensors"
    before = pool.stat().st_mtime_ns
    train("first")
    assert pool.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="written with another set"):
        train("first", seed=2)
    assert pool.stat().st_mtime_ns == before, "refused before anything is simulated"
