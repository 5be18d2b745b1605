# SPDX-License-Identifier: Apache-2.0
"""What of a request is hashed, and the cookie that a client gets where it has none yet."""

from __future__ import annotations

from collections.abc import Iterable

from mesh.model.destination import ConsistentHash, HashKind
from mesh.state.balance import Random
from waypoint.cluster.hashing import hash_text

Fields = Iterable[tuple[str, str]]


def request_key(
    by: ConsistentHash, headers: Fields, target: str, source: str, random: Random
) -> tuple[int | None, str]:
    """Return the key of a request, and the value of a Set-Cookie field that its response needs.

    None: the request has nothing to hash, so that any host may take it.
    """
    cookie = ""
    value: str | None
    if by.kind is HashKind.SOURCE_IP:
        value = source
    elif by.kind is HashKind.HEADER:
        values = [text for name, text in headers if name == by.name]
        value = ",".join(values) if values else None
    elif by.kind is HashKind.QUERY:
        value = _parameter(target, by.name)
    else:
        value = _cookie(headers, by.name)
        if value is None and by.cookie_ttl_s is not None:
            value = f"{int(random() * 2**64):016x}"
            cookie = _set_cookie(by, value)
    return (None if value is None else hash_text(value)), cookie


def _parameter(target: str, name: str) -> str | None:
    for pair in target.partition("?")[2].split("&"):
        key, given, value = pair.partition("=")
        if key == name and given:
            return value
    return None


def _cookie(headers: Fields, name: str) -> str | None:
    for field, text in headers:
        if field == "cookie":
            for pair in text.split(";"):
                key, given, value = pair.partition("=")
                if given and key.strip() == name:
                    return value.strip().strip('"')
    return None


def _set_cookie(by: ConsistentHash, value: str) -> str:
    parts = [f'{by.name}="{value}"']
    if by.cookie_ttl_s:
        parts.append(f"Max-Age={by.cookie_ttl_s:.0f}")
    if by.cookie_path:
        parts.append(f"Path={by.cookie_path}")
    parts += [f"{key}={text}" if text else key for key, text in by.cookie_attributes]
    return "; ".join([*parts, "HttpOnly"])
