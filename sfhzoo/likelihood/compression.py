"""The Gaussian likelihood of a spectrum on a compressed basis, with its analytic Jacobian.

A model spectrum is a sum of templates, so it lies in their span; the noise-weighted data and
templates are projected on an orthonormal basis of that span, and little is lost. With whitened
data y (flux / error) and pixels P >> R:

    chi²(state) = | Q^T y - S(state) |² + | y - Q Q^T y |²

S, its templates and Jacobian have R numbers per spectrum. Dust is smooth over a line width, so it
commutes with the velocities; A_V and sigma_v are then interpolated by polynomials between exact
nodes that span what the posterior needs, the velocity offset by a parabola. How much chi² all this
loses is measured on the final samples (`calc_loss`), not assumed.

The state is (x, u, c): standardised history, nuisance coordinates, calibration coefficients. The
calibration polynomial, sum_n c_n P_n(t), multiplies a reference spectrum: it is linear in c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfhzoo.forward.dust import calc_attenuation, calc_calzetti_curve
from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.linearised import LinearisedHistories, linearise_histories
from sfhzoo.likelihood.nuisance import N_NUISANCE, Nuisance

N_AV_NODES = 5
N_SIGMA_NODES = 4
N_PROBES = 420
TOLERANCE = 1e-3
"""chi² of a typical spectrum that the discarded directions may hold in total."""


class Span(NamedTuple):
    """Ranges (lo, hi) of A_V (mag), sigma_v and velocity (km/s) over which S must be accurate."""

    a_v: tuple[float, float]
    sigma_v: tuple[float, float]
    velocity: tuple[float, float]


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


class CompressedLikelihood:
    """chi² and Jacobian of states for one observation.

    Parameters
    ----------
    model : forward model on the pixels in use
    flux, ivar : [wave] of those pixels
    scaling : of the prior's x
    span : where S must be accurate
    typical_sfr : [bin] Msun/yr, weights the templates when the basis is chosen
    calibration_order : highest Legendre order of the calibration polynomial; 0 = none
    reference : [wave] spectrum the polynomial multiplies; needed when the order is > 0
    generator : for the random probes of the templates' span
    """

    def __init__(
        self,
        model: ForwardModel,
        flux: Tensor,
        ivar: Tensor,
        scaling: HistoryScaling,
        span: Span,
        typical_sfr: Tensor,
        generator: torch.Generator,
        calibration_order: int = 0,
        reference: Tensor | None = None,
    ) -> None:
        self.model, self.scaling, self.ivar = model, scaling, ivar
        self.n_bins = model.templates.shape[0]
        weight = ivar.sqrt()
        self.whitened = flux * weight
        self.a_v = Polynomial.over(*span.a_v, N_AV_NODES)
        self.sigma_v = Polynomial.over(*span.sigma_v, N_SIGMA_NODES)
        self.velocity_centre = 0.5 * (span.velocity[0] + span.velocity[1])
        self.velocity_step = max(0.5 * (span.velocity[1] - span.velocity[0]), 1.0)
        kinematic = self._kinematic_templates(weight)
        rest = model.wave_obs / (1 + model.redshift)
        curve = torch.from_numpy(calc_calzetti_curve(rest))
        dust = [calc_attenuation(a, curve) for a in self.a_v.nodes]
        polynomials = self._calibration(calibration_order, reference, weight)
        self.basis = self._choose_basis(kinematic, dust, typical_sfr, polynomials, generator)
        self.y = self.basis @ self.whitened
        self.outside = float((self.whitened**2).sum() - (self.y**2).sum())
        project = lambda t, d: (t.flatten(0, 1) * d) @ self.basis.T  # noqa: E731
        templates = torch.stack(
            [torch.stack([project(t, d) for t in kinematic.sigma]) for d in dust]
        )
        of_velocity = [
            torch.stack([project(t, d) for t in (kinematic.slope, kinematic.curvature)])
            for d in dust
        ]
        # [template, (A_V node, sigma_v node | velocity terms, component)]: one matrix product
        stacked = torch.cat([templates, torch.stack(of_velocity)], dim=1)
        self.stacked = stacked.permute(2, 0, 1, 3).flatten(1).contiguous()
        self.single = templates
        self.calibration = polynomials @ self.basis.T
        self.n_calibration = len(polynomials)

    @property
    def rank(self) -> int:
        """Number of components R."""
        return len(self.basis)

    @property
    def n_nodes(self) -> int:
        """Number of metallicity nodes."""
        return len(self.model.nodes)

    @property
    def n_state(self) -> int:
        return 2 * self.n_bins + N_NUISANCE + self.n_calibration

    def _kinematic_templates(self, weight: Tensor) -> _Kinematic:
        """Whitened templates [bin, metallicity, wave] at the sigma_v nodes, and velocity terms."""
        v0, step = self.velocity_centre, self.velocity_step
        nodes = self.sigma_v.nodes
        at = [self.model.at(0.0, float(s), v0) * weight for s in nodes]
        middle = float(nodes.mean())
        here = at[0] if len(at) == 1 else self.model.at(0.0, middle, v0) * weight
        up = self.model.at(0.0, middle, v0 + step) * weight
        down = self.model.at(0.0, middle, v0 - step) * weight
        return _Kinematic(at, (up - down) / (2 * step), (up + down - 2 * here) / step**2)

    def _calibration(self, order: int, reference: Tensor | None, weight: Tensor) -> Tensor:
        """Whitened P_n * reference [order, wave] for n = 1 ... order."""
        wave = self.model.wave_obs
        if order == 0:
            return torch.zeros(0, len(wave), dtype=torch.float64)
        if reference is None:
            raise ValueError("a calibration polynomial needs a reference spectrum")
        rows = calc_calibration_rows(wave, (wave[0], wave[-1]), order)
        return torch.from_numpy(rows) * reference * weight

    def _choose_basis(
        self, kinematic: _Kinematic, dust: list[Tensor], sfr: Tensor, polynomials: Tensor,
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """Orthonormal rows [component, wave] that hold all templates up to `TOLERANCE` in chi².

        Random combinations of templates, each in proportion to the light it may give, find the
        span (Halko, Martinsson & Tropp 2011, SIAM Review 53, 217).
        """
        scale = (sfr[:, None] + 0.02 * sfr.mean()).expand(kinematic.slope.shape[:2]).flatten()
        spread = self.velocity_step
        kinds = [*kinematic.sigma, kinematic.slope * spread, kinematic.curvature * spread**2]
        probes, n = [], N_PROBES // len(dust) // len(kinds) + 1
        per_kind = max(n, 24)
        for d in dust:
            for kind in kinds:
                mix = torch.randn((per_kind, len(scale)), generator=generator, dtype=torch.float64)
                probes.append((mix * scale) @ kind.flatten(0, 1) * d)
        rows = torch.cat([*probes, polynomials * 0.1])
        _, values, axes = torch.linalg.svd(rows, full_matrices=False)
        rest = (values.flip(0) ** 2).cumsum(0).flip(0) / len(rows)
        rank = int((rest > TOLERANCE).sum())
        return axes[: max(rank, 8)]

    def split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [sample, 2, bin], u [sample, 3] and c [sample, order] of states."""
        d = 2 * self.n_bins
        x = state[:, :d].view(len(state), 2, self.n_bins)
        return x, state[:, d : d + N_NUISANCE], state[:, d + N_NUISANCE :]

    def predict(self, state: Tensor) -> Tensor:
        """S [sample, component]."""
        x, u, c = self.split(state)
        at = linearise_histories(self.scaling, self.model.nodes, x)
        by_node = self._by_node(_scatter(at, self.n_nodes))
        return self._mix(self._nuisance(u), by_node) + c @ self.calibration

    def linearise(self, state: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """J r [sample, n_state] and J J^T [sample, n_state, n_state], J = dS/dstate.

        J r is exact for the interpolated S. In J J^T the history's templates are those of the
        nearest node of A_V and sigma_v: it steers the steps, not where they end.
        """
        x, u, _ = self.split(state)
        n, d = len(state), 2 * self.n_bins
        at = linearise_histories(self.scaling, self.model.nodes, x)
        mix = self._nuisance(u)
        by_node = self._by_node(_scatter(at, self.n_nodes))
        of_u = self._nuisance_columns(u, mix, by_node)
        back = self._back(mix, residual).view(n, self.n_bins, -1)
        low, high = (back.gather(2, (at.node + i)[..., None])[..., 0] for i in (0, 1))
        gradient = torch.empty_like(state)
        gradient[:, : self.n_bins] = at.d_sfr * torch.lerp(low, high, at.share)
        gradient[:, self.n_bins : d] = at.d_z * (high - low)
        gradient[:, d : d + N_NUISANCE] = (of_u @ residual[..., None])[..., 0]
        gradient[:, d + N_NUISANCE :] = residual @ self.calibration.T
        columns = torch.empty(n, self.n_state, residual.shape[1], dtype=state.dtype)
        near = self._nearest(u)
        low, high = (_take(near, at.node + i) for i in (0, 1))
        columns[:, : self.n_bins] = at.d_sfr[..., None] * torch.lerp(
            low, high, at.share[..., None]
        )
        columns[:, self.n_bins : d] = at.d_z[..., None] * (high - low)
        columns[:, d : d + N_NUISANCE] = of_u
        columns[:, d + N_NUISANCE :] = self.calibration
        return gradient, columns @ columns.transpose(1, 2)

    def _nuisance(self, u: Tensor) -> _Mix:
        """Interpolation weights of the nuisance coordinates, and their slopes."""
        physical = nuisance.to_physical(u)
        l_a, d_a = self.a_v.weights(physical.a_v)
        l_s, d_s = self.sigma_v.weights(physical.sigma_v)
        return _Mix(l_a, d_a, l_s, d_s, (physical.velocity - self.velocity_centre)[:, None])

    def _by_node(self, weights: Tensor) -> _ByNode:
        """Spectra of template weights [sample, template] at every node of A_V and sigma_v."""
        flat = (weights @ self.stacked).view(len(weights), len(self.a_v.nodes), -1, self.rank)
        return _ByNode(flat[:, :, :-2], flat[:, :, -2], flat[:, :, -1])

    def _mix(self, mix: _Mix, s: _ByNode) -> Tensor:
        at_v = s.slope * mix.dv[..., None] + 0.5 * s.curvature * mix.dv[..., None] ** 2
        over_sigma = torch.einsum("ns,nask->nak", mix.l_s, s.flux) + at_v
        return torch.einsum("na,nak->nk", mix.l_a, over_sigma)

    def _nuisance_columns(self, u: Tensor, mix: _Mix, s: _ByNode) -> Tensor:
        """dS/du [sample, 3, component]."""
        by_dust = self._mix(mix._replace(l_a=mix.d_a), s)
        by_sigma = torch.einsum("na,ns,nask->nk", mix.l_a, mix.d_s, s.flux)
        by_velocity = torch.einsum(
            "na,nak->nk", mix.l_a, s.slope + mix.dv[..., None] * s.curvature
        )
        slopes = nuisance.calc_derivative(u)
        return torch.stack([by_dust, by_sigma, by_velocity], 1) * slopes[..., None]

    def _back(self, mix: _Mix, residual: Tensor) -> Tensor:
        """Each template, at the sample's nuisance parameters, times the residual.

        Shape [sample, template].
        """
        per_s = torch.cat([mix.l_s, mix.dv, 0.5 * mix.dv**2], dim=1)
        spread = (mix.l_a[:, :, None, None] * per_s[:, None, :, None]) * residual[:, None, None]
        return spread.flatten(1) @ self.stacked.T

    def _nearest(self, u: Tensor) -> Tensor:
        """Templates [sample, bin, metallicity, component] of the nearest nodes."""
        physical = nuisance.to_physical(u)
        a = (physical.a_v[:, None] - self.a_v.nodes).abs().argmin(1)
        s = (physical.sigma_v[:, None] - self.sigma_v.nodes).abs().argmin(1)
        return self.single[a, s].view(len(u), self.n_bins, -1, self.rank)

    def calc_chi2(self, state: Tensor) -> Tensor:
        """chi² [sample] over all pixels in use."""
        return ((self.y - self.predict(state)) ** 2).sum(1) + self.outside

    def calc_flux(self, state: Tensor) -> Tensor:
        """Exact model spectra [sample, wave] on the pixels in use."""
        model = self.model
        x, u, _ = self.split(state)
        sfr, logzsol = self.scaling.from_x(x)
        p = nuisance.to_physical(u)
        fine = calc_spectrum(sfr, logzsol, model.templates, model.nodes)
        return model.observe(fine, p.a_v, p.sigma_v, p.velocity)

    def calc_loss(self, state: Tensor, flux: Tensor) -> Tensor:
        """chi² [sample] by which compression and interpolation misstate exact spectra `flux`."""
        *_, c = self.split(state)
        model = self.predict(state)
        exact = flux * self.ivar.sqrt() + c @ self.calibration @ self.basis
        return ((exact - model @ self.basis) ** 2).sum(1)


def calc_calibration_rows(
    wave: NDArray[np.float64], ends: tuple[float, float], order: int
) -> NDArray[np.float64]:
    """Legendre polynomials P_1 ... P_order [order, wave] on a range scaled to [-1, 1].

    Constant beyond the range, where the data do not hold them.
    """
    t = np.clip(2 * (wave - ends[0]) / (ends[1] - ends[0]) - 1, -1, 1)
    return np.ascontiguousarray(np.polynomial.legendre.legvander(t, order)[:, 1:].T)


class _Mix(NamedTuple):
    """Weights [sample, node] of A_V and sigma_v, their slopes, and the velocity [sample, 1]."""

    l_a: Tensor
    d_a: Tensor
    l_s: Tensor
    d_s: Tensor
    dv: Tensor


class _ByNode(NamedTuple):
    """Spectra [sample, A_V node, sigma_v node, component]; velocity terms without sigma_v node."""

    flux: Tensor
    slope: Tensor
    curvature: Tensor


class _Kinematic(NamedTuple):
    sigma: list[Tensor]
    slope: Tensor
    curvature: Tensor


def _take(mixed: Tensor, index: Tensor) -> Tensor:
    """mixed[n, bin, index[n, bin], :]."""
    expanded = index[..., None, None].expand(*index.shape, 1, mixed.shape[-1])
    return mixed.gather(2, expanded).squeeze(2)


def _scatter(at: LinearisedHistories, n_nodes: int) -> Tensor:
    """Weights [sample, bin * metallicity] of the templates."""
    weights = torch.zeros(*at.sfr.shape, n_nodes, dtype=at.sfr.dtype)
    weights.scatter_(2, at.node[..., None], (at.sfr * (1 - at.share))[..., None])
    weights.scatter_add_(2, at.node[..., None] + 1, (at.sfr * at.share)[..., None])
    return weights.flatten(1)


def span_of(u: Tensor, widen: float = 3.0) -> Span:
    """A span that holds coordinates u [sample, 3], widened by `widen` times their spread."""
    physical: Nuisance = nuisance.to_physical(u)
    limits = ((0.0, nuisance.A_V_MAX), nuisance.SIGMA_V_RANGE, (-400.0, 400.0))
    ranges = []
    for value, (lo, hi) in zip(physical, limits, strict=True):
        spread = float(value.std())
        lowest, highest = float(value.min()), float(value.max())
        if highest - lowest < 1e-9:
            ranges.append((lowest, lowest))
        else:
            pad = 0.5 * widen * spread
            ranges.append((max(lo, lowest - pad), min(hi, highest + pad)))
    return Span(*ranges)
