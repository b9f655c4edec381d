"""The choices of a fit that do not depend on the artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfhzoo.errors import UsageError
from sfhzoo.likelihood import nuisance
from sfhzoo.likelihood.problem import CALIBRATION_RMS

Free = Literal["free"] | float
Switch = Literal["free", "fixed"]


@dataclass(frozen=True)
class Options:
    """The choices of a fit; see `infer`."""

    a_v: Free = "free"
    sigma_v: Free = "free"
    calibration_order: int | Literal["auto"] = "auto"
    calibration_rms: float = CALIBRATION_RMS
    redshift_offset: Switch = "free"
    jitter: Switch = "free"
    lines: Literal["mask", "keep"] = "mask"
    exclude: tuple[tuple[float, float], ...] = ()
    wave_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        ranges = {"a_v": (0.0, nuisance.A_V_MAX), "sigma_v": nuisance.SIGMA_V_RANGE}
        for name, (low, top) in ranges.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and low <= value <= top
            if value != "free" and not number:
                raise UsageError(f"expected {name} 'free' or {low:g} to {top:g}, got {value!r}")
        for name in ("redshift_offset", "jitter"):
            if getattr(self, name) not in ("free", "fixed"):
                raise UsageError(f"expected {name} 'free' or 'fixed', got {getattr(self, name)!r}")
        order = self.calibration_order
        if order != "auto" and not 0 <= order <= 30:
            raise UsageError(f"expected calibration order 'auto' or 0 to 30, got {order}")
        if not 0 < self.calibration_rms <= 0.2:
            raise UsageError(f"expected calibration rms 0 to 0.2, got {self.calibration_rms}")
