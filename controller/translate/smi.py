# SPDX-License-Identifier: Apache-2.0
"""SMI TrafficSplits and HTTPRouteGroups: which services share the requests to another.

All in one namespace. Of several splits of one service, those with matches come first, oldest
first; of those without, the oldest holds. Source: smi-spec traffic-split v1alpha1 to v1alpha4,
traffic-specs HTTPRouteGroup; linkerd-smi adaptor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from controller.translate.fields import Fields, IllTypedError, age, spec
from controller.translate.quantity import parse_quantity, whole_weights
from controller.translate.regex import regex_problem
from controller.translate.types import problem
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.route import Backend, PathKind, PathMatch, RequestMatch, ValueKind, ValueMatch
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

SPLITS = "split.smi-spec.io"
SPECS = "specs.smi-spec.io"
SKIP = "smi.linkerd.io/skip"
MAX_PARTS = 256
"""Backends or matches of one object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One TrafficSplit, read."""

    obj: RawObject
    source: str
    backends: tuple[Backend, ...]
    """Of port 0: that of the request."""
    matches: tuple[RequestMatch, ...] = ()
    """Of which one must hold; none and `matching`: no request does."""
    matching: bool = False
    """Only requests that match are split."""


@dataclass(slots=True)
class Splits:
    """The splits of one service, in the order in which they are looked at."""

    matching: list[Split] = field(default_factory=list)
    rest: Split | None = None


def read_splits(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[NamespacedHostname, Splits]:
    """Return the splits by the service whose requests they share out."""
    found: dict[NamespacedHostname, Splits] = {}
    for obj in sorted(world.all(SPLITS, "TrafficSplit"), key=age):
        if SKIP in obj.annotations:
            continue
        try:
            apex, split = _read(world, services, obj)
        except IllTypedError as error:
            world.report(obj, error, "the split has no effect")
            continue
        splits = found.setdefault(apex, Splits())
        if split.matching:
            splits.matching.append(split)
        elif splits.rest is None:
            splits.rest = split
        else:
            reason = f"{splits.rest.obj.key} splits {apex} already and is older; no effect"
            world.problems.append(problem(obj, ("spec", "service"), reason))
    return found


def _read(
    world: World, services: Mapping[NamespacedHostname, Service], obj: RawObject
) -> tuple[NamespacedHostname, Split]:
    fields = spec(obj, world.problems)
    apex = _service(world, fields, "service", services)
    references = fields.children("matches", MAX_PARTS)
    matches = tuple(match for child in references for match in _reference(world, obj, child))
    backends = _backends(world, fields, services)
    fields.finish()
    source = f"TrafficSplit/{obj.namespace}/{obj.name}#0"
    return apex, Split(obj=obj, source=source, backends=backends, matches=matches, matching=bool(references))


def _service(
    world: World, fields: Fields, name: str, services: Mapping[NamespacedHostname, Service]
) -> NamespacedHostname:
    """Read the name of a service of the same namespace, short or complete."""
    namespace = fields.obj.namespace
    text = fields.text(name)
    if not text:
        raise fields.wrong(name, "is missing")
    short = world.hostname(text, namespace)
    for key in (short, NamespacedHostname(namespace=namespace, hostname=text)):
        if key in services:
            return key
    raise fields.wrong(name, f"{text[:100]} is no service of namespace {namespace}")


def _backends(
    world: World, fields: Fields, services: Mapping[NamespacedHostname, Service]
) -> tuple[Backend, ...]:
    found: list[tuple[NamespacedHostname, Any]] = []
    for child in fields.children("backends", MAX_PARTS):
        raw = child.obj.spec["backends"][child.path[-1]].get("weight")
        weight = parse_quantity(0 if raw is None else raw)
        if weight is None:
            raise child.wrong("weight", "must be a number, 0 or more")
        child.skip("weight")
        try:
            found.append((_service(world, child, "service", services), weight))
        except IllTypedError as error:
            world.report(child.obj, error, "it gets no requests")
        child.finish()
    if not any(weight for _, weight in found):
        raise fields.wrong("backends", "no backend that is there has a weight")
    weights = whole_weights(weight for _, weight in found)
    return tuple(
        Backend(service=service, weight=weight) for (service, _), weight in zip(found, weights, strict=True)
    )


# --- HTTPRouteGroups


def _reference(world: World, obj: RawObject, fields: Fields) -> list[RequestMatch]:
    kind, name = fields.text("kind"), fields.text("name")
    fields.skip("apiGroup")
    fields.finish()
    if kind != "HTTPRouteGroup":
        raise fields.wrong("kind", f"{kind[:100]!r} is no HTTPRouteGroup")
    group = world.get(SPECS, kind, obj.namespace, name)
    if group is None:
        raise fields.wrong("name", f"HTTPRouteGroup {obj.namespace}/{name} does not exist")
    theirs = spec(group, world.problems)
    found = []
    for child in theirs.children("matches", MAX_PARTS):
        try:
            found.append(_match(child))
        except IllTypedError as error:
            world.report(group, error, "this match takes nothing")
    theirs.finish()
    return found


def _match(fields: Fields) -> RequestMatch:
    fields.skip("name")
    path = method = None
    if pattern := fields.text("pathRegex"):
        path = PathMatch(kind=PathKind.REGEX, value=_checked(fields, "pathRegex", pattern))
    methods = fields.strings("methods")
    if methods and "*" not in methods:
        for name in methods:
            if not name.isalpha():
                raise fields.wrong("methods", f"{name[:100]!r} is no method")
        method = ValueMatch(name="", kind=ValueKind.REGEX, value="|".join(sorted(set(methods))))
        if len(methods) == 1:
            method = ValueMatch(name="", kind=ValueKind.EXACT, value=methods[0])
    headers = tuple(
        ValueMatch(name=name.lower(), kind=ValueKind.REGEX, value=_checked(fields, "headers", value))
        for name, value in sorted(_headers(fields).items())
    )
    fields.finish()
    return RequestMatch(path=path, method=method, headers=headers)


def _headers(fields: Fields) -> dict[str, str]:
    """Read a mapping, or the list of mappings that most examples have."""
    raw = fields.obj.spec["matches"][fields.path[-1]].get("headers")
    if not isinstance(raw, list):
        return fields.string_map("headers")
    found: dict[str, str] = {}
    for index, child in enumerate(fields.children("headers")):
        for name in child.names():
            if not isinstance(name, str):
                raise fields.wrong("headers", f"entry {index} holds a name that is no text")
            found[name] = child.text(name)
    return found


def _checked(fields: Fields, name: str, pattern: str) -> str:
    if reason := regex_problem(pattern):
        raise fields.wrong(name, reason)
    return pattern
