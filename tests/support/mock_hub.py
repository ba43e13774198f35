"""A server that answers like the Hugging Face hub, as far as a bundle needs it. Repositories are kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class MockHub(ThreadingHTTPServer):
    """The hub.

    Attributes:
        token: The only token that it knows.
        repositories: Name -> branch -> files.
        public: Names of the public repositories.
        requests: Method and path of each request.
        status: Status with which it answers every request but that for its front page; None for its own.
    """

    daemon_threads = True

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.repositories: dict[str, dict[str, Files]] = {}
        self.public: set[str] = set()
        self.requests: list[str] = []
        self.status: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, name: str, revision: str) -> Files | None:
        """Return the files of a branch or of a commit."""
        branches = self.repositories.get(name, {})
        commits = {sha_of(files): files for files in branches.values()}
        return branches.get(revision) if revision in branches else commits.get(revision)


def sha_of(files: Files) -> str:
    """Return a hash of 40 digits, as commits have."""
    digest = hashlib.sha1(usedforsecurity=False)
    for name, content in sorted(files.items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: MockHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if path == "/":
            return self._answer(200, {})
        if self._refused():
            return None
        name, _, rest = path.removeprefix("/api/models/").partition("/resolve/")
        if rest:
            revision, _, file = rest.partition("/")
            return self._file(name.removeprefix("/"), revision, file)
        owner, repository, *words = path.removeprefix("/api/models/").split("/")
        name = f"{owner}/{repository}"
        revision = words[1] if words else "main"
        if (files := self._files(name, revision)) is None:
            return None
        if words[:1] == ["tree"]:
            entries = [{"type": "file", "path": file, "size": len(files[file]), "oid": "0" * 40} for file in files]
            return self._answer(200, entries)
        about = {"id": name, "sha": sha_of(files), "private": name not in self.server.public}
        return self._answer(200, {**about, "siblings": [{"rfilename": file} for file in files]})

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if self._refused(writes=True):
            return None
        if path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            known = name in self.server.repositories
            self.server.repositories.setdefault(name, {"main": {}})
            if not known and wanted.get("visibility", "private" if wanted.get("private") else "public") == "public":
                self.server.public.add(name)
            return self._answer(409 if known else 200, {"url": f"{self.server.address}/{name}"})
        owner, repository, action, revision = path.removeprefix("/api/models/").split("/")
        branches = self.server.repositories[f"{owner}/{repository}"]
        if action == "branch":
            known = revision in branches
            branches.setdefault(revision, dict(branches["main"]))
            return self._answer(409 if known else 200, {})
        if action == "preupload":
            wanted = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._answer(200, {"files": [{**file, "shouldIgnore": False} for file in wanted]})
        files = branches[revision]
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                del files[entry["value"]["path"]]
        commit = {"commitOid": sha_of(files), "commitUrl": f"{self.server.address}/{owner}/{repository}/commit/0"}
        return self._answer(200, {"success": True, **commit})

    def _file(self, name: str, revision: str, file: str) -> None:
        if (files := self._files(name, revision)) is None:
            return None
        if file not in files:
            return self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha1(files[file], usedforsecurity=False).hexdigest()
        return self._answer(200, files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": sha_of(files)})

    def _files(self, name: str, revision: str) -> Files | None:
        """Return the files of a revision; None after the answer that there is none."""
        if name not in self.server.repositories:
            self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            return None
        files = self.server.files(name, revision)
        if files is None:
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        return files

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        return path

    def _refused(self, *, writes: bool = False) -> bool:
        """Answer a request that is not allowed, and return whether it is not."""
        if self.server.status is not None:
            self._answer(self.server.status, {})
            return True
        given = self.headers.get("Authorization", "")
        public = not writes and any(f"/{name}" in self.path for name in self.server.public)
        if given != f"Bearer {self.server.token}" and not public:
            self._answer(401, {"error": "Invalid username or password."})
            return True
        return False

    def _answer(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing."""


@contextmanager
def mock_hub(token: str = "hf_test") -> Iterator[MockHub]:
    """Serve an empty hub while the context lasts."""
    hub = MockHub(token)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
