# SPDX-License-Identifier: Apache-2.0
"""Match conditions of a VirtualService's http routes.

An entry that can never hold at a waypoint is dropped and reported; so is one that holds a
condition waypoints cannot judge, as without it more requests would match than were meant.
Source: istio.io/api HTTPMatchRequest; pilot/pkg/networking/core/route TranslateRouteMatch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields
from controller.translate.regex import regex_problem
from mesh.model.route import PathKind, PathMatch, RequestMatch, ValueKind, ValueMatch

MESH = "mesh"
"""The gateway that stands for all clients inside the mesh."""
WAYPOINT_SCHEME = "http"
"""What every request to a waypoint has: TLS of the application's own is not taken apart."""
_CLAIMS = "@request.auth.claims"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One alternative of a route's match list."""

    match: RequestMatch
    port: int = 0
    """Only for this service port; 0: every port."""
    namespace: str = ""
    """Only for clients of this namespace; empty: all."""


def read_entry(fields: Fields) -> Entry | None:
    """Read one alternative; None: it never holds here.

    Raises:
        IllTypedError: it cannot be read, or a condition in it cannot be judged by a waypoint.
    """
    fields.skip("name", "statPrefix")
    gateways = fields.strings("gateways")
    labels = fields.string_map("sourceLabels")
    ignore_case = fields.boolean("ignoreUriCase")
    entry = Entry(
        match=_request(fields, ignore_case),
        port=fields.integer("port", 0, 0, MAX_PORT),
        namespace=fields.text("sourceNamespace"),
    )
    holds = _scheme_holds(fields)
    fields.finish()
    if gateways and MESH not in gateways:
        return None
    if labels:
        raise fields.wrong("sourceLabels", "waypoints do not know labels of clients")
    if not holds:
        fields.report("scheme", f"requests to a waypoint are {WAYPOINT_SCHEME}, so that it never holds")
        return None
    return entry


def _request(fields: Fields, ignore_case: bool) -> RequestMatch:
    headers: list[ValueMatch] = []
    special: dict[str, ValueMatch] = {}
    child = fields.child("headers")
    for name in sorted(child.names(), key=str):
        value = _value(child, name, str(name).lower())
        if value.name.startswith((":", "@")):
            special[value.name] = value
        else:
            headers.append(value)
    without = fields.child("withoutHeaders")
    for name in sorted(without.names(), key=str):
        value = _value(without, name, str(name).lower())
        if value.name.startswith((":", "@")):
            raise without.wrong(str(name), "only header fields of the request can be absent")
        headers += _absent(value)
    query = fields.child("queryParams")
    parameters = tuple(_value(query, name, str(name)) for name in sorted(query.names(), key=str))
    method, authority = _optional(fields, "method"), _optional(fields, "authority")
    for name, value in special.items():
        if name == ":method" and method is None:
            method = _nameless(value)
        elif name == ":authority" and authority is None:
            authority = _nameless(value)
        elif name.startswith(_CLAIMS):
            raise child.wrong(name, "waypoints do not route by claims of tokens")
        else:
            raise child.wrong(name, "is no header field; use uri, scheme, method or authority")
    return RequestMatch(
        path=_path(fields, ignore_case),
        method=method,
        authority=_lower(authority),
        headers=tuple(headers),
        query=parameters,
    )


def _path(fields: Fields, ignore_case: bool) -> PathMatch | None:
    found = _optional(fields, "uri")
    if found is None:
        return None
    kind = {ValueKind.EXACT: PathKind.EXACT, ValueKind.PREFIX: PathKind.PREFIX}.get(found.kind)
    if kind is None:
        # ignoreUriCase is for exact and prefix only.
        return PathMatch(kind=PathKind.REGEX, value=found.value)
    return PathMatch(kind=kind, value=found.value, ignore_case=ignore_case)


def _scheme_holds(fields: Fields) -> bool:
    found = _optional(fields, "scheme")
    if found is None:
        return True
    if found.kind is ValueKind.EXACT:
        return found.value == WAYPOINT_SCHEME
    if found.kind is ValueKind.PREFIX:
        return WAYPOINT_SCHEME.startswith(found.value)
    return re.fullmatch(found.value, WAYPOINT_SCHEME) is not None


def _optional(fields: Fields, name: str) -> ValueMatch | None:
    """Read a comparison of something that every request has; None: anything will do."""
    if not fields.has(name):
        return None
    found = read_string_match(fields.child(name), "")
    return None if found.kind is ValueKind.PRESENT else found


def _value(fields: Fields, key: object, name: str) -> ValueMatch:
    if not isinstance(key, str) or not key:
        raise fields.wrong("", "holds a name that is no text")
    return read_string_match(fields.child(key), name)


def read_string_match(fields: Fields, name: str) -> ValueMatch:
    """Read a StringMatch; nothing in it, or the expression `*`, is the mere presence."""
    given = [kind for kind in ("exact", "prefix", "regex") if fields.has(kind)]
    if len(given) > 1:
        raise fields.wrong(given[1], f"stands beside {given[0]}; one of them is allowed")
    made = ValueMatch(name=name, kind=ValueKind.PRESENT)
    if given:
        value = fields.text(given[0])
        if given[0] == "regex" and value != "*" and (reason := regex_problem(value)):
            raise fields.wrong("regex", reason)
        if given[0] != "regex" or value != "*":
            made = ValueMatch(name=name, kind=ValueKind(given[0]), value=value)
    fields.finish()
    return made


def _absent(value: ValueMatch) -> list[ValueMatch]:
    """Return the comparisons of `withoutHeaders`: a missing field counts as an empty one."""
    inverted = ValueMatch(name=value.name, kind=value.kind, value=value.value, invert=True)
    empty = (
        re.fullmatch(value.value, "") is not None
        if value.kind is ValueKind.REGEX
        else value.kind is not ValueKind.PRESENT and not value.value
    )
    return [ValueMatch(name=value.name, kind=ValueKind.PRESENT), inverted] if empty else [inverted]


def _nameless(value: ValueMatch) -> ValueMatch | None:
    if value.kind is ValueKind.PRESENT:
        return None
    return ValueMatch(name="", kind=value.kind, value=value.value)


def _lower(value: ValueMatch | None) -> ValueMatch | None:
    """Names of hosts have no case; what a waypoint compares them with is in lower case."""
    if value is None or value.kind is ValueKind.REGEX:
        return value
    return ValueMatch(name="", kind=value.kind, value=value.value.lower())
