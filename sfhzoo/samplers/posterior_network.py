"""A conditional denoiser: draws of (history, nuisance parameters) given an encoded spectrum.

The state v = (x, u) holds the standardised history and the nuisance coordinates (standard normal
a priori). The network is the prior's `SpectralMLP` with a condition: the encoder's features. It
is trained on simulated pairs, so it approximates the posterior of whatever was simulated; the
exact likelihood enters afterwards.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sfhzoo.likelihood.nuisance import N_NUISANCE
from sfhzoo.priors.network import ResidualBlock, SigmaEmbedding
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.samplers.encoding import Encoder

SCHEDULE = NoiseSchedule(sigma_min=2e-3, sigma_max=80.0, centre=-1.2, spread=1.7)
"""Wider than a prior's: at sigma_max the conditional means must be lost in the noise."""


class ConditionalMLP(nn.Module):
    """Denoiser D(v; s, features), preconditioned per principal component as `SpectralMLP`.

    Parameters
    ----------
    n_state, n_features : lengths of v and of the features
    width, blocks, condition : of the residual MLP and of its condition vector
    """

    basis: Tensor
    eigenvalues: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(
        self,
        n_state: int,
        n_features: int,
        width: int = 512,
        blocks: int = 5,
        condition: int = 256,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "n_state": n_state, "n_features": n_features,
            "width": width, "blocks": blocks, "condition": condition,
        }  # fmt: skip
        self.register_buffer("basis", torch.eye(n_state))
        self.register_buffer("eigenvalues", torch.ones(n_state))
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_std", torch.ones(n_features))
        self.embed = SigmaEmbedding()
        self.sigma = nn.Linear(64, condition)
        self.features = nn.Sequential(
            nn.Linear(n_features, width), nn.SiLU(), nn.Linear(width, condition)
        )
        self.inp = nn.Linear(n_state, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, condition) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, n_state)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed_features(self, features: Tensor) -> Tensor:
        """The part of the condition that does not depend on the noise level [batch, condition]."""
        f = (features - self.feature_mean) / self.feature_std
        # a few coefficients are heavy-tailed; asinh keeps outliers from driving the first layer
        return self.features(3.0 * torch.asinh(f / 3.0))

    def correction(self, v: Tensor, sigma_t: Tensor, embedded: Tensor) -> Tensor:
        """F of the principal components v (state @ basis) at noise level sigma_t [batch]."""
        condition = nn.functional.silu(embedded + self.sigma(self.embed(sigma_t)))
        h = self.inp(v / (self.eigenvalues + sigma_t[:, None] ** 2).sqrt())
        for block in self.blocks:
            h = block(h, condition)
        return self.out(nn.functional.silu(self.norm(h)))

    def denoise(self, state: Tensor, sigma_t: Tensor, embedded: Tensor) -> Tensor:
        """Posterior mean of the state [batch, n_state]."""
        s, lam = sigma_t[:, None], self.eigenvalues
        v = state @ self.basis
        total = lam + s**2
        correction = self.correction(v, sigma_t, embedded)
        return (lam / total * v + s * (lam / total).sqrt() * correction) @ self.basis.T

    def loss(self, v0: Tensor, features: Tensor, sigma_t: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of F; `v0` are principal components of clean states."""
        s, lam = sigma_t[:, None], self.eigenvalues
        total = lam + s**2
        v = v0 + s * noise
        target = (v0 - lam / total * v) * (total / lam).sqrt() / s
        return (
            (self.correction(v, sigma_t, self.embed_features(features)) - target).square().mean()
        )


class PosteriorNetwork:
    """A trained conditional denoiser with its encoder and provenance.

    Parameters
    ----------
    network, encoder : as trained
    config : the artifact's config.json
    sha256 : the artifact's identity
    """

    def __init__(
        self, network: ConditionalMLP, encoder: Encoder, config: dict[str, Any], sha256: str = ""
    ) -> None:
        self.network, self.encoder = network.eval(), encoder
        self.config, self.sha256, self.name = config, sha256, config["name"]
        self.schedule = NoiseSchedule.from_dict(config["sde"])
        self.nfe = 0

    @torch.no_grad()
    def draw(self, features: Tensor, generator: torch.Generator, steps: int = 40) -> Tensor:
        """One state [sample, n_state] for each row of features [sample, n_features].

        Probability-flow ODE by DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2;
        h = ln(s / s_next)): of a Gaussian's variance 24 steps keep 103 to 108 %, where as many
        ancestral steps keep 60 % and their intervals are a fifth too narrow.
        """
        net, n = self.network, len(features)
        embedded = net.embed_features(features)
        levels = self.schedule.steps(steps, stop=5e-3).float()
        spread = (net.eigenvalues + levels[0] ** 2).sqrt()
        state = (torch.randn((n, len(spread)), generator=generator) * spread) @ net.basis.T
        h = (levels[:-1] / levels[1:]).log()
        clean = before = net.denoise(state, levels[0].expand(n), embedded)
        for i, (now, after) in enumerate(pairwise(levels[:-1])):
            # extrapolated to the middle of the step; the first one has nothing to extrapolate from
            aim = clean + 0.5 * h[i] / h[max(i - 1, 0)] * (clean - before)
            state = aim + after / now * (state - aim)
            before, clean = clean, net.denoise(state, after.expand(n), embedded)
        self.nfe += steps
        return clean


def split_state(state: Tensor, n_bins: int) -> tuple[Tensor, Tensor]:
    """(x [sample, 2, bin], u [sample, 3]) of states [sample, 2 bin + 3]."""
    return state[:, :-N_NUISANCE].view(len(state), 2, n_bins), state[:, -N_NUISANCE:]
