"""A checkpoint directory of score_models -> the artifact of a prior. Once, offline.

    model_hparams.json                 architecture, its hyperparameters, the SDE
    checkpoint_<loss>_<number>.pt      averaged weights, a pickle: opened here and nowhere else,
                                       by PyTorch's weights-only reader, which builds tensors only
    score_sheet.txt                    number and loss of every checkpoint ever written

What a checkpoint does not know comes from `zoo.about`.
"""

from __future__ import annotations

import math
import re

# the name of an exception: nothing is unpickled with this module
from _pickle import UnpicklingError
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfhzoo.errors import ArtifactError, Incompatible, UsageError
from sfhzoo.zoo import artifacts, bounds
from sfhzoo.zoo.about import About
from sfhzoo.zoo.cards import is_name

if TYPE_CHECKING:
    from torch import Tensor

HPARAMS = "model_hparams.json"
_OF_SDE = ("sde", "sigma_min", "sigma_max", "T", "epsilon", "model_architecture")
_OF_MODEL = re.compile(r"checkpoint_(?P<loss>[^_]+)_(?P<number>\d+)\.pt")


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights; `loss` is what the score sheet or the file's name says."""

    path: Path
    number: int
    loss: float


def import_checkpoint(
    directory: Path, name: str, out: Path, about: About, which: str = "last"
) -> Checkpoint:
    """Write the artifact of a checkpoint directory into `out`; returns what was imported.

    which : "last" (the highest number, as score_models itself loads), "best" (the lowest loss) or
        a number

    Raises UsageError for a wrong name or number, ArtifactError for a file that is not just
    tensors, Incompatible for a model or SDE that no prior of sfhzoo can be.
    """
    from sfhzoo.priors.network import build_network
    from sfhzoo.priors.schedule import NoiseSchedule

    if not is_name(name):
        raise UsageError(f"expected a name like tng50-v1 (lower case, version), got {name!r}")
    where = directory / HPARAMS
    network_config = read_hparams(where, about.n_bins)
    found = find_checkpoint(directory, which)
    weights = read_weights(found.path)
    config = {"name": name, **network_config, **_describe(about, found)}
    bounds.check_config(config, where, sum(w.numel() for w in weights.values()))
    architecture = config["architecture"]
    network = build_network(
        architecture, config["hyperparameters"], NoiseSchedule.from_dict(config["sde"])
    )
    prefix = "net." if architecture == "mlp" else ""
    artifacts.load_weights(network, {f"{prefix}{k}": w for k, w in weights.items()}, found.path)
    artifacts.save_artifact(out, config, network)
    (out / "README.md").write_text(write_card(name, about, found), encoding="utf-8")
    artifacts.write_manifest(out)
    artifacts.load_prior(out)
    return found


def _describe(about: About, found: Checkpoint) -> dict[str, Any]:
    """The part of config.json that does not concern the network."""
    return {
        "kind": "prior",
        "scaling": about.scaling.to_dict(),
        "cosmology": about.cosmology,
        "n_bins": about.n_bins,
        "simulation": {"engine": about.training_set["origin"]},
        "training_set": about.training_set,
        "training": {
            "imported_from": "a checkpoint of score_models",
            "file": found.path.name,
            "sha256": artifacts.sha256_of(found.path),
            "number": found.number,
            "final_loss": found.loss,
        },
    }


def read_hparams(path: Path, n_bins: int) -> dict[str, Any]:
    """`architecture`, `hyperparameters` and `sde` of config.json, from model_hparams.json.

    Raises Incompatible where the model is none that a prior over histories [2, bin] can be.
    """
    hparams = bounds.read_json(path)
    architecture = str(hparams.get("model_architecture", "ncsnpp")).lower()
    _check_model(hparams, architecture, path)
    kept = {k: v for k, v in hparams.items() if k not in _OF_SDE}
    if architecture == "mlp":
        kept.pop("dimensions", None)
        kept = {"shape": [2, n_bins], **kept}
    # score_models draws t uniformly, which is log-uniform in sigma
    levels = {k: hparams.get(k) for k in ("sigma_min", "sigma_max")}
    sde = {"kind": "ve", **levels, "uniform_fraction": 1.0}
    return {"architecture": architecture, "hyperparameters": kept, "sde": sde}


def _check_model(hparams: dict[str, Any], architecture: str, path: Path) -> None:
    number = (int, float)
    fits = {
        "model_architecture": (architecture in ("ncsnpp", "mlp"), "NCSNpp or MLP"),
        "sde": (str(hparams.get("sde", "ve")).lower() in ("ve", "vesde"), "ve"),
        "sigma_min": (isinstance(hparams.get("sigma_min"), number), "a number"),
        "sigma_max": (isinstance(hparams.get("sigma_max"), number), "a number"),
        "T": (hparams.get("T", 1.0) == 1.0, "1"),
        "nn_is_energy": (not hparams.get("nn_is_energy"), "false"),
    }
    if architecture == "ncsnpp":
        fits["channels"] = (hparams.get("channels") == 2, "2 (SFR and metallicity)")
        fits["dimensions"] = (hparams.get("dimensions") == 1, "1 (along the bins)")
    for key, (good, wanted) in fits.items():
        if not good:
            raise Incompatible(
                f"{path}: {key}: expected {wanted}, got {hparams.get(key)!r}: such a network "
                "cannot be a prior over histories here"
            )


# ---- the files of a checkpoint directory --------------------------------------------------------


def find_checkpoint(directory: Path, which: str = "last") -> Checkpoint:
    """The checkpoint `which`: "last", "best" or a number.

    Raises ArtifactError where there is none, UsageError for a number that is not there.
    """
    listed = _read_score_sheet(directory / "score_sheet.txt")
    found: dict[int, Checkpoint] = {}
    for path in sorted(directory.glob("checkpoint*.pt")):
        match = _OF_MODEL.fullmatch(path.name)
        if match is not None:
            number = int(match["number"])
            found[number] = Checkpoint(path, number, listed.get(number, _loss(match["loss"])))
    if not found:
        raise ArtifactError(
            f"{directory}: expected checkpoint_<loss>_<number>.pt as score_models writes it, got "
            "none; give the directory that its `fit` was called with"
        )
    if which == "last":
        return found[max(found)]
    if which == "best":
        return min(found.values(), key=lambda c: math.inf if math.isnan(c.loss) else c.loss)
    if not which.isdecimal() or int(which) not in found:
        raise UsageError(
            f"{directory}: expected checkpoint last, best or one of "
            f"{', '.join(map(str, sorted(found)))}, got {which!r}"
        )
    return found[int(which)]


def _loss(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_score_sheet(path: Path) -> dict[int, float]:
    """{number: loss} of the lines that can be read."""
    if not path.is_file() or path.stat().st_size > bounds.MAX_JSON_BYTES:
        return {}
    lines = (line.split() for line in path.read_text(errors="replace").splitlines())
    return {int(w[0]): _loss(w[1]) for w in lines if len(w) == 2 and w[0].isdecimal()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` file by name, nothing else: no code in it is ever run.

    Raises ArtifactError where the file holds more than tensors, or is damaged.
    """
    import torch

    if (size := path.stat().st_size) > bounds.MAX_WEIGHT_BYTES:
        raise ArtifactError(
            f"{path}: expected at most {bounds.MAX_WEIGHT_BYTES:,} bytes: {size:,}"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as e:
        raise ArtifactError(
            f"{path}: refused: expected a state dict of tensors, got a pickle that asks for more "
            "(it could run code); save the network's state_dict() with torch.save and import that"
        ) from e
    except (EOFError, OSError, RuntimeError, ValueError, LookupError, TypeError) as e:
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise ArtifactError(f"{path}: cannot be read ({reason[:100]}); copy it again") from e
    if not isinstance(content, dict) or not content:
        raise ArtifactError(f"{path}: expected a state dict, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ArtifactError(f"{path}: expected tensors by name, got {name!r}: {type(value)}")
        if not value.is_floating_point() or value.layout != torch.strided:
            raise ArtifactError(f"{path}: {name}: expected real numbers, got {value.dtype}")
    # a saved ScoreModel holds the network as `model`
    wrapped = all(name.startswith("model.") for name in content)
    return {name.removeprefix("model.") if wrapped else name: v for name, v in content.items()}


def write_card(name: str, about: About, checkpoint: Checkpoint) -> str:
    """The README.md of an imported prior: what is known, and what its author must still say."""
    import yaml

    given = about.training_set
    front = {
        "license": given["license"],
        "library_name": "sfhzoo",
        "tags": ["astronomy", "galaxies", "star-formation-history", "score-based-model"],
        "datasets": [given["origin"]],
        "sfhzoo": {
            "name": name, "kind": "prior", "origin": given["origin"], "summary": given["summary"],
            "recipe": f"sfhzoo import-checkpoint DIR --about ABOUT.toml --name {name} --out DIR",
        },
    }  # fmt: skip
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=95)}---

# {name}

{given["summary"]}.

## Trained on

{given["origin"]}; training set sha256: {given["sha256"]}. {about.n_bins} equal bins of cosmic time
({about.cosmology}).

## Not for

To be written: which galaxies, masses and redshifts this prior knows nothing about.

## Network and training

Imported from `{checkpoint.path.name}` of score_models (loss {checkpoint.loss:.4g}).

## Quality

Not measured yet: `sfhzoo prior evaluate` and `sfhzoo validate`.

## Citation

```bibtex
{given["citation"].strip()}
```
"""
