"""Data fission: one observation as two independent ones, a blunt one and the rest.

For Gaussian noise a flux y can be split into independent parts without using anything twice
(Rasines & Young 2023, Biometrika 110, 597; Leiner et al. 2023, arXiv:2112.11079): p(x | y) is
p(x | t) updated with what y holds beyond t. Here

    t = V^T (y + n) + M e,   M = V^T V,   n ~ N(0, extra),   e ~ N(0, 1 / K²)

are the posterior network's view: functionals V of the whitened flux (the columns of its basis) of
a spectrum with more noise, blurred so that no coefficient is known better than to 1 / K of its
spread. With whitened noise N = 1 + R R^T (pixels plus a calibration polynomial with columns R),
the rest has the precision

    Pi = N^-1 - V C^-1 V^T,   C = V^T N V + extra M + M² / K²

and the natural parameter N^-1 y - V C^-1 t. Where the spectrum is good the network decides to
1 / K and the likelihood does the rest; where it is poor the network has 1 / (1 + extra) of the
information. A network never draws all that it is shown; what it wastes of its part is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_INFORMATION = 1e-6
"""Directions of the data with less than this share left to the second part are dropped."""


def draw_views(
    y: Tensor, functionals: Tensor, max_snr: float, extra: float, n: int,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """n independent views t [n, k] of one whitened flux y [wave]; functionals V [wave, k]."""
    e = torch.randn((n, functionals.shape[1]), generator=generator, dtype=y.dtype) / max_snr
    noise = torch.randn((n, len(y)), generator=generator, dtype=y.dtype) * extra**0.5
    return (y + noise + e @ functionals.T) @ functionals


class Fission:
    """The split of whitened fluxes y [wave] (flux / error).

    Parameters
    ----------
    functionals : V [wave, k], whitened
    noise : R [wave, m], whitened columns of further noise, each times its standard deviation
    basis : Q [component, wave], orthonormal rows that hold every model spectrum and R
    max_snr : K
    extra : variance of the noise that was added for the view, in units of the data's

    Attributes
    ----------
    transform : A [r, component]; the second part measures A Q S(x) with unit noise
    first_transform : the same for the view t [r, component]
    """

    def __init__(
        self, functionals: Tensor, noise: Tensor, basis: Tensor, max_snr: float, extra: float = 0.0
    ) -> None:
        values, axes = torch.linalg.eigh(functionals.T @ functionals)
        keep = values > 1e-10 * values[-1]
        values, axes = values[keep], axes[:, keep]
        self._to_unit = axes / values.sqrt()  # V @ this has orthonormal columns
        view = functionals @ self._to_unit
        seen = view.T @ noise
        eye = torch.eye(len(values), dtype=values.dtype)
        self._covariance = torch.linalg.cholesky(
            (1 + extra) * eye + seen @ seen.T + torch.diag(values / max_snr**2)
        )
        inner = torch.eye(noise.shape[1], dtype=values.dtype) + noise.T @ noise
        self._inverse_noise = basis - (basis @ noise) @ torch.linalg.solve(inner, noise.T)
        self._seen = basis @ view
        self.first_transform = torch.linalg.solve_triangular(
            self._covariance, self._seen.T, upper=False
        )
        left = self._inverse_noise @ basis.T - self.first_transform.T @ self.first_transform
        share, rows = torch.linalg.eigh(0.5 * (left + left.T))
        good = share > MIN_INFORMATION
        self._share, self._rows = share[good], rows[:, good]
        self.transform = self._share.sqrt()[:, None] * self._rows.T

    def second(self, y: Tensor, first: Tensor) -> Tensor:
        """The rest of y given views t [n, k]: data [n, r] = A Q S(x) + unit noise."""
        gain = torch.cholesky_solve((first @ self._to_unit).T, self._covariance)
        natural = self._inverse_noise @ y - (self._seen @ gain).T
        return (natural @ self._rows) / self._share.sqrt()
