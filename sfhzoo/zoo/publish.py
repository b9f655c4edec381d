"""Publish an artifact: check it, give it its metrics and manifest, upload it, pull it back.

An artifact goes to the Hub only when it loads strictly, its card is complete, and its metrics.json
was measured on these very weights and keeps its thresholds. `force` lets go of the last of these
and records it, in metrics.json and on the card. A published version never changes: its tag `v<N>`
is made once, and publishing the same files again changes nothing.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfhzoo.errors import ArtifactError, HashMismatch
from sfhzoo.zoo import artifacts, hub
from sfhzoo.zoo.cards import (
    Card,
    FileRecord,
    Metric,
    Source,
    card_to_dict,
    metrics_of,
    parse_card,
    with_metrics,
)
from sfhzoo.zoo.catalogue import FORMAT_VERSION, read_catalogue

CARD, METRICS = "README.md", "metrics.json"
_NOTE = "> **Published with --force**: "
_OLD_NOTE = re.compile(rf"^{re.escape(_NOTE)}.*\n\n?", re.MULTILINE)


def publish(
    directory: str | Path,
    repo: str,
    *,
    metrics: str | Path | None = None,
    force: bool = False,
    private: bool = False,
    token: str | None = None,
    progress: bool = True,
) -> Card:
    """Publish the artifact in `directory` as `repo` (ORG/NAME); returns its card with the source.

    Parameters
    ----------
    metrics : what `sfhzoo validate` or `sfhzoo prior evaluate` measured on it; None: the
        metrics.json in `directory`. A grid needs none.
    force : publish in spite of missing or missed metrics
    private : of a repository that does not exist yet
    token : None: the one of `hf auth login`

    The directory gets the card, metrics.json and manifest.json that were published; it is left
    alone when anything is refused. Raises ArtifactError.
    """
    directory = Path(directory)
    with tempfile.TemporaryDirectory(prefix="sfhzoo-publish-") as name:
        staged = Path(name)
        card = _stage(directory, staged, Path(metrics) if metrics else None, force)
        names = [*artifacts.read_json(staged / artifacts.MANIFEST)["files"], artifacts.MANIFEST]
        message, tag = f"{card.name}: {card.summary}", f"v{card.version}"
        commit, is_new = hub.upload(staged, names, repo, tag, message, private, token, progress)
        source = Source(repo, commit, {n: _record(staged / n) for n in names})
        with tempfile.TemporaryDirectory(prefix="sfhzoo-pulled-") as cache:
            if not is_new:
                _check_same(source, tag, hub.snapshot_of(repo, commit, cache)[0])
            hub.fetch(source, cache, progress=progress)
        for own in {CARD, METRICS, artifacts.MANIFEST} & set(names):
            shutil.copyfile(staged / own, directory / own)
    return replace(card, source=source)


def add_entry(path: str | Path, card: Card) -> None:
    """Add a card to a catalogue.json, in place of one of the same name; the file may be new."""
    path = Path(path)
    cards = {c.name: c for c in read_catalogue(path)} if path.is_file() else {}
    entries = [card_to_dict(c) for c in {**cards, card.name: card}.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts.write_json(path, {"format_version": FORMAT_VERSION, "entries": entries})


def _record(path: Path) -> FileRecord:
    return FileRecord(artifacts.sha256_of(path), path.stat().st_size)


def _check_same(ours: Source, tag: str, theirs: Source) -> None:
    files = ours.files.keys() | theirs.files.keys()
    differing = sorted(n for n in files if ours.files.get(n) != theirs.files.get(n))
    if differing:
        raise ArtifactError(
            f"{ours.repo} has {tag} already, with other {', '.join(differing)}; a published "
            "version never changes: give this one the next version, in its name and config"
        )


# ---- what may be published ----------------------------------------------------------------------


def _stage(directory: Path, staged: Path, metrics: Path | None, force: bool) -> Card:
    """Fill `staged` with the files to publish, all checks passed; returns the card."""
    text = _read_card_text(directory)
    card = parse_card(text, directory / CARD)
    for path in _find_contents(directory, card):
        shutil.copyfile(path, staged / path.name)
    identity = artifacts.identity_of(staged)
    measured = _read_metrics(metrics or directory / METRICS, required=metrics is not None)
    found = metrics_of(measured, METRICS)
    faults = _find_faults(measured, found, card, identity)
    if faults and not force:
        raise ArtifactError(
            f"{card.name} is not published: {'; '.join(faults)} (--force publishes it and says so)"
        )
    if measured or faults:
        forced = {"forced": faults} if faults else {}
        artifacts.write_json(staged / METRICS, {**measured, **forced})
    text = with_metrics(_annotate(text, faults), found)
    (staged / CARD).write_text(text, encoding="utf-8")
    artifacts.write_manifest(staged)
    _check_loads(staged, card)
    return replace(parse_card(text, CARD), identity=identity)


def _read_card_text(directory: Path) -> str:
    path = directory / CARD
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ArtifactError(
            f"expected a card at {path}: {e}; docs/publishing-a-prior.md shows how to write one"
        ) from e


def _find_contents(directory: Path, card: Card) -> list[Path]:
    """What is published besides card, metrics and manifest: unchanged since it was made."""
    grid = directory / f"{card.name}{artifacts.GRID_SUFFIX}"
    core = (
        [grid]
        if card.kind == "grid"
        else [directory / artifacts.WEIGHTS, directory / "config.json"]
    )
    for path in core:
        if not path.is_file():
            raise ArtifactError(f"{path} is missing: a {card.kind} has it")
    manifest = directory / artifacts.MANIFEST
    recorded = artifacts.read_json(manifest).get("files") if manifest.is_file() else {}
    for path in core:
        entry = recorded.get(path.name) if isinstance(recorded, Mapping) else None
        expected = entry.get("sha256") if isinstance(entry, Mapping) else None
        if expected and (found := artifacts.sha256_of(path)) != expected:
            raise HashMismatch(f"{path}: sha256 expected {expected}, got {found}; make it again")
    return [*core, *(p for p in [directory / "training.png"] if p.is_file())]


def _check_loads(directory: Path, card: Card) -> None:
    """Load it as its users will; ArtifactError where it is not what the card says."""
    name, kind = artifacts.load_any(directory).name, "grid"
    if card.kind != "grid":
        kind = str(artifacts.read_json(directory / artifacts.CONFIG).get("kind"))
    if (kind, name) != (card.kind, card.name):
        raise ArtifactError(
            f"the card is that of the {card.kind} {card.name}, the artifact is the {kind} {name}"
        )


# ---- metrics ------------------------------------------------------------------------------------


def _read_metrics(path: Path, required: bool) -> dict[str, Any]:
    """The content of a metrics.json, without what an earlier --force said; empty without one."""
    if not path.is_file() and not required:
        return {}
    content = artifacts.read_json(path)
    content.pop("forced", None)
    if isinstance(content.get("checks"), list):
        # a number that could not be measured has no place in a table; the verdict counts it
        content["checks"] = [c for c in content["checks"] if c.get("value") is not None]
    return content


def _find_faults(
    measured: Mapping[str, Any], found: Mapping[str, Metric], card: Card, identity: str
) -> list[str]:
    """Why the metrics do not speak for this artifact."""
    if card.kind == "grid" and not measured:
        return []
    if not any(m.threshold is not None for m in found.values()):
        return [f"it has no {METRICS} with thresholds: run sfhzoo validate and give --metrics"]
    on = _find_measured(measured, card)
    faults = []
    if on != identity:
        faults.append(
            f"{METRICS} was measured on {str(on)[:12]}, this artifact is {identity[:12]}"
        )
    faults += [
        f"{name} is {m.value:.4g}, the threshold {m.relation} {m.threshold:g}"
        for name, m in found.items()
        if m.threshold is not None and not m.passed
    ]
    if not faults and measured.get("passed") is not True:
        faults.append(f"{METRICS} does not say that all thresholds were met")
    return faults


def _find_measured(measured: Mapping[str, Any], card: Card) -> Any:
    """Identity of what a metrics.json is about, as `prior evaluate` or `validate` write it."""
    run = measured.get("run")
    if not isinstance(run, Mapping):
        return measured.get("sha256")
    if card.kind == "posterior-network":
        return run.get("posterior_network")
    table = run.get(card.kind)
    return table.get("sha256") if isinstance(table, Mapping) else None


def _annotate(text: str, faults: list[str]) -> str:
    """The card with a note of what was forced at the head of its text, or without one."""
    front, mark, body = text.partition("\n---\n")
    note = f"{_NOTE}{'; '.join(faults)}.\n\n" if faults else ""
    return front + mark + note + _OLD_NOTE.sub("", body)
