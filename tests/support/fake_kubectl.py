# SPDX-License-Identifier: Apache-2.0
"""A kubectl for tests: answers from a directory, and forwards ports to itself.

`$FAKE_KUBECTL` has objects.json (what `get` prints), answers.json ({"PORT PATH": value}); each call
is a line of calls.txt, with what came over standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOME = Path(os.environ["FAKE_KUBECTL"])


def forward(ports: list[int]) -> None:
    """Serve the answers of each port until ended."""
    answers: dict[str, Any] = json.loads((HOME / "answers.json").read_text())
    servers = []
    for port in ports:

        class Handler(BaseHTTPRequestHandler):
            prefix = f"{port} "

            def do_GET(self) -> None:
                value = answers.get(self.prefix + self.path)
                body = value if isinstance(value, str) else json.dumps(value)
                self.send_response(404 if value is None else 200)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        print(f"Forwarding from 127.0.0.1:{server.server_port} -> {port}", flush=True)
    threading.Event().wait()


def main(words: list[str]) -> int:
    """Do what the words say."""
    while words[0].startswith("--"):
        words = words[2:]
    text = sys.stdin.read() if "-f" in words and "-" in words else ""
    with (HOME / "calls.txt").open("a") as file:
        file.write(json.dumps([words, text]) + "\n")
    answers = {
        "config": lambda: "fake",
        "api-resources": lambda: "pods\nnamespaces\nauthorizationpolicies.security.istio.io",
        "get": (HOME / "objects.json").read_text,
        "logs": (HOME / "log.txt").read_text,
        "exec": lambda: '{"features": {"a": "ok"}}',
        "kustomize": lambda: f"kind: {Path(words[1]).name}\nimage: ambit.local/ambit:dev",
        "label": lambda: "labeled",
        "delete": lambda: "deleted",
        "apply": lambda: "gateway.gateway.networking.k8s.io/x serverside-applied",
        "-n": lambda: "",
    }
    if words[0] == "port-forward":
        if (HOME / "refuse").exists():
            print("error: pod is not running", file=sys.stderr)
            return 1
        forward([int(word[1:]) for word in words if word.startswith(":")])
    if "status" in words and (HOME / "late").exists():
        return 1
    print(answers[words[0]]())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
