"""One file from the Hub: ranged requests, a partial file that outlives the process, sha256.

    GET <endpoint>/<repo>/resolve/<commit>/<name>      Range: bytes=<size of the partial file>-

Serves `hub` only. Connections, token and error classes are those of huggingface_hub. Its
own download is not used: after a killed process it starts at zero, it does not check sha256, and
it takes 23 s to notice that a server is down.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from sfhzoo import __version__
from sfhzoo.errors import ArtifactError, HashMismatch

if TYPE_CHECKING:
    from sfhzoo.zoo.cards import FileRecord

_ATTEMPTS = 4
"""Failures in a row, without a new byte, that end a download."""

_FIRST_WAIT = 0.3
"""s; doubles with each failure in a row: a server that is down is told after 2.1 s."""

_CONNECT_TIMEOUT = 5.0
_TRANSIENT_STATUS = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Remote:
    """A file of a repository at a commit, branch or tag."""

    repo: str
    revision: str
    name: str

    @property
    def url(self) -> str:
        """Where it is served."""
        path = f"{self.repo}/resolve/{quote(self.revision, safe='')}/{quote(self.name)}"
        return f"{endpoint()}/{path}"

    def __str__(self) -> str:
        return f"{self.name} of {self.repo}@{self.revision[:12]}"


def endpoint() -> str:
    """The Hub in use: HF_ENDPOINT or the public one."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def host() -> str:
    """Its name, for messages."""
    return urlsplit(endpoint()).netloc


def download(
    remote: Remote, record: FileRecord, partial: Path, advance: Callable[[int], Any]
) -> None:
    """Complete `partial` to the file of `record`; what it holds already is not asked for again.

    `advance` is told the bytes gained (negative when they are thrown away). What is not the file
    is asked for once more; a complete file of a wrong content is thrown away. Raises HashMismatch,
    ArtifactError when the Hub cannot be reached or refuses, and OSError of the disk; what came of
    the file stays.
    """
    for last in (False, True):
        try:
            with _Partial(partial, record.size, advance) as file:
                _fill(remote, file)
                return _check_digest(remote, record, file)
        except HashMismatch:
            if last:
                raise


def _check_digest(remote: Remote, record: FileRecord, file: _Partial) -> None:
    found = file.digest.hexdigest()
    if found != record.sha256:
        file.restart()
        raise HashMismatch(
            f"{remote}: sha256 expected {record.sha256}, got {found}; it was damaged on the way "
            f"or replaced on {host()}: try again, and tell its authors if it stays so"
        )


def read_small(remote: Remote, limit: int) -> tuple[bytes, str]:
    """(content, commit sha) of a file of at most `limit` bytes whose hash is not known.

    Raises ArtifactError.
    """
    failures = 0
    while True:
        try:
            with _request(remote) as response:
                content = b""
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > limit:
                        raise ArtifactError(f"{remote}: expected at most {limit} bytes, got more")
                return content, _find_commit(response, remote)
        except _transient() as e:
            failures += 1
            _wait_or_raise(e, failures, remote)


class _Partial:
    """The file that grows: its bytes, their running sha256, and how many are wanted."""

    def __init__(self, path: Path, wanted: int, advance: Callable[[int], Any]) -> None:
        self.path, self.wanted, self._advance = path, wanted, advance
        self.size, self.digest = 0, hashlib.sha256()

    def __enter__(self) -> _Partial:
        # unbuffered: what has come must survive the end of the process
        self._file = open(self.path, "a+b", buffering=0)
        self._file.seek(0)
        if os.fstat(self._file.fileno()).st_size > self.wanted:
            self._file.truncate(0)
        while chunk := self._file.read(2**20):
            self.digest.update(chunk)
            self._grow(len(chunk))
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if not self.size and self.wanted:
            self.path.unlink()
        # the bytes are counted again when the file is opened again
        if self.size < self.wanted:
            self._advance(-self.size)

    def _grow(self, n: int) -> None:
        self.size += n
        self._advance(n)

    def write(self, chunk: bytes) -> None:
        """Append; a raw file may take less than it was given."""
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) or 0 :]
        self.digest.update(chunk)
        self._grow(len(chunk))

    def restart(self) -> None:
        """Forget everything."""
        self._file.truncate(0)
        self.digest = hashlib.sha256()
        self._grow(-self.size)


def _fill(remote: Remote, file: _Partial) -> None:
    failures = 0
    while file.size < file.wanted:
        before = file.size
        try:
            _receive(remote, file)
        except _transient() as e:
            failures = 1 if file.size > before else failures + 1
            _wait_or_raise(e, failures, remote)


def _receive(remote: Remote, file: _Partial) -> None:
    """One request for what is missing, written as it comes."""
    with _request(remote, file.size) as response:
        start, total = _find_range(response)
        kind = response.headers.get("Content-Type", "of no type").partition(";")[0]
        if start not in (None, file.size) or total not in (None, file.wanted):
            raise _not_the_file(remote, file, f"{total} ({kind})")
        if start is None:
            file.restart()
        before = file.size
        for chunk in response.iter_bytes():
            # never more on the disk than was announced
            file.write(chunk[: file.wanted - file.size])
            if file.size == file.wanted:
                return
        if start is None or file.size == before:
            got = f"{file.size} ({kind})"
            file.restart()
            raise _not_the_file(remote, file, got)


def _not_the_file(remote: Remote, file: _Partial, got: str) -> HashMismatch:
    return HashMismatch(
        f"{remote}: expected {file.wanted} bytes, {host()} sent {got}; is it the page of a proxy "
        "or of a login instead of the file?"
    )


def _find_range(response: Any) -> tuple[int | None, int | None]:
    """(first byte, size of the whole file); None for "from the start" and for "not told"."""
    if response.status_code == 206:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        return (int(told[1]), int(told[2])) if told else (-1, None)
    length = response.headers.get("Content-Length", "")
    return None, int(length) if length.isdecimal() else None


def _find_commit(response: Any, remote: Remote) -> str:
    """The commit a branch or tag stands for; redirects to a file store do not repeat it."""
    for part in (*response.history, response):
        if commit := part.headers.get("X-Repo-Commit"):
            return str(commit)
    raise ArtifactError(f"{remote}: {host()} did not say which commit it is")


@contextmanager
def _request(remote: Remote, start: int = 0) -> Iterator[Any]:
    """A streamed answer without an error status; ArtifactError or one of `_transient()`."""
    from huggingface_hub.utils import get_session

    headers = _make_headers() | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=_make_timeout(), follow_redirects=True
    ) as response:
        if response.status_code == 416:
            raise HashMismatch(f"{remote}: {host()} has less than the {start} bytes on this disk")
        _check_status(response, str(remote), remote.repo)
        yield response


def check_login(what: str, repo: str, token: str | None = None) -> None:
    """Ask the Hub whom `token`, or the one of `hf auth login`, belongs to; ArtifactError."""
    from huggingface_hub.utils import get_session

    headers = _make_headers(token)
    if "Authorization" not in headers:
        raise ArtifactError(f"{what}: log in first with `hf auth login`")
    failures = 0
    while True:
        try:
            url = f"{endpoint()}/api/whoami-v2"
            response = get_session().get(url, headers=headers, timeout=_make_timeout())
            return _check_status(response, what, repo)
        except _transient() as e:
            failures += 1
            _wait_or_raise(e, failures, what)


def _check_status(response: Any, what: str, repo: str) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code in _TRANSIENT_STATUS:
        raise _Busy(f"{host()} answered {response.status_code} {response.reason_phrase}")
    with explained(what, repo):
        hf_raise_for_status(response)


class _Busy(Exception):
    """An answer that may be another one soon."""


def _transient() -> tuple[type[Exception], ...]:
    import httpx2

    return (httpx2.TransportError, _Busy)


def _wait_or_raise(error: Exception, failures: int, what: object) -> None:
    import httpx2

    # a host that does not even refuse will not do so in the next seconds
    if failures >= _ATTEMPTS or isinstance(error, httpx2.ConnectTimeout):
        told = str(error) if isinstance(error, _Busy) else _explain_transport(error)
        raise ArtifactError(f"{what}: {told}; try again later") from error
    time.sleep(_FIRST_WAIT * 2 ** (failures - 1))


def _explain_transport(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the connection to {host()} failed ({reason})"


def _make_timeout() -> Any:
    import httpx2
    from huggingface_hub import constants

    return httpx2.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT, connect=_CONNECT_TIMEOUT)


def _make_headers(token: str | None = None) -> dict[str, str]:
    """The library's own builder of headers may ask the Hub for a list first; this asks nobody."""
    from huggingface_hub import __version__ as client_version
    from huggingface_hub import constants, get_token

    if token is None and not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN:
        token = get_token()
    return {
        "User-Agent": f"sfhzoo/{__version__}; hf_hub/{client_version}",
        # a compressed answer has another length and no ranges
        "Accept-Encoding": "identity",
        **({"Authorization": f"Bearer {token}"} if token else {}),
    }


@contextmanager
def explained(what: str, repo: str) -> Iterator[None]:
    """Refusals of the Hub within become one ArtifactError that says what to do."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as e:
        raise ArtifactError(
            f"{what}: access is granted on request: ask at {endpoint()}/{repo}, then log in with "
            "`hf auth login`"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ArtifactError(
            f"{what}: {host()} has no repository {repo}, or it is private: check its name, or "
            "log in with `hf auth login`"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise ArtifactError(f"{what}: {repo} has no such commit, branch or tag") from e
    except errors.EntryNotFoundError as e:
        raise ArtifactError(f"{what}: {repo} has no such file there") from e
    except errors.HfHubHTTPError as e:
        raise ArtifactError(f"{what}: {_explain_status(e)}") from e
    except httpx2.TransportError as e:
        raise ArtifactError(f"{what}: {_explain_transport(e)}; try again later") from e
    except ValueError as e:
        # what the client refuses to send, such as a name or a card the Hub would not take
        raise ArtifactError(f"{what}: {' '.join(str(e).split())}") from e
    except RuntimeError as e:
        # the client hides in it why a large file did not get through
        reason = _explain_transport(e.__cause__ or e)
        raise ArtifactError(f"{what}: {e} {reason}; run the same again") from e


def _explain_status(error: Any) -> str:
    status = error.response.status_code
    if status == 401:
        return f"{host()} wants to know who asks (401): log in (again) with `hf auth login`"
    if status == 403:
        return f"your account on {host()} may not do this (403): use a token with the right to"
    told = error.server_message or error.response.reason_phrase
    later = "; try again later" if status >= 500 else ""
    return f"{host()} answered {status} {' '.join(str(told).split())}{later}"
