"""Polynomial interpolation between exact nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Polynomial:
    """Lagrange interpolation on Chebyshev nodes; a single node where the range has no width."""

    nodes: Tensor

    @classmethod
    def over(cls, lo: float, hi: float, n: int) -> Polynomial:
        if hi - lo < 1e-9:
            return cls(torch.tensor([lo], dtype=torch.float64))
        t = torch.cos(torch.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n)
        return cls(0.5 * (lo + hi) - 0.5 * (hi - lo) * t)

    def weights(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and their derivatives [..., node] at `value` [...]."""
        k, n = self.nodes, len(self.nodes)
        if n == 1:
            one = torch.ones_like(value)[..., None]
            return one, torch.zeros_like(one)
        others = [[j for j in range(n) if j != i] for i in range(n)]
        scale = torch.stack([torch.prod(k[i] - k[others[i]]) for i in range(n)])
        difference = value[..., None] - k
        products = [difference[..., o].prod(-1) for o in others]
        slopes = [
            torch.stack([difference[..., [m for m in o if m != j]].prod(-1) for j in o]).sum(0)
            for o in others
        ]
        return torch.stack(products, -1) / scale, torch.stack(slopes, -1) / scale


def count_nodes(width: float, narrow: float, wide: float) -> int:
    """Nodes that interpolate an exponential to a part in a million over a range of this width."""
    return 3 if width < narrow else 4 if width < wide else 5


def count_exponential_nodes(exponent: float, tolerance: float) -> int:
    """Chebyshev nodes that interpolate exp(-t) over a range of `exponent` in t, at least 3.

    The error, relative to the value in the middle, is 2 (exponent / 4)^n / n! (the remainder of
    Chebyshev interpolation).
    """
    n = 3
    while 2 * (exponent / 4) ** n / math.factorial(n) > tolerance:
        n += 1
    return n
