# SPDX-License-Identifier: Apache-2.0
"""Typed reading of an object's fields, so that each misread one is reported by its path.

Knows types, not meanings. A field that has the wrong type raises `IllTypedError`, which
the caller of a translator turns into a problem; fields nobody asked for are warned of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from controller.translate.types import Problem, Severity, problem
from mesh.config.objects import Path, RawObject
from mesh.model.address import IPAddress, IPNetwork, parse_ip, parse_network

MAX_PORT = 65535
MAX_DURATION_S = 10 * 365 * 86400.0
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,9})?(?:h|ms|m|s|us|µs|ns))+")
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(h|ms|m|s|us|µs|ns)")
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}


class IllTypedError(Exception):
    """A field does not have the type or the range that its kind demands."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class Fields:
    """One mapping of an object; null and missing are the same, as in the API server."""

    def __init__(
        self, obj: RawObject, problems: list[Problem], data: Mapping[Any, Any], path: Path = ()
    ) -> None:
        self.obj = obj
        self.path = path
        self._problems = problems
        self._data = data
        self._known: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._data)

    def has(self, name: str) -> bool:
        """Tell whether the field is given; this counts as having read it."""
        return self._get(name) is not None

    def names(self) -> list[Any]:
        """Return the keys, which all count as read."""
        self._known.update(str(key) for key in self._data)
        return list(self._data)

    def text(self, name: str, default: str = "") -> str:
        """Read a string."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "must be text")
        return value

    def choice(self, name: str, allowed: Iterable[str], default: str) -> str:
        """Read one of some strings."""
        value = self.text(name, default)
        if value not in allowed:
            raise self.wrong(name, f"{value[:100]!r} is none of {', '.join(allowed)}")
        return value

    def boolean(self, name: str, default: bool = False) -> bool:
        """Read true or false."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(name, "must be true or false")
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        """Read a whole number between `low` and `high`, both included."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, f"must be a whole number from {low} to {high}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Read a number, whole or not, between `low` and `high`, both included."""
        value = self._get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(name, f"must be a number from {low:g} to {high:g}")
        return float(value)

    def duration(self, name: str) -> float | None:
        """Read a duration as Go writes it (`1.5s`, `1m30s`) in seconds; None when missing."""
        text = self.text(name)
        if not text:
            return None
        if text == "0":
            return 0.0
        if _DURATION.fullmatch(text) is None:
            raise self.wrong(name, f"{text[:100]!r} is no duration such as 500ms, 1.5s or 1m30s")
        seconds = math.fsum(float(part) * _UNITS_S[unit] for part, unit in _DURATION_PART.findall(text))
        if seconds > MAX_DURATION_S:
            raise self.wrong(name, f"{text[:100]} is longer than {MAX_DURATION_S:g} s")
        return seconds

    def number_or_name(self, name: str) -> int | str | None:
        """Read a port number or the name of a port (`IntOrString`)."""
        value = self._get(name)
        if value is None:
            return None
        if isinstance(value, str) and value:
            return value
        return self.integer(name, 0, 1, MAX_PORT)

    def strings(self, name: str) -> tuple[str, ...]:
        """Read a list of strings; empty when missing."""
        found = []
        for index, value in enumerate(self._list(name)):
            if not isinstance(value, str):
                raise IllTypedError((*self.path, name, index), "must be text")
            found.append(value)
        return tuple(found)

    def string_map(self, name: str) -> dict[str, str]:
        """Read a mapping of strings, such as labels."""
        found = {}
        for key, value in self._mapping(name).items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise IllTypedError((*self.path, name, str(key)), "must be text")
            found[key] = value
        return found

    def port_map(self, name: str) -> dict[str, int]:
        """Read port numbers by the names of ports."""
        child = self.child(name)
        return {str(key): child.integer(key, 0, 1, MAX_PORT) for key in child.names()}

    def address(self, name: str) -> IPAddress:
        """Read an IP address that has to be given."""
        try:
            return parse_ip(self.text(name))
        except ValueError as error:
            raise self.wrong(name, "is no IP address") from error

    def networks(self, name: str) -> tuple[IPNetwork, ...]:
        """Read a list of addresses or CIDR ranges."""
        found = []
        for index, text in enumerate(self.strings(name)):
            try:
                found.append(parse_network(text))
            except ValueError as error:
                raise IllTypedError((*self.path, name, index), "is no IP address or range") from error
        return tuple(found)

    def child(self, name: str) -> Fields:
        """Read a mapping; empty when missing."""
        return Fields(self.obj, self._problems, self._mapping(name), (*self.path, name))

    def children(self, name: str, most: int | None = None) -> list[Fields]:
        """Read a list of mappings, of `most` so many; empty when missing."""
        found = []
        values = self._list(name)
        if most is not None and len(values) > most:
            raise self.wrong(name, f"holds {len(values)} entries, more than {most}")
        for index, value in enumerate(values):
            path = (*self.path, name, index)
            if not isinstance(value, Mapping):
                raise IllTypedError(path, "must be a mapping")
            found.append(Fields(self.obj, self._problems, value, path))
        return found

    def skip(self, *names: str) -> None:
        """Take fields for known that have no bearing on the mesh."""
        self._known.update(names)

    def unknown(self) -> list[str]:
        """Return the names of given fields that nobody read."""
        return sorted(
            str(key) for key, value in self._data.items() if str(key) not in self._known and value is not None
        )

    def finish(self) -> None:
        """Warn of every field that nobody read."""
        for name in self.unknown():
            self.report(name, "field is not known and has no effect")

    def refuse_unknown(self) -> None:
        """Raise for the first field that nobody read: ignoring it would change the meaning."""
        for name in self.unknown():
            raise self.wrong(name, "field is not known")

    def report(self, name: str, reason: str, severity: Severity = "warning", code: str = "") -> None:
        """Report a field; an empty name is the mapping itself."""
        path = (*self.path, name) if name else self.path
        self._problems.append(problem(self.obj, path, reason, severity, code))

    def wrong(self, name: str, reason: str) -> IllTypedError:
        """Make the error of one field, to be raised."""
        return IllTypedError((*self.path, name) if name else self.path, reason)

    def _get(self, name: Any) -> Any:
        self._known.add(str(name))
        return self._data.get(name)

    def _mapping(self, name: str) -> Mapping[Any, Any]:
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.wrong(name, "must be a mapping")
        return value

    def _list(self, name: str) -> list[Any]:
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.wrong(name, "must be a list")
        return value


def root(obj: RawObject, problems: list[Problem]) -> Fields:
    """Read the whole document of `obj`."""
    return Fields(obj, problems, obj.data)


def spec(obj: RawObject, problems: list[Problem]) -> Fields:
    """Read the spec of `obj`."""
    return Fields(obj, problems, obj.spec, ("spec",))


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Tell whether all labels of `selector` are among `labels`."""
    return all(labels.get(key) == value for key, value in selector.items())


def age(obj: RawObject) -> tuple[str, str, str]:
    """Return a sort key: oldest first, then by name."""
    return str(obj.metadata.get("creationTimestamp") or ""), obj.namespace, obj.name
