"""The Gaussian likelihood of a spectrum on a compressed basis, with its analytic Jacobian.

A model spectrum is a sum of templates, so it lies in their span; the noise-weighted data and
templates are projected on an orthonormal basis of that span, and little is lost. With whitened
data y (flux / error) and pixels P >> R:

    chi²(state) = | Q^T y - S(state) |² + | y - Q Q^T y |²

S, its templates and Jacobian have R numbers per spectrum. Dust is smooth over a line width, so it
is applied after the velocities, at the mean one; A_V and sigma_v are then interpolated by
polynomials between exact nodes that span what the posterior needs, the velocity offset by a
parabola. How much chi² all this loses is measured on the final samples (`calc_loss`), not assumed.

Band fluxes are further data: y, Q and the templates each gain a block, Q's is 1. Velocities and
the calibration polynomial do not move them; a factor on the errors is the spectrum's alone.

The state is (x, u, c): standardised history, nuisance coordinates, calibration coefficients. The
calibration polynomial, sum_n c_n P_n(t), multiplies a reference spectrum: S is linear in c.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from sfhzoo.forward.attenuation import calc_attenuation, calc_calzetti_curve
from sfhzoo.forward.model import ForwardModel, calc_spectrum
from sfhzoo.histories import HistoryScaling
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.basis import calc_light, choose_basis, factorise
from sfhzoo.likelihood.calibration import calc_calibration_rows
from sfhzoo.likelihood.interpolation import Polynomial, count_exponential_nodes, count_nodes
from sfhzoo.likelihood.linearised import linearise_histories, scatter_weights
from sfhzoo.likelihood.nuisance import N_NUISANCE, Nuisance
from sfhzoo.likelihood.problem import Bands
from sfhzoo.units import LN10, SPEED_OF_LIGHT

MIN_FREEDOM = 50
"""Pixels beyond the model's span that are needed to estimate the factor on the errors."""
MAX_LOSS = 0.6
"""Relative loss of SFR up to which a step is linear in SFR; then it goes on in its logarithm."""
BAND_TOLERANCE = 1e-4
"""Relative error of a band's flux by interpolation in A_V."""


class Span(NamedTuple):
    """Ranges (lo, hi) of A_V (mag), sigma_v and velocity (km/s) over which S must be accurate."""

    a_v: tuple[float, float]
    sigma_v: tuple[float, float]
    velocity: tuple[float, float]


class CompressedLikelihood:
    """chi² and Jacobian of states for one observation.

    Parameters
    ----------
    model : forward model on the pixels in use
    flux, ivar : [wave] of those pixels
    scaling : of the prior's x
    span : where S must be accurate
    typical_sfr : [bin] Msun/yr, weights the templates when the basis is chosen
    generator : for the random probes of the templates' span
    bands : band fluxes, or None

    Attributes
    ----------
    basis : Q [component, wave + band]; in_bands [component] tells which components are bands
    columns : [wave + band, order] calibration polynomials times the reference, over the errors
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
        bands: Bands | None = None,
    ) -> None:
        self.model, self.scaling, self.ivar, self.bands = model, scaling, ivar, bands
        self.n_bins = model.templates.shape[0]
        weight = ivar.sqrt()
        self.whitened = flux * weight
        self.a_v = Polynomial.over(*span.a_v, self._count_dust_nodes(span))
        relative = (span.sigma_v[1] - span.sigma_v[0]) / (span.sigma_v[0] + 50.0)
        self.sigma_v = Polynomial.over(*span.sigma_v, count_nodes(relative, 0.1, 0.4))
        self.velocity_centre = 0.5 * (span.velocity[0] + span.velocity[1])
        self.velocity_step = max(0.5 * (span.velocity[1] - span.velocity[0]), 1.0)
        spectra, coefficients = factorise(model.templates.flatten(0, 1))
        kinematic = self._kinematic_spectra(spectra, weight)
        rest = model.wave_obs / (1 + model.redshift) / (1 + self.velocity_centre / SPEED_OF_LIGHT)
        curve = torch.from_numpy(calc_calzetti_curve(rest))
        dust = [calc_attenuation(a, curve) for a in self.a_v.nodes]
        light = coefficients * calc_light(typical_sfr, len(model.nodes))[:, None]
        spread = self.velocity_step
        kinds = [*kinematic.sigma, kinematic.slope * spread, kinematic.curvature * spread**2]
        self.basis = choose_basis(kinds, light, dust, generator)
        project = lambda t, d: coefficients @ ((t * d) @ self.basis.T)  # noqa: E731
        templates = torch.stack(
            [torch.stack([project(t, d) for t in kinematic.sigma]) for d in dust]
        )
        of_velocity = [
            torch.stack([project(t, d) for t in (kinematic.slope, kinematic.curvature)])
            for d in dust
        ]
        # [template, (A_V node, sigma_v node | velocity terms, component)]: one matrix product
        stacked = torch.cat([templates, torch.stack(of_velocity)], dim=1)
        self.in_bands = torch.zeros(len(self.basis), dtype=torch.bool)
        if bands is not None:
            stacked = torch.cat([stacked, self._calc_band_templates(bands)], dim=3)
            self.whitened = torch.cat([self.whitened, bands.whitened])
            self.basis = torch.block_diag(self.basis, torch.eye(len(bands), dtype=flux.dtype))
            self.in_bands = pad(self.in_bands, (0, len(bands)), value=True)
        self.y = self.basis @ self.whitened
        self.outside = float((self.whitened**2).sum() - (self.y**2).sum())
        self.stacked = stacked.permute(2, 0, 1, 3).flatten(1).contiguous()
        self.by_mix = stacked.flatten(0, 1).flatten(1)
        self.rank = len(self.basis)
        self.columns = torch.zeros(len(self.whitened), 0, dtype=torch.float64)
        self.calibration = torch.zeros(0, self.rank, dtype=torch.float64)

    def calibrated(self, reference: Tensor, order: int) -> CompressedLikelihood:
        """With a calibration polynomial of that order, which multiplies `reference` [wave].

        The reference needs the galaxy's lines and little noise. Without lines (smoothed data)
        they would seem to tell calibration from dust, and A_V come out with half its error; the
        noise of the data themselves does the opposite.
        """
        other = copy(self)
        other.columns = self.calc_columns(reference, order)
        # templates lie in the span of the basis, so they have no part along what is added
        added = torch.linalg.qr(torch.cat([self.basis.T, other.columns], 1))[0][:, self.rank :].T
        other.basis = torch.cat([self.basis, added])
        other.y = other.basis @ self.whitened
        other.outside = float((self.whitened**2).sum() - (other.y**2).sum())
        other.calibration = other.columns.T @ other.basis.T
        other.rank = len(other.basis)
        other.in_bands = pad(self.in_bands, (0, len(added)), value=False)
        for name in ("stacked", "by_mix"):
            own = getattr(self, name)
            padded = pad(own.view(-1, self.rank), (0, len(added)))
            setattr(other, name, padded.view(len(own), -1))
        return other

    def calc_columns(self, reference: Tensor, order: int) -> Tensor:
        """Legendre polynomials times `reference` [wave], over the errors [wave + band, order]."""
        wave = self.model.wave_obs
        rows = torch.from_numpy(calc_calibration_rows(wave, (wave[0], wave[-1]), order))
        return self.extend((rows * reference * self.ivar.sqrt()).T)

    @property
    def n_calibration(self) -> int:
        return len(self.calibration)

    def marginal(self, transform: Tensor) -> CompressedLikelihood:
        """S seen through `transform` [r, R]; its states have no calibration coefficients.

        Only `predict` and `linearise` of the result mean anything.
        """
        other = copy(self)
        other.stacked = (self.stacked.view(-1, self.rank) @ transform.T).view(
            len(self.stacked), -1
        )
        n_mix = len(self.by_mix)
        other.by_mix = (self.by_mix.view(n_mix, -1, self.rank) @ transform.T).view(n_mix, -1)
        other.calibration = self.calibration.new_zeros(0, len(transform))
        other.rank = len(transform)
        return other

    def extend(self, columns: Tensor) -> Tensor:
        """Columns [wave, k] with rows for the bands, which are 0: [wave + band, k]."""
        return columns if self.bands is None else pad(columns, (0, 0, 0, len(self.bands)))

    def per_component(self, value: float) -> Tensor:
        """[component] `value` for those of the spectrum, 1 for bands."""
        return torch.full_like(self.y, value).masked_fill(self.in_bands, 1.0)

    @property
    def n_nodes(self) -> int:
        """Number of metallicity nodes."""
        return len(self.model.nodes)

    @property
    def n_state(self) -> int:
        return 2 * self.n_bins + N_NUISANCE + self.n_calibration

    def _count_dust_nodes(self, span: Span) -> int:
        width = span.a_v[1] - span.a_v[0]
        n = count_nodes(width, 0.2, 0.8)
        if self.bands is None:
            return n
        exponent = 0.4 * LN10 * self.bands.steepness * width
        return max(n, count_exponential_nodes(exponent, BAND_TOLERANCE))

    def _calc_band_templates(self, bands: Bands) -> Tensor:
        """[A_V node, sigma_v node | velocity terms, template, band] over the errors."""
        seen = (bands.model.at(self.a_v.nodes) / bands.error).flatten(1, 2)
        kinds = torch.ones(len(self.sigma_v.nodes) + 2, dtype=seen.dtype)
        kinds[-2:] = 0.0
        return kinds[:, None, None] * seen[:, None]

    def _kinematic_spectra(self, spectra: Tensor, weight: Tensor) -> _Kinematic:
        """Whitened spectra [spectrum, wave] at the sigma_v nodes, and their velocity terms."""
        v0, step = self.velocity_centre, self.velocity_step
        seen = lambda s, v: self.model.observe(spectra, 0.0, s, v) * weight  # noqa: E731
        at = [seen(float(s), v0) for s in self.sigma_v.nodes]
        middle = float(self.sigma_v.nodes.mean())
        here = at[0] if len(at) == 1 else seen(middle, v0)
        up, down = seen(middle, v0 + step), seen(middle, v0 - step)
        return _Kinematic(at, (up - down) / (2 * step), (up + down - 2 * here) / step**2)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [sample, 2, bin], u [sample, 3] and c [sample, order] of states."""
        d = 2 * self.n_bins
        x = state[:, :d].view(len(state), 2, self.n_bins)
        return x, state[:, d : d + N_NUISANCE], state[:, d + N_NUISANCE :]

    def predict(self, state: Tensor) -> Tensor:
        """S [sample, component]."""
        x, u, c = self.split(state)
        at = linearise_histories(self.scaling, self.model.nodes, x)
        by_node = self._by_node(scatter_weights(at, self.n_nodes))
        return self._mix(self._nuisance(u), by_node) + c @ self.calibration

    def predict_uncalibrated(self, state: Tensor) -> Tensor:
        """S [sample, component] without calibration, whose coefficients `state` may lack."""
        return self.predict(pad(state[:, : 2 * self.n_bins + N_NUISANCE], (0, self.n_calibration)))

    def linearise(self, state: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """J r [sample, n_state] and J J^T [sample, n_state, n_state], J = dS/dstate.

        Both are exact for the interpolated S: the data fix some directions a thousand times better
        than others, so a per cent of error in J sends a step the wrong way.
        """
        x, u, _ = self.split(state)
        n, d = len(state), 2 * self.n_bins
        at = linearise_histories(self.scaling, self.model.nodes, x)
        mix = self._nuisance(u)
        columns = torch.empty(n, self.n_state, self.rank, dtype=state.dtype)
        seen = (mix.weights() @ self.by_mix).view(-1, self.rank)
        row = torch.arange(n * self.n_bins).view(n, -1) * self.n_nodes + at.node
        low, high = seen[row], seen[row + 1]
        columns[:, : self.n_bins] = at.d_sfr[..., None] * torch.lerp(
            low, high, at.share[..., None]
        )
        columns[:, self.n_bins : d] = at.d_z[..., None] * (high - low)
        by_node = self._by_node(scatter_weights(at, self.n_nodes))
        columns[:, d : d + N_NUISANCE] = self._nuisance_columns(u, mix, by_node)
        columns[:, d + N_NUISANCE :] = self.calibration
        gradient = (columns @ residual[..., None])[..., 0]
        return gradient, columns @ columns.transpose(1, 2)

    def move(self, state: Tensor, step: Tensor) -> Tensor:
        """States `step` away, to first order state + step, on a path along which S is straight.

        In log SFR a relative change d of a bin with signal-to-noise ratio F moves the flux by
        F d² / 2 past its linear prediction, and F may be 100; in (SFR, SFR Z) the flux is linear
        between nodes of metallicity. So steps are computed in x but taken there.
        """
        scaling, bins = self.scaling, self.n_bins
        new = state + step
        if scaling.kind != "log":
            return new
        per_x = LN10 * torch.as_tensor(scaling.std[0], dtype=state.dtype)
        d = per_x * step[:, :bins]
        inside = torch.log1p(d.clamp(min=-MAX_LOSS))
        ln_ratio = inside + (d + MAX_LOSS).clamp(max=0.0) / (1 - MAX_LOSS)
        new[:, :bins] = state[:, :bins] + ln_ratio / per_x
        # S depends on SFR Z: the same change of it moves Z less where the SFR has grown
        share = torch.exp(-ln_ratio).clamp(0.2, 1 / (1 - MAX_LOSS))
        z = slice(bins, 2 * bins)
        new[:, z] = state[:, z] + share * step[:, z]
        return new

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

    def calc_chi2(self, state: Tensor) -> Tensor:
        """chi² [sample] over all pixels in use, and bands."""
        return ((self.y - self.predict(state)) ** 2).sum(1) + self.outside

    def calc_flux(self, state: Tensor) -> Tensor:
        """Exact model spectra [sample, wave] on the pixels in use."""
        model = self.model
        x, u, _ = self.split(state)
        sfr, logzsol = self.scaling.from_x(x)
        p = nuisance.to_physical(u)
        fine = calc_spectrum(sfr, logzsol, model.templates, model.nodes)
        return model.observe(fine, p.a_v, p.sigma_v, p.velocity)

    def calc_bands(self, state: Tensor) -> Tensor:
        """Exact band fluxes [sample, band], maggies; [sample, 0] without bands."""
        if self.bands is None:
            return state.new_zeros(len(state), 0)
        x, u, _ = self.split(state)
        return self.bands.model(*self.scaling.from_x(x), nuisance.to_physical(u).a_v)

    def to_flux(self, components: Tensor) -> Tensor:
        """Spectra [..., wave] of `components` [..., component], erg/s/cm²/Å."""
        weight = self.ivar.sqrt()
        return (components @ self.basis)[..., : len(weight)] / weight

    def calc_loss(self, state: Tensor, flux: Tensor, scale: float = 1.0) -> Tensor:
        """chi² [sample] by which compression and interpolation misstate exact spectra `flux`.

        `scale` is a further factor on the spectrum's errors.
        """
        rebuilt = self.predict_uncalibrated(state) @ self.basis
        n = flux.shape[1]
        loss = ((flux * self.ivar.sqrt() - rebuilt[:, :n]) ** 2).sum(1) / scale**2
        if self.bands is None:
            return loss
        return loss + ((self.calc_bands(state) / self.bands.error - rebuilt[:, n:]) ** 2).sum(1)

    def calc_outside_rms(self) -> float:
        """rms residual, in units of the errors, of the flux outside the span of all templates.

        1 where fewer than `MIN_FREEDOM` pixels are left over.
        """
        freedom = len(self.whitened) - self.rank
        if freedom < MIN_FREEDOM or self.outside <= 0:
            return 1.0
        return float((self.outside / freedom) ** 0.5)


class _Mix(NamedTuple):
    """Weights [sample, node] of A_V and sigma_v, their slopes, and the velocity [sample, 1]."""

    l_a: Tensor
    d_a: Tensor
    l_s: Tensor
    d_s: Tensor
    dv: Tensor

    def weights(self) -> Tensor:
        """Of the templates at (A_V node, sigma_v node | velocity terms) [sample, mix]."""
        per_s = torch.cat([self.l_s, self.dv, 0.5 * self.dv**2], dim=1)
        return (self.l_a[:, :, None] * per_s[:, None]).flatten(1)


class _ByNode(NamedTuple):
    """Spectra [sample, A_V node, sigma_v node, component]; velocity terms without sigma_v node."""

    flux: Tensor
    slope: Tensor
    curvature: Tensor


class _Kinematic(NamedTuple):
    sigma: list[Tensor]
    slope: Tensor
    curvature: Tensor


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
