"""The cache of fetched files: where they lie, whether they are whole, how they go away.

    <cache root>/models--ORG--NAME/blobs/<sha256>
                                   snapshots/<commit>/<file>  -> ../../blobs/<sha256>
                                   refs/<branch or tag>       the commit it stood for
    <cache root>/.locks/models--ORG--NAME/<sha256>.lock

The layout and the locks are those of huggingface_hub, so `hf cache` and its own downloads share
the files. No network and, but for the locks, no huggingface_hub here: a listing must be quick.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sfhzoo.errors import ArtifactError, HashMismatch
from sfhzoo.zoo.artifacts import sha256_of
from sfhzoo.zoo.cards import FileRecord, Source

_REPO = re.compile(r"(?!.*\.\.)[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[\w-][\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRUE = {"1", "ON", "YES", "TRUE"}

Download = Callable[[Path], object]
"""Completes a partial file."""


# ---- places -------------------------------------------------------------------------------------


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else SFHZOO_CACHE_DIR, else the Hub's own cache; it need not exist."""
    env = os.environ
    if given := cache_dir or env.get("SFHZOO_CACHE_DIR"):
        return Path(given).expanduser()
    # as huggingface_hub.constants does, which is too slow to import for a listing
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(os.path.expanduser(hub)))


def is_on(variable: str) -> bool:
    """Whether an environment variable of the client is switched on."""
    return os.environ.get(variable, "").upper() in _TRUE


def repo_directory(repo: str, cache_dir: str | Path | None = None) -> Path:
    """Where the commits of a repository lie; ArtifactError for what is no ORG/NAME."""
    if not _REPO.fullmatch(repo):
        raise ArtifactError(f"expected a repository as ORG/NAME, got {repo!r}")
    return cache_root(cache_dir) / f"models--{repo.replace('/', '--')}"


def snapshot_directory(source: Source, cache_dir: str | Path | None = None) -> Path:
    """Where the files of a source are once they are fetched."""
    return repo_directory(source.repo, cache_dir) / "snapshots" / source.revision


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, which never moves; ArtifactError for what is none at all."""
    if not _REVISION.fullmatch(revision):
        raise ArtifactError(f"expected a commit, branch or tag, got {revision!r}")
    return _COMMIT.fullmatch(revision) is not None


def read_ref(repo: str, revision: str, cache_dir: str | Path | None = None) -> str | None:
    """The commit of a revision as far as the cache knows."""
    path = repo_directory(repo, cache_dir) / "refs" / revision
    if is_commit(revision):
        return revision
    commit = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return commit if _COMMIT.fullmatch(commit) else None


def files_of(source: Source) -> Mapping[str, FileRecord]:
    """The source's files; ArtifactError where a name is not plain or the commit not pinned."""
    if not _COMMIT.fullmatch(source.revision):
        raise ArtifactError(f"{source.repo}: expected a commit, got {source.revision!r}")
    for name, record in source.files.items():
        if not name or Path(name).name != name:
            raise ArtifactError(f"{source.repo}: expected plain file names, got {name!r}")
        if not _SHA256.fullmatch(record.sha256):
            raise ArtifactError(f"{source.repo}: {name}: expected a sha256 of 64 digits")
    return source.files


# ---- whether it is whole ------------------------------------------------------------------------


def locate_cached(source: Source, cache_dir: str | Path | None = None) -> Path | None:
    """The directory of a source whose files are all there with their sizes.

    Contents are not read: see `check_files`.
    """
    directory = snapshot_directory(source, cache_dir)
    complete = all(_has_size(directory / n, r) for n, r in files_of(source).items())
    return directory if complete else None


def check_files(source: Source, directory: Path) -> None:
    """Compare size and sha256 of every file with the record.

    Raises ArtifactError for a missing file, HashMismatch for another content.
    """
    for name, record in files_of(source).items():
        path = directory / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; expected {record.size} bytes")
        if path.stat().st_size != record.size:
            raise HashMismatch(f"{path}: expected {record.size} bytes, got {path.stat().st_size}")
        found = sha256_of(path)
        if found != record.sha256:
            raise HashMismatch(f"{path}: sha256 expected {record.sha256}, got {found}")


def matches(path: Path, record: FileRecord) -> bool:
    """Whether a file is the one of the record."""
    return _has_size(path, record) and sha256_of(path) == record.sha256


def _has_size(path: Path, record: FileRecord) -> bool:
    return path.is_file() and path.stat().st_size == record.size


# ---- writing ------------------------------------------------------------------------------------


class Snapshot:
    """A commit of a repository in the cache, to write into."""

    def __init__(self, repo: str, revision: str, cache_dir: str | Path | None = None) -> None:
        self.repo, self.root = repo, cache_root(cache_dir)
        self.revision = revision
        self.blobs = repo_directory(repo, cache_dir) / "blobs"
        self.directory = self.blobs.parent / "snapshots" / revision

    def check_space(self, wanted: Mapping[str, FileRecord]) -> None:
        """ArtifactError when the disk has no room for what is still to come."""
        self.root.mkdir(parents=True, exist_ok=True)
        partials = [self._partial(r.sha256) for r in wanted.values()]
        there = sum(p.stat().st_size for p in partials if p.is_file())
        needed = sum(r.size for r in wanted.values()) - there
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise ArtifactError(
                f"{self.repo} needs {needed / 1e6:.1f} MB more in {self.root}, where "
                f"{free / 1e6:.1f} MB are free: make room, or choose another disk with --cache-dir"
            )

    def add(self, name: str, record: FileRecord, download: Download) -> None:
        """Put a file in, downloading it unless another process or commit brought it."""
        blob, pointer = self.blobs / record.sha256, self.directory / name
        with self._locked(record.sha256):
            if matches(pointer, record):
                return
            if not matches(blob, record):
                partial = self._partial(record.sha256)
                download(partial)
                partial.replace(blob)
            _link(blob, pointer)

    def add_content(self, name: str, content: bytes) -> Path:
        """Put a file in whose hash nobody told."""
        record = FileRecord(hashlib.sha256(content).hexdigest(), len(content))
        self.add(name, record, lambda partial: partial.write_bytes(content))
        return self.directory / name

    def write_ref(self, revision: str) -> None:
        """Remember what a branch or tag stands for; of a commit there is nothing to remember."""
        path = self.blobs.parent / "refs" / revision
        if is_commit(revision) or (path.is_file() and path.read_text() == self.revision):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.revision, encoding="utf-8")

    def _partial(self, sha256: str) -> Path:
        return self.blobs / f"{sha256}.incomplete"

    @contextmanager
    def _locked(self, sha256: str) -> Iterator[None]:
        """The client's own lock of this file, and the directories it goes to."""
        from huggingface_hub.utils import WeakFileLock

        locks = self.root / ".locks" / self.blobs.parent.name
        for directory in (locks, self.blobs, self.directory):
            directory.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(locks / f"{sha256}.lock"):
            yield


def _link(blob: Path, pointer: Path) -> None:
    pointer.unlink(missing_ok=True)
    try:
        if is_on("HF_HUB_DISABLE_SYMLINKS"):
            raise OSError(errno.ENOTSUP, "switched off")
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        # some systems and file systems have none; the client does the same
        blob.replace(pointer)


@contextmanager
def disk_explained(root: Path) -> Iterator[None]:
    """Errors of the disk within become one ArtifactError that says what to do."""
    try:
        yield
    except OSError as e:
        reason = e.strerror or str(e)
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            text = f"{root}: the disk is full ({reason}): make room and run the same again"
        elif e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = f"cannot write into the cache {root} ({reason})"
        else:
            text = f"{e.filename or root}: {reason}"
        raise ArtifactError(
            f"{text}; another place can be given with --cache-dir or SFHZOO_CACHE_DIR"
        ) from e


# ---- removing -----------------------------------------------------------------------------------


def remove(source: Source, cache_dir: str | Path | None = None) -> int:
    """Delete the files of a source, partial ones too; returns the bytes freed.

    What another commit of the repository still uses stays. Raises ArtifactError.
    """
    records, snapshot = files_of(source), snapshot_directory(source, cache_dir)
    directory = snapshot.parent.parent
    with disk_explained(cache_root(cache_dir)):
        before = _measure(directory)
        named = [directory / "blobs" / r.sha256 for r in records.values()]
        # the client calls small files by another hash
        blobs = {
            *named,
            *(p.parent / os.readlink(p) for p in snapshot.glob("*") if p.is_symlink()),
        }
        if snapshot.is_dir():
            shutil.rmtree(snapshot)
        in_use = {p.resolve() for p in directory.glob("snapshots/*/*")}
        for blob in (b for b in blobs if b.resolve() not in in_use):
            _unlink_within(directory, blob)
            _unlink_within(directory, blob.with_name(f"{blob.name}.incomplete"))
        _remove_refs(directory, source.revision)
        if directory.is_dir() and not any(directory.glob("snapshots/*")):
            shutil.rmtree(directory)
        return before - _measure(directory)


def _unlink_within(directory: Path, path: Path) -> None:
    if directory.resolve() in path.parent.resolve().parents:
        path.unlink(missing_ok=True)


def _remove_refs(directory: Path, commit: str) -> None:
    for ref in directory.glob("refs/**/*"):
        if ref.is_file() and ref.read_text(encoding="utf-8").strip() == commit:
            ref.unlink()


def _measure(directory: Path) -> int:
    """Bytes of the files in it; links are not followed."""
    files = (p for p in directory.rglob("*") if not p.is_symlink() and p.is_file())
    return sum(p.stat().st_size for p in files)
