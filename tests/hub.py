"""A stand-in for the Hugging Face hub on 127.0.0.1, speaking as much of its HTTP as downloads need."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, cache: Path | None = None) -> None:
    """Have the hub's client, here and in processes of ours, ask ``url`` and keep what comes in ``cache``."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    if cache is not None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))


@dataclass
class FakeHub:
    """Repositories by id: file name -> bytes. ``status`` answers every request for a repository with an error.
    Files of weights are LFS files, as at the hub: their ETag is their SHA-256.

    With ``gate`` cleared, the body of a ``.safetensors`` file stops after its first
    half until it is set. ``asked`` lists the requests as ``(method, path, range)``.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    commit: str = "c" * 40
    token: str = "hf_writes"
    private: dict[str, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.gate.set()

    @contextmanager
    def serve(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            self.gate.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def fetched(self, name: str) -> int:
        """How many times the content of a file was asked for."""
        return sum(method == "GET" and path.endswith(f"/{name}") for method, path, _ in self.asked)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            sent = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            hub.asked.append(("POST", path, ""))
            if self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._send(401, b"{}", {}, body=True)
            answer = _written(hub, path, sent)
            return self._send(200, json.dumps(answer).encode(), {}, body=True)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range", "")))
            parts = path.removeprefix("/api/models").strip("/").split("/")
            repo = "/".join(parts[:2])
            if repo in hub.status:
                status, code = hub.status[repo]
                return self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)
            if repo not in hub.repos:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            files = hub.repos[repo]
            if not path.startswith("/api/models"):
                return self._file(files, "/".join(parts[4:]), body)
            if "tree" in parts:
                return self._send(200, json.dumps([_entry(n, d) for n, d in files.items()]).encode(), {}, body)
            siblings = [{"rfilename": name, "blobId": "b" * 40, **_facts(name, data)} for name, data in files.items()]
            about = {"id": repo, "modelId": repo, "private": hub.private.get(repo, False)}
            info = {**about, "sha": hub.commit, "siblings": siblings, "tags": []}
            return self._send(200, json.dumps(info).encode(), {}, body)

        def _file(self, files: dict[str, bytes], name: str, body: bool) -> None:
            if name not in files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            data, start = files[name], 0
            headers = {"ETag": f'"{_etag(name, data)}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("Range", "")
            if wanted.startswith("bytes=") and body:
                start = int(wanted[6:].split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            slow = name.endswith(".safetensors")
            return self._send(206 if start else 200, data[start:], headers, body, slow=slow)

        def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool, slow: bool = False) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not body:
                return
            try:
                half = len(data) // 2 if slow else len(data)
                self.wfile.write(data[:half])
                self.wfile.flush()
                if slow:
                    hub.gate.wait(300)
                    self.wfile.write(data[half:])
            except OSError:  # the client hung up
                self.close_connection = True

    return Handler


def _written(hub: FakeHub, path: str, sent: bytes) -> dict[str, object]:
    """What the hub answers to one who writes: a repository made, a card looked at, files by a commit."""
    if path == "/api/repos/create":
        wish = json.loads(sent)
        repo = f"{wish['organization']}/{wish['name']}"
        if repo not in hub.repos:
            hub.repos[repo], hub.private[repo] = {}, wish.get("visibility") == "private" or bool(wish.get("private"))
        return {"url": f"{hub.url}/{repo}", "id": repo, "name": repo}
    if path == "/api/validate-yaml":
        return {"errors": [], "warnings": []}
    repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
    if "/preupload/" in path:
        names = [item["path"] for item in json.loads(sent)["files"]]
        return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
    for line in sent.splitlines():
        item = json.loads(line)
        if item["key"] == "file":
            hub.repos[repo][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
    return {"commitUrl": f"{hub.url}/{repo}/commit/{hub.commit}", "commitOid": hub.commit}


def _etag(name: str, data: bytes) -> str:
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _facts(name: str, data: bytes) -> dict[str, object]:
    """A file's size and hash as the hub's JSON has them."""
    etag, size = _etag(name, data), len(data)
    if name.endswith(".safetensors"):
        return {"size": size, "lfs": {"sha256": etag, "oid": etag, "size": size, "pointerSize": 134}}
    return {"size": size, "blobId": etag}


def _entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "oid": _etag(name, data), **_facts(name, data)}
