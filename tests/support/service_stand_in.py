"""A service that makes no proofs: it answers as the real one, and on request as it should not.

As a program it stands for ``gpuprover serve``: the first line of its standard output says where it listens.
What it does is in the witness: ``MODE`` or ``MODE:NUMBER``.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROOF = {"state": "succeeded", "proof": {}, "public_signals": []}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, status: int, document: Any, **headers: str) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if headers.get("Transfer_Encoding") == "chunked":
            self.end_headers()
            half = len(body) // 2
            for piece in (body[:half], body[half:], b""):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/readyz":
            self.answer(self.server.readiness(), {})
            return
        number = int(self.path.rpartition("/")[2])
        self.answer(200, PROOF if self.server.asked(number) > 1 else {"state": "running"})

    def do_POST(self) -> None:
        witness = self.rfile.read(int(self.headers["Content-Length"])).decode("latin-1")
        self.server.requests.append((self.path, dict(self.headers)))
        mode, number = witness.split(":")[0], self.server.count()
        if mode == "refuse" and number % 2:
            self.answer(429, {"title": "QueueFull"}, Retry_After="0")
        elif mode == "fail":
            self.answer(200, {"state": "failed"})
        elif mode == "later":
            self.answer(202, {"state": "queued"}, Location=f"/v1/proofs/{number}")
        elif mode == "drop" and number % 3 == 0:
            self.close_connection = True
        elif mode == "closing":
            self.answer(200, PROOF, Connection="close")
        elif mode == "chunks":
            self.answer(200, PROOF, Transfer_Encoding="chunked")
        else:
            time.sleep(0.002)
            self.answer(200, PROOF)


class StandIn(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._lock = threading.Lock()
        self._count = self._ready = 0
        self._asked: dict[int, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self) -> int:
        with self._lock:
            self._count += 1
            return self._count

    def asked(self, number: int) -> int:
        with self._lock:
            self._asked[number] = self._asked.get(number, 0) + 1
            return self._asked[number]

    def readiness(self) -> int:
        with self._lock:
            self._ready += 1
            return 200 if self._ready > 2 else 503


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if "fails" in sys.argv:
        sys.exit("error: the folder of circuits cannot be read")
    server = StandIn()
    print(json.dumps({"url": server.url}), flush=True)
    server.serve_forever()
