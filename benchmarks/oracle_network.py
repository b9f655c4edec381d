"""The default sampler on the analytic oracle: a posterior network trained on it, then the update.

The same parts as for spectra: blunt views of the data (`fission`), a `ConditionalMLP` that draws
given a view, and the update with the rest (`polish`). One network serves all noise levels.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfhzoo.samplers.fission import Fission, draw_views
from sfhzoo.samplers.polish import calc_precision, polish
from sfhzoo.samplers.posterior_network import SCHEDULE, ConditionalMLP, PosteriorNetwork

MAX_SNR = 30.0
LN_NOISE = (math.log(0.05), math.log(20.0))
N_GROUPS = 50
STEPS = 32
CHUNK = 500


class View(NamedTuple):
    """What the network sees: functionals V [component, k] of whitened data, and their spread."""

    functionals: Tensor
    variance: Tensor

    @classmethod
    def of(cls, a: Tensor, covariance: Tensor) -> View:
        """Principal axes of the whitened signal A x, scaled to its spread in the population."""
        values, axes = torch.linalg.eigh(a @ covariance @ a.T)
        return cls(axes * values.clamp(min=0).sqrt(), values.clamp(min=0))

    def features(self, t: Tensor, ln_noise: Tensor) -> Tensor:
        """Coefficients with a unit prior, and the noise level: [n, k + 1], float32."""
        c = t / (1 + (1 + 1 / MAX_SNR**2) * self.variance)
        return torch.cat([c, ln_noise[:, None]], dim=1).float()


@dataclass(frozen=True)
class Trained:
    """A network for data A x / noise + n, its prior's mean and covariance."""

    network: PosteriorNetwork
    mean: Tensor
    covariance: Tensor
    seconds: float
    steps: int


def train(
    sample_prior,
    moments: tuple[Tensor, Tensor],
    a: Tensor,
    seconds: float,
    seed: int = 0,
    batch: int = 256,
    learning_rate: float = 2e-3,
) -> Trained:
    """Train for `seconds` on fresh pairs; `a` is the forward model at noise 1."""
    g = torch.Generator().manual_seed(seed)
    mean, covariance = moments
    d, start = len(mean), time.perf_counter()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ConditionalMLP(d, len(a) + 1, width=384, blocks=4)
    values, axes = torch.linalg.eigh(covariance)
    net.basis.copy_(axes)
    net.eigenvalues.copy_(values)
    net.feature_mean[-1], net.feature_std[-1] = sum(LN_NOISE) / 2, 1.7
    average = copy.deepcopy(net)
    optimiser = torch.optim.AdamW(net.parameters(), learning_rate, weight_decay=1e-4)
    steps = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        share = elapsed / seconds
        rate = learning_rate * min(1.0, (steps + 1) / 300) * 0.5 * (1 + math.cos(math.pi * share))
        optimiser.param_groups[0]["lr"] = rate
        x = sample_prior(batch, g) - mean
        noise = LN_NOISE[0] + (LN_NOISE[1] - LN_NOISE[0]) * torch.rand(1, generator=g).double()
        scaled = a / noise.exp()
        view = View.of(scaled, covariance)
        y = x @ scaled.T + torch.randn((batch, len(a)), generator=g, dtype=torch.float64)
        e = torch.randn((batch, len(a)), generator=g, dtype=torch.float64) / MAX_SNR
        t = y @ view.functionals + e * view.variance
        features = view.features(t, noise.expand(batch))
        blur = torch.randn((batch, d), generator=g)
        loss = net.loss(x.float() @ net.basis, features, SCHEDULE.draw(batch, g), blur)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        decay = min(0.999, (steps + 1) / (steps + 20))
        with torch.no_grad():
            for p, q in zip(average.parameters(), net.parameters(), strict=True):
                p.lerp_(q, 1 - decay)
        steps += 1
    config = {"name": "oracle", "sde": SCHEDULE.to_dict()}
    return Trained(PosteriorNetwork(average, None, config), mean, covariance, elapsed, steps)  # type: ignore[arg-type]


class Rest(NamedTuple):
    """What the views left out: data with unit noise, S = A x."""

    a: Tensor

    def predict(self, state: Tensor) -> Tensor:
        return state @ self.a.T

    def linearise(self, state: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        return residual @ self.a, (self.a.T @ self.a)[None]

    def move(self, state: Tensor, step: Tensor) -> Tensor:
        return state + step


def sample(
    trained: Trained, a: Tensor, y: Tensor, noise: float, n: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Posterior draws and, for comparison, the network's own [n, d]; `a`, `y` are whitened."""
    size = -(-n // N_GROUPS)
    view = View.of(a, trained.covariance)
    centred = y - a @ trained.mean
    views = draw_views(centred, view.functionals, MAX_SNR, 0.0, N_GROUPS, generator)
    ln_noise = torch.full((N_GROUPS,), math.log(noise), dtype=torch.float64)
    features = view.features(views, ln_noise).repeat_interleave(size, 0)
    state = trained.network.draw(features, generator, STEPS).double()
    groups = state.view(N_GROUPS, size, -1)
    deviations = (groups - groups.mean(1, keepdim=True)).flatten(0, 1) * (size / (size - 1)) ** 0.5
    none = torch.zeros(len(y), 0, dtype=torch.float64)
    fission = Fission(view.functionals, none, torch.eye(len(y), dtype=torch.float64), MAX_SNR)
    free = torch.ones(len(trained.mean), dtype=torch.bool)
    seen = fission.first_transform @ a
    reference = torch.linalg.inv(trained.covariance) + seen.T @ seen
    precision = calc_precision(deviations, free, reference)
    rest = fission.second(centred, views).repeat_interleave(size, 0)
    target = rest + torch.randn(rest.shape, generator=generator, dtype=torch.float64)
    model = Rest(fission.transform @ a)
    moved = [
        polish(model, s, t, precision, free, tolerance=1e-4).state  # type: ignore[arg-type]
        for s, t in zip(state.split(CHUNK), target.split(CHUNK), strict=True)
    ]
    return torch.cat(moved)[:n] + trained.mean, state[:n] + trained.mean
