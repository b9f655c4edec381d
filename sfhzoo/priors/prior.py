"""A prior: a trained score network, its scaling and its provenance.

The denoiser D(x; s) = x + s² score(x; s) is the posterior mean of a history given the history
plus noise of level s (Tweedie). Everything a sampler needs comes through it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sfhzoo.histories import Histories, HistoryScaling
from sfhzoo.priors.network import SpectralMLP, build_score_model
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.timebins import TimeBins


class Prior:
    """A score-based prior over histories.

    Parameters
    ----------
    network : f(t, x) with score = f / sigma(t); eval mode
    config : the artifact's config.json
    sha256 : the artifact's identity, "" when it was never saved
    """

    def __init__(self, network: nn.Module, config: dict[str, Any], sha256: str = "") -> None:
        self.config, self.sha256 = config, sha256
        self.name: str = config["name"]
        self.training_set: str = config.get("training_set", {}).get("sha256", "unknown")
        self.schedule = NoiseSchedule.from_dict(config["sde"])
        self.scaling = HistoryScaling.from_dict(config["scaling"])
        self.bins = TimeBins(config["cosmology"], config["n_bins"])
        self.shape = (2, self.bins.n)
        self.score_model = build_score_model(network, self.schedule)
        self.nfe = 0

    @property
    def network(self) -> nn.Module:
        return self.score_model.model

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Prior:
        """Move the network; returns self."""
        self.score_model.to(device)
        self.score_model.device = torch.device(device)
        return self

    def score(self, x: Tensor, sigma_t: Tensor) -> Tensor:
        """Gradient of the noised histories' log density; x [batch, 2, bin], sigma_t [batch]."""
        self.nfe += 1
        level = sigma_t.clamp(self.schedule.sigma_min, self.schedule.sigma_max)
        return self.score_model.score(self.schedule.time_of(level), x)

    def denoise(self, x: Tensor, sigma_t: Tensor) -> Tensor:
        """Posterior mean of the history [batch, 2, bin] given x at noise level sigma_t [batch]."""
        return x + sigma_t.view(-1, 1, 1) ** 2 * self.score(x, sigma_t)

    @torch.no_grad()
    def sample_x(
        self, n: int, generator: torch.Generator, steps: int = 60, batch: int = 2000
    ) -> Tensor:
        """n draws of x [n, 2, bin] by Heun's method on the probability-flow ODE.

        Karras et al. 2022 (arXiv:2206.00364), algorithm 1 without churn: 2 steps - 1 evaluations.
        """
        levels = self.schedule.steps(steps).to(torch.float32)
        done = []
        for start in range(0, n, batch):
            m = min(batch, n - start)
            noise = torch.randn((m, *self.shape), generator=generator).to(self.device)
            done.append(self._flow(self._start(noise), levels))
        return torch.cat(done)

    def _start(self, noise: Tensor) -> Tensor:
        """x at sigma_max from standard normal noise [batch, 2, bin].

        The noised histories have the covariance of the histories plus sigma_max²; where the
        network knows the former (its softest component has 9 against 16) it counts.
        """
        sigma_max = self.schedule.sigma_max
        if isinstance(self.network, SpectralMLP):
            return self.network.draw_gaussian(noise, sigma_max)
        return noise * sigma_max

    def _flow(self, x: Tensor, levels: Tensor) -> Tensor:
        for now, after in pairwise(levels):
            slope = -now * self.score(x, now.expand(len(x)))
            step = x + (after - now) * slope
            if after > 0:
                slope = 0.5 * (slope - after * self.score(step, after.expand(len(x))))
                step = x + (after - now) * slope
            x = step
        return x

    def sample(self, n: int, generator: torch.Generator, steps: int = 60) -> Histories:
        """n histories drawn from the prior, float64 tensors [n, bin]."""
        return self.scaling.from_x(self.sample_x(n, generator, steps).double())
