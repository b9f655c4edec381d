"""Networks of the priors: modules f(t, x) with score = f(t, x) / sigma(t), as score_models wants.

`SpectralMLP` is a residual MLP whose input, output and skip connection are scaled per principal
component of the training set. With x = Q v, covariance Q diag(lambda) Q^T and noise level s:

    r = lambda / (lambda + s²)
    D(x; s) = Q [ r v  +  s sqrt(r) F(v / sqrt(lambda + s²), s) ]
    f(t, x) = (D(x; s) - x) / s

The first term is the exact denoiser of a Gaussian with that covariance, so the network F learns
only what is not Gaussian, with targets of unit variance in every component. It is EDM
preconditioning (Karras et al. 2022, arXiv:2206.00364, table 1) with one sigma_data per component:
the eigenvalues of standardised histories span five decades, and one sigma_data for all of them
would spend the network on reproducing a linear map.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
from typing import Any

import torch
from torch import Tensor, nn

from sfhzoo.errors import Incompatible
from sfhzoo.priors.schedule import NoiseSchedule


class SigmaEmbedding(nn.Module):
    """Fourier features of ln sigma_t: [batch] -> [batch, 2 n], fixed frequencies."""

    frequency: Tensor

    def __init__(self, n: int = 32) -> None:
        super().__init__()
        self.register_buffer("frequency", torch.logspace(-1.3, 0.7, n))

    def forward(self, sigma_t: Tensor) -> Tensor:
        phase = sigma_t.log()[:, None] * self.frequency
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class ResidualBlock(nn.Module):
    """h + W2 silu(W1 [LN(h) (1 + scale) + shift]); scale and shift come from the condition."""

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(condition, 2 * width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        # a block that starts as the identity lets deep stacks train with one learning rate
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition).chunk(2, dim=1)
        g = torch.addcmul(shift, self.norm(h), 1 + scale)
        return h + self.outer(nn.functional.silu(self.inner(g)))


class SpectralMLP(nn.Module):
    """The default prior network (see the module's equations).

    Parameters
    ----------
    shape : of one history, (2, bin)
    width, blocks : of the residual MLP
    schedule : the noise levels; `forward` is called with t
    basis, eigenvalues : principal components Q [d, d] (columns) and lambda [d] of the training
        set, d = 2 bin; identity and 1 until weights are loaded
    borrowed_basis : Q is of another set, whose network this one began with: lambda are variances
        then, and the training set's `covariance` [d, d] in Q is kept with the weights
    """

    basis: Tensor
    eigenvalues: Tensor
    covariance: Tensor

    def __init__(
        self,
        shape: tuple[int, int] = (2, 64),
        width: int = 512,
        blocks: int = 5,
        schedule: NoiseSchedule | None = None,
        basis: Tensor | None = None,
        eigenvalues: Tensor | None = None,
        borrowed_basis: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.schedule = tuple(shape), schedule or NoiseSchedule()
        d = math.prod(self.shape)
        self.hyperparameters = {"shape": list(self.shape), "width": width, "blocks": blocks}
        self.register_buffer("basis", torch.eye(d) if basis is None else basis.float())
        lam = torch.ones(d) if eigenvalues is None else eigenvalues.float()
        self.register_buffer("eigenvalues", lam)
        self.borrowed_basis = borrowed_basis
        if borrowed_basis:
            self.register_buffer("covariance", torch.eye(d))
        self.embed = SigmaEmbedding()
        self.condition = nn.Sequential(nn.Linear(64, 128), nn.SiLU())
        self.inp = nn.Linear(d, width)
        self.blocks = nn.ModuleList(ResidualBlock(width, 128) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, d)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """f(t, x) [batch, 2, bin] = sigma(t) * score, t [batch] in [0, 1]."""
        s = self.schedule.sigma_at(t)[:, None]
        total = self.eigenvalues + s**2
        v = x.flatten(1) @ self.basis
        condition = self.condition(self.embed(s[:, 0]))
        h = self.inp(v / total.sqrt())
        for block in self.blocks:
            h = block(h, condition)
        correction = self.out(nn.functional.silu(self.norm(h)))
        # (D - v) / s, written so that nothing cancels at small s
        f = -s / total * v + (self.eigenvalues / total).sqrt() * correction
        return (f @ self.basis.T).view(-1, *self.shape)

    def draw_gaussian(self, noise: Tensor, sigma_t: float) -> Tensor:
        """x at noise level sigma_t, were the histories Gaussian, from standard normal noise.

        Both [batch, 2, bin]: the covariance is that of the training set plus sigma_t².
        """
        if self.borrowed_basis:
            covariance = self.covariance.double()
            total = covariance + sigma_t**2 * torch.eye(len(covariance)).to(covariance)
            root = torch.linalg.cholesky(total).to(noise).T
        else:
            root = (self.eigenvalues + sigma_t**2).sqrt().diag()
        return (noise.flatten(1) @ root @ self.basis.T).view(noise.shape)

    def weigh_residual(self, residual: Tensor, sigma_t: Tensor) -> Tensor:
        """Residual (D - x_0) / sigma_t in units in which the correction F has unit variance."""
        total = self.eigenvalues + sigma_t[:, None] ** 2
        return (residual.flatten(1) @ self.basis) * (total / self.eigenvalues).sqrt()


class FlattenedMLP(nn.Module):
    """score_models' MLP behind the [batch, 2, bin] interface."""

    def __init__(self, shape: tuple[int, int] = (2, 64), **hyperparameters: Any) -> None:
        super().__init__()
        from score_models import MLP

        self.shape = tuple(shape)
        self.net = MLP(dimensions=math.prod(self.shape), **hyperparameters)
        self.hyperparameters = {"shape": list(self.shape), **hyperparameters}

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net(t, x.flatten(1)).view(-1, *self.shape)


def build_network(
    architecture: str, hyperparameters: dict[str, Any], schedule: NoiseSchedule
) -> nn.Module:
    """A network by the name in a recipe or config: "spectral-mlp", "ncsnpp" or "mlp".

    Raises Incompatible for an architecture or hyperparameters that do not exist.
    """
    try:
        if architecture == "spectral-mlp":
            return SpectralMLP(schedule=schedule, **hyperparameters)
        if architecture == "mlp":
            return FlattenedMLP(**hyperparameters)
        if architecture == "ncsnpp":
            from score_models import NCSNpp

            # it would leave out in silence what it does not know
            known = set(inspect.signature(NCSNpp.__init__).parameters)
            if unknown := sorted(set(hyperparameters) - known):
                raise TypeError(f"unknown {unknown}; known are {sorted(known - {'self'})}")
            with contextlib.redirect_stdout(io.StringIO()):
                return NCSNpp(**{"channels": 2, "dimensions": 1, **hyperparameters})
    except TypeError as e:
        raise Incompatible(f"{architecture}: hyperparameters do not fit: {e}") from e
    raise Incompatible(
        f"expected architecture 'spectral-mlp', 'ncsnpp' or 'mlp', got {architecture!r}"
    )


def build_score_model(network: nn.Module, schedule: NoiseSchedule, device: str = "cpu") -> Any:
    """score_models' ScoreModel with the variance-exploding SDE of `schedule`."""
    from score_models import ScoreModel

    return ScoreModel(
        network,
        sde="ve",
        sigma_min=schedule.sigma_min,
        sigma_max=schedule.sigma_max,
        device=torch.device(device),
    )
