"""A hub that a test serves on this machine: as much of the API of the Hugging Face hub as downloads ask for."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """What a hub knows: for each repository its files, and its branches; and what was requested.

    Args:
        repositories: by name, the content of each file by its path. All commits have the same files.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        self.branches = {"main": FIRST, "dev": SECOND}
        self.repositories = repositories
        self.requested: list[str] = []

    def answer(self, path: str, body: str = "") -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a path of the hub's API, as far as a download asks."""
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        self.requested.append("/".join(parts))
        if parts[0] == "api":
            return self._api("/".join(parts[2:4]), parts[4:], body)
        parts = parts[parts[0] == "datasets" :]
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        content = self.repositories.get(name, {}).get(file)
        if content is None:
            commit = self.branches.get(revision, revision)
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"X-Repo-Commit": self.branches.get(revision, revision), "ETag": f'"{etag}"'}, content

    def _api(self, name: str, rest: list[str], body: str) -> tuple[int, dict[str, str], bytes]:
        if name not in self.repositories:
            status, code = {"org/gated": (403, "GatedRepo"), "org/broken": (500, "")}.get(name, (404, "RepoNotFound"))
            return status, {"X-Error-Code": code} if code else {}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.branches.get(revision, revision)
        if commit not in (FIRST, SECOND):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = self.repositories[name]
        if rest and rest[0] == "tree":
            return 200, {}, json.dumps(list(_entries(files, "/".join(rest[2:]), None))).encode()
        if rest and rest[0] == "paths-info":
            wanted = parse_qs(body)["paths"]
            return 200, {}, json.dumps([one for path in wanted for one in _entries(files, path, path)]).encode()
        info = {"id": name, "sha": commit, "private": False, "gated": False, "tags": [], "downloads": 0, "likes": 0}
        return 200, {}, json.dumps({**info, "siblings": [{"rfilename": path} for path in files]}).encode()


def _entries(files: dict[str, bytes], below: str, alone: str | None) -> Iterator[dict[str, object]]:
    """The files below a folder, and its folders; or what is at one path, `alone`."""
    folders = {parent.as_posix() for path in files for parent in Path(path).parents} - {"."}
    inside = f"{below}/" if below else ""
    for folder in sorted(folders):
        if folder == alone if alone is not None else folder.startswith(inside):
            yield {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest()}
    for path, content in files.items():
        if path == alone if alone is not None else path.startswith(inside):
            yield {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextlib.contextmanager
def serving(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub at work for the processes that a test starts, with an empty cache in `cache`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            status, headers, content = hub.answer(self.path, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_POST = do_GET  # noqa: N815 - the handler's names

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("HF_HOME", str(cache))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
