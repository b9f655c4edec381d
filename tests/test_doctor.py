"""`sfhzoo doctor` finds what is broken, says so in one line, and still makes the other checks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sfhzoo.cli import doctor, run
from sfhzoo.errors import HashMismatch, SamplingError, UsageError
from sfhzoo.zoo import artifacts

ROOT = Path(__file__).parents[1]
NAMES = ["versions", "threads", "cache", "artifacts", "device", "inference"]


def test_a_working_installation_passes_every_check_within_20_seconds_and_writes_nothing(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", "from sfhzoo.cli import main; main(['doctor', '--json'])"],
        cwd=tmp_path, text=True, capture_output=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SFHZOO_CACHE_DIR": str(tmp_path / "cache")},
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (0, ""), result
    assert [check["name"] for check in result["checks"]] == NAMES
    assert result["ok"] and all(check["ok"] for check in result["checks"])
    assert str(tmp_path / "cache") in result["checks"][2]["text"]
    # of the processor's time: other programs may have the machine
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert list(tmp_path.iterdir()) == []


def fail():
    raise SamplingError("expected a galaxy, got a star; look again")


def crash():
    raise ZeroDivisionError("division by zero")


def test_a_failed_check_is_one_line_the_others_are_made_and_the_exit_code_is_1(
    monkeypatch, capsys
):
    monkeypatch.setattr(
        doctor, "list_checks",
        lambda cache: [("one", fail), ("two", crash), ("three", lambda: "well")],
    )  # fmt: skip
    assert run(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "failed  one        expected a galaxy, got a star; look again",
        "failed  two        ZeroDivisionError: division by zero",
        "ok      three      well",
    ]
    assert err == "2 of 3 checks failed: one, two\n"
    assert run(["doctor", "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert not result["ok"]
    assert [check["ok"] for check in result["checks"]] == [False, False, True]


def test_missing_and_outdated_packages_are_named_with_what_is_needed(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "tqdm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "torch" else real(name)

    assert "torch" in doctor.check_versions()
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(UsageError, match=r"torch>=[\d.]+ \(got 0\.1\), tqdm>=[\d.]+ \(missing\)"):
        doctor.check_versions()


def test_the_cache_is_measured_and_never_made(tmp_path):
    root = tmp_path / "deep" / "cache"
    assert "made by the first `pull`" in doctor.check_cache(root)
    assert not root.parent.exists()
    root.mkdir(parents=True)
    (root / "blob").write_bytes(bytes(2_500_000))
    (root / "snapshot").symlink_to(root / "blob")
    assert f"{root}, 2.5 MB" in doctor.check_cache(root)


def test_a_cache_that_can_never_be_made_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file is not a writable directory.*SFHZOO_CACHE_DIR"):
        doctor.check_cache(tmp_path / "file" / "cache")


@pytest.fixture
def bundled(tmp_path, monkeypatch):
    """A copy of what is bundled."""
    copy = tmp_path / "data"
    shutil.copytree(artifacts.BUNDLED, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(artifacts, "BUNDLED", copy)
    return copy


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "file", ["diffstarpop-tng-v1/model.safetensors", "bc03-miles-v1.zarr.zip"]
)
def test_a_flipped_byte_in_a_bundled_artifact_is_found(bundled, file):
    assert "diffstarpop-tng-v1" in doctor.check_artifacts()
    flip_a_byte(bundled / file)
    with pytest.raises(HashMismatch, match=f"{file}.*sha256 expected [0-9a-f]{{64}}, got"):
        doctor.check_artifacts()


def test_other_weights_with_a_manifest_of_their_own_are_found(bundled):
    prior = bundled / "diffstarpop-tng-v1"
    config = json.loads((prior / "config.json").read_text())
    (prior / "config.json").write_text(json.dumps(config))
    artifacts.write_manifest(prior)
    with pytest.raises(HashMismatch, match="diffstarpop-tng-v1: sha256 expected"):
        doctor.check_artifacts()


def test_a_device_that_computes_something_else_is_found():
    prior = artifacts.load_prior()
    assert doctor.calc_score_error(prior, "cpu") == 0.0
    real, moves = prior.to, []

    def to(device):
        moves.append(device)
        if len(moves) == 2:
            with torch.no_grad():
                next(iter(prior.network.parameters())).mul_(1.5)
        return real(device)

    prior.to = to
    assert doctor.calc_score_error(prior, "cpu") > doctor.DEVICE_TOLERANCE


def test_a_fit_that_misses_the_data_is_a_failure(monkeypatch, posterior):
    monkeypatch.setattr("sfhzoo.inference.infer", lambda *a, **k: posterior)
    monkeypatch.setattr(type(posterior), "calc_chi2_per_pixel", lambda self: 37.0)
    with pytest.raises(SamplingError, match=r"below 3 for spec-NGC3522.fits, got 37"):
        doctor.check_inference()
    monkeypatch.setattr(type(posterior), "calc_chi2_per_pixel", lambda self: float("nan"))
    with pytest.raises(SamplingError, match="got nan"):
        doctor.check_inference()
