"""A hub on 127.0.0.1: the few endpoints that uploading and downloading a repository use."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse


@dataclass
class Hub:
    """Repositories in memory: files by name, and a commit that changes with them."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)
    pauses: tuple[float, ...] = ()
    """Seconds before each of the first bytes of a file, or of the answer to a commit."""
    url: str = ""

    def commit(self, repo: str) -> str:
        text = repr(sorted(self.repos[repo].items()))
        return hashlib.sha1(text.encode()).hexdigest()


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def answer(self, body: object, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def drip(self, data: bytes, **headers: str) -> None:
            self.answer(b"", **{"Content-Length": str(len(data)), **headers})
            if self.command == "HEAD":
                return
            for place, pause in enumerate(hub.pauses):
                time.sleep(pause)
                self.wfile.write(data[place : place + 1])
                self.wfile.flush()
            self.wfile.write(data[len(hub.pauses) :])

        def handle_any(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
            hub.tokens.add(self.headers.get("Authorization", ""))
            if parts[:3] == ["api", "repos", "create"]:
                asked = json.loads(sent)
                repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
                there = repo in hub.repos
                hub.repos.setdefault(repo, {})
                hub.private.setdefault(repo, asked.get("visibility") == "private")
                return self.answer({"url": f"{hub.url}/{repo}"}, 409 if there else 200)
            if parts[:2] == ["api", "validate-yaml"]:
                return self.answer({"errors": [], "warnings": []})
            api = parts[:2] == ["api", "models"]
            repo = "/".join(parts[2:4] if api else parts[:2])
            if repo not in hub.repos:
                return self.answer(
                    {"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound"
                )
            files = hub.repos[repo]
            if api and parts[4:5] == ["preupload"]:
                asked = json.loads(sent)["files"]
                plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
                return self.answer({"files": [{"path": file["path"], **plain} for file in asked]})
            if api and parts[4:5] == ["commit"]:
                for line in map(json.loads, sent.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                sha = hub.commit(repo)
                where = f"{hub.url}/{repo}/commit/{sha}"
                said = {"success": True, "commitUrl": where, "commitOid": sha}
                return self.drip(json.dumps(said).encode())
            if api and (len(parts) == 4 or parts[4] == "revision"):
                names = [{"rfilename": name} for name in sorted(files)]
                return self.answer({"id": repo, "sha": hub.commit(repo), "siblings": names})
            if api and parts[4] == "tree":
                names = sorted(files.items())
                return self.answer(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in names
                    ]
                )
            if parts[2:3] == ["resolve"] and "/".join(parts[4:]) in files:
                data = files["/".join(parts[4:])]
                etag = hashlib.sha1(data).hexdigest()
                return self.drip(data, ETag=f'"{etag}"', X_Repo_Commit=hub.commit(repo))
            hub.unknown.append(f"{self.command} {self.path}")
            return self.answer({"error": "not here"}, 404, X_Error_Code="EntryNotFound")

        do_GET = do_POST = do_HEAD = handle_any  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
