# SPDX-License-Identifier: Apache-2.0
"""Which header lists a tunnel may have: requests, responses and trailers, checked by name.

Source: RFC 9113 §8.2, §8.3, §8.5 (CONNECT); RFC 9110 §5.6.2 (tokens). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.hbone.frames import ErrorCode, StreamFailedError
from mesh.hbone.hpack import Header

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_CONNECTION_SPECIFIC = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_REQUEST_PSEUDO = frozenset({b":method", b":authority", b":scheme", b":path", b":protocol"})
_MAX_AUTHORITY_BYTES = 512


@dataclass(frozen=True, slots=True)
class Request:
    """A well-formed request; `connect` says whether it asks for a tunnel."""

    connect: bool
    authority: bytes
    headers: list[Header]
    """Without pseudo-headers, in order."""


def check_request(headers: Sequence[Header]) -> Request:
    """Return the request that a server received.

    Raises:
        StreamFailedError: malformed, or a CONNECT with :scheme, :path or :protocol (peer).
    """
    pseudo, regular = _split(headers, _REQUEST_PSEUDO)
    method = pseudo.get(b":method")
    if method is None:
        raise _malformed(":method is missing")
    authority = pseudo.get(b":authority", b"")
    if method != b"CONNECT":
        if b":scheme" not in pseudo or not pseudo.get(b":path"):
            raise _malformed(":scheme or :path is missing")
        return Request(False, authority, regular)
    for name in (b":scheme", b":path", b":protocol"):
        if name in pseudo:
            raise _malformed(f"CONNECT with {name.decode()}")
    if not authority or len(authority) > _MAX_AUTHORITY_BYTES:
        raise _malformed(f":authority of {len(authority)} bytes (1 to {_MAX_AUTHORITY_BYTES} allowed)")
    return Request(True, authority, regular)


def check_response(headers: Sequence[Header]) -> tuple[int, list[Header]]:
    """Return status and headers of a response that a client received.

    Raises:
        StreamFailedError: malformed (peer).
    """
    pseudo, regular = _split(headers, frozenset({b":status"}))
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit() or status[:1] == b"0":
        raise _malformed(f":status {status!r}")
    return int(status), regular


def check_trailers(headers: Sequence[Header]) -> None:
    """Check a header list that ends a stream.

    Raises:
        StreamFailedError: malformed (peer).
    """
    _split(headers, frozenset())


def _split(headers: Sequence[Header], allowed: frozenset[bytes]) -> tuple[dict[bytes, bytes], list[Header]]:
    pseudo: dict[bytes, bytes] = {}
    regular: list[Header] = []
    for name, value in headers:
        if _BAD_VALUE.search(value):
            raise _malformed(f"value of {name!r}")
        if name[:1] == b":":
            if regular:
                raise _malformed(f"{name!r} after a regular header")
            if name not in allowed or name in pseudo:
                raise _malformed(f"unexpected {name!r}")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name):
            raise _malformed(f"name {name!r}")
        if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
            raise _malformed(f"connection-specific header {name!r}")
        regular.append((name, value))
    return pseudo, regular


def _malformed(what: str) -> StreamFailedError:
    return StreamFailedError(ErrorCode.PROTOCOL_ERROR, f"malformed header list: {what}")
