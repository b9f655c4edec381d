"""Histories: (SFR, metallicity) <-> the network's x, and the quantities derived from them.

`x` has shape [..., 2, bin]: channel 0 is the SFR, channel 1 the metallicity, both standardised.

    log     x_0 = (log10(SFR + floor) - mean) / std, floor 1e-4 Msun/yr       (the default)
    linear  x_0 = (SFR - mean) / std                    (Perry-Fagant et al., the published choice)

and x_1 = (log10(Z/Z_sun) - mean) / std in both. The linear form has a skewness of about 40, the
logarithmic one of about 0.1. Where a population's metallicities bend under a ceiling c over a
width w, the bend is undone first, as a network cannot draw a sharp edge:

    log Z = c - w ln(1 + exp((c - v) / w)),   x_1 = (v - mean) / std

The derived quantities count the stars formed before the observation only. They are NumPy
functions over the last axis, so any leading axes (samples, galaxies) pass through.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfhzoo.timebins import TimeBins
from sfhzoo.units import YR_PER_GYR

if TYPE_CHECKING:
    import torch

SFR_FLOOR = 1e-4
"""Msun/yr, added before the logarithm: a floor of 1e-11 would put a 7 dex cliff into x."""
LOGZSOL_FLOOR = -3.0
SSFR_FLOOR = 1e-14
"""1/yr"""


class Histories(NamedTuple):
    """Star formation rate and metallicity, each [..., bin]: Msun/yr and log10(Z/Z_sun)."""

    sfr: Any
    logzsol: Any


@dataclass(frozen=True)
class HistoryScaling:
    """The invertible map between histories and x.

    Parameters
    ----------
    kind : "log" (default) or "linear"
    mean, std : [2, bin] of the training set, in the units of the map
    sfr_floor : Msun/yr, used by "log"
    logzsol_floor : lowest metallicity
    logzsol_cap, cap_width : ceiling c and width w of the metallicities; no ceiling if None
    """

    kind: Literal["log", "linear"]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    sfr_floor: float = SFR_FLOOR
    logzsol_floor: float = LOGZSOL_FLOOR
    logzsol_cap: float | None = None
    cap_width: float = 0.08

    def __post_init__(self) -> None:
        if self.kind not in ("log", "linear"):
            raise ValueError(f"expected kind 'log' or 'linear', got {self.kind!r}")
        if np.shape(self.mean) != np.shape(self.std) or np.shape(self.mean)[0] != 2:
            raise ValueError(
                f"expected mean and std of shape [2, bin], got {np.shape(self.mean)} "
                f"and {np.shape(self.std)}"
            )
        if not (np.all(np.isfinite(self.mean)) and np.all(np.asarray(self.std) > 0)):
            raise ValueError("expected finite means and positive standard deviations")

    @classmethod
    def fit(
        cls,
        sfr: NDArray[np.floating],
        logzsol: NDArray[np.floating],
        kind: Literal["log", "linear"] = "log",
        **bounds: Any,
    ) -> HistoryScaling:
        """The z-score of a training set; `sfr` and `logzsol` are [galaxy, bin].

        `bounds` are the fields sfr_floor, logzsol_floor, logzsol_cap and cap_width.
        """
        neutral = cls(kind, np.zeros((2, sfr.shape[1])), np.ones((2, sfr.shape[1])), **bounds)
        u = neutral._channels(np.asarray(sfr, float), np.asarray(logzsol, float))
        std = u.std(axis=0)
        # bins in which nothing varies (no galaxy formed stars) still need an invertible map
        smallest = 1e-3 * np.maximum(std.max(axis=1, keepdims=True), 1e-3)
        return cls(kind, u.mean(axis=0), np.maximum(std, smallest), **bounds)

    def _channels(self, sfr: Any, logzsol: Any) -> NDArray[np.float64]:
        first = np.log10(sfr + self.sfr_floor) if self.kind == "log" else sfr
        second = np.maximum(logzsol, self.logzsol_floor)
        if self.logzsol_cap is not None:
            below = np.maximum(self.logzsol_cap - second, 1e-7) / self.cap_width
            # ln(e^y - 1), written so that it does not overflow far below the ceiling
            second = self.logzsol_cap - self.cap_width * (below + np.log(-np.expm1(-below)))
        return np.stack([first, second], axis=-2)

    def to_x(self, sfr: ArrayLike, logzsol: ArrayLike) -> NDArray[np.float64]:
        """x [..., 2, bin] of histories [..., bin]; SFR below zero is an error."""
        sfr, logzsol = np.asarray(sfr, float), np.asarray(logzsol, float)
        if np.any(sfr < 0):
            raise ValueError(f"expected SFR >= 0, got {sfr.min()}")
        return (self._channels(sfr, logzsol) - self.mean) / self.std

    def from_x(self, x: torch.Tensor) -> Histories:
        """Histories (torch tensors, differentiable) of x [..., 2, bin]; SFR is cut at zero."""
        import torch

        mean = torch.as_tensor(self.mean, dtype=x.dtype, device=x.device)
        std = torch.as_tensor(self.std, dtype=x.dtype, device=x.device)
        u = x * std + mean
        # 10^30 Msun/yr is beyond any galaxy but keeps a wild network output finite
        first = u[..., 0, :]
        sfr = 10.0 ** first.clamp(max=30.0) - self.sfr_floor if self.kind == "log" else first
        logzsol = u[..., 1, :]
        if self.logzsol_cap is not None:
            above = (self.logzsol_cap - logzsol) / self.cap_width
            logzsol = self.logzsol_cap - self.cap_width * torch.nn.functional.softplus(above)
        return Histories(torch.clamp(sfr, min=0.0), torch.clamp(logzsol, min=self.logzsol_floor))

    def calc_logzsol_slope(self, logzsol: torch.Tensor) -> torch.Tensor:
        """d logzsol / dx_1 [..., bin] at metallicities [..., bin] below the ceiling."""
        import torch

        std = torch.as_tensor(self.std[1], dtype=logzsol.dtype, device=logzsol.device)
        if self.logzsol_cap is None:
            return std.expand_as(logzsol)
        return std * -torch.expm1(-(self.logzsol_cap - logzsol) / self.cap_width)

    def to_dict(self) -> dict[str, Any]:
        """As stored in an artifact's config.json."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            **numbers,
            "mean": np.asarray(self.mean).tolist(),
            "std": np.asarray(self.std).tolist(),
        }

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> HistoryScaling:
        """The inverse of `to_dict`."""
        return cls(
            **{**d, "mean": np.asarray(d["mean"], float), "std": np.asarray(d["std"], float)}
        )


def fill_empty_metallicity(
    sfr: NDArray[np.float64], logzsol: NDArray[np.float64], floor: float = LOGZSOL_FLOOR
) -> NDArray[np.float64]:
    """Metallicity [galaxy, bin] with each empty bin (SFR = 0) given the last value before it.

    Leading empty bins get the first value that follows; a galaxy without stars gets the floor.
    """
    n_bins = sfr.shape[1]
    full = sfr > 0
    last = np.maximum.accumulate(np.where(full, np.arange(n_bins), -1), axis=1)
    first = np.where(full.any(axis=1), full.argmax(axis=1), 0)
    source = np.where(last >= 0, last, first[:, None])
    filled = np.take_along_axis(logzsol, source, axis=1)
    return np.maximum(np.where(full.any(axis=1, keepdims=True), filled, floor), floor)


# ---- derived quantities -------------------------------------------------------------------------


def calc_mass_formed_per_bin(
    sfr: ArrayLike, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    """Mass [..., bin] formed in each bin before `cosmic_time` (Gyr), Msun; `sfr` in Msun/yr."""
    return np.asarray(sfr, float) * bins.overlap(cosmic_time) * YR_PER_GYR


def calc_mass_formed(sfr: ArrayLike, bins: TimeBins, cosmic_time: float) -> NDArray[np.float64]:
    """Mass [...] formed before `cosmic_time` (Gyr), Msun."""
    return calc_mass_formed_per_bin(sfr, bins, cosmic_time).sum(axis=-1)


def calc_formation_quantile(
    sfr: ArrayLike, bins: TimeBins, cosmic_time: float, fraction: float
) -> NDArray[np.float64]:
    """Cosmic time [...] (Gyr) by which `fraction` of the mass formed before `cosmic_time` existed.

    Exact for piecewise-constant SFR: linear in the cumulative mass within a bin. NaN without mass.
    """
    mass = calc_mass_formed_per_bin(sfr, bins, cosmic_time)
    cumulative = np.cumsum(mass, axis=-1)
    total = cumulative[..., -1:]
    target = fraction * total
    j = np.argmax(cumulative >= target, axis=-1)[..., None]
    in_bin = np.take_along_axis(mass, j, axis=-1)
    before = np.take_along_axis(cumulative, j, axis=-1) - in_bin
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (target - before) / in_bin
    time = bins.edges[j] + part * bins.overlap(cosmic_time)[j]
    return np.where(total[..., 0] > 0, time[..., 0], np.nan)


def calc_age_mass_weighted(
    sfr: ArrayLike, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    """Mass-weighted age [...] at the observation, Gyr before `cosmic_time`. NaN without mass."""
    mass = calc_mass_formed_per_bin(sfr, bins, cosmic_time)
    age = cosmic_time - (bins.edges[:-1] + 0.5 * bins.overlap(cosmic_time))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (mass * age).sum(axis=-1) / mass.sum(axis=-1)


def calc_logzsol_mass_weighted(
    sfr: ArrayLike, logzsol: ArrayLike, bins: TimeBins, cosmic_time: float
) -> NDArray[np.float64]:
    """log10 of the mass-weighted mean Z/Z_sun [...] of stars formed before `cosmic_time`."""
    mass = calc_mass_formed_per_bin(sfr, bins, cosmic_time)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log10(
            (mass * 10.0 ** np.asarray(logzsol, float)).sum(axis=-1) / mass.sum(axis=-1)
        )


def calc_sfr_recent(
    sfr: ArrayLike, bins: TimeBins, cosmic_time: float, window: float
) -> NDArray[np.float64]:
    """Mean SFR [...] (Msun/yr) over the last `window` Gyr before `cosmic_time`.

    Bins are piecewise constant, so a window shorter than a bin (0.2156 Gyr) sees one or two bins.
    """
    recent = bins.overlap(cosmic_time) - bins.overlap(cosmic_time - window)
    return (np.asarray(sfr, float) * recent).sum(axis=-1) / window


def calc_ssfr(
    sfr: ArrayLike,
    bins: TimeBins,
    cosmic_time: float,
    mass_surviving: ArrayLike,
    window: float = 1.0,
) -> NDArray[np.float64]:
    """Mean SFR of the last `window` Gyr over the surviving mass [...], 1/yr, floored at 1e-14."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ssfr = calc_sfr_recent(sfr, bins, cosmic_time, window) / np.asarray(mass_surviving, float)
    return np.maximum(ssfr, SSFR_FLOOR)
