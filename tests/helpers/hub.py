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
    """One repository, such as datasets/somebody/chosen: `files` by path; what it was created with; the tokens sent."""

    address: str
    files: dict[str, bytes]
    refuses: bool
    repository: str = "datasets/somebody/chosen"
    created: dict[str, Any] | None = None
    tokens: set[str] = field(default_factory=set)

    def answer(self, method: str, path: str, body: bytes) -> Any:
        path = path.partition("?")[0]
        if path == "/api/repos/create":
            self.created = json.loads(body)
            kind = {"dataset": "datasets/"}.get(self.created.get("type", "model"), "")
            return {"url": f"{self.address}/{kind}{self.created['organization']}/{self.created['name']}"}
        if path == "/api/validate-yaml":
            assert json.loads(body)["repoType"] == self.repository.partition("/")[0].removesuffix("s")
            return {"errors": [], "warnings": []}
        asked = path.removeprefix(f"/api/{self.repository}").strip("/").partition("/")[0]
        assert path.startswith(f"/api/{self.repository}"), path
        if asked == "preupload":
            return {"files": self.answer_preupload(json.loads(body))}
        if asked == "commit":
            self.commit([json.loads(line) for line in body.splitlines()])
            return {"commitOid": "0" * 40, "commitUrl": f"{self.address}/{self.repository}/commit/{'0' * 40}"}
        if asked in ("tree", "revision", "") and method == "GET":
            sizes = {name: len(data) for name, data in self.files.items()}
            files = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            name = self.repository.partition("/")[2]
            described = {"id": name, "sha": "0" * 40, "siblings": [{"rfilename": path} for path in sizes]}
            return files if asked == "tree" else described
        raise AssertionError(f"{method} {path}")

    def answer_preupload(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """As huggingface_hub describes it: by the rules that are sent, else by the `.gitignore` that is there."""
        rules = asked.get("gitIgnore", self.files.get(".gitignore", b"").decode()).splitlines()
        named = [(file["path"], any(_is_in(file["path"], rule) for rule in rules)) for file in asked["files"]]
        return [{"path": path, "uploadMode": "regular", "shouldIgnore": ignored} for path, ignored in named]

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                del self.files[value["path"]]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                self.files[value["path"]] = base64.b64decode(value["content"])


def _is_in(path: str, rule: str) -> bool:
    """Whether a rule of a `.gitignore` names a folder of a path: anywhere, or from the root if it holds a slash."""
    if not rule.endswith("/"):
        return False
    folder = rule.rstrip("/")
    return path.startswith(f"{folder}/") if "/" in folder else folder in path.split("/")[:-1]


@contextmanager
def start_hub(
    files: dict[str, bytes] | None = None, refuses: bool = False, repository: str = "datasets/somebody/chosen"
) -> Iterator[Hub]:
    """A hub with one repository; its `address` is for HF_ENDPOINT."""

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
    hub = Hub(f"http://127.0.0.1:{server.server_port}", dict(files or {}), refuses, repository)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
