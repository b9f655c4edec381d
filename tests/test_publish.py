"""Publishing: what is refused, what arrives, and what a second time changes."""

from __future__ import annotations

import json
import os

import galaxies
import pytest
from hubserver import OWNER, READER, Fault, HubServer
from huggingface_hub import constants
from test_grids import make_grid
from zootools import WEIGHTS, flip_byte

from sfhzoo.errors import ArtifactError, HashMismatch, Incompatible
from sfhzoo.zoo import artifacts, hub, transfer
from sfhzoo.zoo.cards import parse_card
from sfhzoo.zoo.catalogue import load_catalogue
from sfhzoo.zoo.publish import add_entry, publish

# of the client's own upload
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME, REPO = "tiny-v1", "sfh/tiny"
CARD = """---
license: bsd-3-clause
library_name: sfhzoo
tags: [astronomy]
datasets: [by-hand]
sfhzoo:
  name: {name}
  kind: {kind}
  origin: by hand
  summary: Normal in every coordinate.
---
# {name}

```bibtex
@misc{{tiny, title = {{Tiny}}}}
```
"""


@pytest.fixture(scope="module")
def running():
    with HubServer() as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    running.reset()
    running.repos.clear()
    for key in [k for k in os.environ if k.startswith(("HF_", "SFHZOO_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("HF_TOKEN", OWNER)
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.01)
    return running


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A prior as training leaves it."""
    prior = galaxies.make_normal_prior()
    shape = {"width": 16, "blocks": 1}
    prior.config |= {"name": NAME, "kind": "prior", "architecture": "spectral-mlp",
                     "hyperparameters": shape, "training_set": {"name": "by hand"}}  # fmt: skip
    return artifacts.save_prior(prior, tmp_path_factory.mktemp("made") / NAME)


@pytest.fixture
def directory(made, tmp_path):
    """The same, with its card and good metrics."""
    place = tmp_path / NAME
    place.mkdir()
    for path in made.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    (place / "README.md").write_text(CARD.format(name=NAME, kind="prior"))
    (place / "checkpoint.safetensors").write_bytes(b"not to be published")
    write_metrics(place)
    return place


def write_metrics(directory, value=0.01, **changes):
    metrics = {"ks_t50": {"value": value, "threshold": 0.03, "passed": value <= 0.03}}
    content = {"sha256": artifacts.identity_of(directory), "metrics": metrics,
               "passed": value <= 0.03, **changes}  # fmt: skip
    artifacts.write_json(directory / "metrics.json", content)


def contents(directory):
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def assert_refused(server, directory, error, match, **options):
    """Nothing on the Hub, nothing changed here."""
    before = contents(directory)
    with pytest.raises(error, match=match):
        publish(directory, REPO, progress=False, **options)
    assert server.repos == {} and contents(directory) == before


# ---- what arrives -------------------------------------------------------------------------------


def test_an_artifact_arrives_whole_in_one_commit_with_one_tag(server, directory, tmp_path):
    card = publish(directory, REPO, progress=False)
    repo = server.repos[REPO]
    # the first one is that of the new repository
    assert len(repo.commits) == 2 and repo.tags == {"v1": repo.heads["main"]}
    assert card.source.revision == repo.heads["main"] and not repo.private
    arrived = {n: b.content for n, b in repo.commits[repo.heads["main"]].items()}
    assert {*arrived} - {".gitattributes"} == {*card.source.files} == {
        "README.md", "config.json", "manifest.json", "metrics.json", WEIGHTS
    }  # fmt: skip
    assert {n: (directory / n).read_bytes() for n in card.source.files} == {
        n: arrived[n] for n in card.source.files
    }
    assert card.identity == artifacts.identity_of(directory)
    pulled = hub.fetch(card.source, tmp_path / "cache", progress=False)
    assert artifacts.load_prior(pulled).sha256 == card.identity


def test_the_published_card_has_the_metrics(server, directory):
    card = publish(directory, REPO, progress=False)
    assert card.metrics["ks_t50"].value == 0.01 and card.metrics["ks_t50"].passed
    assert parse_card((directory / "README.md").read_text(), "").metrics == card.metrics


def test_it_is_pulled_back_and_compared(server, directory):
    server.faults = [Fault(f"GET .*/resolve/.*{WEIGHTS}", times=9, flip_byte=True)]
    before = contents(directory)
    with pytest.raises(HashMismatch, match=WEIGHTS):
        publish(directory, REPO, progress=False)
    assert contents(directory) == before
    server.reset()
    commits = len(server.repos[REPO].commits)
    assert publish(directory, REPO, progress=False).source.revision
    assert len(server.repos[REPO].commits) == commits


def test_the_metrics_of_validate_are_put_in(server, directory, tmp_path):
    (directory / "metrics.json").unlink()
    checks = [{"name": "mean deviation", "value": 0.02, "relation": "<=", "limit": 0.05,
               "passed": True}]  # fmt: skip
    run = {"prior": {"name": NAME, "sha256": artifacts.identity_of(directory)}}
    measured = tmp_path / "validation.json"
    measured.write_text(json.dumps({"checks": checks, "run": run, "passed": True}))
    card = publish(directory, REPO, metrics=measured, progress=False)
    assert card.metrics["mean deviation"].threshold == 0.05
    assert json.loads((directory / "metrics.json").read_text())["checks"] == checks
    artifacts.verify(directory)


def test_publishing_again_changes_nothing(server, directory):
    card = publish(directory, REPO, progress=False)
    assert publish(directory, REPO, progress=False) == card
    assert len(server.repos[REPO].commits) == 2


def test_a_published_version_cannot_be_replaced(server, directory):
    publish(directory, REPO, progress=False)
    before = contents(directory)
    text = (directory / "README.md").read_text()
    (directory / "README.md").write_text(f"{text}\nMore words.\n")
    told = r"has v1 already, with other README\.md, manifest\.json; .* never changes"
    with pytest.raises(ArtifactError, match=told):
        publish(directory, REPO, progress=False)
    assert len(server.repos[REPO].commits) == 2
    (directory / "README.md").write_text(text)
    assert contents(directory) == before


def test_a_private_repository_is_private(server, directory):
    publish(directory, REPO, private=True, progress=False)
    assert server.repos[REPO].private


def test_a_grid_needs_no_metrics(server, tmp_path):
    place = tmp_path / "grid"
    place.mkdir()
    make_grid(name="fake-v1").write(place / "fake-v1.zarr.zip")
    (place / "README.md").write_text(CARD.format(name="fake-v1", kind="grid"))
    card = publish(place, REPO, progress=False)
    assert {*card.source.files} == {"README.md", "fake-v1.zarr.zip", "manifest.json"}
    assert card.identity == artifacts.sha256_of(place / "fake-v1.zarr.zip")


# ---- what is refused ----------------------------------------------------------------------------


def test_a_card_is_needed(server, directory):
    (directory / "README.md").unlink()
    assert_refused(server, directory, ArtifactError, r"expected a card at .*README\.md")


@pytest.mark.parametrize("key", ["license", "origin", "summary", "bibtex"])
def test_a_card_without_a_field_is_refused_by_its_name(server, directory, key):
    text = "\n".join(x for x in CARD.splitlines() if key not in x)
    (directory / "README.md").write_text(text.format(name=NAME, kind="prior"))
    assert_refused(server, directory, ArtifactError, key, force=True)


@pytest.mark.parametrize(("name", "kind"), [("other-v1", "prior"), (NAME, "posterior-network")])
def test_the_card_of_something_else_is_refused(server, directory, name, kind):
    (directory / "README.md").write_text(CARD.format(name=name, kind=kind))
    told = f"the card is that of the {kind} {name}, the artifact is the prior {NAME}"
    assert_refused(server, directory, ArtifactError, told, force=True)


def test_weights_changed_since_they_were_made_are_refused(server, directory):
    flip_byte(directory / WEIGHTS)
    told = rf"{WEIGHTS}: sha256 expected"
    assert_refused(server, directory, HashMismatch, told, force=True)


def test_what_does_not_load_is_refused(server, directory):
    config = json.loads((directory / "config.json").read_text())
    config["hyperparameters"]["width"] = 32
    (directory / "config.json").write_text(json.dumps(config))
    artifacts.write_manifest(directory)
    write_metrics(directory)
    assert_refused(server, directory, Incompatible, "do not fit", force=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda d: (d / "metrics.json").unlink(), r"it has no metrics\.json with thresholds"),
        (lambda d: write_metrics(d, metrics={}), r"it has no metrics\.json with thresholds"),
        (lambda d: write_metrics(d, 0.04), "ks_t50 is 0.04, the threshold <= 0.03"),
        (lambda d: write_metrics(d, sha256="ab" * 32), "was measured on abababababab, this"),
        (lambda d: write_metrics(d, passed=False), "does not say that all thresholds were met"),
    ],
    ids=["missing", "empty", "below", "another's", "verdict"],
)
def test_metrics_that_do_not_speak_for_it_are_refused_or_forced(server, directory, change, told):
    change(directory)
    told = f"tiny-v1 is not published: .*{told}.*--force"
    assert_refused(server, directory, ArtifactError, told)
    publish(directory, REPO, force=True, progress=False)
    (reason,) = json.loads((directory / "metrics.json").read_text())["forced"]
    note = f"> **Published with --force**: {reason}.\n"
    assert (directory / "README.md").read_text().count(note) == 1
    publish(directory, REPO, force=True, progress=False)
    assert (directory / "README.md").read_text().count("Published with --force") == 1


def test_one_must_be_logged_in_and_own_the_place(server, directory, monkeypatch):
    assert_refused(server, directory, ArtifactError, r"\(403\)", token=READER)
    assert_refused(server, directory, ArtifactError, r"\(401\): log in", token="hf_old")
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(server, directory, ArtifactError, "log in first with `hf auth login`")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused(server, directory, ArtifactError, "HF_HUB_OFFLINE forbids")


def test_a_server_that_is_down_is_told(server, directory, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    told = r"publishing to sfh/tiny: the connection to 127\.0\.0\.1:9 failed"
    assert_refused(server, directory, ArtifactError, told)


def test_an_upload_that_breaks_off_is_told_and_can_be_repeated(server, directory):
    server.faults = [Fault("PUT /lfs", times=99, status=400)]
    with pytest.raises(ArtifactError, match=rf"uploading '{WEIGHTS}' to the Hub.*same again"):
        publish(directory, REPO, progress=False)
    assert server.repos[REPO].tags == {}
    server.reset()
    publish(directory, REPO, progress=False)
    assert [*server.repos[REPO].tags] == ["v1"]


# ---- the catalogue ------------------------------------------------------------------------------


def test_the_entry_makes_the_name_known(server, directory, tmp_path):
    catalogue = tmp_path / "mine" / "catalogue.json"
    card = publish(directory, REPO, progress=False)
    for _ in range(2):
        add_entry(catalogue, card)
    assert len(json.loads(catalogue.read_text())["entries"]) == 1
    found = load_catalogue([str(catalogue)]).find(NAME)
    assert found == card and found.state == "published"
