"""Artifacts: priors, posterior networks and grids, found by name, verified, bounded and loaded.

    config.json         what it is, how it was made, and the format version
    model.safetensors   weights (never pickle)
    manifest.json       sha256 and size of every other file

A grid is one `<name>.zarr.zip`, alone or in a directory with a manifest. An artifact's identity is
the sha256 of its weights followed by its config, or of the grid's file. Nothing in an artifact is
ever executed: a config holds names and numbers, checked by `zoo.bounds` before they become sizes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, HashMismatch, Incompatible, NotCached
from sfhzoo.zoo import bounds
from sfhzoo.zoo.bounds import read_json as read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sfhzoo.grids.ssp import SSPGrid
    from sfhzoo.priors.prior import Prior
    from sfhzoo.samplers.posterior_network import PosteriorNetwork

FORMAT_VERSION = 1
BUNDLED = Path(__file__).resolve().parent.parent / "data"
DEFAULT_PRIOR = "diffstarpop-tng-v1"
DEFAULT_GRID = "bc03-miles-v1"
GRID_SUFFIX = ".zarr.zip"
WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "manifest.json"
_FILES = ("README.md", CONFIG, WEIGHTS, "metrics.json", "training.png")
_ABSURD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What constructors of networks and scalings raise when a config is wrong."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def identity_of(path: Path) -> str:
    """sha256 of weights + config, or of a grid's file: with one identity, the same numbers."""
    grid = _grid_in(path) if path.is_dir() else path
    if grid is not None:
        return sha256_of(grid)
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        digest.update((path / name).read_bytes())
    return digest.hexdigest()


def _grid_in(directory: Path) -> Path | None:
    found = sorted(directory.glob(f"*{GRID_SUFFIX}"))
    if len(found) > 1:
        raise ArtifactError(f"{directory}: expected one grid, got {len(found)}; name the file")
    return found[0] if found else None


def write_json(path: Path, content: Any) -> None:
    """Write JSON (no NaN), beside and then renamed."""
    partial = path.with_name(path.name + f".partial-{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def write_manifest(directory: Path) -> None:
    """Record sha256 and size of the artifact's files in manifest.json."""
    grid = _grid_in(directory)
    files = {
        n: {"sha256": sha256_of(directory / n), "size": (directory / n).stat().st_size}
        for n in (*_FILES, *([grid.name] if grid else []))
        if (directory / n).is_file()
    }
    versions = {"sfhzoo": __version__}
    write_json(
        directory / MANIFEST,
        {"format_version": FORMAT_VERSION, "versions": versions, "files": files},
    )


def verify(directory: Path) -> None:
    """Check every file against manifest.json.

    Raises HashMismatch or ArtifactError, which name the file; Incompatible for a newer format.
    """
    where = directory / MANIFEST
    manifest = read_json(where)
    check_format(manifest, where)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{where}: expected a table of files, got {str(files)[:40]}")
    for name, expected in files.items():
        _verify_file(directory, name, expected)
    grid = _grid_in(directory)
    for name in [grid.name] if grid else [CONFIG, WEIGHTS]:
        if name not in files:
            raise ArtifactError(f"{where}: expected an entry for {name}; fetch or save it again")


def _verify_file(directory: Path, name: str, expected: Any) -> None:
    path = directory / name
    if Path(name).name != name or "\\" in name:
        raise ArtifactError(f"{directory}: the manifest names {name!r}, not a plain file name")
    try:
        sha256, size = str(expected["sha256"]), int(expected["size"])
    except (KeyError, TypeError, ValueError) as e:
        raise ArtifactError(f"{directory}/{MANIFEST}: {name}: expected sha256 and size") from e
    if not path.is_file():
        raise ArtifactError(f"{path} is missing; expected {size:,} bytes; fetch it again")
    if (found_size := path.stat().st_size) != size:
        raise HashMismatch(
            f"{path}: expected {size:,} bytes, got {found_size:,}; it was cut or changed: "
            "fetch it again"
        )
    if (found := sha256_of(path)) != sha256:
        raise HashMismatch(
            f"{path}: sha256 expected {sha256}, got {found}; the file was changed or damaged: "
            "fetch it again"
        )


def check_format(content: dict[str, Any], where: Path) -> None:
    """Incompatible where `content` (config, manifest) is of a format this version cannot read."""
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{where}: expected a whole number format_version, got {version!r}")
    if version > FORMAT_VERSION:
        versions = content.get("versions")
        writer = versions.get("sfhzoo") if isinstance(versions, dict) else None
        needed = f"sfhzoo {writer} (which wrote it) or newer" if writer else "a newer sfhzoo"
        raise Incompatible(
            f"{where}: format {version} needs {needed}; this is sfhzoo {__version__}, which reads "
            f"up to format {FORMAT_VERSION}: pip install --upgrade sfhzoo"
        )


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

    Raises ArtifactError, HashMismatch, or Incompatible for a newer format, another kind, or a
    config beyond the bounds.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    verify(directory)
    where = directory / CONFIG
    config = read_json(where)
    check_format(config, where)
    if config.get("kind") != kind:
        raise Incompatible(f"{directory}: expected a {kind}, got {config.get('kind')!r}")
    shapes = bounds.check_safetensors(directory / WEIGHTS)
    bounds.check_config(config, where, sum(map(math.prod, shapes.values())))
    try:
        weights = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise ArtifactError(f"{directory}/{WEIGHTS} cannot be read: {e}") from e
    if bad := [name for name, value in weights.items() if not bool(value.isfinite().all())]:
        raise ArtifactError(f"{directory}/{WEIGHTS}: {bad[0]} holds NaN or infinity; train again")
    return config, weights, identity_of(directory)


def load_weights(network: nn.Module, weights: dict[str, Any], where: Path) -> nn.Module:
    """Strictly load weights; Incompatible when names or shapes differ from the network's."""
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as e:
        raise Incompatible(
            f"{where}: weights do not fit the config: {str(e).splitlines()[-1].strip()}"
        ) from e
    return network.eval()


def save_prior(prior: Prior, directory: str | Path) -> Path:
    """Write a prior as an artifact directory."""
    save_artifact(Path(directory), prior.config, prior.network)
    return Path(directory)


# ---- names --------------------------------------------------------------------------------------


def locate(name_or_path: str | Path, suffix: str = "") -> Path:
    """The place of an artifact: a directory, or a grid's file where `suffix` is ".zarr.zip".

    In this order: an existing path, a bundled name, a name that was pulled, "org/repo@revision"
    (in the cache, or else fetched from the Hub).

    Raises UnknownName with the closest names; NotCached for a path that does not exist and for a
    name of the catalogue that is not on this disk.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.exists():
        return _with_suffix(path, suffix)
    if is_hub_name(name):
        from sfhzoo.zoo import hub

        repo, _, revision = name.partition("@")
        return _with_suffix(hub.snapshot_of(repo, revision)[1], suffix)
    if path.name != name or name.startswith("."):
        hint = " (a Hub repository is written org/repo@revision)" if name.count("/") == 1 else ""
        raise NotCached(f"{name}: no such file or directory{hint}")
    bundled = BUNDLED / f"{name}{suffix}"
    if bundled.exists():
        return bundled
    return _locate_pulled(name, suffix)


def is_hub_name(name: str) -> bool:
    """Whether `name` is "org/repo@revision"; without a revision it is taken for a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*@[\w./-]+", name) is not None


def _with_suffix(path: Path, suffix: str) -> Path:
    """The directory itself, or the grid's file in it; verified where a manifest is beside it."""
    found = path if path.is_file() else _grid_in(path)
    if not suffix:
        if found is not None:
            raise Incompatible(f"{path}: expected a directory of {CONFIG} and {WEIGHTS}, not this")
        return path
    if found is None:
        raise Incompatible(f"{path}: expected a grid (a {suffix} file), got a directory without")
    if path.is_dir() and (path / MANIFEST).is_file():
        verify(path)
    return found


def _locate_pulled(name: str, suffix: str) -> Path:
    from sfhzoo.zoo import cards, catalogue, disk

    found = disk.find_on_disk(name)
    if found is None:
        raise NotCached(cards.explain_missing(catalogue.load_catalogue().find(name)))
    in_snapshot = found.parent != BUNDLED and found.is_file()
    return _with_suffix(found.parent if in_snapshot else found, suffix)


def find_posterior_network(
    prior: str, grid: str, training_set: str | None = None, grid_sha256: str | None = None
) -> Path | None:
    """The newest posterior network of a prior and a grid on this disk, bundled or pulled.

    training_set, grid_sha256 : hashes of the prior's training set and of the grid's file; networks
        made for others are passed over
    """
    from sfhzoo.zoo import disk

    stem = f"{prior}--{grid}-posterior-v"
    bundled = (p.name for p in BUNDLED.glob(f"{prior}--*") if (p / CONFIG).is_file())
    versions = {
        int(name.removeprefix(stem))
        for name in (*bundled, *disk.recorded())
        if name.startswith(stem) and name.removeprefix(stem).isdecimal()
    }
    for version in sorted(versions, reverse=True):
        path = BUNDLED / f"{stem}{version}"
        found = path if path.exists() else disk.find_on_disk(path.name)
        if found is None:
            continue
        config = read_json(found / CONFIG)
        if _is_made_for(config, "training_set", training_set) and _is_made_for(
            config, "grid", grid_sha256
        ):
            return found
    return None


def _is_made_for(config: dict[str, Any], key: str, sha256: str | None) -> bool:
    table = config.get(key)
    return sha256 is None or (isinstance(table, dict) and table.get("sha256") == sha256)


# ---- loaders ------------------------------------------------------------------------------------


def load_prior(name: str | Path = DEFAULT_PRIOR, device: str = "cpu") -> Prior:
    """A prior by name, by the path of an artifact directory, or by "org/repo@revision".

    Verified and strict. Raises ArtifactError (UnknownName, NotCached, HashMismatch, Incompatible).
    """
    from sfhzoo.priors.network import build_network
    from sfhzoo.priors.prior import Prior
    from sfhzoo.priors.schedule import NoiseSchedule

    directory = locate(name)
    config, weights, sha256 = load_artifact(directory, "prior")
    where = directory / CONFIG
    try:
        schedule = NoiseSchedule.from_dict(config["sde"])
        network = build_network(config["architecture"], config["hyperparameters"], schedule)
        prior = Prior(load_weights(network, weights, directory), config, sha256)
        _try_out(prior)
    except _ABSURD as e:
        raise Incompatible(f"{where}: missing or wrong {type(e).__name__}: {e}") from e
    return prior.to(device)


def _try_out(prior: Prior) -> None:
    """ValueError unless scaling, network and number of bins fit together."""
    import torch

    if prior.scaling.mean.shape != prior.shape:
        raise ValueError(f"a scaling of {prior.scaling.mean.shape} for {prior.shape}")
    with torch.no_grad():
        found = prior.score(torch.zeros(1, *prior.shape), torch.tensor([prior.schedule.sigma_max]))
        if found.shape != (1, *prior.shape):
            raise ValueError(
                f"a score of shape {tuple(found.shape)}, expected {(1, *prior.shape)}"
            )
        prior.sample_x(1, torch.Generator().manual_seed(0), steps=1)
    prior.nfe = 0


def load_posterior_network(name: str | Path) -> PosteriorNetwork:
    """A posterior network by name, directory or "org/repo@revision", verified and strict."""
    from sfhzoo.samplers.encoding import Encoder
    from sfhzoo.samplers.posterior_network import ConditionalMLP, PosteriorNetwork

    directory = locate(name)
    config, weights, sha256 = load_artifact(directory, "posterior-network")
    own = {k: weights.pop(k) for k in list(weights) if k.startswith("encoder.")}
    try:
        for table, key in (("training_set", "sha256"), ("grid", "sha256"), ("domain", "redshift")):
            config[table][key]
        network = ConditionalMLP(**config["hyperparameters"])
        load_weights(network, weights, directory)
        return PosteriorNetwork(network, Encoder.from_weights(own), config, sha256)
    except _ABSURD as e:
        raise Incompatible(f"{directory}: missing or wrong {type(e).__name__}: {e}") from e


def load_grid(name: str | Path = DEFAULT_GRID) -> SSPGrid:
    """A grid of stellar populations by name, by the path of its .zarr.zip or directory, or by
    "org/repo@revision"; its arrays `logzsol`, `age`, `wave`, `flux` are NumPy's.
    """
    from sfhzoo.grids.ssp import SSPGrid

    return SSPGrid.read(locate(name, GRID_SUFFIX))


def load_any(path: Path) -> Prior | PosteriorNetwork | SSPGrid:
    """What an artifact's directory or file holds, loaded strictly by the loader of its kind."""
    if path.is_file() or _grid_in(path) is not None:
        return load_grid(path)
    kind = read_json(path / CONFIG).get("kind")
    return load_posterior_network(path) if kind == "posterior-network" else load_prior(path)
