"""The catalogue: names -> cards. The package's own, and those a user adds.

`catalogue.json` holds {"format_version": 1, "entries": [card, ...]}. The package's is made by
`ci/catalogue` from model_cards/ and grids/. A user adds others with `--catalogue` or, separated by
commas, in SFHZOO_CATALOGUE: a .json file, a directory of cards, or a Hub repository
`org/name[@revision]` that holds a catalogue.json. So a new prior needs no new release.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, Incompatible, NotCached, UnknownName
from sfhzoo.zoo import artifacts
from sfhzoo.zoo.cards import (
    Card,
    card_from_dict,
    card_to_dict,
    is_repo,
    read_card,
)
from sfhzoo.zoo.disk import bundled_path
from sfhzoo.zoo.fields import Fields

FORMAT_VERSION = 1
VARIABLE = "SFHZOO_CATALOGUE"
PACKAGED = "catalogue.json"
_MAX_BYTES = 2**26


@dataclass(frozen=True)
class Catalogue:
    """Cards by name, in the order in which they were added; `notes` are for the user."""

    cards: Mapping[str, Card]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Card]:
        return iter(self.cards.values())

    def find(self, name: str) -> Card:
        """The card of `name`; UnknownName with the closest names."""
        if name in self.cards:
            return self.cards[name]
        close = difflib.get_close_matches(name, self.cards, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "`sfhzoo list` shows all names"
        raise UnknownName(f"the zoo has no artifact called {name!r}; {hint}")

    def extended(self, cards: Iterable[Card], where: str) -> Catalogue:
        """With `cards` from `where` added.

        A card completes one of the same name that is a recipe only. Raises ArtifactError where it
        contradicts one that is bundled or published: a published name never changes.
        """
        merged = dict(self.cards)
        for card in cards:
            old = merged.get(card.name)
            merged[card.name] = _merge(old, card, where) if old else card
        return replace(self, cards=merged)


def _merge(old: Card, new: Card, where: str) -> Card:
    if old.state == "recipe only" and new.kind == old.kind:
        return new
    if new.state == "recipe only" or new == old:
        return old
    if new.kind == old.kind and old.source and new.source == old.source:
        return old
    if new.kind == old.kind and old.identity and new.identity == old.identity:
        return old if old.source else replace(old, source=new.source)
    raise ArtifactError(
        f"{where}: {old.name} is {_stands_for(new)}, but the zoo has it as {_stands_for(old)}; a "
        "published name never changes: give the new one the next version"
    )


def _stands_for(card: Card) -> str:
    where = f"{card.source.repo}@{card.source.revision[:12]}" if card.source else card.state
    return f"the {card.kind} {where}" + (f" ({card.identity[:12]})" if card.identity else "")


def load_packaged() -> Catalogue:
    """The catalogue of the package alone."""
    path = artifacts.BUNDLED / PACKAGED
    return Catalogue({}).extended(read_catalogue(path, packaged=True), str(path))


def load_catalogue(
    extra: Sequence[str] = (), cache_dir: str | Path | None = None, offline: bool = False
) -> Catalogue:
    """The package's catalogue, extended by SFHZOO_CATALOGUE and then by `extra`.

    A Hub repository that cannot be reached is read as it was the last time, with a note. Raises
    ArtifactError for a catalogue that cannot be read or contradicts another, NotCached for one
    that is not there.
    """
    catalogue = load_packaged()
    from_environment = [part.strip() for part in os.environ.get(VARIABLE, "").split(",")]
    for where in [*filter(None, from_environment), *extra]:
        path = Path(where).expanduser()
        listed, note = (path, "") if path.exists() else _fetch(where, cache_dir, offline)
        cards = _read_directory(listed) if listed.is_dir() else read_catalogue(listed)
        notes = (*catalogue.notes, note) if note else catalogue.notes
        catalogue = replace(catalogue.extended(cards, where), notes=notes)
    return catalogue


def _read_directory(directory: Path) -> list[Card]:
    listed = directory / PACKAGED
    return read_catalogue(listed) if listed.is_file() else read_cards(directory)


def _fetch(where: str, cache_dir: str | Path | None, offline: bool) -> tuple[Path, str]:
    """(catalogue.json of a Hub repository, what to tell the user about it)."""
    repo, _, revision = where.partition("@")
    if not is_repo(repo):
        raise NotCached(
            f"{where}: expected a catalogue: a .json file, a directory of cards or a Hub "
            "repository org/name[@revision]; there is no such file"
        )
    from sfhzoo.zoo import hub

    try:
        return hub.fetch_catalogue(repo, revision or None, cache_dir, offline), ""
    except ArtifactError as e:
        if offline:
            raise
        try:
            kept = hub.fetch_catalogue(repo, revision or None, cache_dir, offline=True)
        except ArtifactError:
            raise e from None
        return kept, f"{e}; the catalogue is that of the last time"


def read_catalogue(path: Path, packaged: bool = False) -> list[Card]:
    """The cards of a catalogue.json; only the package's own may call a card bundled."""
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise ArtifactError(f"{path}: expected a catalogue of at most {_MAX_BYTES >> 20} MiB")
    content = artifacts.read_json(path)
    version = content.get("format_version")
    if not isinstance(version, int) or not isinstance(content.get("entries"), list):
        raise ArtifactError(f"{path}: expected a catalogue with format_version and entries")
    if version > FORMAT_VERSION:
        raise Incompatible(
            f"{path}: a catalogue of format {version}, this sfhzoo ({__version__}) reads up to "
            f"{FORMAT_VERSION}; upgrade sfhzoo"
        )
    cards = []
    for i, entry in enumerate(content["entries"]):
        if not isinstance(entry, Mapping):
            raise ArtifactError(f"{path}: entries[{i}]: expected a card, got {entry!r:.80}")
        cards.append(_usable(card_from_dict(entry, f"{path}: entries[{i}]"), str(path), packaged))
    return cards


def read_cards(directory: Path) -> list[Card]:
    """The cards below a directory: `<name>/README.md` and `<name>.toml`."""
    paths = [*sorted(directory.glob("*/README.md")), *sorted(directory.glob("*.toml"))]
    if not paths:
        raise ArtifactError(f"{directory}: expected cards <name>/README.md or <name>.toml")
    cards = []
    for path in paths:
        card = _usable(read_card(path), str(path))
        expected = path.parent.name if path.name == "README.md" else path.stem
        if card.name != expected:
            raise ArtifactError(f"{path}: name: expected {expected!r}, got {card.name!r}")
        cards.append(card)
    return cards


def _usable(card: Card, where: str, packaged: bool = False) -> Card:
    if card.bundled and not packaged:
        raise ArtifactError(f"{where}: {card.name}: bundled: only the package itself can say so")
    if card.state == "recipe only" and not card.recipe:
        raise Fields({}, where).error(
            f"{card.name}", "a source (where it is published) or a recipe (how to make it)"
        )
    return card


def make_catalogue(directories: Sequence[Path]) -> str:
    """The text of the package's catalogue.json, from the cards in `directories`.

    What is bundled, and its identity, is read from the package's data.
    """
    cards = [card for directory in directories for card in read_cards(directory)]
    entries = [card_to_dict(_with_bundled_facts(card)) for card in cards]
    content = {"format_version": FORMAT_VERSION, "entries": entries}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _with_bundled_facts(card: Card) -> Card:
    path = bundled_path(card.name)
    if path is None:
        return card
    return replace(card, bundled=True, identity=artifacts.identity_of(path))
