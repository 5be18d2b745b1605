# SPDX-License-Identifier: Apache-2.0
"""The one form of a path that policies compare, routes match and upstreams see.

A path that is authorised in one spelling and served in another is a hole, so every
request's path is normalised once (RFC 3986 §6.2.2) and forwarded in that form.
"""

from __future__ import annotations

import re

from waypoint.http.message import BadMessageError

_PERCENT = re.compile(r"%([0-9A-Fa-f]{2})?")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_NEEDS_WORK = re.compile(r"[%\\]|/\.")


def normalise_path(path: str) -> str:
    """Return `path` with unreserved octets decoded and dot segments removed.

    Encoded slashes keep their encoding; `//` is kept, as RFC 3986 does.

    Raises:
        BadMessageError: a backslash, an encoded NUL, or a broken escape (remote fault, 400).
    """
    if _NEEDS_WORK.search(path) is None:
        return path
    if "\\" in path:
        raise BadMessageError("backslash in path")
    return _remove_dot_segments(_PERCENT.sub(_decode_unreserved, path))


def _decode_unreserved(match: re.Match[str]) -> str:
    if match[1] is None:
        raise BadMessageError("broken percent escape in path")
    character = chr(int(match[1], 16))
    if character == "\0":
        raise BadMessageError("NUL in path")
    if character == "\\":
        raise BadMessageError("encoded backslash in path")
    return character if character in _UNRESERVED else "%" + match[1].upper()


def _remove_dot_segments(path: str) -> str:
    kept: list[str] = []
    segments = path.split("/")[1:]
    last = len(segments) - 1
    for index, segment in enumerate(segments):
        bare = segment.split(";", 1)[0]
        if bare not in (".", ".."):
            kept.append(segment)
            continue
        if segment != bare:
            raise BadMessageError("parameters on a dot segment")
        if bare == ".." and kept:
            kept.pop()
        if index == last:
            kept.append("")
    return "/" + "/".join(kept)
