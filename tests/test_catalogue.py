"""The catalogue: names find their cards; others may add, but not change what is published."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sfhzoo.errors import ArtifactError, Incompatible, NotCached, UnknownName
from sfhzoo.zoo import artifacts, hub
from sfhzoo.zoo.cards import Card, FileRecord, Source, card_to_dict
from sfhzoo.zoo.catalogue import Catalogue, load_catalogue, read_cards

ROOT = Path(__file__).parents[1]
SOURCE = Source("org/mine", "0123456789" * 4, {"config.json": FileRecord("ab" * 32, 7)})
OTHER = replace(SOURCE, revision="9876543210" * 4)
CARD = Card(
    "mine-v1", "prior", "EAGLE", "Mine.", "mit", "@MISC{mine}", recipe="sfhzoo train mine.toml",
    identity="cd" * 32,
)  # fmt: skip
PUBLISHED = replace(CARD, source=SOURCE)
TNG50 = replace(PUBLISHED, name="tng50-v1")


@pytest.fixture(autouse=True)
def no_catalogue_from_outside(monkeypatch):
    monkeypatch.delenv("SFHZOO_CATALOGUE", raising=False)


def write(path: Path, *cards: Card, **changes: object) -> Path:
    entries = [card_to_dict(card) for card in cards]
    path.write_text(json.dumps({"format_version": 1, "entries": entries} | changes))
    return path


# ---- the package's own --------------------------------------------------------------------------


@pytest.fixture
def script():
    """ci/catalogue.py as a module."""
    spec = importlib.util.spec_from_file_location("catalogue_script", ROOT / "ci/catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_packaged_catalogue_is_current(script):
    assert list(script.update(check=True)) == [], "run ci/catalogue"


@pytest.fixture
def copies(script, monkeypatch, tmp_path):
    """The script on a small project: one card, bundled with other weights than its manifest's."""
    data, cards = tmp_path / "data", tmp_path / "model_cards"
    (data / "tng50-v1").mkdir(parents=True)
    shutil.copytree(ROOT / "model_cards/tng50-v1", cards / "tng50-v1")
    for name in ("config.json", "model.safetensors"):
        (data / "tng50-v1" / name).write_text("{}")
    (tmp_path / "grids").mkdir()
    shutil.copy(ROOT / "grids/bc03-miles-v1.toml", tmp_path / "grids")
    monkeypatch.setattr(artifacts, "BUNDLED", data)
    monkeypatch.setattr(script, "CARDS", cards)
    monkeypatch.setattr(script, "GRIDS", tmp_path / "grids")
    return tmp_path


def test_one_command_brings_card_manifest_and_catalogue_up_to_date(script, copies):
    data = copies / "data"
    (data / "tng50-v1/metrics.json").write_text(
        '{"metrics": {"ks": {"value": 1, "threshold": 2}}}'
    )
    written = {path.relative_to(copies).as_posix() for path in script.update(check=False)}
    assert written == {
        "model_cards/tng50-v1/README.md", "data/tng50-v1/README.md", "data/catalogue.json",
    }  # fmt: skip
    assert list(script.update(check=True)) == []
    artifacts.verify(data / "tng50-v1")
    card = load_catalogue().find("tng50-v1")
    assert card.bundled and card.identity == artifacts.identity_of(data / "tng50-v1")
    assert card.metrics["ks"].value == 1
    assert load_catalogue().find("bc03-miles-v1").state == "recipe only"


def test_new_weights_make_the_catalogue_stale_and_checking_writes_nothing(script, copies):
    list(script.update(check=False))
    (copies / "data/tng50-v1/model.safetensors").write_text("retrained")
    before = (copies / "data/catalogue.json").read_bytes()
    assert list(script.update(check=True)) == [copies / "data/catalogue.json"]
    assert (copies / "data/catalogue.json").read_bytes() == before


def test_the_package_says_truly_what_is_bundled():
    catalogue = load_catalogue()
    assert catalogue.find("diffstarpop-tng-v1").state == "bundled"
    assert catalogue.find("bc03-miles-v1").kind == "grid"
    assert catalogue.find("tng50-v1").state == "recipe only"
    for card in catalogue:
        assert card.bundled == (card.identity is not None)


def test_an_unknown_name_comes_with_the_closest_ones():
    with pytest.raises(UnknownName, match=r"'tng5-v1'; did you mean tng50-v1"):
        load_catalogue().find("tng5-v1")
    with pytest.raises(UnknownName, match="'qqq'; `sfhzoo list` shows all names"):
        load_catalogue().find("qqq")


# ---- others add to it ---------------------------------------------------------------------------


def test_a_file_adds_entries(tmp_path):
    catalogue = load_catalogue([str(write(tmp_path / "mine.json", PUBLISHED))])
    assert catalogue.find("mine-v1") == PUBLISHED
    assert catalogue.find("diffstarpop-tng-v1").bundled


def test_a_directory_adds_its_cards_or_its_catalogue(tmp_path):
    shutil.copytree(ROOT / "model_cards/tng50-v1", tmp_path / "eagle-v1")
    path = tmp_path / "eagle-v1/README.md"
    path.write_text(path.read_text().replace("name: tng50-v1", "name: eagle-v1"))
    assert load_catalogue([str(tmp_path)]).find("eagle-v1").state == "recipe only"
    write(tmp_path / "catalogue.json", PUBLISHED)
    assert load_catalogue([str(tmp_path)]).find("mine-v1") == PUBLISHED


@pytest.mark.parametrize(("where", "revision"), [("org/cards", None), ("org/cards@v2", "v2")])
def test_a_hub_repository_adds_its_catalogue(tmp_path, monkeypatch, where, revision):
    asked = []

    def fetch_catalogue(*args):
        asked.append(args)
        return write(tmp_path / "mine.json", PUBLISHED)

    monkeypatch.setattr(hub, "fetch_catalogue", fetch_catalogue)
    catalogue = load_catalogue([where], tmp_path, offline=True)
    assert catalogue.find("mine-v1") == PUBLISHED
    assert asked == [("org/cards", revision, tmp_path, True)]


def test_a_hub_that_is_away_leaves_the_catalogue_of_the_last_time_and_says_so(
    tmp_path, monkeypatch
):
    kept = write(tmp_path / "mine.json", PUBLISHED)

    def fetch_catalogue(repo, revision, cache_dir, offline):
        if not offline or not kept.is_file():
            raise ArtifactError("offline" if offline else "the connection failed")
        return kept

    monkeypatch.setattr(hub, "fetch_catalogue", fetch_catalogue)
    catalogue = load_catalogue(["org/cards"])
    assert catalogue.find("mine-v1") == PUBLISHED
    assert catalogue.notes == (
        "the connection failed; the catalogue is that of the last time",
    )  # fmt: skip
    assert load_catalogue(["org/cards"], offline=True).notes == ()
    kept.unlink()
    with pytest.raises(ArtifactError, match="the connection failed"):
        load_catalogue(["org/cards"])


def test_the_environment_adds_catalogues_separated_by_commas(tmp_path, monkeypatch):
    first = write(tmp_path / "1.json", PUBLISHED)
    second = write(tmp_path / "2.json", replace(PUBLISHED, name="mine-v2"))
    monkeypatch.setenv("SFHZOO_CATALOGUE", f"{first}, {second},")
    catalogue = load_catalogue()
    assert catalogue.find("mine-v1") and catalogue.find("mine-v2")


def test_a_published_entry_completes_a_recipe(tmp_path):
    path = write(tmp_path / "mine.json", TNG50)
    assert load_catalogue([str(path)]).find("tng50-v1") == TNG50


# ---- and nobody changes what is published -------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (PUBLISHED, replace(PUBLISHED, source=OTHER, identity="ef" * 32)),
        (PUBLISHED, replace(PUBLISHED, kind="grid")),
        (replace(CARD, bundled=True), replace(PUBLISHED, identity="ef" * 32)),
        (replace(CARD, bundled=True), replace(PUBLISHED, identity=None)),
        (CARD, replace(PUBLISHED, kind="grid")),
    ],
    ids=["other weights", "other kind", "bundled", "bundled, no identity", "recipe's kind"],
)
def test_the_same_name_for_something_else_is_refused(old, new):
    with pytest.raises(ArtifactError, match=r"here: mine-v1 is the .*a published name never"):
        Catalogue({old.name: old}).extended([new], "here")


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        (PUBLISHED, PUBLISHED, PUBLISHED),
        (PUBLISHED, CARD, PUBLISHED),
        (PUBLISHED, replace(PUBLISHED, summary="Other words."), PUBLISHED),
        (PUBLISHED, replace(PUBLISHED, source=OTHER), PUBLISHED),
        (replace(CARD, bundled=True), PUBLISHED, replace(PUBLISHED, bundled=True)),
    ],
    ids=["same", "recipe", "other words", "same weights elsewhere", "bundled and published"],
)
def test_the_same_name_for_the_same_thing_changes_nothing(old, new, merged):
    assert Catalogue({old.name: old}).extended([new], "here").find("mine-v1") == merged


# ---- what is no catalogue -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format_version": 2}, Incompatible, "of format 2, .* reads up to 1; upgrade sfhzoo"),
        ({"format_version": None}, ArtifactError, "expected a catalogue with format_version"),
        ({"entries": {}}, ArtifactError, "expected a catalogue with format_version and entries"),
        ({"entries": [3]}, ArtifactError, r"entries\[0\]: expected a card, got 3"),
        ({"entries": [{}]}, ArtifactError, r"entries\[0\]: kind: expected prior"),
    ],
)
def test_what_is_no_catalogue_is_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        load_catalogue([str(write(tmp_path / "mine.json", **changes))])


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (replace(PUBLISHED, bundled=True), "mine-v1: bundled: only the package"),
        (replace(CARD, recipe=None), r"mine-v1: expected a source .* or a recipe"),
    ],
)
def test_an_entry_that_claims_too_much_or_nothing_is_refused(tmp_path, card, message):
    with pytest.raises(ArtifactError, match=message):
        load_catalogue([str(write(tmp_path / "mine.json", card))])


@pytest.mark.parametrize("where", ["nowhere.json", "org/name/more", "org/../x", "a b/c"])
def test_a_catalogue_that_is_not_there_is_no_request(where, monkeypatch):
    monkeypatch.setattr(hub, "fetch_catalogue", lambda *a, **k: pytest.fail("a request"))
    with pytest.raises(NotCached, match="there is no such file"):
        load_catalogue([where])


def test_a_card_stands_in_a_directory_of_its_name(tmp_path):
    with pytest.raises(ArtifactError, match=r"expected cards <name>/README\.md"):
        read_cards(tmp_path)
    shutil.copytree(ROOT / "model_cards/tng50-v1", tmp_path / "tng100-v1")
    with pytest.raises(ArtifactError, match="name: expected 'tng100-v1', got 'tng50-v1'"):
        read_cards(tmp_path)
