# SPDX-License-Identifier: Apache-2.0
"""What an undeclared port carries, told by the first bytes that the client sends."""

from __future__ import annotations

import enum

from waypoint.http.detect import HttpVersion, detect

_METHODS = (b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH ")
"""Source: RFC 9110 §9.3, RFC 5789. Others would be guesses: `QUIT ` is SMTP's."""
_TARGETS = b"/*hH"
"""First byte of a request target: origin-form, asterisk-form, `http`. Source: RFC 9112 §3.2."""


class Sniffed(enum.Enum):
    """Who takes the byte stream."""

    HTTP1 = "http/1"
    HTTP2 = "h2c"
    TCP = "tcp"


def sniff(first: bytes) -> Sniffed | None:
    """Return what a stream that begins with `first` carries; None: more bytes are needed.

    The answer never changes with further bytes, and needs at most those of the HTTP/2 preface.
    """
    version = detect(first)
    if version is HttpVersion.HTTP2:
        return Sniffed.HTTP2
    if version is None:
        return None
    for method in _METHODS:
        if first.startswith(method):
            if len(first) == len(method):
                return None
            # CONNECT names a host, any byte of which may come first.
            plausible = first[len(method)] in _TARGETS or method == b"CONNECT "
            return Sniffed.HTTP1 if plausible else Sniffed.TCP
        if method.startswith(first):
            return None
    return Sniffed.TCP
