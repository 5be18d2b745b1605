# SPDX-License-Identifier: Apache-2.0
"""Linkerd's request conditions (`all`, `any`, `not` of paths and methods) as alternatives.

A condition becomes a list of matches of which one must hold, each of them comparisons that
must all hold: what a route table can be walked by. Source: linkerd2 ServiceProfile CRD;
linkerd2-proxy service-profiles/src/http.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from controller.translate.fields import Fields
from controller.translate.regex import regex_problem
from mesh.model.route import PathKind, PathMatch, RequestMatch, ValueKind, ValueMatch

MAX_ALTERNATIVES = 64
"""More than this of one condition are refused (Gateway API's bound on the matches of a rule)."""
_KINDS = ("pathRegex", "method", "all", "any", "not")


@dataclass(frozen=True, slots=True)
class _All:
    """Comparisons that must all hold."""

    paths: tuple[PathMatch, ...] = ()
    methods: frozenset[str] | None = None
    """The method is one of these; None: any."""
    excluded: frozenset[str] = frozenset()

    def also(self, other: _All) -> _All:
        methods = other.methods if self.methods is None else self.methods
        if self.methods is not None and other.methods is not None:
            methods = self.methods & other.methods
        paths = tuple(dict.fromkeys((*self.paths, *other.paths)))
        return _All(paths, methods, self.excluded | other.excluded)

    def match(self) -> RequestMatch | None:
        """Return the match; None: nothing can hold it."""
        method = None
        if self.methods is not None:
            allowed = sorted(self.methods - self.excluded)
            if not allowed:
                return None
            method = _method(allowed, invert=False)
        elif self.excluded:
            method = _method(sorted(self.excluded), invert=True)
        positive = [path for path in self.paths if not path.invert]
        rest = [path for path in self.paths if path.invert]
        if positive:
            return RequestMatch(path=positive[0], more_paths=(*positive[1:], *rest), method=method)
        return RequestMatch(more_paths=tuple(rest), method=method)


def read_condition(fields: Fields) -> tuple[RequestMatch, ...]:
    """Read a condition.

    Raises:
        IllTypedError: it is empty, cannot be read or is too large once taken apart.
    """
    alternatives = _read(fields, negated=False)
    found = (alternative.match() for alternative in dict.fromkeys(alternatives))
    return tuple(match for match in found if match is not None)


def _read(fields: Fields, *, negated: bool) -> list[_All]:
    given = [name for name in _KINDS if fields.has(name)]
    fields.refuse_unknown()
    if not given:
        raise fields.wrong("", f"needs at least one of {', '.join(_KINDS)}")
    parts = [_part(fields, name, negated=negated) for name in given]
    # Fields of one condition must all hold; negated, one that does not is enough.
    return _any(fields, parts) if negated else _all(fields, parts)


def _part(fields: Fields, name: str, *, negated: bool) -> list[_All]:
    if name == "pathRegex":
        pattern = fields.text(name).strip()
        if reason := regex_problem(pattern):
            raise fields.wrong(name, reason)
        return [_All(paths=(PathMatch(kind=PathKind.REGEX, value=pattern, invert=negated),))]
    if name == "method":
        method = frozenset({fields.text(name).upper()})
        return [_All(excluded=method) if negated else _All(methods=method)]
    if name == "not":
        return _read(fields.child(name), negated=not negated)
    children = fields.children(name)
    if not children:
        raise fields.wrong(name, "is empty")
    parts = [_read(child, negated=negated) for child in children]
    return _all(fields, parts) if (name == "all") is not negated else _any(fields, parts)


def _any(fields: Fields, parts: list[list[_All]]) -> list[_All]:
    return _bounded(fields, list(dict.fromkeys(one for part in parts for one in part)))


def _all(fields: Fields, parts: list[list[_All]]) -> list[_All]:
    found = [_All()]
    for part in parts:
        found = _bounded(fields, list(dict.fromkeys(a.also(b) for a in found for b in part)))
    return found


def _bounded(fields: Fields, alternatives: list[_All]) -> list[_All]:
    if len(alternatives) > MAX_ALTERNATIVES:
        raise fields.wrong("", f"comes to more than {MAX_ALTERNATIVES} alternatives; use several routes")
    return alternatives


def _method(names: list[str], *, invert: bool) -> ValueMatch:
    if len(names) == 1:
        return ValueMatch(name="", kind=ValueKind.EXACT, value=names[0], invert=invert)
    made = ValueMatch(name="", kind=ValueKind.REGEX, value="|".join(map(_literal, names)))
    return replace(made, invert=invert)


def _literal(text: str) -> str:
    return "".join(character if character.isalnum() else f"\\{character}" for character in text)
