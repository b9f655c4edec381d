"""The Containerfile: what the image promises, without building it (`ci/container` does that)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_instructions():
    """(keyword, text) of every instruction, continued lines joined, comments dropped."""
    lines = (ROOT / "Containerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


INSTRUCTIONS = read_instructions()
LAST = next(i for i in reversed(range(len(INSTRUCTIONS))) if INSTRUCTIONS[i][0] == "FROM")
FINAL = dict(INSTRUCTIONS[LAST:])


def arguments():
    return dict(text.partition("=")[::2] for word, text in INSTRUCTIONS if word == "ARG")


def test_every_stage_stands_on_the_base_that_can_be_chosen():
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", arguments()["BASE"])
    stages = [text for word, text in INSTRUCTIONS if word == "FROM"]
    assert [stage.split()[0] for stage in stages] == ["${BASE}"] * len(stages)


def test_the_base_python_is_one_that_the_package_supports():
    lowest = re.search(r">=3\.(\d+)", PROJECT["requires-python"]).group(1)
    assert int(re.search(r"python:3\.(\d+)", arguments()["BASE"]).group(1)) >= int(lowest)


def test_the_image_runs_sfhzoo_as_nobody_special_with_its_cache_in_a_volume():
    assert json.loads(FINAL["ENTRYPOINT"]) == ["sfhzoo"]
    assert re.fullmatch(r"[1-9]\d*", FINAL["USER"])
    places = dict(re.findall(r"(\w+)=(\S+)", FINAL["ENV"]))
    assert places["HF_HOME"].startswith(FINAL["VOLUME"] + "/")
    command = json.loads(FINAL["HEALTHCHECK"].partition("CMD ")[2])
    assert command == ["sfhzoo", "doctor"]


def test_everything_is_installed_with_the_pinned_versions():
    installs = [text for word, text in INSTRUCTIONS if word == "RUN" and "pip install" in text]
    assert len(installs) >= 2
    for text in installs:
        pinned_here = text.count("--constraint constraints.txt") + text.count("pip==")
        assert text.count("pip install") == pinned_here
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    normal = {name.lower().replace("_", "-") for name in pinned}
    for dependency in PROJECT["dependencies"]:
        name = re.match(r"[\w.-]+", dependency).group().lower().replace("_", "-")
        assert name in normal, f"{name} has no pin in constraints.txt"


def test_the_labels_tell_the_version_and_the_build():
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', FINAL["LABEL"]))
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert labels["sfhzoo.torch"] == "${TORCH}"


def test_nothing_is_copied_that_is_ignored_or_missing():
    allowed = re.findall(r"^!(\S+)", (ROOT / ".containerignore").read_text(), re.M)
    copied = [
        name
        for word, text in INSTRUCTIONS
        if word == "COPY" and "--from" not in text
        for name in text.split()[:-1]
    ]
    assert sorted(copied) == sorted(allowed)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def guard_of_torch():
    """The shell text that compares the torch of the index with the one that is wanted."""
    return next(text for word, text in INSTRUCTIONS if word == "RUN" and "--dry-run" in text)


@pytest.mark.parametrize(
    ("wanted", "listed", "passes"),
    [
        ("cpu", "filelock", True),
        ("cpu", "nvidia-cudnn-cu13", False),
        ("cuda", "nvidia-cudnn-cu13", True),
        ("cuda", "filelock", False),
    ],
)
def test_the_wrong_torch_ends_the_build_before_it_is_fetched(tmp_path, wanted, listed, passes):
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho \'{{"requires_dist": ["{listed}==1"]}}\'\n')
    pip.chmod(0o755)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", guard_of_torch()], text=True, capture_output=True,
        check=False, env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH": wanted},
    )  # fmt: skip
    assert (done.returncode == 0) == passes, done.stderr
    if not passes:
        assert f"expected a torch for TORCH={wanted}" in done.stderr
        assert "TORCH_INDEX" in done.stderr


def run_script(*arguments, **environment):
    return subprocess.run(
        ["bash", str(ROOT / "ci" / "container"), *arguments],
        text=True, capture_output=True, check=False, timeout=60, env=environment,
    )  # fmt: skip


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with a linter that finds nothing, and with no builder."""
    for name in ("bash", "mktemp", "rm", "dirname", "sed", "id", "python3"):
        (tmp_path / name).symlink_to(shutil.which(name))
    (tmp_path / "hadolint").write_text("#!/bin/sh\n")
    (tmp_path / "hadolint").chmod(0o755)
    return str(tmp_path)


def test_a_check_without_a_builder_says_loudly_that_it_was_skipped(bare_path):
    done = run_script(PATH=bare_path)
    assert done.returncode == 0
    assert "!!! SKIPPED: no working buildah, podman or docker" in done.stderr
    assert run_script("--require", PATH=bare_path).returncode == 1


def test_a_builder_that_does_not_work_is_no_builder(bare_path):
    docker = Path(bare_path) / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    assert "!!! SKIPPED" in run_script(PATH=bare_path).stderr


def test_findings_of_the_linter_end_the_check(bare_path):
    (Path(bare_path) / "hadolint").write_text("#!/bin/sh\necho DL3006\nexit 1\n")
    done = run_script(PATH=bare_path)
    assert done.returncode == 1 and "DL3006" in done.stdout


def test_a_wrong_option_shows_how_it_is_used(bare_path):
    done = run_script("--keeep", PATH=bare_path)
    assert done.returncode == 2
    assert "ci/container [--keep] [--require]" in done.stderr
