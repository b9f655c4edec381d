"""list, show, pull, path, verify, remove, cite, publish: what they print, what they leave behind.

The network is replaced by a function that writes the files into the Hub's cache, but for one test
against a server; the others of that kind are in test_hub.py and test_zoo_circle.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hubserver import HubServer

from sfhzoo.cli import run
from sfhzoo.errors import ArtifactError, NotCached
from sfhzoo.zoo import artifacts, disk, hub, publish
from sfhzoo.zoo.cards import Card, FileRecord, Metric, Source, card_to_dict

ROOT = Path(__file__).parents[1]
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"# tng50-v1"}
GRID_FILES = {"toy-v1.zarr.zip": b"spectra", "README.md": b"# toy-v1"}
PUBLISHED = {"org/tng50-v1": FILES, "org/toy-v1": GRID_FILES}


def source_of(repo):
    files = PUBLISHED[repo].items()
    records = {n: FileRecord(hashlib.sha256(c).hexdigest(), len(c)) for n, c in files}
    return Source(repo, "0123456789" * 4, records)


TNG50 = Card(
    "tng50-v1", "prior", "TNG50-1", "Mine.", "mit", "@MISC{mine,\n title={Mine}\n}",
    source=source_of("org/tng50-v1"), metrics={"ks": Metric(0.25, 0.1)},
    text="# tng50-v1\n\nBody.\n\n```bibtex\n@MISC{mine}\n```",
)  # fmt: skip
GRID = Card(
    "toy-v1", "grid", "toy", "A grid.", "mit", "@MISC{mine,\n title={Mine}\n}",
    source=source_of("org/toy-v1"),
)  # fmt: skip


def write_catalogue(path, *cards):
    content = {"format_version": 1, "entries": [card_to_dict(card) for card in cards]}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no catalogue from outside, and nothing that reaches the network."""
    monkeypatch.setenv("SFHZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("SFHZOO_CATALOGUE", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "fetch", lambda *a, **k: pytest.fail("a request"))
    return tmp_path / "cache"


@pytest.fixture
def mine(tmp_path):
    """Options that add a catalogue with a published tng50-v1 and a grid."""
    return ["--catalogue", str(write_catalogue(tmp_path / "mine.json", TNG50, GRID))]


@pytest.fixture
def fetched(monkeypatch):
    """The network works; what was asked of it."""
    asked = []

    def fetch(source, cache_dir=None, offline=False, progress=True):
        asked.append((source.repo, cache_dir, offline, progress))
        directory = hub.snapshot_directory(source, cache_dir)
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in PUBLISHED[source.repo].items():
            (directory / name).write_bytes(content)
        return directory

    monkeypatch.setattr(hub, "fetch", fetch)
    return asked


@pytest.fixture
def pulled(fetched, mine, capsys):
    """tng50-v1 is on this disk."""
    assert run(["pull", "tng50-v1", *mine]) == 0
    return Path(capsys.readouterr().out.strip())


def lines(capsys):
    return capsys.readouterr().out.splitlines()


# ---- list ---------------------------------------------------------------------------------------


def test_list_is_a_table_of_kind_version_simulation_state_size_and_place(capsys):
    assert run(["list"]) == 0
    head, *rows = lines(capsys)
    assert head.split("  ")[0] == "name" and head.endswith("on disk")
    table = {row.split()[0]: row for row in rows}
    bundled = table["diffstarpop-tng-v1"]
    for cell in ("prior", "v1", "DiffstarPop", "bundled", "13.9 MB", "yes"):
        assert cell in bundled
    assert table["tng50-v1"].split()[-4:] == ["recipe", "only", "-", "no"]


def test_list_as_json_holds_the_same(capsys):
    assert run(["list", "--json", "--kind", "prior"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {row["kind"] for row in rows.values()} == {"prior"}
    bundled = rows["diffstarpop-tng-v1"]
    assert bundled["state"] == "bundled" and bundled["version"] == 1
    path = Path(bundled["path"])
    assert bundled["size"] == sum(p.stat().st_size for p in path.iterdir())
    assert rows["tng50-v1"]["path"] is None and rows["tng50-v1"]["size"] is None


def test_list_shows_what_a_catalogue_adds_and_what_is_here(capsys, pulled, mine):
    assert run(["list", "--json", *mine]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["tng50-v1"]["state"] == "published" and rows["tng50-v1"]["path"] == str(pulled)
    assert rows["tng50-v1"]["size"] == sum(map(len, FILES.values()))
    assert rows["toy-v1"]["state"] == "published" and rows["toy-v1"]["path"] is None


def test_list_is_fast_loads_nothing_heavy_and_writes_nothing(cache):
    code = (
        "import sys\nfrom sfhzoo.cli import run\nrun(['list'])\n"
        "heavy = {'torch', 'numpy', 'huggingface_hub', 'yaml', 'zarr', 'httpx2', 'safetensors'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )

    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and "tng50-v1" in done.stdout, done.stderr
    # seconds of the processor: other processes may hold it for a while
    after = os.times()
    used = after.children_user - before.children_user
    assert used + after.children_system - before.children_system < 0.5
    assert not cache.exists()


# ---- pull ---------------------------------------------------------------------------------------


def test_a_recipe_cannot_be_pulled_and_nothing_stands_in_for_it(capsys, cache):
    assert run(["pull", "tng50-v1"]) == 4
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    for part in (
        "error: tng50-v1 is a recipe", "registered download", "diffstarpop-tng-v1",
        "sfhzoo train recipes/tng50-v1.toml --out work/tng50-v1",
    ):  # fmt: skip
        assert part in err
    assert not cache.exists()


def test_a_typo_is_no_failed_download(capsys):
    assert run(["pull", "diffstarpop-tgn-v1"]) == 4
    assert "did you mean diffstarpop-tng-v1" in capsys.readouterr().err


def test_what_is_bundled_is_there_without_a_request(capsys):
    assert run(["pull", "bc03-miles-v1"]) == 0
    assert lines(capsys) == [str(artifacts.BUNDLED / "bc03-miles-v1.zarr.zip")]


def test_the_same_command_fetches_a_name_once_it_is_published(capsys, fetched, mine, cache):
    assert run(["pull", "tng50-v1", "--quiet", *mine]) == 0
    (place,) = lines(capsys)
    assert (Path(place) / "model.safetensors").read_bytes() == b"weights"
    assert fetched == [("org/tng50-v1", None, False, False)]


def test_what_was_pulled_has_its_name_without_the_catalogue(capsys, pulled):
    for command in (["path", "tng50-v1"], ["path", "--offline", "tng50-v1"], ["pull", "tng50-v1"]):
        assert run(command) == 0
        assert lines(capsys) == [str(pulled)]
    assert run(["list"]) == 0
    (row,) = [line for line in lines(capsys) if line.startswith("tng50-v1")]
    assert "published" in row and row.endswith("yes")
    assert run(["verify", "tng50-v1"]) == 0
    assert disk.find_on_disk("tng50-v1") == pulled


def test_what_is_on_this_disk_is_found_without_asking_a_catalogue(monkeypatch, pulled):
    monkeypatch.setenv("SFHZOO_CATALOGUE", "org/far-away")
    monkeypatch.setattr(hub, "fetch_catalogue", lambda *a, **k: pytest.fail("a request"))
    for command in ("path", "verify", "show", "cite", "pull --offline", "remove"):
        assert run([*command.split(), "tng50-v1"]) == 0
    for command in ("path", "verify", "show", "cite", "pull"):
        assert run([command, "bc03-miles-v1"]) == 0
    assert run(["verify"]) == 0


def test_the_user_hears_of_a_catalogue_that_could_not_be_reached(monkeypatch, capsys, mine):
    def fetch_catalogue(repo, revision, cache_dir, offline):
        if not offline:
            raise ArtifactError("no connection")
        return Path(mine[1])

    monkeypatch.setattr(hub, "fetch_catalogue", fetch_catalogue)
    assert run(["list", "--catalogue", "org/far-away"]) == 0
    out, err = capsys.readouterr()
    assert "toy-v1" in out and err.startswith("warning: no connection; the catalogue is")


def test_a_grids_place_is_its_file(capsys, fetched, mine):
    assert run(["pull", "toy-v1", *mine]) == 0
    (place,) = lines(capsys)
    assert Path(place).name == "toy-v1.zarr.zip" and Path(place).read_bytes() == b"spectra"
    assert run(["path", "toy-v1"]) == 0 and lines(capsys) == [place]


def test_the_cache_is_where_the_option_says(capsys, fetched, mine, tmp_path, cache):
    there = tmp_path / "there"
    assert run(["pull", "tng50-v1", *mine, "--cache-dir", str(there)]) == 0
    assert lines(capsys)[0].startswith(str(there)) and not cache.exists()
    assert run(["path", "tng50-v1"]) == 4
    assert run(["path", "tng50-v1", "--cache-dir", str(there)]) == 0


def test_the_records_do_not_trouble_the_hubs_own_cache_tools(pulled, cache):
    from huggingface_hub import scan_cache_dir

    info = scan_cache_dir(cache)
    assert [repo.repo_id for repo in info.repos] == ["org/tng50-v1"] and not info.warnings


def test_one_name_that_fails_does_not_stop_the_others(capsys, fetched, mine):
    assert run(["pull", "nothing-v1", "tng50-v1", *mine]) == 4
    out, err = capsys.readouterr()
    assert "snapshots" in out and "'nothing-v1'" in err and "Traceback" not in err


def test_all_pulls_what_is_published_and_nothing_else(capsys, fetched, mine):
    assert run(["pull", "--all", *mine]) == 0
    assert [repo for repo, *_ in fetched] == ["org/tng50-v1", "org/toy-v1"]
    assert len(lines(capsys)) == 2
    assert run(["pull", "--all", "--cache-dir", "empty"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "nothing is published" in err


@pytest.mark.parametrize("words", [[], ["tng50-v1", "--all"]])
def test_pull_wants_names_or_all(words, capsys):
    assert run(["pull", *words]) == 2
    assert "expected one or more names, or --all" in capsys.readouterr().err


def test_a_name_that_was_pulled_does_not_change_its_meaning(capsys, pulled, tmp_path, cache):
    other = replace(TNG50, source=replace(TNG50.source, revision="9876543210" * 4))
    others = ["--catalogue", str(write_catalogue(tmp_path / "other.json", other))]
    assert run(["pull", "tng50-v1", *others]) == 4
    err = capsys.readouterr().err
    assert "pulled from org/tng50-v1@012345678901" in err and "sfhzoo remove tng50-v1" in err
    assert run(["remove", "tng50-v1", *others]) == 0
    assert run(["pull", "tng50-v1", *others]) == 0
    assert "98765432109876" in capsys.readouterr().out


def test_a_damaged_record_is_written_again_by_the_next_pull(capsys, pulled, mine, cache):
    (record,) = cache.rglob("sfhzoo/tng50-v1.json")
    record.write_text("{")
    assert run(["path", "tng50-v1"]) == 4
    assert run(["pull", "tng50-v1", *mine]) == 0
    assert run(["path", "tng50-v1"]) == 0


def test_a_read_only_cache_serves_what_it_has(monkeypatch, pulled, mine):
    def refuse(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artifacts, "write_json", refuse)
    assert run(["pull", "tng50-v1", *mine]) == 0
    assert run(["pull", "toy-v1", *mine]) == 4


def test_a_repository_can_be_pulled_by_its_own_name(monkeypatch, capsys, fetched, tmp_path):
    readme = (ROOT / "model_cards/tng50-v1/README.md").read_text()
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked = []

    def snapshot_of(repo, revision, **options):
        asked.append((repo, revision, options["refresh"]))
        return TNG50.source, snapshot

    monkeypatch.setattr(hub, "snapshot_of", snapshot_of)
    (snapshot / "README.md").write_text(readme)
    assert run(["pull", "org/tng50-v1@v1"]) == 0
    assert asked == [("org/tng50-v1", "v1", True)]
    assert run(["path", "tng50-v1"]) == 0
    taken = readme.replace("name: tng50-v1", "name: diffstarpop-tng-v1")
    (snapshot / "README.md").write_text(taken)
    assert run(["pull", "org/tng50-v1@v1"]) == 4
    assert "a published name never changes" in capsys.readouterr().err


def test_catalogue_and_artifact_come_from_a_hub(tmp_path, cache, capsys):
    env = {
        **os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    code = "from sfhzoo.cli import main; main()"
    words = ["pull", "tng50-v1", "--quiet", "--catalogue", "org/zoo"]
    with HubServer() as server:
        commit = server.add("org/tng50-v1", FILES)
        card = replace(TNG50, source=replace(TNG50.source, revision=commit))
        listed = write_catalogue(tmp_path / "catalogue.json", card).read_bytes()
        server.add("org/zoo", {"catalogue.json": listed})
        done = subprocess.run(
            [sys.executable, "-c", code, *words], text=True, capture_output=True, check=False,
            env={**env, "HF_ENDPOINT": server.url},
        )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    snapshot = cache / "models--org--tng50-v1/snapshots" / commit
    assert done.stdout == f"{snapshot}\n"
    assert (snapshot / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    # what came stays when the server is gone
    assert run(["verify", "tng50-v1"]) == 0
    assert run(["list", "--offline", "--catalogue", "org/zoo"]) == 0
    assert "published" in capsys.readouterr().out


# ---- path, verify, remove -----------------------------------------------------------------------


def test_the_path_of_what_is_not_here_says_what_to_run(capsys, mine):
    assert run(["path", "tng50-v1", "bc03-miles-v1", *mine]) == 4
    out, err = capsys.readouterr()
    assert "sfhzoo pull tng50-v1" in err and out.endswith("bc03-miles-v1.zarr.zip\n")


def test_verify_without_names_checks_all_that_is_here(capsys, pulled):
    assert run(["verify"]) == 0
    names = {card.name for card in disk_cards()} | {"tng50-v1"}
    assert {tuple(line.split()) for line in lines(capsys)} == {("ok", name) for name in names}


def disk_cards():
    from sfhzoo.zoo.catalogue import load_catalogue

    return [card for card in load_catalogue() if card.bundled]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(b"weighty"), "sha256 expected"),
        (lambda p: p.write_bytes(b"w"), "expected 7 bytes, got 1"),
        (lambda p: p.unlink(), "cannot be read: No such file"),
    ],
    ids=["flipped", "truncated", "missing"],
)
def test_verify_names_the_damaged_file_and_exits_with_one(capsys, pulled, damage, said):
    damage(pulled / "model.safetensors")
    assert run(["verify", "tng50-v1"]) == 1
    failed, fault = lines(capsys)
    assert failed.split() == ["FAILED", "tng50-v1"]
    assert str(pulled / "model.safetensors") in fault and said in fault
    assert run(["verify", "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)
    assert len(faults["tng50-v1"]) == 1 and faults["bc03-miles-v1"] == []


def test_verify_notices_damage_in_the_package_itself(capsys, tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "toy-v1").mkdir(parents=True)
    for name, content in FILES.items():
        (data / "toy-v1" / name).write_bytes(content)
    artifacts.write_manifest(data / "toy-v1")
    monkeypatch.setattr(artifacts, "BUNDLED", data)
    card = replace(TNG50, name="toy-v1", source=None, bundled=True)
    identity = artifacts.identity_of(data / "toy-v1")
    write_catalogue(data / "catalogue.json", replace(card, identity=identity))
    assert run(["verify"]) == 0
    (data / "toy-v1/model.safetensors").write_bytes(b"weighty")
    assert run(["verify"]) == 1
    assert "model.safetensors" in capsys.readouterr().out
    # whoever rewrites the manifest as well is found by the identity in the catalogue
    artifacts.write_manifest(data / "toy-v1")
    assert run(["verify"]) == 1
    assert f"identity (sha256) expected {identity}" in capsys.readouterr().out
    (data / "toy-v1/config.json").unlink()
    assert run(["verify"]) == 1
    assert "missing; reinstall" in capsys.readouterr().out


def test_verify_takes_the_directory_of_an_artifact(capsys):
    assert run(["verify", str(artifacts.BUNDLED / "diffstarpop-tng-v1")]) == 0
    assert run(["verify", "tng50-v1"]) == 4


def test_what_is_removed_is_gone(capsys, pulled, cache):
    assert run(["remove", "tng50-v1"]) == 0
    assert "removed tng50-v1" in capsys.readouterr().err
    assert not pulled.exists() and not list(cache.rglob("*.json"))
    assert run(["remove", "tng50-v1"]) == 4
    assert run(["pull", "tng50-v1"]) == 4


def test_what_belongs_to_the_package_is_not_removed(capsys):
    assert run(["remove", "bc03-miles-v1"]) == 4
    assert "part of the package" in capsys.readouterr().err
    assert (artifacts.BUNDLED / "bc03-miles-v1.zarr.zip").is_file()


def test_what_is_not_on_disk_cannot_be_verified_or_removed(mine):
    with pytest.raises(NotCached, match="sfhzoo pull tng50-v1"):
        disk.find_faults(TNG50)
    with pytest.raises(NotCached, match="nothing to remove"):
        disk.remove(TNG50)


# ---- show, cite, publish ------------------------------------------------------------------------


def test_show_prints_facts_metrics_with_verdict_and_text(capsys, pulled):
    assert run(["show", "tng50-v1"]) == 0
    out = capsys.readouterr().out
    for part in ("tng50-v1\nMine.", str(pulled), f"org/tng50-v1@{TNG50.source.revision}", "Body."):
        assert part in out
    (row,) = [line for line in out.splitlines() if line.startswith("ks")]
    assert row.split() == ["ks", "0.25", "<=", "0.1", "MISSED"]
    assert "`sfhzoo cite tng50-v1`" in out and "bibtex" not in out and "\x1b" not in out


def test_show_as_json_holds_the_whole_cards(capsys):
    assert run(["show", "--json", "tng50-v1", "diffstarpop-tng-v1"]) == 0
    recipe, bundled = json.loads(capsys.readouterr().out)
    assert recipe["state"] == "recipe only" and "registered" in recipe["needs"]
    assert bundled["metrics"]["ks_t50"]["threshold"] == 0.03 and bundled["citation"]


def test_cite_prints_each_work_once(capsys):
    network = "diffstarpop-tng-v1--bc03-miles-v1-posterior-v1"
    assert run(["cite", "diffstarpop-tng-v1", "bc03-miles-v1", network]) == 0
    keys = [line for line in lines(capsys) if line.startswith("@")]
    assert len(keys) == len(set(keys)) and "@ARTICLE{Bruzual2003," in keys
    assert "@ARTICLE{Alarcon2023," in keys


def test_publish_hands_over_its_options_and_prints_the_entry(capsys, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        publish, "publish", lambda *args, **options: calls.append((args, options)) or TNG50
    )
    catalogue = tmp_path / "mine.json"
    words = ["publish", str(tmp_path), "--repo", "org/tng50-v1", "--force", "--quiet"]
    assert run([*words, "--catalogue", str(catalogue)]) == 0
    options = {"metrics": None, "force": True, "private": False, "progress": False}
    assert calls == [((tmp_path, "org/tng50-v1"), options)]
    assert json.loads(capsys.readouterr().out)["source"]["repo"] == "org/tng50-v1"
    assert run(["show", "tng50-v1", "--json", "--catalogue", str(catalogue)]) == 0
    assert json.loads(capsys.readouterr().out)[0]["source"] == card_to_dict(TNG50)["source"]
