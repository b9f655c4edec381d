"""The convolved likelihood approximation (CLA), the sampler of the published method.

Reverse diffusion with the prior's score and an approximate likelihood score,

    p_t(y | x_t) ~ N(y | S(x_t), Sigma_y + sigma_t² diag(A A^T)),

with the likelihood's gradient clipped (Perry-Fagant, Stone, Hezaveh & Perreault-Levasseur; Adam
et al. 2022, arXiv:2211.03812, for the approximation). It is meant for a linear model, S = A x.
For the logarithmic SFR of our priors S(x_t) of a noisy x_t is off by orders of magnitude, so S is
linearised at the denoised x_hat(x_t): S(x_hat) + A (x_t - x_hat), A = dS/dx there, which is the
published form where S is linear. A_V, sigma_v and the redshift offset are not sampled: they are
set by a fast fit of non-negative templates first, or by the user.

Kept for comparison: it is slow, and its intervals are not calibrated. The reverse process is
score_models' Euler-Maruyama step on its VE SDE.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfhzoo.errors import SamplingError
from sfhzoo.forward.model import calc_spectrum
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.linearised import LinearisedHistories, linearise_histories
from sfhzoo.likelihood.problem import Draws, Problem, draw_error_scale
from sfhzoo.likelihood.profile import calc_error_scale, fit_profile
from sfhzoo.priors.prior import Prior

MAX_CHI2_RATIO = 30.0
"""of the samples' median chi² to the profile fit's, beyond which the samples are refused"""


@dataclass
class ClaSampler:
    """Posterior samples by the published method.

    Parameters
    ----------
    prior : its score is used
    steps : of the reverse diffusion
    clip : largest norm of the likelihood's score, in units of sqrt(d) / sigma_t
    batch : samples per pass
    """

    prior: Prior
    steps: int = 1000
    clip: float = 1.0
    batch: int = 100
    progress: bool = False

    def sample(self, problem: Problem, n: int, generator: torch.Generator) -> Draws:
        """n samples; SamplingError when the diffusion leaves the finite numbers."""
        profile = fit_profile(problem)
        fit = problem.fit_error_scale
        scale = calc_error_scale(profile.chi2, len(problem.flux)) if fit else 1.0
        ivar = problem.ivar / scale**2
        templates = problem.model.at(profile.a_v, profile.sigma_v, profile.velocity)
        likelihood = _ConvolvedLikelihood(problem, templates, ivar)
        start_nfe = self.prior.nfe
        batches = [min(self.batch, n - i) for i in range(0, n, self.batch)]
        x = torch.cat([self._reverse(likelihood, b, generator) for b in batches])
        u = nuisance.to_coordinates(*(torch.tensor(v, dtype=torch.float64) for v in profile[:3]))
        state = torch.cat([x.double().flatten(1), u.expand(n, -1)], dim=1)
        sfr, logzsol = problem.scaling.from_x(x.double())
        flux = calc_spectrum(sfr, logzsol, templates, problem.model.nodes)
        chi2 = ((problem.flux - flux) ** 2 * problem.ivar).sum(1)
        if float(chi2.median()) > MAX_CHI2_RATIO * profile.chi2:
            raise SamplingError(
                f"cla did not reach the data: median chi² {float(chi2.median()):.3g} against "
                f"{profile.chi2:.3g} of the best fit"
            )
        factor = draw_error_scale(chi2, len(problem.flux), problem.fit_error_scale, generator)
        warning = "sampler cla: A_V and sigma_v are fixed at a fit's values, their errors left out"
        return Draws(
            state, flux, factor, self.prior.nfe - start_nfe, {"chi2": chi2.numpy()},
            {"profile": profile._asdict(), "steps": self.steps, "clip": self.clip}, (warning,),
        )  # fmt: skip

    def _reverse(
        self, likelihood: _ConvolvedLikelihood, n: int, generator: torch.Generator
    ) -> Tensor:
        from tqdm import tqdm

        prior, sde, device = self.prior, self.prior.score_model.sde, self.prior.device
        shape = (n, *prior.shape)
        x = torch.randn(shape, generator=generator).to(device) * sde.sigma_max
        dt = sde.T / self.steps
        for i in tqdm(range(self.steps), desc="cla", disable=not self.progress):
            t = torch.full((n,), 1.0 - i / self.steps, device=device)
            sigma_t = sde.sigma(t)
            with torch.no_grad():
                score = prior.score(x, sigma_t)
                x_hat = x + sigma_t.view(-1, 1, 1) ** 2 * score
                guide = likelihood.score(x, x_hat, sigma_t, self.clip)
                drift = sde.diffusion(t, x) ** 2 * (score + guide)
                mean = x + drift * dt
                noise = torch.randn(shape, generator=generator).to(device)
                x = mean + sde.diffusion(t, x) * dt**0.5 * noise
            if not torch.isfinite(x).all():
                raise SamplingError(
                    f"the diffusion left the finite numbers at sigma_t = {float(sigma_t[0]):.3g}"
                )
        return mean.cpu()


class _ConvolvedLikelihood:
    """The likelihood's score at noise level sigma_t for fixed templates on the pixels."""

    def __init__(self, problem: Problem, templates: Tensor, ivar: Tensor) -> None:
        # in units of the median flux float32 is exact enough and four times as fast
        unit = float(problem.flux.abs().median())
        self.scaling, self.nodes = problem.scaling, problem.model.nodes.float()
        self.n_bins, self.n_nodes = templates.shape[:2]
        scaled = (templates / unit).float()
        self.templates = scaled.flatten(0, 1)
        self.squares = torch.cat([scaled**2, scaled[:, :-1] * scaled[:, 1:]], 1).flatten(0, 1)
        self.flux = (problem.flux / unit).float()
        self.variance = (1 / (ivar * unit**2)).float()

    def score(self, x_t: Tensor, x_hat: Tensor, sigma_t: Tensor, clip: float) -> Tensor:
        """Gradient of log p_t(y | x_t) [sample, 2, bin], its norm clipped.

        The norm's limit is `clip` sqrt(d) / sigma_t, the size of the prior's score.
        """
        s = linearise_histories(self.scaling, self.nodes, x_hat.cpu())
        offset = (x_t - x_hat).cpu()
        change_sfr, change_z = s.d_sfr * offset[:, 0], s.d_z * offset[:, 1]
        low = (s.sfr + change_sfr) * (1 - s.share) - change_z
        high = (s.sfr + change_sfr) * s.share + change_z
        model = self._scatter(s.node, (low, high), self.n_nodes) @ self.templates
        variance = self.variance + sigma_t.cpu()[:, None] ** 2 * self._calc_convolved(s)
        back = (((self.flux - model) / variance) @ self.templates.T).view(
            -1, self.n_bins, self.n_nodes
        )
        at_low, at_high = (back.gather(2, s.node[..., None] + i)[..., 0] for i in (0, 1))
        gradient = torch.stack(
            [s.d_sfr * torch.lerp(at_low, at_high, s.share), s.d_z * (at_high - at_low)], dim=1
        )
        norm = gradient.flatten(1).norm(dim=1).clamp(min=1e-30)
        limit = clip / sigma_t.cpu() * gradient[0].numel() ** 0.5
        return (gradient * (limit / norm).clamp(max=1.0)[:, None, None]).to(x_t.device)

    def _calc_convolved(self, s: LinearisedHistories) -> Tensor:
        """diag(A A^T) [sample, wave], A = dS/dx at the linearisation."""
        a, c, f = s.d_sfr**2, s.d_z**2, s.share
        square = self._scatter(s.node, (a * (1 - f) ** 2 + c, a * f**2 + c), self.n_nodes)
        cross = self._scatter(s.node, (2 * a * f * (1 - f) - 2 * c,), self.n_nodes - 1)
        weights = torch.cat(
            [square.view(len(f), self.n_bins, -1), cross.view(len(f), self.n_bins, -1)], dim=2
        )
        return (weights.flatten(1) @ self.squares).clamp(min=0)

    def _scatter(self, index: Tensor, values: tuple[Tensor, ...], n: int) -> Tensor:
        """[sample, bin * n]: `values` at index, index + 1, ... of each bin."""
        out = torch.zeros(*index.shape, n)
        for i, value in enumerate(values):
            out.scatter_(2, (index + i)[..., None], value[..., None])
        return out.flatten(1)
