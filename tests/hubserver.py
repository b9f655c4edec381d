"""A Hugging Face Hub on loopback, for the tests: repositories in memory, faults on demand.

What huggingface_hub and sfhzoo ask is answered as the Hub does: whoami, repositories, commits with
large files, tags, and files by branch, tag or commit with ranges. Xet is not there: set
HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, READER = "hf_owner", "hf_reader"
USERS = {OWNER: "sfh", READER: "bob"}
LARGE = (".safetensors", ".zip", ".png")


@dataclass(frozen=True)
class Blob:
    """A file's content; large ones are known by sha256, the others by git's sha1."""

    content: bytes
    large: bool

    @property
    def etag(self) -> str:
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Repo:
    """Commits (sha -> files), and the names that point at them."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, Blob], branch: str = "main") -> str:
        tree = {**self.commits.get(self.heads.get(branch, ""), {}), **files}
        text = json.dumps([self.name, len(self.commits), {n: b.etag for n, b in tree.items()}])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.heads[branch] = tree, sha
        return sha

    def resolve(self, revision: str) -> str:
        sha = {**self.heads, **self.tags}.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "Revision not found", "RevisionNotFound")
        return sha


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose "METHOD /path" `match` finds."""

    match: str
    times: int = 1
    status: int | None = None
    drop_after: int | None = None
    stall_after: int | None = None
    delay: float = 0.0
    flip_byte: bool = False
    body: bytes | None = None
    ignore_range: bool = False
    elsewhere: bool = False


@dataclass
class Request:
    """A request that came, and how many bytes of its answer's body went."""

    line: str
    headers: dict[str, str]
    sent: int = 0


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        handler = type("_Bound", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        target = self._server.serve_forever
        threading.Thread(target=target, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes], tag: str | None = None) -> str:
        """Commit files as if they had been uploaded; returns the commit."""
        blobs = {n: Blob(c, n.endswith(LARGE)) for n, c in files.items()}
        sha = self.repos.setdefault(repo, Repo(repo)).commit(blobs)
        if tag:
            self.repos[repo].tags[tag] = sha
        return sha

    def reset(self) -> None:
        """Forget faults and requests; repositories are open again."""
        self.faults.clear()
        self.requests.clear()
        for repo in self.repos.values():
            repo.private = repo.gated = False

    def asked(self, pattern: str) -> list[Request]:
        """The requests whose "METHOD /path" `pattern` finds."""
        return [r for r in self.requests if re.search(pattern, r.line)]

    def take_fault(self, line: str) -> Fault:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.match, line):
                fault.times -= 1
                return fault
        return Fault("")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer
    request_: Request
    fault: Fault

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        line = f"{self.command} {urlsplit(self.path).path}"
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.request_, self.fault = Request(line, headers), self.hub.take_fault(line)
        self.hub.requests.append(self.request_)
        payload = self.rfile.read(int(headers.get("content-length") or 0))
        try:
            time.sleep(self.fault.delay)
            if self.fault.status:
                raise Refusal(self.fault.status, "made to fail")
            for pattern, handle in _ROUTES.items():
                if found := re.fullmatch(pattern, line):
                    return handle(self, payload, *map(unquote, found.groups()))
            raise Refusal(404, f"no route {line}")
        except Refusal as e:
            told = {"X-Error-Message": str(e), **({"X-Error-Code": e.code} if e.code else {})}
            self._send_json({"error": str(e)}, e.status, told)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _send_json(self, content: Any, status: int = 200, headers: Any = None) -> None:
        data = json.dumps(content).encode()
        self._send(data, status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes | memoryview, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        cuts = [c for c in (self.fault.drop_after, self.fault.stall_after) if c is not None]
        view = memoryview(data)[: 0 if self.command == "HEAD" else min([len(data), *cuts])]
        try:
            while view:
                n = self.connection.send(view[: 2**20])
                self.request_.sent += n
                view = view[n:]
        except OSError:
            self.close_connection = True
        if self.fault.stall_after is not None:
            time.sleep(30)
        self.close_connection |= bool(cuts)

    def _send_blob(self, blob: Blob, headers: dict[str, str]) -> None:
        data, size = memoryview(blob.content), len(blob.content)
        if self.fault.elsewhere:
            other = self.hub.url.replace("127.0.0.1", "localhost")
            return self._send(b"", 302, {**headers, "Location": f"{other}{self.path}"})
        if self.fault.body is not None:
            return self._send(self.fault.body, 200, {"Content-Type": "text/html; charset=utf-8"})
        if self.fault.flip_byte:
            data = memoryview(blob.content[:-1] + bytes([blob.content[-1] ^ 1]))
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or self.fault.ignore_range:
            return self._send(data, 200, headers)
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        if start >= size:
            return self._send(b"", 416, {"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        self._send(data[start : end + 1], 206, headers)

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in USERS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return USERS.get(token)

    def _repo(self, name: str, write: bool = False, content: bool = False) -> Repo:
        user, repo = self._user(), self.hub.repos.get(name)
        owns = user == name.partition("/")[0]
        if repo is None or (repo.private and not owns):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if content and repo.gated and not owns:
            raise Refusal(403 if user else 401, f"Access to {name} is restricted", "GatedRepo")
        if write and not owns:
            raise Refusal(403, "You have no right to write here")
        return repo

    def whoami(self, _: bytes) -> None:
        if self._user() is None:
            raise Refusal(401, "Invalid username or password.")
        self._send_json({"type": "user", "name": self._user(), "orgs": []})

    def validate_card(self, _: bytes) -> None:
        self._send_json({"errors": [], "warnings": []})

    def create(self, payload: bytes) -> None:
        asked, user = json.loads(payload), self._user()
        name = f"{asked.get('organization') or user}/{asked['name']}"
        if name.partition("/")[0] != user:
            raise Refusal(403 if user else 401, f"You have no right to create {name}")
        answer = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repos:
            return self._send_json({"error": "You have created it already", **answer}, 409)
        self.hub.repos[name] = Repo(name, private=asked.get("visibility") == "private")
        self.hub.repos[name].commit({".gitattributes": Blob(b"", False)})
        self._send_json(answer)

    def refs(self, _: bytes, name: str) -> None:
        repo = self._repo(name)
        tags = [{"name": n, "ref": n, "targetCommit": sha} for n, sha in repo.tags.items()]
        self._send_json({"branches": [], "tags": tags, "converts": []})

    def tag(self, payload: bytes, name: str, revision: str) -> None:
        repo = self._repo(name, write=True)
        repo.tags[json.loads(payload)["tag"]] = repo.resolve(revision)
        self._send_json({}, 201)

    def preupload(self, payload: bytes, name: str, _: str) -> None:
        self._repo(name, write=True)
        paths = [f["path"] for f in json.loads(payload)["files"]]
        modes = {p: "lfs" if p.endswith(LARGE) else "regular" for p in paths}
        files = [{"path": p, "shouldIgnore": False, "uploadMode": m} for p, m in modes.items()]
        self._send_json({"files": files})

    def batch(self, payload: bytes, name: str) -> None:
        self._repo(name, write=True)
        objects = json.loads(payload)["objects"]
        for entry in objects:
            entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
        self._send_json({"transfer": "basic", "objects": objects})

    def store(self, payload: bytes, oid: str) -> None:
        assert "Transfer-Encoding" not in self.headers
        self.hub.uploads[oid] = payload
        self._send(b"", 200, {})

    def commit(self, payload: bytes, name: str, branch: str) -> None:
        repo, files = self._repo(name, write=True), {}
        for row in map(json.loads, payload.splitlines()):
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif row["key"] == "lfsFile":
                files[value["path"]] = Blob(self.hub.uploads[value["oid"]], True)
        sha = repo.commit(files, branch)
        self._send_json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def file(self, _: bytes, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, content=True)
        sha = repo.resolve(revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": sha}
        if blob.large:
            headers["X-Linked-ETag"] = f'"{blob.etag}"'
            headers["X-Linked-Size"] = str(len(blob.content))
        self._send_blob(blob, headers)


_NAME, _REPO = "([^/]+/[^/]+)", "/api/models/([^/]+/[^/]+)"
_ROUTES = {
    "GET /api/whoami-v2": _Handler.whoami,
    "POST /api/validate-yaml": _Handler.validate_card,
    "POST /api/repos/create": _Handler.create,
    f"GET {_REPO}/refs": _Handler.refs,
    f"POST {_REPO}/tag/([^/]+)": _Handler.tag,
    f"POST {_REPO}/preupload/([^/]+)": _Handler.preupload,
    f"POST {_REPO}/commit/([^/]+)": _Handler.commit,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Handler.batch,
    "PUT /lfs/([0-9a-f]{64})": _Handler.store,
    f"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)": _Handler.file,
}
