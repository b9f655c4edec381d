"""Pulling from a Hub that fails in every way: what is said, what is kept, what is asked for."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import huggingface_hub
import pytest
from hubserver import OWNER, READER, Fault, HubServer
from huggingface_hub import constants
from zootools import (
    WEIGHTS,
    finish,
    flip_byte,
    make_env,
    make_source,
    sfhzoo,
    start,
    write_catalogue,
)

from sfhzoo.errors import ArtifactError, HashMismatch, NotCached
from sfhzoo.zoo import cache, hub, transfer
from sfhzoo.zoo.cards import FileRecord, Source

SIZE = 3_000_000
CUT = SIZE * 6 // 10
REPO = "sfh/tiny-v1"
FILES = {WEIGHTS: os.urandom(SIZE), "config.json": b'{"a": 1}', "README.md": b"# tiny\n"}


@pytest.fixture(scope="module")
def running():
    with HubServer() as server:
        yield server, make_source(server, REPO, FILES)


@pytest.fixture
def server(running, monkeypatch):
    """The Hub, without faults; functions called in this process ask it too."""
    running[0].reset()
    for key in [k for k in os.environ if k.startswith(("HF_", "SFHZOO_"))]:
        monkeypatch.delenv(key)
    monkeypatch.setattr(constants, "ENDPOINT", running[0].url)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", os.devnull)
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.01)
    return running[0]


@pytest.fixture
def source(running):
    return running[1]


@pytest.fixture
def env(server, tmp_path):
    return make_env(server, tmp_path / "home")


@pytest.fixture
def pull(source, env, tmp_path):
    """`sfhzoo pull tiny-v1` in an empty home."""
    catalogue = write_catalogue(tmp_path / "catalogue.json", source)

    def run(name="tiny-v1", *args, more=(), start=sfhzoo, **options):
        given = ("pull", name, "--catalogue", catalogue, *args)
        return start(*given, env={**env, **dict(more)}, **options)

    return run


def sent(server):
    """Bytes of the weights that went over the wire."""
    return sum(r.sent for r in server.asked(WEIGHTS))


def assert_pulled(done):
    """It said where, nothing else, and every byte is right."""
    assert (done.returncode, done.stderr) == (0, "")
    directory = Path(done.stdout.strip())
    assert {n: (directory / n).read_bytes() for n in FILES} == FILES


def assert_failed(done, *parts):
    """One line on stderr, with these parts; exit code 4."""
    assert done.returncode == 4, done.stderr
    assert done.stdout == "" and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


# ---- faults of the Hub --------------------------------------------------------------------------


def test_a_pull_asks_for_each_file_once_and_for_nothing_else(pull, server):
    assert_pulled(pull())
    paths = sorted(r.line.rpartition("/")[2] for r in server.requests)
    assert paths == sorted(FILES) and sent(server) == SIZE
    server.reset()
    assert_pulled(pull())
    assert server.requests == []


def test_a_server_that_is_down_is_told_within_seconds(pull, tmp_path):
    began = time.perf_counter()
    done = pull(more={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert time.perf_counter() - began < 15
    assert_failed(done, "127.0.0.1:9", "Connection refused", "try again later")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "answered 404"),
        (401, "wants to know who asks (401): log in (again) with `hf auth login`"),
        (403, "may not do this (403)"),
        (500, "answered 500 Internal Server Error; try again later"),
    ],
)
def test_a_refusal_is_told_with_its_status(pull, server, status, told):
    server.faults = [Fault(WEIGHTS, times=9, status=status)]
    assert_failed(pull(), f"{WEIGHTS} of {REPO}@", told)


def test_a_repository_that_is_not_there_or_not_yours_is_named(pull, server):
    server.repos[REPO].private = True
    assert_failed(pull(), f"has no repository {REPO}, or it is private", "hf auth login")
    assert_failed(pull(more={"HF_TOKEN": READER}), "or it is private")
    assert_pulled(pull(more={"HF_TOKEN": OWNER}))


def test_a_token_the_hub_does_not_know_is_told(pull):
    assert_failed(pull(more={"HF_TOKEN": "hf_old"}), "(401)", "`hf auth login`")


def test_a_gated_repository_says_where_to_ask(pull, server):
    server.repos[REPO].gated = True
    told = (f"ask at {server.url}/{REPO}", "`hf auth login`")
    assert_failed(pull(), *told)
    assert_failed(pull(more={"HF_TOKEN": READER}), *told)


def test_a_server_that_is_busy_twice_is_asked_a_third_time(pull, server):
    server.faults = [Fault(WEIGHTS, times=2, status=503)]
    assert_pulled(pull())


def test_a_connection_that_is_cut_goes_on_where_it_was_cut(pull, server):
    server.faults = [Fault(WEIGHTS, drop_after=CUT)]
    assert_pulled(pull())
    assert [r.sent for r in server.asked(WEIGHTS)] == [CUT, SIZE - CUT]


def test_a_killed_pull_goes_on_where_it_was_killed(pull, server, env):
    server.faults = [Fault(WEIGHTS, stall_after=CUT)]
    process = pull(start=start)
    blobs = Path(env["HF_HOME"]) / "hub" / "models--sfh--tiny-v1" / "blobs"
    deadline = time.monotonic() + 60
    while sum(p.stat().st_size for p in blobs.glob("*.incomplete")) < CUT:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert finish(process).returncode == -signal.SIGKILL
    server.reset()
    assert_pulled(pull())
    assert sent(server) == SIZE - CUT
    assert not list(blobs.glob("*.incomplete"))


def test_one_flipped_byte_is_fetched_once_more(pull, server):
    server.faults = [Fault(WEIGHTS, flip_byte=True)]
    assert_pulled(pull())
    assert sent(server) == 2 * SIZE


def test_a_flipped_byte_that_stays_is_a_hash_mismatch_and_leaves_nothing(pull, server, env):
    server.faults = [Fault(WEIGHTS, times=9, flip_byte=True)]
    assert_failed(pull(), WEIGHTS, "sha256 expected", "got", "tell its authors")
    assert sent(server) == 2 * SIZE
    left = [p for p in Path(env["HF_HOME"]).rglob("*") if p.is_file() and p.stat().st_size > 100]
    assert left == []


@pytest.mark.parametrize("page", [b"<html>Please log in", b"<html>" + bytes(SIZE - 6)])
def test_a_page_in_place_of_a_file_is_not_taken_for_it(pull, server, page):
    server.faults = [Fault(WEIGHTS, times=9, body=page)]
    same_size = len(page) == SIZE
    told = "sha256 expected" if same_size else f"sent {len(page)} (text/html); is it the page of"
    assert_failed(pull(), WEIGHTS, told)


def test_a_name_with_a_typo_gets_the_closest_ones(pull, server):
    assert_failed(pull("tinny-v1"), "no artifact called 'tinny-v1'", "did you mean tiny-v1")
    assert server.requests == []


# ---- faults of this machine ---------------------------------------------------------------------


def test_a_full_disk_is_told_and_the_next_pull_goes_on(pull, server, env):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (CUT, CUT))

    assert_failed(pull(preexec_fn=limit), "the disk is full", "make room", "--cache-dir")
    server.reset()
    assert_pulled(pull())
    assert sent(server) == SIZE - CUT


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    server, source, tmp_path, monkeypatch
):
    usage = namedtuple("usage", "free")(SIZE - 1)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match=r"needs 3\.0 MB more .* 3\.0 MB are free: make room"):
        hub.fetch(source, tmp_path)
    assert server.requests == []


@pytest.fixture
def shared():
    """A directory that every user can read, and only its owner can write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    set_mode(folder, 0o755)
    shutil.rmtree(folder)


def set_mode(folder, mode):
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(mode)


def test_a_cache_that_cannot_be_written_is_told_but_what_it_holds_is_used(
    server, source, shared, env
):
    # root may write anywhere, so the second pull is somebody else's; the first loads the modules
    code = (
        "import os, sys\nfrom sfhzoo.cli import run\n"
        "run([*sys.argv[1:], '--cache-dir', os.environ['HF_HOME']])\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "sys.exit(run([*sys.argv[1:], '--cache-dir', os.environ['SHARED']]))"
    )
    place = shared / "cache"
    place.mkdir()
    args = ("pull", "tiny-v1", "--catalogue", write_catalogue(shared / "catalogue.json", source))

    def pull_as_another():
        set_mode(shared, 0o555)
        done = finish(start(*args, code=code, env={**env, "SHARED": str(place)}))
        set_mode(shared, 0o755)
        return done

    done = pull_as_another()
    assert done.returncode == 4 and done.stderr.count("\n") == 1
    assert f"cannot write into the cache {place} (Permission denied)" in done.stderr
    assert "--cache-dir or SFHZOO_CACHE_DIR" in done.stderr
    assert_pulled(sfhzoo(*args, "--cache-dir", place, env=env))
    server.reset()
    done = pull_as_another()
    assert (done.returncode, done.stderr, server.requests) == (0, "", [])


def test_of_two_pulls_at_once_one_downloads(pull, server):
    server.faults = [Fault(WEIGHTS, delay=1.5)]
    processes = [pull(start=start) for _ in range(2)]
    for process in processes:
        assert_pulled(finish(process))
    assert len(server.requests) == len(FILES) and sent(server) == SIZE


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_makes_no_request(pull, server, how):
    args = ["--offline"] if how == "--offline" else []
    more = {} if args else {how: "1"}
    done = pull("tiny-v1", *args, more=more)
    assert_failed(done, f"{REPO}@", WEIGHTS, f"{how} forbids requests", "with a connection")
    assert server.requests == []
    assert_pulled(pull())
    server.reset()
    assert_pulled(pull("tiny-v1", *args, more=more))
    assert server.requests == []


def test_a_file_damaged_on_this_disk_is_found_and_fetched_again(pull, server):
    directory = Path(pull().stdout.strip())
    flip_byte(directory / WEIGHTS)
    assert_failed(pull("tiny-v1", "--offline"), WEIGHTS, "damaged")
    server.reset()
    assert_pulled(pull())
    assert [r.line.rpartition("/")[2] for r in server.requests] == [WEIGHTS]


# ---- odd servers --------------------------------------------------------------------------------


def fetch_weights(server, source, tmp_path, *faults):
    server.faults = list(faults)
    directory = hub.fetch(source, tmp_path, progress=False)
    assert (directory / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    return [(r.headers.get("range"), r.sent) for r in server.asked(WEIGHTS)]


def test_a_server_without_ranges_sends_it_all_again(server, source, tmp_path):
    dropped, blind = Fault(WEIGHTS, drop_after=CUT), Fault(WEIGHTS, ignore_range=True)
    asked = fetch_weights(server, source, tmp_path, dropped, blind)
    assert asked == [(None, CUT), (f"bytes={CUT}-", SIZE)]


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * SIZE, b"x" * (SIZE + 1)])
def test_a_partial_file_of_something_else_is_thrown_away(server, source, tmp_path, left):
    blobs = tmp_path / "models--sfh--tiny-v1" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{source.files[WEIGHTS].sha256}.incomplete").write_bytes(left)
    assert fetch_weights(server, source, tmp_path)[-1] == (None, SIZE)


def test_a_page_in_place_of_the_rest_does_not_cost_what_is_there(server, source, tmp_path):
    server.faults = [Fault(WEIGHTS, drop_after=CUT), Fault(WEIGHTS, times=9, body=b"<html>")]
    with pytest.raises(HashMismatch, match=r"sent 6 \(text/html\)"):
        hub.fetch(source, tmp_path)
    server.reset()
    assert fetch_weights(server, source, tmp_path) == [(f"bytes={CUT}-", SIZE - CUT)]


def test_a_token_is_not_carried_to_the_host_of_a_redirect(server, source, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", OWNER)
    fetch_weights(server, source, tmp_path, Fault(WEIGHTS, elsewhere=True))
    first, second = server.asked(WEIGHTS)
    assert first.headers["authorization"] == f"Bearer {OWNER}"
    assert second.headers["host"].startswith("localhost:")
    assert "authorization" not in second.headers


def test_the_progress_ends_at_the_whole_whatever_happened(server, source, tmp_path):
    remote = transfer.Remote(REPO, source.revision, WEIGHTS)
    cut, damaged = Fault(WEIGHTS, drop_after=CUT), Fault(WEIGHTS, flip_byte=True)
    server.faults = [cut, Fault(WEIGHTS, ignore_range=True, drop_after=CUT), damaged]
    gained = []
    transfer.download(remote, source.files[WEIGHTS], tmp_path / "partial", gained.append)
    assert sum(gained) == SIZE and min(gained) < 0
    assert (tmp_path / "partial").read_bytes() == FILES[WEIGHTS]


def test_a_download_that_brings_nothing_ends(server, source, tmp_path):
    server.faults = [Fault(WEIGHTS, times=99, drop_after=0)]
    with pytest.raises(ArtifactError, match=r"the connection to 127\.0\.0\.1:\d+ failed"):
        hub.fetch(source, tmp_path)
    assert len(server.asked(WEIGHTS)) == 4


# ---- the cache ----------------------------------------------------------------------------------


def test_the_cache_is_the_clients_own(server, source, tmp_path):
    directory = hub.fetch(source, tmp_path)
    theirs = huggingface_hub.hf_hub_download(
        REPO, WEIGHTS, revision=source.revision, cache_dir=tmp_path, local_files_only=True
    )
    assert Path(theirs) == directory / WEIGHTS
    scanned = huggingface_hub.scan_cache_dir(tmp_path)
    assert not scanned.warnings
    (found,) = scanned.repos
    assert found.repo_id == REPO and found.size_on_disk == sum(map(len, FILES.values()))


def test_what_the_client_downloaded_is_not_asked_for_again(server, source, env):
    code = (
        "import sys\nfrom huggingface_hub import hf_hub_download\n"
        "for name in sys.argv[3:]: hf_hub_download(sys.argv[1], name, revision=sys.argv[2])"
    )
    done = finish(start(REPO, source.revision, *FILES, env=env, code=code))
    assert done.returncode == 0, done.stderr
    server.reset()
    hub.fetch(source, Path(env["HF_HOME"]) / "hub")
    assert server.requests == []


def test_it_works_where_links_do_not(server, source, tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    directory = hub.fetch(source, tmp_path)
    assert not (directory / WEIGHTS).is_symlink()
    hub.check_files(source, directory)
    assert hub.remove(source, tmp_path) == source.size
    assert hub.locate_cached(source, tmp_path) is None


def test_the_cache_is_where_the_client_has_it(tmp_path, monkeypatch):
    code = (
        "import importlib, os, sys\nfrom huggingface_hub import constants\n"
        "from sfhzoo.zoo.cache import cache_root\n"
        "names = ['HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME']\n"
        "for chosen in [[], *([n] for n in names), names, ['HF_HOME', 'XDG_CACHE_HOME']]:\n"
        "    for n in names: os.environ.pop(n, None)\n"
        "    os.environ.update({n: f'~/{n}/$USER' for n in chosen})\n"
        "    importlib.reload(constants)\n"
        "    assert str(cache_root()) == constants.HF_HUB_CACHE, (chosen, cache_root())\n"
        "os.environ['SFHZOO_CACHE_DIR'] = '~/ours'\n"
        "assert cache_root() == cache_root('~/ours') and str(cache_root()) != '~/ours'\n"
        "assert str(cache_root('/given')) == '/given'\n"
    )
    env = {**os.environ, "USER": "somebody"}
    done = finish(start(env=env, code=code))
    assert (done.returncode, done.stderr) == (0, "")


def test_removing_leaves_what_another_commit_uses(server, source, tmp_path):
    newer = make_source(server, REPO, {**FILES, "config.json": b'{"a": 2}'})
    older_directory, directory = (hub.fetch(s, tmp_path) for s in (source, newer))
    assert sent(server) == SIZE
    assert hub.remove(source, tmp_path) == len(FILES["config.json"])
    assert not older_directory.exists()
    hub.check_files(newer, directory)
    assert hub.remove(newer, tmp_path) == newer.size
    assert not (tmp_path / "models--sfh--tiny-v1").exists()
    assert hub.remove(newer, tmp_path) == 0


def test_removing_takes_partial_files_too(server, source, tmp_path):
    server.faults = [Fault(WEIGHTS, times=1, drop_after=CUT), Fault(WEIGHTS, times=9, status=404)]
    with pytest.raises(ArtifactError, match="404"):
        hub.fetch(source, tmp_path)
    assert hub.remove(source, tmp_path) >= CUT


def test_a_file_of_the_wrong_size_or_content_is_named(server, source, tmp_path):
    directory = hub.fetch(source, tmp_path)
    assert hub.locate_cached(source, tmp_path) == directory
    flip_byte(directory / WEIGHTS)
    with pytest.raises(HashMismatch, match=f"{WEIGHTS}: sha256 expected"):
        hub.check_files(source, directory)
    os.truncate(directory / WEIGHTS, SIZE - 1)
    assert hub.locate_cached(source, tmp_path) is None
    with pytest.raises(HashMismatch, match=f"{WEIGHTS}: expected {SIZE} bytes, got {SIZE - 1}"):
        hub.check_files(source, directory)
    (directory / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} is missing"):
        hub.check_files(source, directory)


@pytest.mark.parametrize(
    ("repo", "revision", "name"),
    [
        ("../x", "a" * 40, "a"),
        ("sfh/..", "a" * 40, "a"),
        ("sfh", "a" * 40, "a"),
        (REPO, "main", "a"),
        (REPO, "../" + "a" * 37, "a"),
        (REPO, "a" * 40, "../a"),
        (REPO, "a" * 40, "/etc/passwd"),
        (REPO, "a" * 40, ""),
    ],
)
def test_a_source_cannot_point_outside_the_cache(server, tmp_path, repo, revision, name):
    source = Source(repo, revision, {name: FileRecord("0" * 64, 1)})
    for function in (hub.fetch, hub.locate_cached, hub.remove):
        with pytest.raises(ArtifactError, match="expected"):
            function(source, tmp_path)
    assert server.requests == [] and list(tmp_path.iterdir()) == []


# ---- org/repo@revision --------------------------------------------------------------------------


def add_release(server, tag, content, repo="sfh/own"):
    """A commit with a manifest, as `publish` makes it."""
    source = make_source(server, repo, {WEIGHTS: content})
    records = {n: {"sha256": r.sha256, "size": r.size} for n, r in source.files.items()}
    manifest = json.dumps({"format_version": 1, "files": records}).encode()
    return server.add(repo, {WEIGHTS: content, "manifest.json": manifest}, tag)


def test_a_tag_is_asked_for_once_and_a_branch_when_told_to(server, tmp_path):
    first = add_release(server, "v1", b"one")
    source, directory = hub.snapshot_of("sfh/own", "v1", tmp_path)
    assert source.revision == first and (directory / WEIGHTS).read_bytes() == b"one"
    assert hub.snapshot_of("sfh/own", None, tmp_path)[0] == source
    second = add_release(server, None, b"two")
    server.requests.clear()
    for revision in ("v1", "main", first):
        assert hub.snapshot_of("sfh/own", revision, tmp_path, offline=True)[0] == source
    assert server.requests == []
    moved, directory = hub.snapshot_of("sfh/own", "main", tmp_path, refresh=True)
    assert moved.revision == second and (directory / WEIGHTS).read_bytes() == b"two"
    assert hub.snapshot_of("sfh/own", "main", tmp_path, offline=True)[0] == moved


def test_a_revision_that_never_came_is_told(server, tmp_path):
    add_release(server, "v7", b"seven")
    with pytest.raises(NotCached, match=r"sfh/own@v7 is not in .* --offline forbids requests"):
        hub.snapshot_of("sfh/own", "v7", tmp_path, offline=True)
    with pytest.raises(ArtifactError, match="sfh/own has no such commit, branch or tag"):
        hub.snapshot_of("sfh/own", "v8", tmp_path)
    with pytest.raises(ArtifactError, match="sfh/tiny-v1 has no such file there"):
        hub.snapshot_of(REPO, "main", tmp_path)
    with pytest.raises(ArtifactError, match="expected a commit, branch or tag"):
        hub.snapshot_of("sfh/own", "../../x", tmp_path)


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (b"<html>", "expected JSON"),
        (b"[]", "expected a JSON object"),
        (b"{}", "expected a table `files`"),
        (b'{"files": {"../x": {"sha256": "%s", "size": 1}}}' % (b"0" * 64), "plain file names"),
        (b'{"files": {"x": {"sha256": "00", "size": 1}}}', "sha256 of 64 digits"),
        (b'{"files": {"x": {"sha256": "00", "size": true}}}', "expected sha256 and size"),
        (b'{"files": {"x": null}}', "expected sha256 and size"),
        (b" " * (2**20 + 1), "at most 1048576 bytes"),
    ],
)
def test_a_manifest_that_cannot_be_trusted_is_refused(server, tmp_path, manifest, told):
    server.add("sfh/odd", {"manifest.json": manifest})
    with pytest.raises(ArtifactError, match=told):
        hub.snapshot_of("sfh/odd", "main", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- catalogues ---------------------------------------------------------------------------------


def test_a_catalogue_is_the_newest_online_and_the_last_seen_offline(server, tmp_path):
    def read(**options):
        return hub.fetch_catalogue("sfh/all", cache_dir=tmp_path, **options).read_bytes()

    with pytest.raises(NotCached, match=r"catalogue\.json of sfh/all@main is not on this disk"):
        read(offline=True)
    server.add("sfh/all", {"catalogue.json": b'{"n": 1}'}, "v1")
    assert read() == b'{"n": 1}'
    server.add("sfh/all", {"catalogue.json": b'{"n": 2}'})
    assert read(offline=True) == b'{"n": 1}'
    assert read() == read(offline=True) == b'{"n": 2}'
    assert read(revision="v1") == b'{"n": 1}'
    server.add("sfh/all", {"catalogue.json": b"not json"})
    with pytest.raises(ArtifactError, match="expected JSON"):
        read()
    assert read(offline=True) == b'{"n": 2}'


def test_looking_at_the_disk_needs_no_client_library(tmp_path):
    code = (
        "import sys\nfrom sfhzoo.zoo import hub\nfrom sfhzoo.zoo.cards import FileRecord, Source\n"
        "source = Source('sfh/x', 'a' * 40, {'a': FileRecord('0' * 64, 1)})\n"
        "assert hub.locate_cached(source, sys.argv[1]) is None\n"
        "heavy = {'huggingface_hub', 'httpx2', 'torch', 'numpy', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = finish(start(tmp_path / "nothing", env=dict(os.environ), code=code))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
