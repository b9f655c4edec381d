"""The evidence against its closed form: Gaussian-mixture prior, linear forward model.

    python benchmarks/evidence_oracle.py [--samples 1500] [--samplers exact pnpdm] [--out FILE]

The prior and data of analytic_oracle.py in fewer dimensions, at the same three noise levels: the
best-known direction is left 1e-4, 1e-3 and 1e-2 of its prior width. ln Z is known exactly. It is
estimated as `sfhzoo.evidence` does, by the same functions: draws of the prior at the lowest
inverse temperature, and a sampler's draws of each tempered posterior. `exact` draws those from the
closed form, so that the two lines tell the integration's error from the sampler's.
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from analytic_oracle import (
    NOISE_LEVELS,
    Linear,
    Oracle,
    calc_posterior,
    make_oracle,
    make_prior,
    sample_pnpdm,
)
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.tempering import Node, calc_importance, find_start, integrate, place_nodes

D = 12
N_PRIOR, MIN_EFFECTIVE = 20_000, 400
LIMIT = 0.3
"""Of |estimate - exact|, natural logarithm."""

Sampler = Callable[[Oracle, int, torch.Generator], Tensor]


class Estimate(NamedTuple):
    """ln Z up to the constant of the noise, its error and its number of nodes."""

    value: float
    error: float
    nodes: int


class PriorDraws(NamedTuple):
    """chi² [sample] of draws of the prior."""

    chi2: NDArray

    def calc_log_likelihood(self, beta: float) -> NDArray:
        return -0.5 * beta * self.chi2


def calc_chi2(oracle: Oracle, x: Tensor) -> NDArray:
    """chi² [sample] of x [sample, d]."""
    return ((oracle.likelihood.y - oracle.likelihood.predict(x)) ** 2).sum(1).numpy()


def temper(oracle: Oracle, beta: float) -> Oracle:
    """The same observation with errors 1 / sqrt(beta) times larger."""
    a, y = (t * beta**0.5 for t in oracle.likelihood)
    posterior = calc_posterior(oracle.prior, a, y)
    return Oracle(oracle.prior, Linear(a, y), posterior, oracle.noise / beta**0.5)


def sample_exact(oracle: Oracle, n: int, generator: torch.Generator) -> Tensor:
    """From the closed form."""
    return oracle.posterior.sample(n, generator)


SAMPLERS: dict[str, Sampler] = {"exact": sample_exact, "pnpdm": sample_pnpdm}


def estimate(
    oracle: Oracle, sampler: Sampler, n: int, generator: torch.Generator, n_prior: int = N_PRIOR,
    effective: float = MIN_EFFECTIVE,
) -> Estimate:  # fmt: skip
    """ln of ∫ p(x) exp(-chi² / 2) dx from n draws per node."""
    prior = PriorDraws(calc_chi2(oracle, oracle.prior.sample(n_prior, generator)))
    ln_start = find_start(prior, effective)
    begin = calc_importance(prior.calc_log_likelihood(math.exp(ln_start)))
    nodes = []
    for ln_beta in place_nodes(ln_start):
        x = sampler(temper(oracle, math.exp(ln_beta)), n, generator)
        nodes.append(Node(ln_beta, calc_chi2(oracle, x), len(x)))
    integral = integrate(nodes)
    error = math.hypot(begin.error, integral.sampling, integral.quadrature)
    return Estimate(begin.value + integral.value, error, len(nodes))


def calc_exact(oracle: Oracle) -> float:
    """ln of ∫ p(x) exp(-chi² / 2) dx: a mixture of Gaussians in the data."""
    (a, y), prior = oracle.likelihood, oracle.prior
    noise = a @ prior.covariances @ a.T + torch.eye(len(y), dtype=y.dtype)
    parts = torch.distributions.MultivariateNormal(prior.means @ a.T, noise).log_prob(y)
    ln_z = float(torch.logsumexp(prior.weights.log() + parts, 0))
    return ln_z + 0.5 * len(y) * math.log(2 * math.pi)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=1500, help="per node")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| noise | draws | ln Z exact | estimate | error | off by | nodes | CPU s | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for level, noise in NOISE_LEVELS.items():
        oracle = make_oracle(noise, prior=make_prior(d=D))
        truth = calc_exact(oracle)
        for name in arguments.samplers:
            generator, start = torch.Generator().manual_seed(4), time.process_time()
            e = estimate(oracle, SAMPLERS[name], arguments.samples, generator)
            off, seconds = e.value - truth, time.process_time() - start
            lines.append(
                f"| {level} | {name} | {truth:.2f} | {e.value:.2f} | {e.error:.2f} | {off:+.2f} "
                f"| {e.nodes} | {seconds:.0f} | {'pass' if abs(off) <= LIMIT else 'MISS'} |"
            )
            print(lines[-1], flush=True)
    if arguments.out:
        head = (
            f"# The evidence on the analytic oracle\n\n`benchmarks/evidence_oracle.py --samples "
            f"{arguments.samples}`, {D} dimensions, {platform.machine()}, "
            f"{time.strftime('%Y-%m-%d')}. Limit {LIMIT}.\n\n"
        )
        arguments.out.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
