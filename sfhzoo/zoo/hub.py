"""The Hub: fetch into the cache, look up, upload. Only this and `transfer` touch the network.

Every file is pinned by the commit and by its sha256. huggingface_hub is imported only where a
request is made; what is on this disk needs none (module `cache`, whose names can be had here too).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, NotCached
from sfhzoo.zoo import transfer
from sfhzoo.zoo.bounds import parse_json
from sfhzoo.zoo.cache import (
    Snapshot,
    cache_root,
    check_files,
    disk_explained,
    files_of,
    is_commit,
    is_on,
    locate_cached,
    matches,
    read_ref,
    remove,
    repo_directory,
    snapshot_directory,
)
from sfhzoo.zoo.cards import FileRecord, Source

__all__ = [
    "cache_root",
    "check_files",
    "fetch",
    "fetch_catalogue",
    "locate_cached",
    "remove",
    "snapshot_directory",
    "snapshot_of",
    "upload",
]

CATALOGUE = "catalogue.json"
MANIFEST = "manifest.json"
DEFAULT_REVISION = "main"
_MAX_CATALOGUE = 10 * 2**20
_MAX_MANIFEST = 2**20
_MAX_FILES = 100


def fetch(
    source: Source,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Path:
    """The directory of a source with every file checked; what is missing or wrong is downloaded.

    Makes no request and writes nothing when all is there. An interrupted download goes on where
    it stopped; of several processes one downloads and the others wait. `progress` shows a bar on
    stderr if that is a terminal.

    Raises NotCached (offline and incomplete), HashMismatch, ArtifactError.
    """
    directory, root = snapshot_directory(source, cache_dir), cache_root(cache_dir)
    with disk_explained(root):
        records = files_of(source).items()
        wanted = {n: r for n, r in records if not matches(directory / n, r)}
    if not wanted:
        return directory
    _need_network(
        f"{source.repo}@{source.revision[:12]} is not complete in {root} (missing or damaged: "
        f"{', '.join(wanted)})",
        offline,
    )
    snapshot = Snapshot(source.repo, source.revision, cache_dir)
    with disk_explained(root), _bar(source.repo, wanted, progress) as bar:
        snapshot.check_space(wanted)
        for name, record in wanted.items():
            _fetch_file(snapshot, name, record, bar)
    return directory


def _fetch_file(snapshot: Snapshot, name: str, record: FileRecord, bar: Any) -> None:
    remote, before = transfer.Remote(snapshot.repo, snapshot.revision, name), bar.n
    snapshot.add(name, record, lambda p: transfer.download(remote, record, p, bar.update))
    # nothing came through this process when another one brought the file
    bar.update(before + record.size - bar.n)


def snapshot_of(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
    progress: bool = True,
    refresh: bool = False,
) -> tuple[Source, Path]:
    """(source, directory) of `repo@revision`, whose own manifest.json names its files.

    What the cache holds for that revision is used without a request, unless `refresh`: a branch
    may have moved. Raises what `fetch` raises.
    """
    revision = revision or DEFAULT_REVISION
    source = None if refresh else _read_cached_source(repo, revision, cache_dir)
    if source is None:
        _need_network(f"{repo}@{revision} is not in {cache_root(cache_dir)}", offline)
        content, commit = _read_small(repo, revision, MANIFEST, _MAX_MANIFEST)
        source = _source_from_manifest(repo, commit, content)
    directory = fetch(source, cache_dir, offline, progress)
    with disk_explained(cache_root(cache_dir)):
        Snapshot(repo, source.revision, cache_dir).write_ref(revision)
    return source, directory


def fetch_catalogue(
    repo: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> Path:
    """The catalogue.json of a repository as it is now; offline, as it was when last fetched.

    Raises NotCached, ArtifactError.
    """
    revision = revision or DEFAULT_REVISION
    known = read_ref(repo, revision, cache_dir)
    if known and (offline or is_on("HF_HUB_OFFLINE") or is_commit(revision)):
        cached = repo_directory(repo, cache_dir) / "snapshots" / known / CATALOGUE
        if cached.is_file():
            return cached
    _need_network(f"{CATALOGUE} of {repo}@{revision} is not on this disk", offline)
    content, commit = _read_small(repo, revision, CATALOGUE, _MAX_CATALOGUE)
    _parse_object(content, f"{CATALOGUE} of {repo}@{revision}")
    with disk_explained(cache_root(cache_dir)):
        snapshot = Snapshot(repo, commit, cache_dir)
        path = snapshot.add_content(CATALOGUE, content)
        snapshot.write_ref(revision)
    return path


def _need_network(missing: str, offline: bool) -> None:
    if offline or is_on("HF_HUB_OFFLINE"):
        how = "--offline" if offline else "HF_HUB_OFFLINE"
        raise NotCached(f"{missing}, and {how} forbids requests: pull it once with a connection")


@contextmanager
def _bar(repo: str, wanted: Mapping[str, FileRecord], progress: bool) -> Iterator[Any]:
    from tqdm import tqdm

    total = sum(r.size for r in wanted.values())
    # None: only on a terminal
    hidden = None if progress else True
    with tqdm(total=total, desc=repo, unit="B", unit_scale=True, disable=hidden) as bar:
        yield bar


# ---- what a revision holds ----------------------------------------------------------------------


def _read_small(repo: str, revision: str, name: str, limit: int) -> tuple[bytes, str]:
    """(content, commit) of a file at a revision that may move."""
    repo_directory(repo)
    content, commit = transfer.read_small(transfer.Remote(repo, revision, name), limit)
    if not is_commit(commit):
        raise ArtifactError(f"{repo}@{revision}: expected a commit, got {commit!r}")
    return content, commit


def _read_cached_source(repo: str, revision: str, cache_dir: str | Path | None) -> Source | None:
    """The source of a revision that was fetched before."""
    commit = read_ref(repo, revision, cache_dir)
    if commit is None:
        return None
    path = repo_directory(repo, cache_dir) / "snapshots" / commit / MANIFEST
    if not path.is_file() or path.stat().st_size > _MAX_MANIFEST:
        return None
    return _source_from_manifest(repo, commit, path.read_bytes())


def _source_from_manifest(repo: str, commit: str, content: bytes) -> Source:
    where = f"{MANIFEST} of {repo}@{commit[:12]}"
    files = _parse_object(content, where).get("files")
    if not isinstance(files, dict) or not 0 < len(files) <= _MAX_FILES:
        raise ArtifactError(f"{where}: expected a table `files` of 1 to {_MAX_FILES} files")
    records = {name: _record(entry, f"{where}: {name}") for name, entry in files.items()}
    records[MANIFEST] = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    source = Source(repo, commit, records)
    files_of(source)
    return source


def _record(entry: Any, where: str) -> FileRecord:
    sha256, size = (entry.get(k) if isinstance(entry, dict) else None for k in ("sha256", "size"))
    if not isinstance(sha256, str) or type(size) is not int or size < 0:
        raise ArtifactError(f"{where}: expected sha256 and size, got {entry!r:.80}")
    return FileRecord(sha256, size)


def _parse_object(content: bytes, where: str) -> dict[str, Any]:
    try:
        parsed = parse_json(content)
    except ValueError as e:
        raise ArtifactError(f"{where}: expected JSON: {e}") from e
    if not isinstance(parsed, dict):
        raise ArtifactError(f"{where}: expected a JSON object, got {type(parsed).__name__}")
    return parsed


# ---- uploading ----------------------------------------------------------------------------------


def upload(
    directory: Path,
    names: Sequence[str],
    repo: str,
    tag: str,
    message: str,
    private: bool = False,
    token: str | None = None,
    progress: bool = True,
) -> tuple[str, bool]:
    """(sha, True) of one commit of the named files, which gets one tag.

    Where the tag exists already its commit is returned with False and nothing is changed. The
    repository is made if need be. Raises ArtifactError.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    repo_directory(repo)
    what = f"publishing to {repo}"
    if is_on("HF_HUB_OFFLINE"):
        raise ArtifactError(f"{what}: HF_HUB_OFFLINE forbids requests")
    transfer.check_login(what, repo, token)
    api = HfApi(token=token, library_name="sfhzoo", library_version=__version__)
    with transfer.explained(what, repo), _client_bars(progress):
        api.create_repo(repo, private=private or None, exist_ok=True)
        tags = {t.name: t.target_commit for t in api.list_repo_refs(repo).tags}
        if tag in tags:
            return str(tags[tag]), False
        operations = [CommitOperationAdd(name, str(directory / name)) for name in names]
        commit = api.create_commit(repo, operations, commit_message=message).oid
        api.create_tag(repo, tag=tag, revision=commit, tag_message=message)
        return str(commit), True


@contextmanager
def _client_bars(shown: bool) -> Iterator[None]:
    """The client's own progress bars, only on a terminal."""
    from huggingface_hub import utils

    before = utils.are_progress_bars_disabled()
    if before or (shown and sys.stderr.isatty()):
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
