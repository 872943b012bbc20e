"""As much of a hub as an upload asks for, on this machine."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Hub:
    """One dataset: `files` by path; what it was created with; the tokens that were sent."""

    address: str
    files: dict[str, bytes]
    refuses: bool
    created: dict[str, Any] | None = None
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return {"url": f"{self.address}/datasets/{self.created['organization']}/{self.created['name']}"}
        if path == "/api/validate-yaml":
            assert json.loads(body)["repoType"] == "dataset"
            return {"errors": [], "warnings": []}
        asked = path.removeprefix("/api/datasets/somebody/chosen").strip("/").partition("/")[0]
        assert path.startswith("/api/datasets/somebody/chosen"), path
        if asked == "preupload":
            named = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        if asked == "commit":
            self.commit([json.loads(line) for line in body.splitlines()])
            return {"commitOid": "0" * 40, "commitUrl": f"{self.address}/datasets/somebody/chosen/commit/{'0' * 40}"}
        if asked in ("tree", "revision", "") and method == "GET":
            sizes = {name: len(data) for name, data in self.files.items()}
            files = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            described = {"id": "somebody/chosen", "sha": "0" * 40, "siblings": [{"rfilename": name} for name in sizes]}
            return files if asked == "tree" else described
        raise AssertionError(f"{method} {path}")

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.files[value["path"]]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[value["path"]] = base64.b64decode(value["content"])


@contextmanager
def start_hub(files: dict[str, bytes] | None = None, refuses: bool = False) -> Iterator[Hub]:
    """A hub with one dataset, somebody/chosen; its `address` is for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply("GET")

        def do_POST(self) -> None:
            self.reply("POST")

        def reply(self, method: str) -> None:
            hub.tokens.add(self.headers["Authorization"])
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            status, answer = 403, {"error": "You may not write here."}
            if not hub.refuses:
                status, answer = 200, hub.answer(method, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", dict(files or {}), refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
