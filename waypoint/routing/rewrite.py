# SPDX-License-Identifier: Apache-2.0
"""What a rule makes of a request: its new path, its redirect, its header list.

Source: Gateway API HTTPRoute (HTTPPathModifier, HTTPRequestRedirectFilter,
HTTPHeaderFilter); the cases of its conformance suite are this module's tests.
"""

from __future__ import annotations

import re

from mesh.model.address import format_host_port
from mesh.model.route import HeaderOperations, PathKind, PathRewrite, Redirect, RequestMatch

_DEFAULT_PORTS = {"http": 80, "https": 443}


def rewrite_path(path: str, match: RequestMatch, rewrite: PathRewrite) -> str:
    """Return the path that replaces `path`, always starting with `/`; the query is the caller's.

    A prefix is replaced by whole segments after a SEGMENT_PREFIX match and as plain
    text after a PREFIX match; with any other match the whole path is replaced. A regular
    expression is replaced wherever it occurs.
    """
    if rewrite.regex is not None:
        return _rooted(_substitute(path, rewrite.regex, rewrite.substitution))
    if rewrite.full is not None:
        return rewrite.full or "/"
    replacement = rewrite.prefix or ""
    if match.path is None or match.path.kind not in (PathKind.PREFIX, PathKind.SEGMENT_PREFIX):
        return replacement or "/"
    if match.path.kind is PathKind.PREFIX:
        return _rooted(replacement + path[len(match.path.value) :])
    rest = path[len(match.path.value.rstrip("/")) :]
    if replacement.endswith("/") and rest.startswith("/"):
        replacement = replacement[:-1]
    return _rooted(replacement + rest)


def _substitute(path: str, pattern: str, substitution: str) -> str:
    r"""Replace every match; in the substitution, `\0` to `\9` are groups and `\\` is a backslash."""

    def expand(match: re.Match[str]) -> str:
        def part(escape: re.Match[str]) -> str:
            character = escape[1]
            if not character.isdigit():
                return character
            group = int(character)
            return (match[group] or "") if group <= len(match.groups()) else ""

        return re.sub(r"\\([0-9\\])", part, substitution)

    return re.sub(pattern, expand, path)


def _rooted(path: str) -> str:
    return path if path.startswith("/") else "/" + path


def redirect_location(
    *, scheme: str, host: str, port: int, path: str, query: str, match: RequestMatch, redirect: Redirect
) -> str:
    """Return the Location of a redirect.

    `scheme`, `host` (without port) and `port` are the request's own. A port is
    written only when it is not the scheme's default. An explicit scheme without a
    port means that scheme's default port.
    """
    new_scheme = redirect.scheme or scheme
    if redirect.port is not None:
        new_port = redirect.port
    elif redirect.scheme is not None:
        new_port = _DEFAULT_PORTS.get(new_scheme, port)
    else:
        new_port = port
    new_host = redirect.hostname or host
    authority = (
        new_host if _DEFAULT_PORTS.get(new_scheme) == new_port else format_host_port(new_host, new_port)
    )
    new_path = path if redirect.path is None else rewrite_path(path, match, redirect.path)
    suffix = f"?{query}" if query else ""
    return f"{new_scheme}://{authority}{new_path}{suffix}"


def change_headers(headers: list[tuple[str, str]], operations: HeaderOperations) -> list[tuple[str, str]]:
    """Return `headers` (names in lower case) after set, add and remove, in that order.

    `add` appends to an existing field, comma-joined, as Gateway API asks.
    """
    if not operations:
        return headers
    replaced = dict(operations.set)
    result = [(name, value) for name, value in headers if name not in replaced]
    result.extend(replaced.items())
    for name, value in operations.add:
        for index, (existing, old) in enumerate(result):
            if existing == name:
                result[index] = (name, f"{old},{value}")
                break
        else:
            result.append((name, value))
    if operations.remove:
        removed = frozenset(operations.remove)
        result = [(name, value) for name, value in result if name not in removed]
    return result
