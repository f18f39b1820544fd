"""A hub on this machine: as much of its HTTP interface as pushing and pulling speak, with the commits in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_this_test"


@dataclass
class LocalHub:
    """Repositories by id: a list of commits, each the files by name. ``endpoint`` is where it listens."""

    endpoint: str = ""
    repositories: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def files(self, repo_id: str) -> dict[str, bytes]:
        return self.repositories[repo_id][-1]

    def commit(self, repo_id: str) -> str:
        return hashlib.sha1(f"{repo_id} {len(self.repositories[repo_id])}".encode()).hexdigest()


@contextmanager
def serving() -> Iterator[LocalHub]:
    hub = LocalHub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        path, body = self._path(), self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            wanted = json.loads(body)
            repo_id = "/".join(filter(None, [wanted.get("organization"), wanted["name"]]))
            if repo_id in self.state.repositories:
                return self._json({"error": "You already created this model repo", "url": f"{self.state.endpoint}/{repo_id}"}, 409)
            self.state.repositories[repo_id] = [{".gitattributes": b""}]
            self.state.private[repo_id] = wanted.get("private") or wanted.get("visibility") == "private"
            return self._json({"url": f"{self.state.endpoint}/{repo_id}", "id": repo_id})
        if match := re.fullmatch(r"/api/models/(.+?/.+?)/preupload/main", path):
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in json.loads(body)["files"]]
            return self._json({"files": modes})
        if match := re.fullmatch(r"/api/models/(.+?/.+?)/commit/main", path):
            return self._commit(match[1], [json.loads(line) for line in body.splitlines() if line.strip()])
        return self._json({"error": f"no such thing: {path}"}, 404)

    def do_GET(self) -> None:
        path = self._path()
        if match := re.fullmatch(r"/api/models/(.+?/.+?)/(revision|tree)/([^/]+)", path):
            repo_id = match[1]
            if repo_id not in self.state.repositories:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            files = self.state.files(repo_id)
            if match[2] == "tree":
                return self._json([{"type": "file", "path": n, "size": len(c), "oid": _etag(c)} for n, c in files.items()])
            return self._json({"id": repo_id, "sha": self.state.commit(repo_id), "siblings": [{"rfilename": n} for n in files]})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            content = self.state.files(match[1]).get(match[3])
            if content is None:
                return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
            return self._answer(content, 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": self.state.commit(match[1])})
        return self._json({"error": f"no such thing: {path}"}, 404)

    do_HEAD = do_GET  # noqa: N815  as the base class has it

    def _commit(self, repo_id: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.state.files(repo_id))
        for line in lines:
            if line["key"] == "file":
                assert line["value"]["encoding"] == "base64"
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        self.state.repositories[repo_id].append(files)
        oid = self.state.commit(repo_id)
        self._json({"commitUrl": f"{self.state.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid, "success": True})

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        return path

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _answer(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: tests have no use for a log."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
