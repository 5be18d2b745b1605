# SPDX-License-Identifier: Apache-2.0
"""Envoy's retry-on conditions, as VirtualServices list them, in the model's terms.

Source: Envoy router filter, x-envoy-retry-on and x-envoy-retry-grpc-on; istio
pilot/pkg/networking/core/route/retry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mesh.model.route import Retry

DEFAULT_RETRY_ON = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
"""Istio's, where a policy names no conditions."""
_STATUSES = {
    "5xx": tuple(range(500, 600)),
    "gateway-error": (502, 503, 504),
    "retriable-4xx": (409,),
}
GRPC_CONDITIONS = {
    "cancelled": 1,
    "deadline-exceeded": 4,
    "resource-exhausted": 8,
    "internal": 13,
    "unavailable": 14,
}
_WITHOUT_EFFECT = {
    "retriable-status-codes": "",
    "retriable-headers": "names no header, so that it never holds",
    "envoy-ratelimited": "asks for a field that waypoints never send, so that it never holds",
    "http3-post-connect-failure": "waypoints speak no HTTP/3, so that it never holds",
}


def parse_retry_on(text: str, retry: Retry) -> tuple[Retry, list[str]]:
    """Return `retry` with the conditions of a comma-separated list, and what is wrong with them."""
    made = replace(retry, on_connect_failure=False)
    statuses: set[int] = set()
    grpc: set[int] = set()
    problems: list[str] = []
    for name in _names(text):
        if name.isascii() and name.isdigit() and 100 <= int(name) <= 599:
            statuses.add(int(name))
        elif name in GRPC_CONDITIONS:
            grpc.add(GRPC_CONDITIONS[name])
        elif name in _WITHOUT_EFFECT:
            if _WITHOUT_EFFECT[name]:
                problems.append(f"{name} {_WITHOUT_EFFECT[name]}")
        elif (changed := _connection(name, made)) is not None:
            made = changed
            statuses.update(_STATUSES.get(name, ()))
        elif name in _STATUSES:
            statuses.update(_STATUSES[name])
        else:
            problems.append(f"{name[:100]!r} is no retry condition")
    made = replace(made, status_codes=tuple(sorted(statuses)), grpc_statuses=tuple(sorted(grpc)))
    return made, problems


def _names(text: str) -> Iterable[str]:
    return filter(None, (part.strip() for part in text.split(",")))


def _connection(name: str, retry: Retry) -> Retry | None:
    """Return `retry` with a condition about the connection; None: the name is no such condition."""
    match name:
        case "connect-failure":
            return replace(retry, on_connect_failure=True)
        case "refused-stream":
            return replace(retry, on_refused=True)
        case "reset-before-request":
            return replace(retry, on_reset_before_request=True)
        case "reset":
            return replace(retry, on_connect_failure=True, on_reset=True, on_refused=True)
        case "5xx" | "gateway-error":
            # Envoy: no response at all counts among them (gateway-error: as its 502 to 504).
            return replace(retry, on_connect_failure=True, on_reset=True, on_refused=True)
    return None
