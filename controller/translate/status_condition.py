# SPDX-License-Identifier: Apache-2.0
"""Linkerd's response classes: which status codes count as failures.

The first class that holds decides; without one, 5xx are failures, and of gRPC those in
FAILED_GRPC. Source: linkerd2 ServiceProfile CRD; linkerd2-proxy app/core/src/classify.rs.
"""

from __future__ import annotations

from collections.abc import Iterable

from controller.translate.fields import Fields

STATUSES = frozenset(range(100, 600))
FAILED_GRPC = (2, 4, 13, 14, 15)
"""UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS."""
_KINDS = ("status", "all", "any", "not")


def failures(classes: Iterable[Fields]) -> tuple[int, ...]:
    """Return the status codes that are failures.

    Raises:
        IllTypedError: a class cannot be read.
    """
    open_ = set(STATUSES)
    failed: set[int] = set()
    for child in classes:
        held = _read(child.child("condition")) & open_
        if child.boolean("isFailure"):
            failed |= held
        open_ -= held
        child.finish()
    return tuple(sorted(failed | {status for status in open_ if status >= 500}))


def _read(fields: Fields) -> frozenset[int]:
    """Return the status codes that a condition holds for."""
    given = [name for name in _KINDS if fields.has(name)]
    fields.refuse_unknown()
    if not given:
        raise fields.wrong("", f"needs at least one of {', '.join(_KINDS)}")
    found = STATUSES
    for name in given:
        found &= _part(fields, name)
    return found


def _part(fields: Fields, name: str) -> frozenset[int]:
    if name == "status":
        child = fields.child(name)
        # A bound that is left out is open.
        low = child.integer("min", 100, 100, 599)
        high = child.integer("max", 599, 100, 599)
        if not child.has("min") and not child.has("max"):
            raise child.wrong("", "needs min, max or both")
        if high < low:
            raise child.wrong("max", "is less than min")
        child.refuse_unknown()
        return frozenset(range(low, high + 1))
    if name == "not":
        return STATUSES - _read(fields.child(name))
    children = fields.children(name)
    if not children:
        raise fields.wrong(name, "is empty")
    parts = [_read(child) for child in children]
    return frozenset.intersection(*parts) if name == "all" else frozenset.union(*parts)
