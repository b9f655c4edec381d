"""What an artifact may ask for, checked before anything is allocated, decoded or built.

An artifact may come from anybody. Its files can claim sizes that no disk has, point outside their
place, or unpack to more than the memory; the readers underneath trust most of these claims.

    safetensors   u64 length of the header | JSON header | tensors, back to back
    config.json   numbers that become the sizes of a network
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfhzoo.errors import ArtifactError, Incompatible

MAX_JSON_BYTES = 16 * 2**20
MAX_HEADER_BYTES = 4 * 2**20
MAX_WEIGHT_BYTES = 8 * 2**30
MAX_NUMBER = 65_536
"""Largest hyperparameter: a width, a number of channels."""
MAX_DEPTH = 256
MAX_LENGTH = 16
MAX_BINS = 4096
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}
_DEPTHS = ("blocks", "layers", "num_res_blocks", "time_branch_layers")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size without NaN; ArtifactError when it is missing or not one."""
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise ArtifactError(f"{path}: expected at most {MAX_JSON_BYTES:,} bytes, got {size:,}")
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ArtifactError(f"expected JSON at {path}: {e}") from e
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def parse_json(text: str | bytes) -> Any:
    """JSON without repeated keys, NaN or infinity; ValueError says what is wrong."""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as e:
        raise ValueError("nested too deeply") from e


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def check_safetensors(path: Path, max_bytes: int = MAX_WEIGHT_BYTES) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, by name; no tensor is read.

    Raises ArtifactError for a header or file beyond the bounds, for types other than floating
    point numbers, and where the tensors do not fill the file exactly.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise _bad(path, f"{size:,} bytes, expected at most {max_bytes:,}")
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise _bad(path, f"a header of {length:,} bytes in a file of {size:,}")
        text = f.read(length)
    try:
        header = parse_json(text)
        header.pop("__metadata__", None)
        shapes = {name: _check_tensor(name, record) for name, record in header.items()}
        spans = sorted(tuple(record["data_offsets"]) for record in header.values())
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise _bad(path, f"a header with {type(e).__name__}: {e}") from e
    position = 0
    for begin, end in spans:
        if begin != position:
            raise _bad(path, f"tensors that overlap or leave a hole at byte {position:,}")
        position = end
    if position != size - 8 - length:
        raise _bad(
            path, f"{size - 8 - length:,} bytes of tensors where its header has {position:,}"
        )
    return shapes


def _check_tensor(name: str, record: Mapping[str, Any]) -> tuple[int, ...]:
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"{name!r} of type {dtype!r}, expected one of {list(_ITEM_BYTES)}")
    begin, end = offsets
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
        raise ValueError(f"{name!r} of shape {shape} at {offsets}")
    if math.prod(shape) * _ITEM_BYTES[dtype] != end - begin:
        raise ValueError(f"{name!r} of shape {shape} in {end - begin} bytes")
    return tuple(shape)


def _bad(path: Path, what: str) -> ArtifactError:
    text = " ".join(what.split())
    return ArtifactError(f"{path}: expected safetensors, got {text}; fetch it again")


# ---- the numbers of a config --------------------------------------------------------------------


def check_config(config: Mapping[str, Any], where: Path, n_values: int) -> None:
    """Refuse a prior's or posterior network's config whose network would be absurd.

    n_values : numbers in the weights file; a network that needs more is not its network

    Raises Incompatible.
    """
    try:
        if not isinstance(config["name"], str):
            raise ValueError("`name` that is no text")
        if config["kind"] == "prior":
            _check_bins(config["cosmology"], config["n_bins"])
        _check_schedule(config["sde"])
        hyperparameters = config["hyperparameters"]
        for name, value in hyperparameters.items():
            _check_hyperparameter(name, value)
        least = _calc_least_values(config["architecture"], hyperparameters)
    except KeyError as e:
        raise Incompatible(f"{where}: missing {e}") from e
    except (AttributeError, TypeError, ValueError) as e:
        raise Incompatible(f"{where}: refused: {e}") from e
    if least > n_values:
        raise Incompatible(
            f"{where}: its network has at least {least:,} weights, the weights file {n_values:,}: "
            "they do not fit together; fetch or save the artifact again"
        )


def _check_bins(cosmology: Any, n_bins: Any) -> None:
    if not isinstance(cosmology, str):
        raise ValueError("`cosmology` that is no name")
    if type(n_bins) is not int or not 2 <= n_bins <= MAX_BINS:
        raise ValueError(f"n_bins {n_bins!r}, expected 2 to {MAX_BINS}")


def _check_schedule(sde: Mapping[str, Any]) -> None:
    if sde["kind"] != "ve":
        raise ValueError(f"sde {sde['kind']!r}, expected 've' (variance exploding)")
    lo, hi = float(sde["sigma_min"]), float(sde["sigma_max"])
    if not 0 < lo < hi < math.inf:
        raise ValueError(f"noise levels from {lo:g} to {hi:g}, expected 0 < sigma_min < sigma_max")


def _check_hyperparameter(name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    if len(values) > MAX_LENGTH:
        raise ValueError(f"`{name}` of {len(values)} values, expected at most {MAX_LENGTH}")
    limit = MAX_DEPTH if name in _DEPTHS else MAX_NUMBER
    for v in values:
        if v is None or (isinstance(v, str) and len(v) <= 64):
            continue
        if not isinstance(v, int | float) or not abs(v) <= limit:
            raise ValueError(f"`{name}` = {str(v)[:40]}, expected at most {limit:,}")


def _size(h: Mapping[str, Any], name: str, default: int) -> int:
    value = h.get(name, default)
    if type(value) is not int or value < 1:
        raise ValueError(f"`{name}` = {value!r}, expected a whole number above 0")
    return value


def _calc_least_spectral(h: Mapping[str, Any]) -> int:
    d = math.prod(h.get("shape", (2, 64)))
    width, blocks = _size(h, "width", 512), _size(h, "blocks", 5)
    return d**2 + 2 * d * width + 2 * blocks * width**2


def _calc_least_conditional(h: Mapping[str, Any]) -> int:
    d, n_features = _size(h, "n_state", 0), _size(h, "n_features", 0)
    width, blocks, condition = (
        _size(h, k, n) for k, n in (("width", 512), ("blocks", 5), ("condition", 256))
    )
    in_blocks = 2 * blocks * width * (width + condition)
    return d**2 + width * n_features + 2 * d * width + in_blocks


def _calc_least_mlp(h: Mapping[str, Any]) -> int:
    units, time = _size(h, "units", 100), _size(h, "time_embedding_dimensions", 32)
    bottleneck = _size(h, "bottleneck", 1) if h.get("bottleneck") is not None else 0
    in_time = _size(h, "time_branch_layers", 1) * time**2
    return in_time + _size(h, "layers", 2) * units**2 + 2 * bottleneck * units


def _calc_least_ncsnpp(h: Mapping[str, Any]) -> int:
    """A 3-wide convolution in each residual block, down and up."""
    nf, n = _size(h, "nf", 128), _size(h, "num_res_blocks", 2)
    levels = [_size({"ch_mult": m}, "ch_mult", 2) for m in h.get("ch_mult", (2, 2, 2, 2))]
    return 16 * nf**2 + sum((2 * n + 1) * 3 * (nf * m) ** 2 for m in levels)


_LEAST: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "spectral-mlp": _calc_least_spectral,
    "conditional-spectral-mlp": _calc_least_conditional,
    "mlp": _calc_least_mlp,
    "ncsnpp": _calc_least_ncsnpp,
}


def _calc_least_values(architecture: str, hyperparameters: Mapping[str, Any]) -> int:
    """No network of these hyperparameters has fewer weights; a few times more at most."""
    if architecture not in _LEAST:
        known = ", ".join(map(repr, _LEAST))
        raise ValueError(f"architecture {architecture!r}, expected one of {known}")
    return _LEAST[architecture](hyperparameters)
