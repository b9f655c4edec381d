"""What is on this disk: the bundled artifacts, and those that were pulled.

A pulled artifact lies in the Hub's own cache. Its card is kept beside it, in

    <cache>/models--org--name/sfhzoo/<artifact>.json

so that its name works without network and without the catalogue it came from.
"""

from __future__ import annotations

import os
from pathlib import Path

from sfhzoo.errors import ArtifactError, NotCached, SfhzooError
from sfhzoo.zoo import artifacts
from sfhzoo.zoo.cards import (
    Card,
    FileRecord,
    Source,
    card_from_dict,
    card_to_dict,
    explain_missing,
    is_name,
)

Where = str | Path | None
"""A cache directory; None is the default one."""


def bundled_path(name: str) -> Path | None:
    """The directory (prior, posterior network) or file (grid) in the package, if there is one."""
    if not is_name(name):
        return None
    directory, file = (
        artifacts.BUNDLED / name,
        artifacts.BUNDLED / f"{name}{artifacts.GRID_SUFFIX}",
    )
    if (directory / "config.json").is_file():
        return directory
    return file if file.is_file() else None


def find_on_disk(name: str, cache_dir: Where = None) -> Path | None:
    """The directory (prior, posterior network) or file (grid) of a name, without network."""
    if found := bundled_path(name):
        return found
    card = recorded(cache_dir).get(name)
    return place_of(card, cache_dir) if card else None


def place_of(card: Card, cache_dir: Where = None) -> Path | None:
    """Where a card's artifact is on this disk; None where it is not, or not whole."""
    if card.bundled:
        return bundled_path(card.name)
    if card.source is None:
        return None
    from sfhzoo.zoo import hub

    snapshot = hub.locate_cached(card.source, cache_dir=cache_dir)
    return _within(snapshot, card) if snapshot else None


def _within(snapshot: Path, card: Card) -> Path:
    return snapshot / f"{card.name}{artifacts.GRID_SUFFIX}" if card.kind == "grid" else snapshot


# ---- the cards of what was pulled ---------------------------------------------------------------


def _record_path(source: Source, name: str, cache_dir: Where) -> Path:
    from sfhzoo.zoo import cache

    return cache.repo_directory(source.repo, cache_dir) / "sfhzoo" / f"{name}.json"


def recorded(cache_dir: Where = None) -> dict[str, Card]:
    """The cards of all pulled artifacts by name.

    A damaged record counts as none: pulling the artifact again writes it anew.
    """
    from sfhzoo.zoo import hub

    cards = {}
    for path in sorted(hub.cache_root(cache_dir).glob("models--*/sfhzoo/*.json")):
        try:
            card = card_from_dict(artifacts.read_json(path), str(path))
        except ArtifactError:
            continue
        if card.source:
            cards[card.name] = card
    return cards


def record(card: Card, cache_dir: Where = None) -> None:
    """Keep the card of a pulled artifact; other processes see all of it or nothing."""
    if card.source is None:
        raise ArtifactError(f"{card.name}: expected a card with a source, to record it as pulled")
    # a cache that many share may be read-only
    if recorded(cache_dir).get(card.name) == card:
        return
    path = _record_path(card.source, card.name, cache_dir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifacts.write_json(path, card_to_dict(card))
    except OSError as e:
        raise ArtifactError(f"{path}: cannot be written: {e.strerror}") from e


# ---- pull, verify, remove -----------------------------------------------------------------------


def pull(
    card: Card, cache_dir: Where = None, offline: bool = False, progress: bool = True
) -> Path:
    """Fetch and verify a published artifact; returns where it is. Bundled ones are there already.

    Raises ArtifactError for a recipe, naming how to make it and what is nearest, and where the
    name was pulled from another source before.
    """
    if path := bundled_path(card.name):
        return path
    if card.source is None:
        raise NotCached(explain_missing(card))
    before = recorded(cache_dir).get(card.name, card).source
    if before and before != card.source:
        raise ArtifactError(
            f"{card.name} was pulled from {before.repo}@{before.revision[:12]}, now it is "
            f"{card.source.repo}@{card.source.revision[:12]}; a published name never changes: "
            f"`sfhzoo remove {card.name}` first if you trust the new one"
        )
    from sfhzoo.zoo import hub

    snapshot = hub.fetch(card.source, cache_dir=cache_dir, offline=offline, progress=progress)
    record(card, cache_dir)
    return _within(snapshot, card)


def find_faults(card: Card, cache_dir: Where = None) -> list[str]:
    """What is wrong with an artifact on this disk, a line per file; NotCached where it is not."""
    if card.bundled:
        path = bundled_path(card.name)
        return [explain_missing(card)] if path is None else _find_bundled_faults(card, path)
    from sfhzoo.zoo import hub

    directory = hub.snapshot_directory(card.source, cache_dir) if card.source else None
    if card.source is None or directory is None or not directory.is_dir():
        raise NotCached(explain_missing(card))
    files = card.source.files.items()
    return [fault for name, known in files if (fault := _find_fault(directory / name, known))]


def _find_bundled_faults(card: Card, path: Path) -> list[str]:
    try:
        if path.is_dir():
            artifacts.verify(path)
        found = artifacts.identity_of(path)
    except SfhzooError as e:
        return [str(e)]
    same = found == card.identity
    return [] if same else [f"{path}: identity (sha256) expected {card.identity}, got {found}"]


def _find_fault(path: Path, known: FileRecord) -> str | None:
    try:
        if path.stat().st_size != known.size:
            return f"{path}: expected {known.size} bytes, got {path.stat().st_size}"
        found = artifacts.sha256_of(path)
    except OSError as e:
        return f"{path}: cannot be read: {e.strerror}"
    same = found == known.sha256
    return None if same else f"{path}: sha256 expected {known.sha256}, got {found}"


def remove(card: Card, cache_dir: Where = None) -> int:
    """Delete a pulled artifact; returns the bytes freed. Raises for a bundled or absent one."""
    if card.bundled:
        raise ArtifactError(f"{card.name} is part of the package and cannot be removed")
    path = _record_path(card.source, card.name, cache_dir) if card.source else None
    if card.source is None or path is None or not (path.is_file() or place_of(card, cache_dir)):
        raise NotCached(f"{card.name} is not on this disk; there is nothing to remove")
    from sfhzoo.zoo import hub

    freed = hub.remove(card.source, cache_dir=cache_dir)
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not os.listdir(path.parent):
        path.parent.rmdir()
    return freed


def size_of(card: Card, place: Path | None) -> int | None:
    """Bytes of an artifact: as published, or as found at `place`; None where neither is known."""
    if card.source:
        return card.source.size
    if place is None:
        return None
    return sum(p.stat().st_size for p in ([place] if place.is_file() else place.iterdir()))
