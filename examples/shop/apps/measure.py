# SPDX-License-Identifier: Apache-2.0
"""Times HTTP requests to HOST PORT; prints JSON, microseconds each: kept-alive, and with new connections."""

from __future__ import annotations

import http.client
import json
import sys
import time

WARM_UP = 10


def _request(connection: http.client.HTTPConnection) -> float:
    began = time.perf_counter()
    connection.request("GET", "/")
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise SystemExit(f"the answer has status {response.status}")
    return (time.perf_counter() - began) * 1e6


def main() -> None:
    """Measure COUNT requests over one connection, then COUNT/4 each over a new one."""
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    kept = http.client.HTTPConnection(host, port, timeout=5)
    for _ in range(WARM_UP):
        _request(kept)
    requests = [_request(kept) for _ in range(count)]
    connects: list[float] = []
    for _ in range(count // 4):
        fresh = http.client.HTTPConnection(host, port, timeout=5)
        connects.append(_request(fresh))
        fresh.close()
    print(json.dumps({"requests": requests, "connects": connects}))


if __name__ == "__main__":
    main()
