# SPDX-License-Identifier: Apache-2.0
"""Rule choice: a route table compiled once, then walked for each request.

Comparisons are turned into closures when the table arrives, so that a request
costs one call a comparison and no look at the table's dataclasses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from mesh.model.route import PathKind, PathMatch, RequestMatch, RouteRule, RouteTable, ValueKind, ValueMatch
from waypoint.http.message import Headers

Predicate = Callable[["Request"], bool]


@dataclass(slots=True, kw_only=True)
class Request:
    """What a decision may look at; `path` is the normalised path without its query."""

    method: str
    authority: str
    path: str
    query: str
    fields: Headers
    _headers: dict[str, str] | None = None
    _query_values: dict[str, str] | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Lower-case names to the value that counts: of repeated fields the first (Gateway API)."""
        if self._headers is None:
            self._headers = {}
            for name, value in self.fields:
                self._headers.setdefault(name, value)
        return self._headers

    def query_value(self, name: str) -> str | None:
        """Return the first value of a query parameter; names are case-sensitive."""
        if self._query_values is None:
            values: dict[str, str] = {}
            for key, value in parse_qsl(self.query, keep_blank_values=True):
                values.setdefault(key, value)
            self._query_values = values
        return self._query_values.get(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The rule that takes a request and the match that held, for prefix rewriting."""

    rule: RouteRule
    match: RequestMatch


class RouteMatcher:
    """A compiled table; immutable, so it is swapped whole when the table changes.

    Raises:
        ValueError: a regular expression of the table is not valid; names its rule.
    """

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self._entries: list[tuple[tuple[Predicate, ...], Chosen]] = []
        for rule in table.rules:
            for match in rule.matches:
                try:
                    predicates = tuple(_compile(match))
                    if rule.rewrite is not None and rule.rewrite.path is not None:
                        re.compile(rule.rewrite.path.regex or "")
                except re.error as error:
                    raise ValueError(f"{rule.source}: invalid regular expression: {error}") from error
                self._entries.append((predicates, Chosen(rule=rule, match=match)))

    def choose(self, request: Request) -> Chosen | None:
        """Return the first rule with a match that holds; None means 404. O(matches)."""
        for predicates, chosen in self._entries:
            for predicate in predicates:
                if not predicate(request):
                    break
            else:
                return chosen
        return None


def _compile(match: RequestMatch) -> Sequence[Predicate]:
    predicates: list[Predicate] = []
    paths = match.more_paths if match.path is None else (match.path, *match.more_paths)
    predicates.extend(_compile_path(path) for path in paths)
    if match.method is not None:
        test = compile_value(match.method)
        predicates.append(lambda request: test(request.method))
    if match.authority is not None:
        test_authority = compile_value(match.authority)
        predicates.append(lambda request: test_authority(request.authority.lower()))
    for header in match.headers:
        predicates.append(_header_predicate(header))
    for parameter in match.query:
        predicates.append(_query_predicate(parameter))
    return predicates


def _header_predicate(header: ValueMatch) -> Predicate:
    name, test = header.name, compile_value(header)
    return lambda request: test(request.headers.get(name))


def _query_predicate(parameter: ValueMatch) -> Predicate:
    name, test = parameter.name, compile_value(parameter)
    return lambda request: test(request.query_value(name))


def _compile_path(match: PathMatch) -> Predicate:
    holds = _compile_path_comparison(match)
    return (lambda request: not holds(request)) if match.invert else holds


def _compile_path_comparison(match: PathMatch) -> Predicate:
    value = match.value.lower() if match.ignore_case else match.value
    test: Callable[[str], bool]
    if match.kind is PathKind.REGEX:
        pattern = re.compile(match.value)
        return lambda request: pattern.fullmatch(request.path) is not None
    if match.kind is PathKind.EXACT:
        test = value.__eq__
    elif match.kind is PathKind.PREFIX:
        test = _starts_with(value)
    else:
        test = _segment_prefix(value)
    if match.ignore_case:
        return lambda request: test(request.path.lower())
    return lambda request: test(request.path)


def _starts_with(value: str) -> Callable[[str], bool]:
    return lambda path: path.startswith(value)


def _segment_prefix(value: str) -> Callable[[str], bool]:
    bare = value.rstrip("/")
    if not bare:
        return lambda _: True
    inside = bare + "/"
    return lambda path: path == bare or path.startswith(inside)


def compile_value(match: ValueMatch) -> Callable[[str | None], bool]:
    """Compile a comparison; the result takes the value, or None where there is none.

    Raises:
        re.error: the regular expression is not valid.
    """
    holds = _compile_comparison(match)
    if match.invert:
        return lambda value: not holds(value)
    return holds


def _compile_comparison(match: ValueMatch) -> Callable[[str | None], bool]:
    wanted = match.value
    if match.kind is ValueKind.PRESENT:
        return lambda value: value is not None
    if match.kind is ValueKind.EXACT:
        return lambda value: value == wanted
    if match.kind is ValueKind.PREFIX:
        return lambda value: value is not None and value.startswith(wanted)
    pattern = re.compile(wanted)
    return lambda value: value is not None and pattern.fullmatch(value) is not None
