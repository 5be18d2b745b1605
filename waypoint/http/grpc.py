# SPDX-License-Identifier: Apache-2.0
"""How the waypoint speaks to gRPC clients: a failure is a gRPC status, never a page of text.

Sources: gRPC's `PROTOCOL-HTTP2.md` (responses, percent-encoded messages) and
`http-grpc-status-mapping.md`. Where that mapping is for clients that meet a proxy which
knows no gRPC, this one is for the proxy: a deadline of the mesh is DEADLINE_EXCEEDED, a
limit RESOURCE_EXHAUSTED, as both are for sure.
"""

from __future__ import annotations

from waypoint.http.message import Headers

_MEDIA_TYPE = "application/grpc"
_UNKNOWN = 2
_STATUS = {
    400: 13,
    401: 16,
    403: 7,
    404: 12,
    408: 4,
    414: 13,
    429: 8,
    431: 13,
    500: 13,
    501: 12,
    502: 14,
    503: 14,
    504: 4,
}
"""HTTP status -> gRPC status code (`google.golang.org/grpc/codes` numbers)."""


def is_grpc(headers: Headers) -> bool:
    """Return whether the fields are of a gRPC call: `application/grpc`, with any `+codec` or parameter."""
    for name, value in headers:
        if name == "content-type":
            lower = value.lower()
            return lower.startswith(_MEDIA_TYPE) and lower[len(_MEDIA_TYPE) :][:1] in ("", "+", ";", " ")
    return False


def grpc_status(http_status: int) -> int:
    """Return the gRPC status code for an HTTP status that this proxy answers itself."""
    return _STATUS.get(http_status, _UNKNOWN)


def failure_headers(http_status: int, detail: str) -> Headers:
    """Return the fields of the trailers-only response, HTTP status 200, that stands for a failure."""
    return [
        ("content-type", _MEDIA_TYPE),
        ("grpc-status", str(grpc_status(http_status))),
        ("grpc-message", encode_message(detail)),
    ]


def encode_message(text: str) -> str:
    """Encode text for `grpc-message`: UTF-8, `%` and everything outside of space..`~` as %XX."""
    octets = text.encode("utf-8", "replace")
    return "".join(
        chr(octet) if 0x20 <= octet <= 0x7E and octet != 0x25 else f"%{octet:02X}" for octet in octets
    )
