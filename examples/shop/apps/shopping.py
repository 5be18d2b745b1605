# SPDX-License-Identifier: Apache-2.0
"""Shops at URL: ROUNDS times the catalogue, the cart and an order, each marked with MARKER; prints JSON.

Goes on until both versions of the catalogue answered, at most 15 s: an endpoint that has
just become ready is told to the other node a moment later. Every failure counts.
"""

from __future__ import annotations

import collections
import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any

TIMEOUT_S = 8.0
BOTH_S = 15.0
VERSIONS = 2


def _ask(url: str, marker: str, body: dict[str, str] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"X-Marker": marker})  # noqa: S310
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - http only
        value: dict[str, Any] = json.load(response)
        return value


def main() -> None:
    """Make the requests and count what came back."""
    url, marker, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    good: collections.Counter[str] = collections.Counter()
    versions: collections.Counter[str] = collections.Counter()
    failed: list[str] = []
    wish = {"user": "demo", "item": marker}
    number, deadline = 0, time.monotonic() + BOTH_S
    while number < rounds or (len(versions) < VERSIONS and time.monotonic() < deadline):
        number += 1
        for path, body, key in (
            ("product", None, "version"),
            ("cart", wish, "items"),
            ("order", wish, "receipt"),
        ):
            try:
                value = _ask(f"{url}/{path}", marker, body)[key]
            except (OSError, ValueError, KeyError) as error:
                detail = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
                failed.append(f"round {number}, /{path}: {error} {detail}".strip())
            else:
                good[path] += 1
                if key == "version":
                    versions[value] += 1
    print(json.dumps({"rounds": number, "good": good, "versions": versions, "failed": failed}))


if __name__ == "__main__":
    main()
