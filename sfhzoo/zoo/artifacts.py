"""Reading and writing artifacts: directories of JSON and safetensors, every file hashed.

    config.json         what it is, how it was made, and the format version
    model.safetensors   weights (never pickle)
    manifest.json       sha256 and size of every other file

An artifact's identity is the sha256 of its weights followed by its config.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, HashMismatch, Incompatible, NotCached, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sfhzoo.grids.ssp import SSPGrid
    from sfhzoo.priors.prior import Prior
    from sfhzoo.samplers.posterior_network import PosteriorNetwork

FORMAT_VERSION = 1
BUNDLED = Path(__file__).resolve().parent.parent / "data"
DEFAULT_PRIOR = "diffstarpop-tng-v1"
DEFAULT_GRID = "bc03-miles-v1"


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def identity_of(directory: Path) -> str:
    """sha256 of weights + config: two artifacts with one identity give the same numbers."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "config.json"):
        digest.update((directory / name).read_bytes())
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON (no NaN), beside and then renamed."""
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_manifest(directory: Path) -> None:
    """Record sha256 and size of the artifact's files in manifest.json."""
    names = ("README.md", "config.json", "model.safetensors", "metrics.json", "training.png")
    files = {
        n: {"sha256": sha256_of(directory / n), "size": (directory / n).stat().st_size}
        for n in names
        if (directory / n).is_file()
    }
    write_json(directory / "manifest.json", {"format_version": FORMAT_VERSION, "files": files})


def verify(directory: Path) -> None:
    """Check every file against manifest.json; HashMismatch or ArtifactError names the file."""
    manifest = read_json(directory / "manifest.json")
    for name, expected in manifest.get("files", {}).items():
        path = directory / name
        if Path(name).name != name:
            raise ArtifactError(f"{directory}: the manifest names {name!r}, not a plain file name")
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; expected {expected['size']} bytes")
        found = sha256_of(path)
        if found != expected["sha256"]:
            raise HashMismatch(f"{path}: sha256 expected {expected['sha256']}, got {found}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; ArtifactError when it is missing or not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ArtifactError(f"expected JSON at {path}: {e}") from e
    if not isinstance(content, dict):
        raise ArtifactError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def save_artifact(
    directory: Path,
    config: dict[str, Any],
    network: nn.Module,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write config, weights (and `extra` tensors) and manifest of a network into `directory`."""
    from importlib.metadata import version

    from safetensors.torch import save_file

    tensors = {**network.state_dict(), **(extra or {})}
    weights = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights, directory / "model.safetensors")
    # safetensors writes for the owner only; an installed package is read by everybody
    (directory / "model.safetensors").chmod(0o644)
    versions = {"sfhzoo": __version__, "score_models": version("score_models")}
    write_json(
        directory / "config.json",
        {"format_version": FORMAT_VERSION, "versions": versions, **config},
    )
    write_manifest(directory)


def load_artifact(directory: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(config, weights, identity) of a verified artifact of the expected kind.

    Raises ArtifactError, HashMismatch, or Incompatible for a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    verify(directory)
    config = read_json(directory / "config.json")
    if config.get("format_version", 0) > FORMAT_VERSION:
        raise Incompatible(
            f"{directory}: written in format {config['format_version']}, this sfhzoo "
            f"({__version__}) reads up to {FORMAT_VERSION}; upgrade sfhzoo"
        )
    if config.get("kind") != kind:
        raise Incompatible(f"{directory}: expected a {kind}, got {config.get('kind')!r}")
    try:
        weights = load_file(directory / "model.safetensors")
    except (OSError, SafetensorError) as e:
        raise ArtifactError(f"{directory}/model.safetensors cannot be read: {e}") from e
    return config, weights, identity_of(directory)


def load_weights(network: nn.Module, weights: dict[str, Any], where: Path) -> nn.Module:
    """Strictly load weights; Incompatible when names or shapes differ from the network's."""
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as e:
        raise Incompatible(
            f"{where}: weights do not fit the config: {str(e).splitlines()[-1]}"
        ) from e
    return network.eval()


def save_prior(prior: Prior, directory: str | Path) -> Path:
    """Write a prior as an artifact directory."""
    save_artifact(Path(directory), prior.config, prior.network)
    return Path(directory)


def locate(name_or_path: str | Path, suffix: str = "") -> Path:
    """The artifact's path: an existing path as it is, else a bundled name.

    Raises UnknownName with the closest names, NotCached for a path that does not exist.
    """
    path = Path(name_or_path)
    if path.exists() and (suffix == "" or path.is_file()):
        return path
    if path.name != str(name_or_path) or str(name_or_path).startswith("."):
        raise NotCached(f"{name_or_path}: no such file or directory")
    bundled = BUNDLED / f"{name_or_path}{suffix}"
    if bundled.exists():
        return bundled
    import difflib

    known = sorted(
        p.name.removesuffix(suffix) if suffix else p.name
        for p in BUNDLED.iterdir()
        if (p.name.endswith(suffix) if suffix else (p / "config.json").is_file())
    )
    close = difflib.get_close_matches(str(name_or_path), known, n=3, cutoff=0.4) or known
    raise UnknownName(f"no artifact called {name_or_path!r}; did you mean {', '.join(close)}?")


def load_prior(name: str | Path = DEFAULT_PRIOR, device: str = "cpu") -> Prior:
    """A prior by name (bundled) or by the path of an artifact directory, verified and strict."""
    from sfhzoo.priors.network import build_network
    from sfhzoo.priors.prior import Prior
    from sfhzoo.priors.schedule import NoiseSchedule

    directory = locate(name)
    config, weights, sha256 = load_artifact(directory, "prior")
    try:
        schedule = NoiseSchedule.from_dict(config["sde"])
        network = build_network(config["architecture"], config["hyperparameters"], schedule)
        return Prior(load_weights(network, weights, directory), config, sha256).to(device)
    except (KeyError, TypeError, ValueError) as e:
        raise Incompatible(f"{directory}/config.json: missing or wrong {e}") from e


def find_posterior_network(prior: str, grid: str) -> Path | None:
    """The bundled posterior network of a prior and a grid, if there is one."""
    path = BUNDLED / f"{prior}--{grid}-posterior-v1"
    return path if (path / "config.json").is_file() else None


def load_posterior_network(directory: Path) -> PosteriorNetwork:
    """A posterior network by the path of its artifact directory, verified and strict."""
    from sfhzoo.samplers.encoding import Encoder
    from sfhzoo.samplers.posterior_network import ConditionalMLP, PosteriorNetwork

    config, weights, sha256 = load_artifact(directory, "posterior-network")
    own = {k: weights.pop(k) for k in list(weights) if k.startswith("encoder.")}
    try:
        network = ConditionalMLP(**config["hyperparameters"])
        load_weights(network, weights, directory)
        return PosteriorNetwork(network, Encoder.from_weights(own), config, sha256)
    except (KeyError, TypeError) as e:
        raise Incompatible(f"{directory}: missing or wrong {e}") from e


def load_grid(name: str | Path = DEFAULT_GRID) -> SSPGrid:
    """A grid of stellar populations by name (bundled) or by the path of a .zarr.zip file."""
    from sfhzoo.grids.ssp import SSPGrid

    return SSPGrid.read(locate(name, ".zarr.zip"))
