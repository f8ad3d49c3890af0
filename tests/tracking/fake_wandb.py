"""A W&B server that keeps what a client sends, as far as W&B's client needs one; and a reader of its offline files."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class _Handler(BaseHTTPRequestHandler):
    """Reads what W&B's client sends, and hands it to the `Server`."""

    protocol_version = "HTTP/1.1"
    owner: Server

    def log_message(self, *_: Any) -> None: ...

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a client that leaves
            super().handle()

    def do_GET(self) -> None:
        self._body()
        self._answer({})

    do_PUT = do_GET

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/file_stream"):
            self.owner.take(self.path.split("/")[-2], json.loads(body))
            self._answer({"exitcode": None, "limits": {}})
        elif self.path.endswith("/graphql"):
            asked = json.loads(body)
            self._answer({"data": self.owner.answer(asked["query"], asked.get("variables") or {})})
        else:
            self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server:
    """What it was sent: `runs` by id with what they are called, `history` rows and `summary` by id."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.history: dict[str, list[str]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rows(self, run: str) -> list[dict[str, Any]]:
        return [json.loads(row) for row in self.history[run]]

    def take(self, run: str, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        if "wandb-history.jsonl" in files:
            new, rows = files["wandb-history.jsonl"], self.history.setdefault(run, [])
            rows[new["offset"] :] = new["content"]
        if "wandb-summary.json" in files:
            self.summary[run] = json.loads(files["wandb-summary.json"]["content"][-1])

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = found.group(1) if found else ""
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._bucket(variables), "inserted": True}}
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, **self._known(variables)}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables.get("files", [])]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if name == "ArtifactType":
            return {"project": {"artifact": None}}
        if name == "CreateArtifact":
            sequence = {"id": "s", "latestArtifact": None}
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}}
        if name == "Viewer":
            who = {"id": "1", "entity": "me", "username": "me", "email": "me@here", "flags": "{}"}
            return {"viewer": {**who, "teams": {"edges": []}}}
        return {}

    def _bucket(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        self.runs.setdefault(run, {}).update({k: v for k, v in variables.items() if v is not None})
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        names = {"id": run, "name": run, "displayName": self.runs[run].get("displayName"), "project": project}
        return {**names, "historyLineCount": len(self.history.get(run, []))}

    def _known(self, variables: dict[str, Any]) -> dict[str, Any]:
        run = variables["name"]
        if run not in self.runs:
            return {"bucket": None}
        rows = self.history.get(run, [])
        about = {
            "id": run,
            "name": run,
            "displayName": self.runs[run].get("displayName"),
            "tags": [],
            "wandbConfig": "{}",
        }
        counts = {"logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0, "eventsTail": "[]"}
        tail = {"historyTail": json.dumps(rows[-1:]), "summaryMetrics": json.dumps(self.summary.get(run, {}))}
        return {"bucket": {**about, **counts, **tail, "config": self.runs[run].get("config") or "{}"}}


def records(file: Path) -> Iterator[Any]:
    """Every record of a `.wandb` file: the log of LevelDB (blocks of 32 KiB; checksum, length and type in front of each
    part of a record) behind a header of 7 bytes, holding messages of W&B's own protocol."""
    from wandb.proto import wandb_internal_pb2

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place + 7 <= len(data):
        left = -place % 32768
        if 0 < left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def key_of(item: Any) -> str:
    return item.key or ".".join(item.nested_key)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of history in a `.wandb` file."""
    found = [r.history for r in records(file) if r.WhichOneof("record_type") == "history"]
    return [{key_of(i): json.loads(i.value_json) for i in history.item} for history in found]
