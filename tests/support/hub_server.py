"""A small Hugging Face hub on localhost: the requests that the real clients make, and no more."""

from __future__ import annotations

import hashlib
import http.server
import json
import time
import urllib.parse
from typing import Any, ClassVar

Files = dict[str, bytes]


class Silent(http.server.BaseHTTPRequestHandler):
    """Accepts a connection and never answers."""

    def do_GET(self) -> None:
        time.sleep(3)

    def log_message(self, *args: object) -> None:
        pass


class Hub(http.server.BaseHTTPRequestHandler):
    """Set `repos` before use; `GET /test/switch/REPO/SHA` makes another commit the newest."""

    protocol_version = "HTTP/1.1"
    repos: ClassVar[dict[str, dict[str, Files]]] = {}
    """Files by data set and commit; the first commit is `main`."""
    newest: ClassVar[dict[str, str]] = {}
    gated: ClassVar[set[str]] = set()
    broken: ClassVar[set[str]] = set()
    """Paths that break off in the middle."""
    log: ClassVar[list[str]] = []

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlparse(self.path)
        path = urllib.parse.unquote(url.path)
        self.log.append(f"{self.command} {path}")
        query = urllib.parse.parse_qs(url.query)
        parts = path.strip("/").split("/")
        if parts[0] == "test":
            self.newest["/".join(parts[2:-1])] = parts[-1]
            self.send(200, b"")
        elif parts[:2] == ["api", "datasets"]:
            self.api("/".join(parts[2:4]), parts[4:], query, body)
        elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            self.resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self.send(404, b"{}", {"Content-Type": "application/json"})

    def files(self, repo: str, revision: str) -> tuple[str, Files] | None:
        if repo in self.gated:
            self.send_json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
            return None
        commits = self.repos.get(repo, {})
        commit = self.newest.get(repo, next(iter(commits), "")) if revision == "main" else revision
        if commit not in commits:
            self.send_json(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return commit, commits[commit]

    def api(self, repo: str, rest: list[str], query: dict[str, list[str]], body: bytes) -> None:
        found = self.files(repo, rest[1] if len(rest) > 1 else "main")
        if found is None:
            return
        commit, files = found
        if not rest or rest[0] == "revision":
            names = [{"rfilename": name} for name in files]
            self.send_json(200, {"_id": "1", "id": repo, "sha": commit, "private": False,
                                 "gated": False, "disabled": False, "downloads": 0, "likes": 0,
                                 "tags": [], "siblings": names})  # fmt: skip
        elif rest[0] == "tree":
            entries = tree(files, "/".join(rest[2:]), query.get("recursive") == ["true"])
            if rest[2:] and not entries:
                self.send_json(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"})
            else:
                self.send_json(200, entries)
        else:
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            self.send_json(200, [entry(name, files[name]) for name in wanted if name in files])

    def resolve(self, repo: str, revision: str, name: str) -> None:
        found = self.files(repo, revision)
        if found is None:
            return
        commit, files = found
        if name not in files:
            self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        content = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
                   "Accept-Ranges": "bytes"}  # fmt: skip
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            self.send(206, content[begin : end + 1], headers, breaks=name in self.broken)
        else:
            self.send(200, content, headers, breaks=name in self.broken)

    def send_json(self, status: int, data: Any, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self.send(status, json.dumps(data).encode(), kind | (headers or {}))

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, breaks: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if breaks else body)
            self.close_connection = breaks


def entry(name: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "oid": oid, "size": len(content), "path": name}


def tree(files: Files, root: str, recursive: bool) -> list[dict[str, Any]]:
    """Entries under a folder, folders first."""
    prefix = f"{root}/" if root else ""
    inside = {name: content for name, content in files.items() if name.startswith(prefix)}
    folders: dict[str, None] = {}
    entries = []
    for name, content in inside.items():
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            if recursive or depth == 1:
                folders[prefix + "/".join(parts[:depth])] = None
        if recursive or len(parts) == 1:
            entries.append(entry(name, content))
    return [{"type": "directory", "oid": "0", "size": 0, "path": p} for p in folders] + entries
