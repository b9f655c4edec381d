"""Denoising score matching, with exponential moving average, checkpoints and resume.

The loss is the expectation over noise levels sigma_t and noise n of

    | W(sigma_t) (f(t, x + sigma_t n) + n) |² / d

with W = 1 for score_models' networks (its own loss) and the network's `weigh_residual` where it
has one. A checkpoint holds weights, averages, optimiser moments and the random generator, all as
safetensors and JSON, so a training that is killed and run again ends bit for bit where an
uninterrupted one does on the same machine.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfhzoo.errors import DataError, Incompatible, SamplingError
from sfhzoo.histories import HistoryScaling
from sfhzoo.priors.curve import plot_loss
from sfhzoo.priors.network import SpectralMLP, build_network, build_score_model
from sfhzoo.priors.recipe import TrainingOptions
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.simulations import trainingset

if TYPE_CHECKING:
    from sfhzoo.priors.prior import Prior


EIGENVALUE_FLOOR = 1e-6


def calc_principal_components(x: Tensor, floor: float = EIGENVALUE_FLOOR) -> tuple[Tensor, Tensor]:
    """Eigenvectors (columns) and eigenvalues [d] of the second moment of x [galaxy, d]."""
    flat = x.flatten(1).double()
    eigenvalues, basis = torch.linalg.eigh(flat.T @ flat / len(flat))
    return basis.flip(1).float(), eigenvalues.flip(0).clamp(min=floor).float()


def learning_rate_at(step: int, options: TrainingOptions) -> float:
    """Linear warm-up, then half a cosine to the final rate."""
    if step < options.warmup:
        return options.learning_rate * (step + 1) / options.warmup
    part = (step - options.warmup) / max(1, options.steps - options.warmup)
    fall = 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
    span = options.learning_rate - options.final_learning_rate
    return options.final_learning_rate + span * fall


class Ema:
    """Exponential moving average of parameters, warmed up so that early steps are forgotten."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {k: v.detach().clone() for k, v in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        decay = min(self.decay, (step + 1) / (step + 10))
        params = dict(network.named_parameters())
        torch._foreach_lerp_(
            list(self.shadow.values()), [params[k].detach() for k in self.shadow], 1 - decay
        )

    def state(self, network: nn.Module) -> dict[str, Tensor]:
        """The network's state dict with averaged parameters."""
        return {**network.state_dict(), **self.shadow}


@dataclass
class TrainingState:
    """Everything a step needs and changes; saved and restored as one."""

    network: nn.Module
    optimizer: torch.optim.Adam
    ema: Ema
    generator: torch.Generator
    step: int = 0
    cpu_seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def save(self, directory: Path, identity: dict[str, Any]) -> None:
        """Write beside, then rename: a kill leaves the previous checkpoint."""
        tensors = {f"net.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.shadow.items()}
        names = [k for k, _ in self.network.named_parameters()]
        moments = self.optimizer.state_dict()["state"]
        for i, state in moments.items():
            for key, value in state.items():
                tensors[f"opt.{key}.{names[i]}"] = torch.as_tensor(value)
        tensors["generator"] = self.generator.get_state()
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        meta = {"step": self.step, "cpu_seconds": self.cpu_seconds, **identity}
        partial = directory / f"checkpoint.safetensors.partial-{os.getpid()}"
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        save_file(tensors, partial, metadata={"state": json.dumps(meta)})
        partial.replace(directory / "checkpoint.safetensors")

    def restore(self, path: Path, identity: dict[str, Any]) -> None:
        """Continue from a checkpoint; DataError when it belongs to another recipe."""
        meta = read_progress(path, identity)
        tensors = load_file(path)
        part = lambda p: {k[len(p) :]: v for k, v in tensors.items() if k.startswith(p)}  # noqa: E731
        self.network.load_state_dict(part("net."))
        self.ema.shadow = {k: v.to(self.ema.shadow[k].device) for k, v in part("ema.").items()}
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.network.named_parameters()):
            found = {
                key: tensors.get(f"opt.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")
            }
            state[i] = {k: v for k, v in found.items() if v is not None}
        packed = self.optimizer.state_dict()
        packed["state"] = {i: s for i, s in state.items() if s}
        self.optimizer.load_state_dict(packed)
        self.generator.set_state(tensors["generator"])
        self.losses = tensors["losses"].tolist()
        self.step, self.cpu_seconds = meta["step"], meta["cpu_seconds"]


def read_progress(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Step, seconds and identity of a checkpoint; DataError when it is of another recipe."""
    from safetensors import safe_open

    with safe_open(path, "pt") as f:
        meta: dict[str, Any] = json.loads(f.metadata()["state"])
    stale = [k for k in identity if meta.get(k) != identity[k]]
    if stale:
        raise DataError(
            f"{path} was written with another {', '.join(stale)}; train into a new directory"
        )
    return meta


Loss = Callable[[TrainingState], Tensor]


def denoising_loss(
    score_model: Any, schedule: NoiseSchedule, x: Tensor, options: TrainingOptions
) -> Loss:
    """The loss of one random batch of x [galaxy, 2, bin]."""
    device = next(score_model.model.parameters()).device

    def loss(state: TrainingState) -> Tensor:
        g = state.generator
        x0 = x[torch.randint(len(x), (options.batch,), generator=g)]
        sigma_t = schedule.draw(options.batch, g)
        noise = torch.randn(x0.shape, generator=g)
        x_t = x0 + sigma_t.view(-1, 1, 1) * noise
        # drawn on the CPU: the same numbers on every device
        time, x_t, noise, sigma_t = (
            v.to(device) for v in (schedule.time_of(sigma_t), x_t, noise, sigma_t)
        )
        residual = score_model.model(time, x_t) + noise
        if isinstance(state.network, SpectralMLP):
            residual = state.network.weigh_residual(residual, sigma_t)
        return residual.square().mean()

    return loss


def run_steps(
    state: TrainingState,
    loss_of: Loss,
    options: TrainingOptions,
    save: Callable[[], None],
    progress: bool = False,
) -> None:
    """Train until `options.steps`; SamplingError when the loss is no longer finite."""
    from tqdm import tqdm

    parameters = list(state.network.parameters())
    bar = tqdm(total=options.steps, initial=state.step, unit="step", disable=not progress)
    clock, recent = time.process_time(), []
    while state.step < options.steps:
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate_at(state.step, options)
        loss = loss_of(state)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, options.clip_norm)
        state.optimizer.step()
        state.ema.update(state.network, state.step)
        state.step += 1
        recent.append(loss.item())
        bar.update()
        if state.step % 100 == 0 or state.step == options.steps:
            state.losses.append(float(np.mean(recent)))
            recent = []
            bar.set_postfix(loss=f"{state.losses[-1]:.4f}")
            if not math.isfinite(state.losses[-1]):
                raise SamplingError(
                    f"training diverged at step {state.step}: the loss is not finite"
                )
        if state.step % options.checkpoint_every == 0 or state.step == options.steps:
            state.cpu_seconds += time.process_time() - clock
            clock = time.process_time()
            save()
    bar.close()


def make_state(network: nn.Module, options: TrainingOptions) -> TrainingState:
    """A fresh state: Adam, EMA and a generator seeded from the recipe."""
    optimizer = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    return TrainingState(network, optimizer, Ema(network, options.ema_decay), generator)


def load_training_x(
    options: TrainingOptions, base: Path
) -> tuple[Tensor, HistoryScaling, trainingset.TrainingSet]:
    """Standardised training histories [galaxy, 2, bin], their scaling and their set."""
    path = Path(options.training_set)
    data = trainingset.load(path if path.is_absolute() or path.exists() else base / path)
    sfr, logzsol = data.histories("train")
    bounds = {k: getattr(options, k) for k in ("logzsol_floor", "logzsol_cap", "cap_width")}
    kind: Any = options.parametrisation
    scaling = HistoryScaling.fit(sfr, logzsol, kind, **bounds)
    return torch.from_numpy(scaling.to_x(sfr, logzsol)).float(), scaling, data


def train(
    recipe_path: str | Path,
    out_dir: str | Path,
    resume: bool = True,
    progress: bool = False,
    steps: int | None = None,
    device: str = "cpu",
) -> Path:
    """Train the prior of a recipe and write it as an artifact directory; returns `out_dir`.

    `resume` continues from `out_dir`'s checkpoint. `steps` overrides the recipe's number, for
    trials. A checkpoint of one `device` may go on on another. Raises DataError for a wrong
    recipe, ArtifactError for a wrong training set.
    """
    from sfhzoo.priors.prior import Prior
    from sfhzoo.zoo.artifacts import load_prior, save_prior

    recipe, out = trainingset.read_recipe(recipe_path), Path(out_dir)
    options = TrainingOptions.from_recipe(recipe, str(recipe_path))
    if steps is not None:
        options = TrainingOptions(**{**asdict(options), "steps": steps})
    x, scaling, data = load_training_x(options, Path(recipe_path).parent)
    schedule = NoiseSchedule(**options.schedule)
    start = None if options.start is None else load_prior(options.start)
    network = _fresh_network(options, schedule, x, start).to(device)
    score_model = build_score_model(network, schedule, device)
    state = make_state(network, options)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.safetensors"
    identity = {"recipe": _identity(options), "training_set": data.sha256}
    if resume and checkpoint.exists():
        state.restore(checkpoint, identity)

    def save() -> None:
        state.save(out, identity)

    run_steps(state, denoising_loss(score_model, schedule, x, options), options, save, progress)
    network.load_state_dict(state.ema.state(network))
    metadata = {
        "steps": state.step,
        "batch": options.batch,
        "cpu_seconds": round(state.cpu_seconds, 1),
        "threads": torch.get_num_threads(),
        "device": device,
        "final_loss": state.losses[-1],
        "recipe": asdict(options),
        "start": {"name": start.name, "sha256": start.sha256} if start else None,
    }
    config = _config(recipe, options, schedule, scaling, data, metadata)
    save_prior(Prior(network.cpu().eval(), config), out)
    plot_loss(state.losses, out / "training.png")
    return out


def _fresh_network(
    options: TrainingOptions, schedule: NoiseSchedule, x: Tensor, start: Prior | None
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = build_network(options.architecture, _hyperparameters(options), schedule)
    if start is not None:
        _begin_from(start, network)
    if isinstance(network, SpectralMLP):
        if start is None:
            basis, eigenvalues = calc_principal_components(x)
            network.basis.copy_(basis)
            network.eigenvalues.copy_(eigenvalues)
        else:
            set_variances(network, x.flatten(1))
        if network.borrowed_basis:
            network.covariance.copy_(torch.cov((x.flatten(1) @ network.basis).double().T))
    return network


def _hyperparameters(options: TrainingOptions) -> dict[str, Any]:
    borrowed = options.start is not None and options.architecture == "spectral-mlp"
    return {**options.network, **({"borrowed_basis": True} if borrowed else {})}


def set_variances(network: Any, states: Tensor) -> None:
    """Put variances of states [sample, d] in a network's basis in the place of its eigenvalues.

    In the basis of another population they are no longer eigenvalues.
    """
    variances = (states @ network.basis).double().square().mean(0)
    network.eigenvalues.copy_(variances.clamp(min=EIGENVALUE_FLOOR))


def _begin_from(start: Prior, network: nn.Module) -> None:
    """Weights and basis of another prior; Incompatible when its network has another shape."""
    found, own = start.network.state_dict(), network.state_dict()
    if "covariance" in own:
        found = {**found, "covariance": own["covariance"]}
    try:
        network.load_state_dict(found)
    except RuntimeError as e:
        raise Incompatible(
            f"training cannot start from {start.name}: expected the recipe's architecture and "
            f"network ({e})"
        ) from e


def _identity(options: TrainingOptions) -> str:
    kept = {
        k: v for k, v in asdict(options).items() if k not in ("training_set", "checkpoint_every")
    }
    return json.dumps(kept, sort_keys=True)


def _config(
    recipe: dict[str, Any],
    options: TrainingOptions,
    schedule: NoiseSchedule,
    scaling: HistoryScaling,
    data: trainingset.TrainingSet,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    return {
        "name": recipe["name"],
        "kind": "prior",
        "architecture": options.architecture,
        "hyperparameters": _hyperparameters(options),
        "sde": schedule.to_dict(),
        "scaling": scaling.to_dict(),
        "cosmology": data.attributes["cosmology"],
        "n_bins": data.bins.n,
        "simulation": json.loads(data.attributes["recipe"]),
        "training_set": {
            "sha256": data.sha256,
            "n_train": len(data.sfr) - data.n_test,
            "n_test": data.n_test,
        },
        "training": metadata,
    }
