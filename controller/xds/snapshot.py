# SPDX-License-Identifier: Apache-2.0
"""The mesh as named, versioned resources, and what changed from one state to the next.

Pure. What did not change is not encoded again, so that one changed workload costs one
encoding and one name in `Change`, however large the mesh is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Encoded:
    """One resource on the wire; the version is a hash of the value, so it survives restarts."""

    version: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Names whose resource of one type was added, changed or removed."""

    type_url: str
    names: frozenset[str]


@dataclass(slots=True)
class Table:
    """All resources of one type, and the values that they were encoded from."""

    encode: Callable[[Any], bytes]
    resources: dict[str, Encoded] = field(default_factory=dict)
    _values: dict[str, Any] = field(default_factory=dict)

    def encode_changes(self, values: Mapping[str, Any]) -> dict[str, Encoded]:
        """Encode what differs from the values in force; changes nothing, raises what `encode` raises."""
        found = {}
        for name, value in values.items():
            if name in self._values and self._values[name] == value:
                continue
            data = self.encode(value)
            found[name] = Encoded(hashlib.sha256(data).hexdigest()[:16], data)
        return found

    def take(self, values: Mapping[str, Any], encoded: Mapping[str, Encoded]) -> frozenset[str]:
        """Take the whole new set with what `encode_changes` said of it; return the names that differ."""
        changed: set[str] = set()
        for name in self._values.keys() - values.keys():
            del self._values[name], self.resources[name]
            changed.add(name)
        for name, made in encoded.items():
            self._values[name] = values[name]
            if self.resources.get(name) != made:
                self.resources[name] = made
                changed.add(name)
        return frozenset(changed)


class Resources:
    """Every type that is served; one writer, readers on the same loop."""

    def __init__(
        self, encoders: Mapping[str, Callable[[Any], bytes]], named_by_others: frozenset[str] = frozenset()
    ) -> None:
        self._tables = {type_url: Table(encode) for type_url, encode in encoders.items()}
        self.named_by_others = named_by_others
        """Types whose resources others refer to: they come first, and go last."""

    @property
    def types(self) -> tuple[str, ...]:
        """Type URLs, in the order in which they are pushed."""
        return tuple(self._tables)

    def of(self, type_url: str) -> Mapping[str, Encoded]:
        """Return the resources of a type; empty for one that is not served."""
        table = self._tables.get(type_url)
        return table.resources if table is not None else {}

    def update(self, values: Mapping[str, Mapping[str, Any]]) -> list[Change]:
        """Take the new state of the given types; return what changed, in the order of pushing.

        All or nothing: what an encoder raises leaves the last state in force.
        """
        encoded = {
            type_url: table.encode_changes(values[type_url])
            for type_url, table in self._tables.items()
            if type_url in values
        }
        changes = []
        for type_url, made in encoded.items():
            if names := self._tables[type_url].take(values[type_url], made):
                changes.append(Change(type_url=type_url, names=names))
        return changes
