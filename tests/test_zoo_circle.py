"""The whole circle, each step a command of its own: train, measure, publish, pull, infer.

And what users meet who pull something that cannot be used.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import galaxies
import numpy as np
import pytest
from hubserver import OWNER, HubServer
from zootools import WEIGHTS, make_env, sfhzoo

from sfhzoo.cli.infer import EXAMPLE
from sfhzoo.simulations import trainingset
from sfhzoo.zoo import artifacts

# the released name, which the package knows as a recipe only
NAME, REPO = "tng50-v1", "sfh/tng50"
RECIPE = f"""
name = "{NAME}"
[training]
training_set = "histories.zarr"
network = {{ width = 16, blocks = 1 }}
batch = 64
steps = 20
warmup = 5
checkpoint_every = 20
seed = 1
"""
CARD = f"""---
license: bsd-3-clause
library_name: sfhzoo
tags: [astronomy]
datasets: [{NAME}]
sfhzoo:
  name: {NAME}
  kind: prior
  origin: by hand
  summary: Twenty steps of training on exponentials.
---
# {NAME}

```bibtex
@misc{{circle, title = {{A circle}}}}
```
"""
# a few hundred pixels and nothing free but the histories: what is tested is not the fit
QUICK = ("--sampler", "cla", "--samples", "20", "--wave-range", "4000:4300", "--av", "0.3",
         "--sigma-v", "200", "--redshift-offset", "fixed", "--jitter", "fixed")  # fmt: skip


@pytest.fixture(scope="module")
def server():
    with HubServer() as running:
        yield running


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """What a simulator has: a training set, and the recipe and card of a prior."""
    place = tmp_path_factory.mktemp("workshop")
    sfr, logzsol = (a.astype(np.float32) for a in galaxies.make_histories(600, 3))
    data = {"sfr": sfr, "logzsol": logzsol, "log_halo_mass": np.zeros(600, np.float32)}
    attributes = {
        "name": NAME, "recipe": json.dumps({"engine": "by hand"}), "cosmology": "Planck15",
        "n_test": 200, "sha256": trainingset.content_hash([sfr, logzsol]),
    }  # fmt: skip
    trainingset._write(place / "histories.zarr", data, attributes)
    (place / "recipe.toml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def published(server, workshop):
    """The catalogue's entry, after training, measuring and publishing; one test's worth of steps.

    The prior is far below the thresholds, so that publishing is refused and then forced.
    """
    env = make_env(server, workshop / "home", HF_TOKEN=OWNER)
    made, measured = workshop / "prior", workshop / "quality.json"

    def run(*args, expect=0):
        done = sfhzoo(*args, env=env, cwd=workshop)
        assert done.returncode == expect, done.stderr
        return done

    run("train", "recipe.toml", "--out", made, "--quiet")
    (made / "README.md").write_text(CARD)
    quality = ("prior", "evaluate", made, "histories.zarr", "--out", measured, "--draws", "200")
    run(*quality, expect=1)
    to_hub = ("publish", made, "--repo", REPO, "--metrics", measured)
    refused = run(*to_hub, expect=4)
    assert f"{NAME} is not published: " in refused.stderr and "the threshold <=" in refused.stderr
    assert REPO not in server.repos
    done = run(*to_hub, "--force", "--catalogue", workshop / "catalogue.json")
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def user(server, workshop, published, tmp_path_factory):
    """An empty home that knows the simulator's catalogue; `tng50-v1` pulled into it."""
    place = tmp_path_factory.mktemp("user")
    env = make_env(server, place / "home", SFHZOO_CATALOGUE=str(workshop / "catalogue.json"))
    server.reset()
    done = sfhzoo("pull", NAME, env=env)
    assert done.returncode == 0, done.stderr
    return place, env, Path(done.stdout.strip())


def infer(env, place, prior, *options):
    arguments = ("infer", EXAMPLE, "--prior", prior, "--out", place / "out", "--json",
                 "--overwrite", *options)  # fmt: skip
    return sfhzoo(*arguments, *QUICK, env=env, cwd=place)


def assert_unusable(done, *parts):
    assert done.returncode == 4, done.stderr
    assert done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


# ---- the circle ---------------------------------------------------------------------------------


def test_what_is_published_says_what_it_is(server, workshop, published):
    assert published["name"] == NAME and published["source"]["repo"] == REPO
    assert published["source"]["revision"] == server.repos[REPO].tags["v1"]
    assert published["identity"] == artifacts.identity_of(workshop / "prior")
    forced = json.loads((workshop / "prior" / "metrics.json").read_text())["forced"]
    assert any("the threshold <=" in reason for reason in forced)


def test_without_the_catalogue_the_name_is_a_recipe(server, published, tmp_path):
    server.reset()
    done = sfhzoo("pull", NAME, env=make_env(server, tmp_path))
    assert_unusable(done, NAME, "recipe", "registered download of TNG50-1", "diffstarpop-tng-v1")
    assert server.requests == []


def test_what_is_pulled_is_what_was_published(server, published, user):
    _, env, directory = user
    asked = sorted(r.line.rpartition("/")[2] for r in server.requests)
    assert asked == sorted(published["source"]["files"])
    done = sfhzoo("verify", NAME, env=env)
    assert done.returncode == 0 and done.stdout.startswith("ok")
    artifacts.verify(directory)
    assert artifacts.identity_of(directory) == published["identity"]


def test_inference_with_it_works_offline_and_without_the_catalogue(server, published, user):
    place, env, _ = user
    alone = {k: v for k, v in env.items() if k != "SFHZOO_CATALOGUE"}
    offline = {**alone, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    server.reset()
    done = infer(offline, place, NAME)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["prior"] == {"name": NAME, "sha256": published["identity"]}
    assert server.requests == []


def test_weights_cut_short_on_this_disk_are_refused_and_pulled_again(server, user):
    place, env, directory = user
    with (directory / WEIGHTS).resolve().open("r+b") as f:
        f.truncate(1000)
    assert_unusable(infer(env, place, NAME), NAME)
    done = sfhzoo("verify", NAME, env=env)
    assert done.returncode in (1, 4) and NAME in done.stdout + done.stderr
    assert sfhzoo("pull", NAME, env=env).returncode == 0
    artifacts.verify(directory)


@pytest.mark.slow
def test_what_validate_measured_goes_with_it(server, workshop, published):
    env = make_env(server, workshop / "home", HF_TOKEN=OWNER)
    out = workshop / "validation"
    few = ("--quick", "--n-mocks", "6", "--samples", "20", "--sampler", "cla", "--workers", "1")
    done = sfhzoo("validate", workshop / "prior", *few, "--quiet", "--out", out, env=env)
    assert done.returncode == 1, done.stderr
    metrics = ("--metrics", out / "metrics.json", "--force")
    done = sfhzoo("publish", workshop / "prior", "--repo", "sfh/validated", *metrics, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["metrics"]
    assert found["S/N 5-15: TARP deviation"]["relation"] == "<="


# ---- what cannot be used ------------------------------------------------------------------------


def add_changed(server, made, place, repo, change):
    """A copy of the prior on the Hub, changed by a hostile or newer publisher, hashes right."""
    shutil.copytree(made, place, ignore=shutil.ignore_patterns("checkpoint*"))
    change(place)
    artifacts.write_manifest(place)
    server.add(repo, {p.name: p.read_bytes() for p in place.iterdir()}, "v1")


def make_newer(place):
    config = json.loads((place / "config.json").read_text())
    config |= {"format_version": 7, "versions": {"sfhzoo": "3.1.4"}}
    (place / "config.json").write_text(json.dumps(config))


def cut_weights(place):
    content = (place / WEIGHTS).read_bytes()
    (place / WEIGHTS).write_bytes(content[: len(content) // 2])


def write_escaping_zip(place):
    for path in place.iterdir():
        path.unlink()
    with zipfile.ZipFile(place / "grid-v1.zarr.zip", "w") as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr("../../escaped", "out")


@pytest.mark.parametrize(
    ("change", "option", "told"),
    [
        (make_newer, "--prior", ("format 7 needs sfhzoo 3.1.4",)),
        (cut_weights, "--prior", (WEIGHTS,)),
        (write_escaping_zip, "--grid", ("grid-v1.zarr.zip", "../../escaped")),
    ],
    ids=["newer format", "truncated weights", "escaping zip"],
)
def test_what_cannot_be_used_is_refused(
    server, workshop, published, tmp_path, change, option, told
):
    repo = f"sfh/{change.__name__.replace('_', '-')}"
    add_changed(server, workshop / "prior", tmp_path / "made", repo, change)
    env = make_env(server, tmp_path / "home")
    done = sfhzoo("infer", EXAMPLE, option, f"{repo}@v1", "--out", tmp_path / "out", env=env)
    assert_unusable(done, *told)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("escaped"))
