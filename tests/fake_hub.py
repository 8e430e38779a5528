"""A Hub on localhost: as much of its interface as uploading a folder and downloading a file takes, kept in memory.

Small files come in the commit, ``.safetensors`` through LFS, as on the real one. ``log`` keeps every request with its headers, so
that a test can see whether the token was sent.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class FakeHub:
    """``with FakeHub() as hub``: ``hub.url`` is the endpoint, ``hub.files`` what lies in each repository."""

    def __init__(self, *, broken: bool = False) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.answer()

            do_GET = do_HEAD = do_PUT = do_POST

            def answer(self) -> None:
                hub.log.append((self.command, self.path, self.headers.get("authorization", "")))
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length) if length else b""
                if "chunked" in (self.headers.get("transfer-encoding") or ""):
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                status, data, headers = (
                    (403, b'{"error":"no"}', {}) if broken else hub.serve(self.command, unquote(self.path), body)
                )
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> FakeHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def serve(self, command: str, path: str, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        def reply(data: Any, status: int = 200) -> tuple[int, bytes, dict[str, str]]:
            return status, json.dumps(data).encode(), {"content-type": "application/json"}

        path = path.partition("?")[0]
        if path == "/api/repos/create":
            facts = json.loads(body)
            owner = facts.get("organization") or "somebody"
            self.files.setdefault(f"{owner}/{facts['name']}", {})
            return reply({"url": f"{self.url}/{owner}/{facts['name']}"})
        if path == "/api/validate-yaml":
            return reply({"warnings": [], "errors": []})
        if path.startswith("/upload/"):
            self.objects[path.removeprefix("/upload/")] = body
            return 200, b"", {}
        if path.endswith("/info/lfs/objects/batch"):
            found = [{**o, "actions": {"upload": {"href": f"{self.url}/upload/{o['oid']}"}}} for o in json.loads(body)["objects"]]
            return reply({"transfer": "basic", "objects": found})
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            repo = f"{owner}/{name}"
            if repo not in self.files:
                return reply({"error": "Repository not found"}, 404)
            if rest[:1] == ["preupload"]:
                modes = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                    for f in json.loads(body)["files"]
                ]
                return reply({"files": [{**m, "shouldIgnore": False} for m in modes]})
            if rest[:1] == ["commit"]:
                for line in body.splitlines():
                    entry = json.loads(line)
                    value = entry["value"]
                    if entry["key"] == "file":
                        self.files[repo][value["path"]] = base64.b64decode(value["content"])
                    elif entry["key"] == "lfsFile":
                        self.files[repo][value["path"]] = self.objects[value["oid"]]
                return reply({"commitUrl": f"{self.url}/{repo}/commit/{self.sha(repo)}", "commitOid": self.sha(repo)})
            return reply(
                {"id": repo, "sha": self.sha(repo), "siblings": [{"rfilename": n} for n in self.files[repo]], "tags": []}
            )
        owner, name, *rest = path.strip("/").split("/")
        data = self.files.get(f"{owner}/{name}", {}).get("/".join(rest[2:])) if rest[:1] == ["resolve"] else None
        if data is None:
            return (
                404,
                b"Entry not found",
                {"x-error-code": "EntryNotFound" if f"{owner}/{name}" in self.files else "RepoNotFound"},
            )
        return 200, data, {"etag": f'"{hashlib.sha256(data).hexdigest()}"', "x-repo-commit": self.sha(f"{owner}/{name}")}

    def sha(self, repo: str) -> str:
        return hashlib.sha1(repr(sorted((n, hashlib.sha1(d).digest()) for n, d in self.files[repo].items())).encode()).hexdigest()
