"""Cards: what is on them is checked, and every message names file, key and what was expected."""

from __future__ import annotations

import json
import math
import re
import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import click
import pytest

from sfhzoo.cli import cli
from sfhzoo.errors import ArtifactError
from sfhzoo.zoo import artifacts
from sfhzoo.zoo.cards import (
    Card,
    FileRecord,
    Metric,
    Source,
    card_from_dict,
    card_to_dict,
    explain_missing,
    is_name,
    metrics_of,
    parse_card,
    read_card,
    with_metrics,
)

ROOT = Path(__file__).parents[1]
PATHS = [*sorted(ROOT.glob("model_cards/*/README.md")), *sorted(ROOT.glob("grids/*.toml"))]
README = """---
license: bsd-3-clause
library_name: sfhzoo
tags: [astronomy]
datasets: [eagle-v1]
sfhzoo:
  name: eagle-v2
  kind: prior
  origin: EAGLE
  summary: Histories of EAGLE galaxies.
  recipe: sfhzoo train recipes/eagle-v2.toml --out eagle-v2
  nearest: [tng50-v1]
---

# eagle-v2

Trained on EAGLE.

```bibtex
@ARTICLE{Schaye2015,
  title = {The EAGLE project}
}
```
"""
SOURCE = Source("org/eagle", "0123456789" * 4, {"config.json": FileRecord("ab" * 32, 7)})


@pytest.fixture
def card() -> Card:
    return parse_card(README, "README.md")


# ---- the package's own --------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_cards_of_the_project_can_be_read(path):
    card = read_card(path)
    assert card.name == (path.parent.name if path.suffix == ".md" else path.stem)
    assert card.summary and card.citation.startswith("@") and card.recipe and card.text


def parses(command: str) -> bool:
    """Whether a command line has the form that the program's parser wants."""
    program, *words = shlex.split(command)
    group: click.Command = cli
    while isinstance(group, click.Group):
        context = click.Context(group)
        found = group.get_command(context, words.pop(0))
        if found is None:
            return False
        group = found
    # the parser alone: the files need not exist
    values, rest, _ = group.make_parser(click.Context(group)).parse_args(words)
    required = [values.get(p.name) for p in group.params if p.required]
    return program == "sfhzoo" and not rest and all(isinstance(v, str) for v in required)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_the_commands_of_a_recipe_exist_and_so_do_the_files_they_read(path):
    for command in read_card(path).recipe.splitlines():
        assert parses(command), command
        for word in re.findall(r"\S+\.toml", command):
            assert (ROOT / word).is_file(), word


def test_a_command_that_does_not_exist_would_be_noticed():
    assert not parses("sfhzoo trian recipes/tng50-v1.toml --out x")
    assert not parses("sfhzoo train --out x")
    with pytest.raises(click.NoSuchOption):
        parses("sfhzoo train recipes/tng50-v1.toml --outt x")


def test_tng50_is_a_recipe_and_says_what_it_needs_and_what_is_nearest():
    card = read_card(ROOT / "model_cards/tng50-v1/README.md")
    assert card.state == "recipe only" and not card.metrics
    message = explain_missing(card)
    commands = card.recipe.splitlines()
    for part in ("tng50-v1", "registered download", *commands, "diffstarpop-tng-v1", "show"):
        assert part in message
    assert "pull" not in message


def test_the_recipe_of_tng50_holds_the_published_network_and_epochs():
    recipe = tomllib.loads((ROOT / "recipes/tng50-v1.toml").read_text())
    options = recipe["training"]
    assert (options["architecture"], options["parametrisation"]) == ("ncsnpp", "linear")
    assert options["network"] == {"nf": 64, "ch_mult": [1, 2, 2, 4]}
    schedule = options["schedule"]
    assert (schedule["sigma_min"], schedule["sigma_max"]) == (1e-3, 16.0)
    assert options["steps"] * options["batch"] / 94_372 == pytest.approx(10_000, rel=2e-3)
    # empty bins keep the metallicity that they were given
    empty = math.log10(recipe["simulation"]["empty_metallicity"] / 0.0142)
    assert options["logzsol_floor"] < empty


@pytest.mark.parametrize(
    "path", [p for p in PATHS if p.suffix == ".md"], ids=lambda p: p.parent.name
)
def test_the_hubs_own_reader_finds_license_library_and_metrics(path):
    from huggingface_hub import ModelCard

    card, hub = read_card(path), ModelCard.load(path, ignore_metadata_errors=False).data
    assert (hub.license, hub.library_name) == (card.license, "sfhzoo")
    results = hub.eval_results or []
    assert {r.metric_type: r.metric_value for r in results} == {
        name: metric.value for name, metric in card.metrics.items()
    }


@pytest.mark.parametrize(
    "name", ["diffstarpop-tng-v1", "diffstarpop-tng-v1--bc03-miles-v1-posterior-v1"]
)
def test_the_metrics_on_a_bundled_card_are_those_that_were_measured(name):
    measured = metrics_of(json.loads((artifacts.BUNDLED / name / "metrics.json").read_text()))
    shown = read_card(artifacts.BUNDLED / name / "README.md").metrics
    assert shown.keys() == measured.keys() and len(shown) > 10
    for key, metric in measured.items():
        assert shown[key].value == pytest.approx(metric.value, rel=1e-3)
        assert shown[key].passed == metric.passed


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        ("name: eagle-v2", "name: Eagle-v2", "sfhzoo.name", "<name>-v<N>"),
        ("name: eagle-v2", "name: ../eagle-v2", "sfhzoo.name", "<name>-v<N>"),
        ("name: eagle-v2", "name: eagle", "sfhzoo.name", "<name>-v<N>"),
        ("  kind: prior\n", "", "sfhzoo.kind", "prior | posterior-network | grid"),
        ("kind: prior", "kind: priors", "sfhzoo.kind", "prior | posterior-network | grid"),
        ("  origin: EAGLE\n", "", "sfhzoo.origin", "the simulation"),
        ("origin: EAGLE", "origin: 7", "sfhzoo.origin", "the simulation"),
        ("summary: H", "summary: |\n    two\n    lines h", "sfhzoo.summary", "in one line"),
        ("origin: EAGLE", 'origin: "EAGLE\\e[2J"', "sfhzoo.origin", "printable"),
        ("nearest: [tng50-v1]", "nearest: tng50-v1", "sfhzoo.nearest", "a list of names"),
        ("nearest: [tng50-v1]", "nearest: [TNG50]", "sfhzoo.nearest", "a list of names"),
        ("nearest: [tng50-v1]", "source: here", "sfhzoo.source", "repo, revision and files"),
        ("nearest: [tng50-v1]", "nearst: [tng50-v1]", "sfhzoo.nearst", "did you mean nearest?"),
        ("nearest: [tng50-v1]", "bundled: true", "sfhzoo.bundled", "unknown key"),
        ("license: bsd-3-clause\n", "", "license", "a license identifier"),
        ("license: bsd-3-clause", "license: BSD 3", "license", "a license identifier"),
        ("library_name: sfhzoo", "library_name: timm", "library_name", "expected sfhzoo"),
        ("tags: [astronomy]\n", "", "tags", "a list of words"),
        ("datasets: [eagle-v1]", "datasets: []", "datasets", "a list of words"),
        ("sfhzoo:\n", "zoo:\n", "sfhzoo", "a block with name, kind"),
        ("```bibtex", "```", "the block ```bibtex", "BibTeX"),
        ("@ARTICLE{", "Schaye et al. 2015", "the block ```bibtex", "starts with @"),
        ("Trained on", "Trained\x1b[2J on", "the text", "printable"),
        ("datasets:", "model-index: [{name: x}]\ndatasets:", "model-index", "the Hub's list"),
    ],
)  # fmt: skip
def test_a_wrong_card_is_refused_by_file_key_and_expectation(old, new, key, expected):
    assert old in README
    with pytest.raises(ArtifactError) as caught:
        parse_card(README.replace(old, new, 1), "cards/README.md")
    message = str(caught.value)
    assert message.startswith(f"cards/README.md: {key}: ")
    assert expected in message and len(message) < 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# eagle", "front matter between two lines of ---"),
        ("---\nlicense: mit\n", "front matter between two lines of ---"),
        ("---\nlicense: [\n---\n", "YAML"),
        ("---\n- license\n---\n", "a table"),
        ("---\nx: !!python/object/apply:os.getcwd []\n---\n", "YAML"),
        ("---\nx: " + "y" * 70_000 + "\n---\n", "at most 64 KiB"),
        ("---\n" + "[" * 600 + "\n---\n", "YAML"),
    ],
    ids=["none", "open", "broken", "list", "python", "large", "deep"],
)
def test_what_has_no_front_matter_is_no_card(text, expected):
    with pytest.raises(ArtifactError, match=expected):
        parse_card(text, "README.md")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"repo": "eagle"}, "source.repo"),
        ({"repo": "org/.."}, "source.repo"),
        ({"revision": "main"}, "source.revision"),
        ({"files": {}}, "source.files"),
        ({"files": {"../x": {"sha256": "ab" * 32, "size": 1}}}, "source.files.../x"),
        ({"files": {"a/b": {"sha256": "ab" * 32, "size": 1}}}, "source.files.a/b"),
        ({"files": {"x": {"sha256": "abc", "size": 1}}}, "source.files.x.sha256"),
        ({"files": {"x": {"sha256": "ab" * 32, "size": -1}}}, "source.files.x.size"),
        ({"files": {"x": {"sha256": "ab" * 32, "size": True}}}, "source.files.x.size"),
        ({"files": {"x": 3}}, "source.files.x"),
        ({"branch": "main"}, "source.branch"),
    ],
)
def test_a_source_pins_a_commit_and_plain_files_with_size_and_hash(card, change, key):
    content = card_to_dict(replace(card, source=SOURCE))
    with pytest.raises(ArtifactError) as caught:
        card_from_dict({**content, "source": {**content["source"], **change}}, "catalogue.json")
    assert str(caught.value).startswith(f"catalogue.json: {key}: ")


@pytest.mark.parametrize("value", ["good", True, float("nan"), float("inf"), [1]])
def test_a_metric_is_a_finite_number(card, value):
    content = card_to_dict(card) | {"metrics": {"ks": {"value": value}}}
    with pytest.raises(ArtifactError, match=r"metrics\.ks\.value: expected a finite number"):
        card_from_dict(content, "catalogue.json")


def test_a_file_that_is_no_text_or_too_large_is_refused(tmp_path):
    path = tmp_path / "README.md"
    with pytest.raises(ArtifactError, match="expected a card at"):
        read_card(path)
    path.write_bytes(b"---\n\xff\xfe\n---\n")
    with pytest.raises(ArtifactError, match="expected a card at"):
        read_card(path)
    path.write_bytes(b"-" * (2**20 + 1))
    with pytest.raises(ArtifactError, match="at most 1 MiB, got 1048577"):
        read_card(path)


def test_names_are_lower_case_words_and_a_version():
    for name in ("tng50-v1", "a--b-posterior-v12", "bc03-miles-v1"):
        assert is_name(name)
    for name in ("tng50", "tng50-v0", "-v1", "TNG-v1", "a/b-v1", "a---b-v1", "a_b-v1", "a-v1\n"):
        assert not is_name(name)


# ---- what is kept -------------------------------------------------------------------------------


def test_a_card_holds_what_its_readme_says(card):
    assert (card.name, card.kind, card.version, card.origin) == ("eagle-v2", "prior", 2, "EAGLE")
    assert card.license == "bsd-3-clause" and card.nearest == ("tng50-v1",)
    assert card.citation == "@ARTICLE{Schaye2015,\n  title = {The EAGLE project}\n}"
    assert card.text.startswith("# eagle-v2\n\nTrained on EAGLE.")


def test_a_card_survives_json(card):
    full = replace(
        card, source=SOURCE, identity="cd" * 32, metrics={"p": Metric(0.2, 0.1, ">=")}, needs="x"
    )
    assert card_from_dict(json.loads(json.dumps(card_to_dict(full))), "json") == full


def test_the_state_is_what_is_there(card):
    assert card.state == "recipe only"
    assert replace(card, source=SOURCE).state == "published"
    assert replace(card, source=SOURCE, bundled=True).state == "bundled"
    assert SOURCE.size == 7


def test_what_is_missing_is_explained_by_state(card):
    assert "sfhzoo pull eagle-v2" in explain_missing(replace(card, source=SOURCE))
    assert "reinstall" in explain_missing(replace(card, bundled=True))


def test_a_metric_keeps_its_limit_in_the_direction_of_its_relation():
    assert Metric(0.1, 0.1).passed and Metric(0.1, 0.1, ">=").passed
    assert Metric(0.2, 0.1, ">=").passed and not Metric(0.2, 0.1).passed
    assert not Metric(0.05, 0.1, ">=").passed and Metric(0.05, 0.1).passed
    assert Metric(0.1).passed is None


def test_metrics_are_read_as_evaluate_and_as_validate_write_them():
    evaluated = {"metrics": {"ks": {"value": 0.2, "threshold": 0.1, "passed": False, "bin": 3}}}
    assert metrics_of(evaluated) == {"ks": Metric(0.2, 0.1)}
    row = {"name": "least p", "value": 0.2, "relation": ">=", "limit": 0.1, "passed": True}
    assert metrics_of({"checks": [row]}) == {"least p": Metric(0.2, 0.1, ">=")}


def test_metrics_come_into_the_front_matter_and_nothing_else_changes(card):
    metrics = {"ks": Metric(0.0123456, 0.03), "p": Metric(0.5, 0.01, ">="), "free": Metric(3.0)}
    once = with_metrics(README, metrics)
    assert parse_card(once, "README.md") == replace(
        card, metrics={**metrics, "ks": Metric(0.01235, 0.03)}
    )
    assert with_metrics(once, metrics) == once
    assert with_metrics(once, {}) == README


def test_rounding_never_turns_a_missed_limit_into_a_kept_one():
    text = with_metrics(README, {"largest": Metric(0.1000004, 0.1)})
    assert parse_card(text, "README.md").metrics["largest"].passed is False


# ---- grids --------------------------------------------------------------------------------------

RECIPE = """
name = "popstar-v1"
engine = "popstar"
[provenance]
surviving_mass = "living stars"
[zoo]
summary = "PopStar."
license = "mit"
citation = "@ARTICLE{Molla2009}"
"""


def test_a_grids_recipe_is_its_card(tmp_path):
    path = tmp_path / "popstar-v1.toml"
    path.write_text(RECIPE)
    card = read_card(path)
    assert (card.name, card.kind, card.origin) == ("popstar-v1", "grid", "popstar")
    assert card.recipe == "sfhzoo grid build grids/popstar-v1.toml"
    assert card.text == "- surviving mass: living stars"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[zoo]", "[zooo]", "zoo: expected a table with summary"),
        ('summary = "PopStar."', "", "zoo.summary: expected text, got nothing"),
        ('license = "mit"', 'licence = "mit"', "zoo.licence: unknown key; did you mean license?"),
        ('name = "popstar-v1"', "", "name: expected <name>-v<N>"),
        ("@ARTICLE{Molla2009}", "Molla 2009", "zoo.citation: expected BibTeX"),
        ("[zoo]", "[zoo", "expected TOML"),
    ],
)
def test_a_wrong_recipe_is_refused_by_file_key_and_expectation(tmp_path, old, new, message):
    path = tmp_path / "popstar-v1.toml"
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(ArtifactError, match=re.escape(f"{path}: {message}")):
        read_card(path)
