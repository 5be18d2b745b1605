# SPDX-License-Identifier: Apache-2.0
"""Which HTTP a client speaks, told by the first bytes that it sends without TLS."""

from __future__ import annotations

import enum

from mesh.hbone.frames import PREFACE

DETECT_BYTES = len(PREFACE)
"""No answer needs more bytes than this."""


class HttpVersion(enum.Enum):
    """What parses the byte stream."""

    HTTP1 = "http/1"
    HTTP2 = "h2c"


def detect(first: bytes) -> HttpVersion | None:
    """Return the version that a stream beginning with `first` speaks; None: more bytes are needed.

    Everything that is not the connection preface of HTTP/2 counts as HTTP/1, whose parser
    refuses by name what is not HTTP at all. The answer never changes with further bytes.
    Source: RFC 9113 §3.4.
    """
    if first[:DETECT_BYTES] == PREFACE:
        return HttpVersion.HTTP2
    return None if PREFACE.startswith(first) else HttpVersion.HTTP1
