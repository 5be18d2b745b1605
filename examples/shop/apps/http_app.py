# SPDX-License-Identifier: Apache-2.0
"""What the shop's small HTTP programs share: a server that answers JSON, and a call to another one."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Mapping[str, Any]
CALL_TIMEOUT_S = 5.0


class UpstreamError(Exception):
    """Another program of the shop cannot be reached or failed."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """Serve IPv4 on the same socket."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def serve(port: int, answer: Callable[[str, bytes], Answer]) -> None:
    """Answer every GET and POST with `answer(path, body)`; /health is answered here."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._reply()

        def do_POST(self) -> None:
            self._reply()

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status = 200
            try:
                value: Answer = {"ok": True} if self.path == "/health" else answer(self.path, body)
            except UpstreamError as error:
                status, value = 502, {"error": str(error)}
            text = json.dumps({**value, "peer": self.client_address[0].removeprefix("::ffff:")}).encode()
            head = (
                f"HTTP/1.1 {status} {'OK' if status == 200 else 'Bad Gateway'}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            )
            self.wfile.write(head.encode() + text)

        def log_message(self, *_: object) -> None:
            pass

    print(f"serving on port {port}", file=sys.stderr, flush=True)
    _Server(("::", port), Handler).serve_forever()


def call(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """GET, or POST with a body, and return the JSON answer.

    Raises:
        UpstreamError: no such answer within 5 s.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(url, data=data, timeout=CALL_TIMEOUT_S) as response:  # noqa: S310
            value: dict[str, Any] = json.load(response)
            return value
    except (OSError, ValueError) as error:
        raise UpstreamError(f"{url}: {error}") from error
