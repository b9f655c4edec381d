"""What a checkpoint does not know: a TOML file that the user writes.

Bins, cosmology, standardisation, floors, and what the network was trained on; `TEMPLATE` is a file
to fill in.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfhzoo.errors import DataError
from sfhzoo.histories import HistoryScaling
from sfhzoo.timebins import resolve_cosmology

TEMPLATE = """\
# What a checkpoint of score_models does not know. x has the shape [2, bin]: channel 0 is the star
# formation rate, channel 1 the metallicity; bin 0 is the Big Bang, the last bin is today.
[histories]
n_bins = 64                # equal bins of cosmic time
cosmology = "Planck15"     # a name in astropy.cosmology

[scaling]                  # x = (u - mean) / std, as in training
kind = "log"               # u_0 = log10(SFR + sfr_floor), or "linear": u_0 = SFR, in Msun/yr
sfr_floor = 1e-4           # Msun/yr; only for "log"
logzsol_floor = -3.0       # lowest metallicity; u_1 = log10(Z / 0.0142)
mean = []                  # two numbers, or two lists of n_bins (or use --scaling FILE.npz)
std = []

[training_set]
origin = ""                # the simulation, for example "IllustrisTNG TNG50-1"
summary = ""               # which galaxies, in one line
sha256 = "unknown"         # of the training set, if there is one
license = ""               # of the weights, for example "cc-by-4.0"
citation = ''''''        # BibTeX: @ARTICLE{...}
"""
_REQUIRED: dict[str, dict[str, type]] = {
    "histories": {"n_bins": int, "cosmology": str},
    "scaling": {"kind": str, "logzsol_floor": float, "mean": list, "std": list},
    "training_set": {"origin": str, "summary": str, "license": str, "citation": str},
}
_OPTIONAL: dict[str, dict[str, type]] = {
    "histories": {},
    "scaling": {"sfr_floor": float, "logzsol_cap": float, "cap_width": float},
    "training_set": {"sha256": str},
}


@dataclass(frozen=True)
class About:
    """What the user says of a checkpoint."""

    n_bins: int
    cosmology: str
    scaling: HistoryScaling
    training_set: dict[str, str]


def read_about(path: Path, scaling_path: Path | None = None) -> About:
    """What the user says of a checkpoint, from TOML; see `TEMPLATE`.

    scaling_path : .npz with the arrays `mean` and `std` [2, bin], instead of the file's own

    Raises DataError that names every missing key, the unknown one, or the wrong value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise DataError(f"{path}: expected TOML: {e}") from e
    if scaling_path is not None and isinstance(content.get("scaling"), dict):
        content["scaling"] |= _read_arrays(scaling_path)
    _check_keys(content, path)
    histories, scaling = content["histories"], content["scaling"]
    try:
        resolve_cosmology(histories["cosmology"])
        arrays = {k: _per_bin(scaling[k], histories["n_bins"]) for k in ("mean", "std")}
        return About(
            scaling=HistoryScaling(**{**scaling, **arrays}),
            training_set={"sha256": "unknown", **content["training_set"]},
            **histories,
        )
    except (TypeError, ValueError) as e:
        raise DataError(f"{path}: {e}") from e


def _check_keys(content: dict[str, Any], path: Path) -> None:
    known = {table: _REQUIRED[table] | _OPTIONAL[table] for table in _REQUIRED}
    flat = [
        (t, k) for t, keys in content.items() for k in (keys if isinstance(keys, dict) else [""])
    ]
    if unknown := [f"[{t}] {k}".strip() for t, k in flat if k not in known.get(t, {})]:
        raise DataError(
            f"{path}: unknown {', '.join(unknown)}; see sfhzoo import-checkpoint --template"
        )
    required = [(t, k) for t, keys in _REQUIRED.items() for k in keys]
    if content.get("scaling", {}).get("kind") == "log":
        required.append(("scaling", "sfr_floor"))
    if missing := [f"[{t}] {k}" for t, k in required if k not in content.get(t, {})]:
        raise DataError(
            f"{path}: missing {', '.join(missing)}; sfhzoo import-checkpoint --template prints a "
            "file to fill in"
        )
    for table, key in flat:
        value, kind = content[table][key], known[table][key]
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or value == "" or value == []:
            raise DataError(
                f"{path}: [{table}] {key}: expected {kind.__name__}, got {value!r:.60}"
            )


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {k: np.asarray(arrays[k], float).tolist() for k in ("mean", "std")}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(
            f"{path}: expected a .npz with the arrays mean and std [2, bin]: {e}"
        ) from e


def _per_bin(values: list[Any], n_bins: int) -> NDArray[np.float64]:
    """[2, bin] of [2] or [2, bin]."""
    array = np.asarray(values, float)
    if array.shape not in ((2,), (2, n_bins)):
        raise ValueError(f"expected mean and std of shape [2] or [2, {n_bins}], got {array.shape}")
    return np.broadcast_to(array.reshape(2, -1), (2, n_bins)).copy()
