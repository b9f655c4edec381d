"""How a prior is trained: the `[training]` table of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from sfhzoo.errors import DataError
from sfhzoo.histories import LOGZSOL_FLOOR
from sfhzoo.priors.schedule import NoiseSchedule
from sfhzoo.zoo.cards import is_name


@dataclass(frozen=True)
class TrainingOptions:
    """The `[training]` table of a recipe."""

    training_set: str
    start: str | None = None
    """name or directory of a prior whose weights to begin with; None for random ones"""
    steps: int = 40_000
    batch: int = 512
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: int = 500
    clip_norm: float = 1.0
    ema_decay: float = 0.9995
    seed: int = 0
    parametrisation: str = "log"
    logzsol_floor: float = LOGZSOL_FLOOR
    logzsol_cap: float | None = None
    cap_width: float = 0.08
    checkpoint_every: int = 1000
    architecture: str = "spectral-mlp"
    network: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_recipe(cls, recipe: dict[str, Any], where: str) -> TrainingOptions:
        """Checked against the known keys; DataError names the wrong one."""
        table = recipe.get("training", {})
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(table) - known):
            raise DataError(
                f"{where}: [training] has unknown {unknown}; known are {sorted(known)}"
            )
        if "training_set" not in table:
            raise DataError(f"{where}: [training] needs training_set, the path of a Zarr set")
        if not is_name(str(recipe.get("name"))):
            raise DataError(
                f"{where}: expected a name of the form <name>-v<N>, got {recipe.get('name')!r}"
            )
        try:
            return cls(**table)
        except (TypeError, ValueError) as e:
            raise DataError(f"{where}: [training] {e}") from e

    def __post_init__(self) -> None:
        """ValueError or TypeError for what cannot be trained."""
        limits = {
            "steps": (1, math.inf), "batch": (1, math.inf), "warmup": (0, math.inf),
            "checkpoint_every": (1, math.inf), "seed": (0, math.inf), "ema_decay": (0, 0.999999),
            "learning_rate": (1e-12, 10), "final_learning_rate": (0, 10),
            "clip_norm": (1e-12, math.inf), "cap_width": (1e-6, 10),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {low:g} to {high:g}")
        levels = NoiseSchedule(**self.schedule)
        if not 0 < levels.sigma_min < levels.sigma_max < math.inf:
            raise ValueError(f"expected 0 < sigma_min < sigma_max, got {self.schedule}")
        if self.parametrisation not in ("log", "linear"):
            raise ValueError(f"expected parametrisation log or linear: {self.parametrisation!r}")
