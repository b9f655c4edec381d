"""The variance-exploding noise schedule: x_t = x + sigma_t n, n ~ N(0, I).

sigma(t) = sigma_min (sigma_max / sigma_min)^t for t in [0, 1], as score_models' `VESDE`
(Song et al. 2021, arXiv:2011.13456). Networks are trained at noise levels drawn log-normally,
where the histories' structure is, with a log-uniform part that covers the whole range.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """Noise levels of a prior.

    Parameters
    ----------
    sigma_min, sigma_max : ends of the schedule, in units of the standardised histories
    centre, spread : mean and standard deviation of ln sigma_t in training
    uniform_fraction : share of training levels that are log-uniform over the whole range
    """

    sigma_min: float = 1e-3
    sigma_max: float = 16.0
    centre: float = -1.4
    spread: float = 1.6
    uniform_fraction: float = 0.2

    def to_dict(self) -> dict[str, Any]:
        """As stored in config.json."""
        return {"kind": "ve", **asdict(self)}

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> NoiseSchedule:
        """The inverse of `to_dict`."""
        return cls(**{k: v for k, v in d.items() if k != "kind"})

    def time_of(self, sigma_t: Tensor) -> Tensor:
        """t in [0, 1] of a noise level."""
        span = math.log(self.sigma_max / self.sigma_min)
        return torch.log(sigma_t / self.sigma_min) / span

    def sigma_at(self, t: Tensor) -> Tensor:
        """The noise level of t in [0, 1]."""
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n noise levels for training, float32."""
        log_normal = self.centre + self.spread * torch.randn(n, generator=generator)
        lo, hi = math.log(self.sigma_min), math.log(self.sigma_max)
        uniform = lo + (hi - lo) * torch.rand(n, generator=generator)
        pick = torch.rand(n, generator=generator) < self.uniform_fraction
        return torch.where(pick, uniform, log_normal.clamp(lo, hi)).exp()

    def steps(self, n: int, stop: float | None = None, rho: float = 7.0) -> Tensor:
        """n + 1 descending levels for a sampler, float64: sigma_max ... stop, then 0.

        Spaced as in Karras et al. 2022 (arXiv:2206.00364), equation 5; `stop` defaults to
        sigma_min.
        """
        ramp = torch.linspace(0, 1, n, dtype=torch.float64)
        hi, lo = self.sigma_max ** (1 / rho), (stop or self.sigma_min) ** (1 / rho)
        return torch.cat([(hi + ramp * (lo - hi)) ** rho, torch.zeros(1, dtype=torch.float64)])
