"""A hub on this machine: the few addresses that the real client of the hub asks for, and the ways they can fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
XET_TOKEN = "/api/xet-read-token"  # noqa: S105 - an address


@dataclass(frozen=True)
class Request:
    """One request that the hub was asked."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Repository:
    """The files of a repository at COMMIT; those in `large` are served like large files, by SHA-256 from elsewhere."""

    files: dict[str, bytes]
    large: set[str] = field(default_factory=set)

    def entry(self, name: str) -> dict[str, Any]:
        content = self.files[name]
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        entry = {"type": "file", "path": name, "rfilename": name, "size": len(content), "oid": git}
        if name in self.large:
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 130}
        return entry

    def etag(self, name: str) -> str:
        entry = self.entry(name)
        return entry["lfs"]["oid"] if name in self.large else entry["oid"]


@dataclass
class Hub:
    """What is served, what goes wrong, and what was asked."""

    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    token: str | None = None  # asked for with every request, if there is one
    refusal: tuple[int, str | None] = (401, None)  # what a request without that token is answered
    break_after: dict[str, int] = field(default_factory=dict)  # bytes until the connection breaks, once a file
    gone_after: dict[str, int] = field(default_factory=dict)  # the same, and from then on nothing is answered
    stall_after: dict[str, int] = field(default_factory=dict)  # bytes after which nothing more comes, once a file
    damage: dict[str, int] = field(default_factory=dict)  # how often a file is served with a flipped bit
    xet: bool = False  # large files are said to lie in the storage of chunks, which here knows none of them
    requests: list[Request] = field(default_factory=list)
    gone: bool = False
    endpoint: str = ""

    @property
    def cdn(self) -> str:
        """Where large files lie: to a client another host, which must not see its token."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def content(self) -> list[Request]:
        """Requests for the content of a file."""
        return [request for request in self.requests if request.method == "GET" and "/api/" not in request.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        if self.hub.gone:
            self.close_connection = True
            return None
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(
            Request(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if path.startswith("/cdn/"):  # the address itself is the right to read
            return self._file(*path.removeprefix("/cdn/").split("/", 2))
        if path.startswith("/chunks/"):
            return self._refuse(404, None)
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._refuse(*self.hub.refusal)
        if api := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
            return self._listing(*api.groups())
        if path == XET_TOKEN:
            told = {"X-Xet-Cas-Url": f"{self.hub.endpoint}/chunks", "X-Xet-Access-Token": "x"}
            return self._answer(200, b"{}", told | {"X-Xet-Token-Expiration": "9999999999"})
        if file := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, repo, revision, name = file.groups()
            return self._resolve("datasets" if kind else "models", repo, revision, name)
        return self._refuse(404, "EntryNotFound")

    do_HEAD = do_GET  # noqa: N815

    def _listing(self, kind: str, repo: str, what: str, revision: str) -> None:
        found = getattr(self.hub, kind).get(repo)
        if found is None:
            return self._refuse(404, "RepoNotFound")
        if revision not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound")
        entries = [found.entry(name) for name in found.files]
        body = entries if what == "tree" else {"id": repo, "sha": COMMIT, "siblings": entries}
        return self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, kind: str, repo: str, revision: str, name: str) -> None:
        found = getattr(self.hub, kind).get(repo)
        if found is None:
            return self._refuse(404, "RepoNotFound")
        if revision not in (COMMIT, "main"):
            return self._refuse(404, "RevisionNotFound")
        if name not in found.files:
            return self._refuse(404, "EntryNotFound")
        if name not in found.large:
            return self._file(kind, repo.replace("/", "|"), name)
        headers = {
            "Location": f"{self.hub.cdn}/cdn/{kind}/{repo.replace('/', '|')}/{name}",
            "X-Repo-Commit": COMMIT,
            "X-Linked-Etag": f'"{found.etag(name)}"',
            "X-Linked-Size": str(len(found.files[name])),
        }
        if self.hub.xet:
            link = f'<{self.hub.endpoint}{XET_TOKEN}>; rel="xet-auth"'
            headers |= {"X-Xet-Hash": hashlib.sha256(found.files[name]).hexdigest(), "Link": link}
        return self._answer(302, b"", headers)

    def _file(self, kind: str, repo: str, name: str) -> None:
        found = getattr(self.hub, kind)[repo.replace("|", "/")]
        content, status = found.files[name], 200
        headers = {"ETag": f'"{found.etag(name)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if self.command == "GET" and self.hub.damage.get(name, 0) > 0:
            self.hub.damage[name] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        if self.command == "GET" and name in self.hub.stall_after:
            return self._stall(content, headers, self.hub.stall_after.pop(name))
        if self.command == "GET" and name in self.hub.gone_after:
            self.hub.gone = True
            return self._answer(status, content, headers, self.hub.gone_after[name])
        stop = self.hub.break_after.pop(name, None) if self.command == "GET" else None
        return self._answer(status, content, headers, stop)

    def _stall(self, content: bytes, headers: dict[str, str], after: int) -> None:
        self.send_response(200)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content[:after])
        self.wfile.flush()
        time.sleep(30)
        self.close_connection = True

    def _refuse(self, status: int, code: str | None) -> None:
        self._answer(status, b"{}", {"X-Error-Message": "no"} | ({"X-Error-Code": code} if code else {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str], stop: int | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])
        if stop is not None:
            self.close_connection = True

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serve(hub: Hub) -> Iterator[ThreadingHTTPServer]:
    """Serve `hub` at `hub.endpoint` while the body runs, or until it closes the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
