# SPDX-License-Identifier: Apache-2.0
"""Carts, kept in Redis; speaks RESP over one connection a request."""

from __future__ import annotations

import json
import os
import socket

from http_app import Answer, UpstreamError, serve

REDIS = (os.environ.get("REDIS_HOST", "redis"), 6379)
TIMEOUT_S = 5.0


def _command(*words: str) -> bytes:
    parts = [f"*{len(words)}\r\n"]
    parts += [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
    return "".join(parts).encode()


def _push(user: str, item: str) -> int:
    try:
        with socket.create_connection(REDIS, timeout=TIMEOUT_S) as connection:
            connection.sendall(_command("RPUSH", f"cart:{user}", item))
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise UpstreamError(f"redis: {error}") from error
    if not line.startswith(b":"):
        raise UpstreamError(f"redis answered {line!r}")
    return int(line[1:])


def answer(path: str, body: bytes) -> Answer:
    """Put the item of {"user", "item"} into the user's cart and return how many there are."""
    del path
    wish = json.loads(body or b"{}")
    return {"items": _push(str(wish.get("user", "")), str(wish.get("item", "")))}


if __name__ == "__main__":
    serve(8080, answer)
