"""Training a posterior network: simulate a pool of observations, then denoise conditionally."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfhzoo.errors import Incompatible
from sfhzoo.grids.ssp import SSPGrid
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.priors.curve import plot_loss
from sfhzoo.priors.training import (
    TrainingOptions,
    TrainingState,
    calc_principal_components,
    make_state,
    read_progress,
    run_steps,
    set_variances,
)
from sfhzoo.samplers.encoding import MAX_SNR, Encoder
from sfhzoo.samplers.posterior_network import SCHEDULE, ConditionalMLP, PosteriorNetwork
from sfhzoo.samplers.simulator import N_REDSHIFTS, OBJECTS_PER_REDSHIFT, Domain, Simulator
from sfhzoo.simulations.trainingset import TrainingSet, load
from sfhzoo.zoo.artifacts import load_grid, load_posterior_network, load_prior, save_artifact

N_COMPONENTS = 129
OWN_ERROR = 0.4
"""Share of the variance of a network's draws that is its own error, where the data tell all. With
it the ranks of truths scatter as they should (docs/validation.md)."""
N_BASIS_SPECTRA = 4000
CHUNK = 1000


@dataclass(frozen=True)
class AmortizeOptions:
    """How a posterior network is made; recorded in its config."""

    pool: int = 640_000
    steps: int = 24_000
    batch: int = 512
    learning_rate: float = 1e-3
    ema_decay: float = 0.9995
    seed: int = 2
    start: str | None = None
    """name or directory of a posterior network to begin with, encoder included; None: afresh"""
    network: dict[str, Any] = field(default_factory=dict)
    domain: Domain = field(default_factory=Domain)


def simulate_pool(
    data: TrainingSet, scaling: HistoryScaling, grid: SSPGrid, options: AmortizeOptions,
    start: PosteriorNetwork | None, path: Path, progress: bool = False,
) -> dict[str, Tensor]:  # fmt: skip
    """States, features and encoder basis of `options.pool` simulated observations, cached.

    The encoder is that of the posterior network `start`, or fitted.
    """
    from tqdm import tqdm

    identity = _pool_identity(data, scaling, grid, options, start)
    if path.exists():
        with safe_open(path, "pt") as f:
            if (f.metadata() or {}).get("identity") == identity:
                return load_file(path)
    generator = torch.Generator().manual_seed(options.seed)
    simulator = Simulator(grid, data.bins, scaling, options.domain)
    sfr, logzsol = data.histories("train")
    x = torch.from_numpy(scaling.to_x(sfr, logzsol)).float()
    encoder = start.encoder if start else _fit_encoder(simulator, x, generator)
    states, features = [], []
    for first in tqdm(range(0, options.pool, CHUNK), unit_scale=CHUNK, disable=not progress):
        index = torch.arange(first, min(first + CHUNK, options.pool)) % len(x)
        u, f = simulator.draw(x[index], encoder, generator)
        states.append(torch.cat([x[index].flatten(1), u], dim=1))
        features.append(f)
    pool = {"state": torch.cat(states), "features": torch.cat(features), **encoder.to_weights()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(pool, partial, metadata={"identity": identity})
    partial.replace(path)
    return pool


def _pool_identity(
    data: TrainingSet, scaling: HistoryScaling, grid: SSPGrid, options: AmortizeOptions,
    start: PosteriorNetwork | None,
) -> str:  # fmt: skip
    """What the simulated observations depend on."""
    made_with = [options.pool, options.seed, MAX_SNR, asdict(options.domain), scaling.to_dict()]
    if start is not None:
        made_with.append(start.sha256)
    return json.dumps([data.sha256, grid.sha256, *made_with], sort_keys=True)


def _fit_encoder(simulator: Simulator, x: Tensor, generator: torch.Generator) -> Encoder:
    n = N_BASIS_SPECTRA
    groups = torch.randint(0, N_REDSHIFTS, (n // OBJECTS_PER_REDSHIFT,), generator=generator)
    node = groups.repeat_interleave(OBJECTS_PER_REDSHIFT)
    pick = torch.randint(0, len(x), (n,), generator=generator)
    u = torch.randn(n, N_NUISANCE, generator=generator)
    extra = 100 * torch.rand(n, generator=generator)
    return Encoder.fit(simulator.spectra(x[pick], node, u, extra), N_COMPONENTS)


def train_posterior_network(
    data: TrainingSet,
    grid: SSPGrid,
    prior_name: str,
    scaling: HistoryScaling,
    out: Path,
    options: AmortizeOptions,
    progress: bool = False,
) -> PosteriorNetwork:
    """Simulate, train (resuming from `out`'s checkpoint) and write the artifact into `out`."""
    identity = {
        "options": json.dumps(asdict(options), sort_keys=True),
        "set": data.sha256,
        "grid": grid.sha256,
    }
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        read_progress(checkpoint, identity)  # before minutes are spent on observations
    start = None if options.start is None else load_posterior_network(options.start)
    pool = simulate_pool(data, scaling, grid, options, start, out / "pool.safetensors", progress)
    encoder = Encoder.from_weights(pool)
    training = TrainingOptions(
        training_set="", steps=options.steps, batch=options.batch, seed=options.seed,
        learning_rate=options.learning_rate, ema_decay=options.ema_decay,
    )  # fmt: skip
    network = _begin_from(start, pool["state"]) if start else _fresh_network(pool, options)
    v0, features = pool["state"] @ network.basis, pool["features"]
    state = make_state(network, training)
    if checkpoint.exists():
        state.restore(checkpoint, identity)

    def loss(state: TrainingState) -> Tensor:
        g = state.generator
        pick = torch.randint(len(v0), (options.batch,), generator=g)
        sigma_t = SCHEDULE.draw(options.batch, g)
        noise = torch.randn((options.batch, v0.shape[1]), generator=g)
        return network.loss(v0[pick], features[pick], sigma_t, noise)

    run_steps(state, loss, training, lambda: state.save(out, identity), progress)
    network.load_state_dict(state.ema.state(network))
    config = {
        "name": f"{prior_name}--{grid.name}-posterior-v1",
        "kind": "posterior-network",
        "architecture": "conditional-spectral-mlp",
        "hyperparameters": network.hyperparameters,
        "sde": SCHEDULE.to_dict(),
        "scaling": scaling.to_dict(),
        "prior": prior_name,
        "training_set": {"sha256": data.sha256},
        "grid": {"name": grid.name, "sha256": grid.sha256},
        "domain": asdict(options.domain),
        "max_snr": MAX_SNR,
        "own_error": OWN_ERROR,
        "training": {
            "options": {k: v for k, v in asdict(options).items() if k != "start"},
            "start": {"name": start.name, "sha256": start.sha256} if start else None,
            "cpu_seconds": round(state.cpu_seconds, 1),
            "final_loss": state.losses[-1], "threads": torch.get_num_threads(),
        },
    }  # fmt: skip
    save_artifact(out, config, network, encoder.to_weights())
    plot_loss(state.losses, out / "training.png")
    return PosteriorNetwork(network, encoder, config)


def _fresh_network(pool: dict[str, Tensor], options: AmortizeOptions) -> ConditionalMLP:
    state, features = pool["state"], pool["features"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = ConditionalMLP(state.shape[1], features.shape[1], **options.network)
    basis, eigenvalues = calc_principal_components(state[:, :-N_NUISANCE])
    d = len(eigenvalues)
    network.basis[:d, :d] = basis
    network.eigenvalues[:d] = eigenvalues
    network.feature_mean.copy_(features.mean(0))
    network.feature_std.copy_(features.std(0).clamp(min=1e-3))
    return network


def _begin_from(start: PosteriorNetwork, state: Tensor) -> ConditionalMLP:
    """The network of another population; Incompatible when its states have another length."""
    network = start.network
    if len(network.eigenvalues) != state.shape[1]:
        raise Incompatible(
            f"training cannot start from {start.name}: expected states of {state.shape[1]} "
            f"numbers, got {len(network.eigenvalues)}"
        )
    set_variances(network, state)
    return network.train()


def amortize(
    prior_name: str | Path,
    grid_name: str | Path,
    training_set: Path,
    out: Path,
    options: AmortizeOptions,
    progress: bool = False,
) -> Path:
    """Train the posterior network of a prior with a grid; returns the artifact directory.

    Raises Incompatible when the training set is not the prior's.
    """
    prior, grid, data = load_prior(prior_name), load_grid(grid_name), load(training_set)
    expected = prior.training_set
    if data.sha256 != expected:
        raise Incompatible(
            f"{training_set}: expected the training set of {prior.name}, sha256 {expected}, "
            f"got {data.sha256}"
        )
    train_posterior_network(data, grid, prior.name, prior.scaling, Path(out), options, progress)
    return Path(out)
