"""releases/: trained artifacts with card and metrics, ready to publish, outside of the wheel."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tomllib
from pathlib import Path

import galaxies
import pytest
from hubserver import OWNER, HubServer
from zootools import WEIGHTS, make_env, sfhzoo

from sfhzoo.diagnostics.quality import QUANTITIES
from sfhzoo.errors import ArtifactError
from sfhzoo.zoo import artifacts
from sfhzoo.zoo.cards import parse_card, read_card

ROOT = Path(__file__).parents[1]
RELEASES = sorted(p for p in (ROOT / "releases").glob("*-v*") if p.is_dir())
NAME = "tiny-v1"
CARD = f"""---
license: bsd-3-clause
library_name: sfhzoo
tags: [astronomy]
datasets: [{NAME}]
sfhzoo:
  name: {NAME}
  kind: prior
  origin: by hand
  summary: Normal in every coordinate.
  recipe: sfhzoo train tiny.toml --out tiny
---

# {NAME}

## Trained on

Nothing.

## Training

Somebody typed 99 % here.

## Quality

Not measured yet.

## Citation

```bibtex
@misc{{tiny, title = {{Tiny}}}}
```
"""


def load_script(name):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"ci/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A small project: both scripts upon its cards and releases; a prior fresh from training."""
    scripts = load_script("catalogue"), load_script("release")
    for script in scripts:
        monkeypatch.setattr(script, "CARDS", tmp_path / "model_cards")
        monkeypatch.setattr(script, "RELEASES", tmp_path / "releases")
    monkeypatch.setattr(scripts[0], "GRIDS", ROOT / "grids")
    monkeypatch.setattr(scripts[0].catalogue, "PACKAGED", str(tmp_path / "catalogue.json"))
    (tmp_path / "model_cards" / NAME).mkdir(parents=True)
    (tmp_path / "model_cards" / NAME / "README.md").write_text(CARD)
    made = make_trained(tmp_path / "made")
    return (*scripts, made, tmp_path)


def make_trained(directory):
    """A prior as training leaves it, and metrics as `prior evaluate` writes them."""
    prior = galaxies.make_normal_prior()
    training = {"steps": 1200, "batch": 64, "cpu_seconds": 300.0, "threads": 1,
                "recipe": {"start": "other-v1"}}  # fmt: skip
    prior.config |= {
        "name": NAME, "kind": "prior", "architecture": "spectral-mlp",
        "hyperparameters": {"width": 16, "blocks": 1}, "training": training,
        "training_set": {"sha256": "ab" * 32, "n_train": 3000, "n_test": 100},
    }  # fmt: skip
    artifacts.save_prior(prior, directory)
    measured = {
        f"ks_{q}": {"value": 0.0123, "threshold": 0.03, "passed": True} for q in QUANTITIES
    }
    content = {
        "schema": 1, "prior": NAME, "sha256": artifacts.identity_of(directory), "n_draws": 500,
        "training_set": {"name": NAME}, "n_test": 100, "seed": 3, "date": "2026-11-22",
        "metrics": measured, "passed": True,
    }  # fmt: skip
    artifacts.write_json(directory / "metrics.json", content)
    (directory / "checkpoint.safetensors").write_bytes(b"not to be released")
    return directory


@pytest.fixture(scope="module")
def server():
    with HubServer() as running:
        yield running


def publish_and_pull(server, directory, home, *options):
    """Publish a copy, pull it by name into an empty cache, verify it there; what was published."""
    owner = make_env(server, home / "owner", HF_TOKEN=OWNER)
    # the Hub allows no -- in the name of a repository
    catalogue, repo = home / "of-ours.json", f"sfh/{directory.name.replace('--', '-')}"
    copy = shutil.copytree(directory, home / directory.name)
    done = sfhzoo("publish", copy, "--repo", repo, "--catalogue", catalogue, *options, env=owner)
    assert done.returncode == 0, done.stderr
    user = make_env(server, home / "user", SFHZOO_CATALOGUE=str(catalogue))
    pulled = sfhzoo("pull", directory.name, env=user)
    assert pulled.returncode == 0, pulled.stderr
    verified = sfhzoo("verify", directory.name, env=user)
    assert verified.returncode == 0 and verified.stdout.startswith("ok"), verified.stderr
    place = Path(pulled.stdout.strip())
    assert artifacts.identity_of(place) == artifacts.identity_of(directory)
    return json.loads(done.stdout), place


# ---- the way there ------------------------------------------------------------------------------


def test_a_trained_prior_becomes_a_release_whose_card_says_what_was_measured(project):
    catalogue, release, made, place = project
    out = release.release(made)
    assert list(catalogue.update(check=True)) != []
    list(catalogue.update(check=False))
    assert list(catalogue.update(check=True)) == []
    names = {"README.md", "config.json", "manifest.json", "metrics.json", WEIGHTS}
    assert {p.name for p in out.iterdir()} == names
    artifacts.verify(out)
    text = (out / "README.md").read_text()
    assert text == (place / "model_cards" / NAME / "README.md").read_text()
    told = " ".join(text.split())
    for part in (
        "the weights of `other-v1`. 1,200 steps of 64 histories, out of 3,000;",
        "5 minutes of CPU time, threads: 1; 4.0 steps or 256 histories per CPU second",
        "| ks_t50 | 0.0123 | 0.03 | yes |", "seed 3, 2026-11-22", "## Trained on Nothing. ##",
    ):  # fmt: skip
        assert part in told, part
    assert "99 %" not in text
    assert parse_card(text, "").metrics["ks_t50"].value == 0.0123


def test_a_number_changed_by_hand_is_noticed(project):
    catalogue, release, made, place = project
    release.release(made)
    list(catalogue.update(check=False))
    card = place / "model_cards" / NAME / "README.md"
    card.write_text(card.read_text().replace("0.0123 | 0.03", "0.0023 | 0.03"))
    assert card in list(catalogue.update(check=True))


def test_metrics_of_other_weights_are_refused(project):
    catalogue, release, made, _ = project
    metrics = artifacts.read_json(made / "metrics.json") | {"sha256": "cd" * 32}
    artifacts.write_json(made / "metrics.json", metrics)
    release.release(made)
    with pytest.raises(ArtifactError, match="got cdcdcdcdcdcd; run sfhzoo prior evaluate again"):
        list(catalogue.update(check=False))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made, place: (made / "metrics.json").unlink(), "what was measured on it"),
        (lambda made, place: shutil.rmtree(place / "model_cards"), "its card"),
    ],
    ids=["metrics", "card"],
)
def test_what_is_not_ready_is_refused_and_nothing_written(project, spoil, told):
    _, release, made, place = project
    spoil(made, place)
    with pytest.raises(ArtifactError, match=f"{NAME} is not ready: expected {told}"):
        release.release(made)
    assert not (place / "releases").exists()


def test_a_release_is_published_as_it_is_and_pulled_by_name(project, server):
    catalogue, release, made, place = project
    out = release.release(made)
    list(catalogue.update(check=False))
    entry, pulled = publish_and_pull(server, out, place)
    assert entry["metrics"]["ks_t50"]["value"] == 0.0123
    assert (pulled / "README.md").read_bytes() == (out / "README.md").read_bytes()


# ---- what is there ------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", RELEASES, ids=lambda p: p.name)
def test_each_release_is_whole_small_and_measured(directory):
    artifacts.verify(directory)
    assert artifacts.load_any(directory).name == directory.name
    assert (directory / WEIGHTS).stat().st_size <= 20e6
    card = read_card(directory / "README.md")
    assert card.name == directory.name and card.metrics
    measured = artifacts.read_json(directory / "metrics.json")
    about = measured.get("run", {}).get("posterior_network", measured.get("sha256"))
    assert about == artifacts.identity_of(directory)


@pytest.mark.parametrize("directory", RELEASES, ids=lambda p: p.name)
def test_each_release_goes_to_the_hub_and_comes_back(directory, server, tmp_path):
    measured = artifacts.read_json(directory / "metrics.json")
    # what misses a threshold can be published too, and says so
    publish_and_pull(server, directory, tmp_path, *([] if measured["passed"] else ["--force"]))


def test_no_release_is_in_the_wheel_or_in_the_source_archive():
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    for builder in (WheelBuilder(str(ROOT)), SdistBuilder(str(ROOT))):
        names = {f.distribution_path for f in builder.recurse_included_files()}
        assert "sfhzoo/data/diffstarpop-tng-v1/model.safetensors" in names
        assert [n for n in names if "releases" in Path(n).parts or n.startswith("work")] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "/releases" in project["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"]
