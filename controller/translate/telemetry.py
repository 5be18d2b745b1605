# SPDX-License-Identifier: Apache-2.0
"""Istio's Telemetry objects, and MeshConfig's defaults, to what waypoints trace, log and count.

An object that cannot be read has no effect: telemetry never decides about traffic. What a
waypoint does not honour is reported where it stands.
Sources: istio.telemetry.v1.Telemetry; istio.mesh.v1alpha1.MeshConfig.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from controller.translate.fields import Fields, IllTypedError, age, spec
from controller.translate.hosts import Hosts
from controller.translate.providers import CONFIG_MAP, read_mesh_config
from controller.translate.targets import TargetReader
from controller.translate.tracers import LOGS, translate_tracers
from controller.translate.types import problem
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.service import Service
from mesh.model.telemetry import CustomTag, MetricOverride, TelemetryPolicy, Tracer, Tracing
from mesh.model.workload import NamespacedHostname
from mesh.telemetry.metrics import (
    CONNECTIONS_CLOSED,
    CONNECTIONS_OPENED,
    HTTP_DURATION_MS,
    HTTP_LABELS,
    HTTP_REQUEST_BYTES,
    HTTP_REQUESTS,
    HTTP_RESPONSE_BYTES,
    RECEIVED_BYTES,
    SENT_BYTES,
    TCP_LABELS,
)

GROUP = "telemetry.istio.io"
KIND = "Telemetry"
_METRICS = {
    "ALL_METRICS": "",
    "REQUEST_COUNT": HTTP_REQUESTS.name,
    "REQUEST_DURATION": HTTP_DURATION_MS.name,
    "REQUEST_SIZE": HTTP_REQUEST_BYTES.name,
    "RESPONSE_SIZE": HTTP_RESPONSE_BYTES.name,
    "TCP_OPENED_CONNECTIONS": CONNECTIONS_OPENED.name,
    "TCP_CLOSED_CONNECTIONS": CONNECTIONS_CLOSED.name,
    "TCP_SENT_BYTES": SENT_BYTES.name,
    "TCP_RECEIVED_BYTES": RECEIVED_BYTES.name,
}
_LABELS = frozenset((*HTTP_LABELS, *TCP_LABELS))
_MODES = ("CLIENT_AND_SERVER", "CLIENT", "SERVER")
_FILTER = re.compile(r"\s*response\.code\s*(>=|>)\s*(\d{3})\s*")
_NO_EFFECT = "the object has no effect"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """The providers that names may stand for."""

    tracers: Mapping[str, Tracer]
    logs: frozenset[str]


def translate_telemetry(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[str, TelemetryPolicy]:
    """Return what waypoints are told, by `namespace/name`."""
    config = read_mesh_config(world)
    tracers, logs = translate_tracers(world, config, Hosts(services))
    known = _Known(tracers=tracers, logs=logs)
    found = {}
    if config is not None:
        try:
            mesh = _mesh(config, known, world.options.root_namespace)
            found[mesh.key] = mesh
        except IllTypedError as error:
            world.report(config.obj, error, "the defaults for telemetry are Istio's")
    whole: dict[str, str] = {}
    for obj in sorted(world.all(GROUP, KIND), key=age):
        policy = _read(world, obj, services, known)
        if policy is None:
            continue
        if not policy.services and not policy.waypoints:
            first = whole.setdefault(policy.namespace, policy.name)
            if first != policy.name:
                reason = f"{first} is older and already for the whole namespace; {_NO_EFFECT}"
                world.problems.append(problem(obj, ("spec",), reason, "error"))
                continue
        found[policy.key] = policy
    return found


# --- MeshConfig


def _mesh(config: Fields, known: _Known, root: str) -> TelemetryPolicy:
    """Read the defaults of the mesh.

    Raises:
        IllTypedError: it is unclear what is meant.
    """
    defaults = config.child("defaultProviders")
    tracing = config.child("defaultConfig").child("tracing")
    names = defaults.strings("tracing")
    tracers = _tracers([(name, defaults, "tracing") for name in names], known) if names else None
    if tracing.has("zipkin") or tracing.has("openCensusAgent") or tracing.has("stackdriver"):
        tracing.report("", "collectors are extensionProviders here, named by defaultProviders.tracing")
    sampling = tracing.number("sampling", 1.0, 0, 100) if tracing.has("sampling") else None
    log: bool | None = True if config.text("accessLogFile") else None
    if defaults.has("accessLogging"):
        log = True if known.logs.intersection(defaults.strings("accessLogging")) else log
    return TelemetryPolicy(
        name="",
        namespace=root,
        tracing=Tracing(
            tracers=tracers,
            sampling_percent=sampling,
            disabled=not config.boolean("enableTracing", True) or None,
            tags=_tags(tracing) if tracing.has("customTags") else None,
        ),
        log=log,
    )


# --- Telemetry


def _read(
    world: World, obj: RawObject, services: Mapping[NamespacedHostname, Service], known: _Known
) -> TelemetryPolicy | None:
    fields = spec(obj, world.problems)
    try:
        if fields.has("selector"):
            raise fields.wrong("selector", "is for proxies beside pods; waypoints are named by targetRefs")
        targeted = fields.has("targetRefs") or fields.has("targetRef")
        targets = TargetReader(world, obj, services).read(fields)
        if targeted and not targets.services and not targets.waypoints:
            return None
        policy = TelemetryPolicy(
            name=obj.name,
            namespace=obj.namespace,
            services=tuple(dict.fromkeys(targets.services)),
            waypoints=tuple(dict.fromkeys(targets.waypoints)),
            tracing=_tracing(fields.children("tracing"), known),
            metrics=tuple(_metrics(fields.children("metrics"))),
        )
        for entry in fields.children("accessLogging"):
            policy = _logging(entry, known, policy)
        fields.finish()
    except IllTypedError as error:
        world.report(obj, error, _NO_EFFECT)
        return None
    return policy


def _applies(entry: Fields) -> bool:
    """Read `match.mode`; a waypoint reports as the server's side."""
    match = entry.child("match")
    mode = match.choice("mode", _MODES, _MODES[0])
    if mode == "CLIENT":
        match.report("mode", "waypoints report as the server's side; the entry has no effect")
    return mode != "CLIENT"


def _tracing(entries: list[Fields], known: _Known) -> Tracing:
    found = Tracing()
    for entry in entries:
        applies = _applies(entry)
        names = [(child.text("name"), child, "name") for child in entry.children("providers")]
        sampled = entry.has("randomSamplingPercentage")
        made = Tracing(
            tracers=_tracers(names, known) if names else None,
            sampling_percent=entry.number("randomSamplingPercentage", 1.0, 0, 100) if sampled else None,
            disabled=entry.boolean("disableSpanReporting") if entry.has("disableSpanReporting") else None,
            tags=_tags(entry) if entry.has("customTags") else None,
        )
        entry.skip("useRequestIdForTraceSampling")  # The trace context alone decides.
        if entry.has("enableIstioTags") and not entry.boolean("enableIstioTags"):
            entry.report("enableIstioTags", "Istio's tags are always there")
        entry.finish()
        if applies:
            found = made.under(found)
    return found


def _tracers(names: list[tuple[str, Fields, str]], known: _Known) -> tuple[Tracer, ...]:
    found = []
    for name, where, field in names:
        if name in known.tracers:
            found.append(known.tracers[name])
        else:
            reason = (
                f"{name or '(none)'} is no usable opentelemetry or zipkin provider of MeshConfig's "
                f"extensionProviders (ConfigMap {CONFIG_MAP}); it is sent no spans"
            )
            where.report(field, reason, "error")
    return tuple(found)


def _tags(entry: Fields) -> tuple[CustomTag, ...]:
    found = []
    tags = entry.child("customTags")
    for name in tags.names():
        tag = tags.child(name)
        literal, header = tag.child("literal"), tag.child("header")
        if tag.has("literal"):
            found.append(CustomTag(name=str(name), value=literal.text("value")))
            literal.finish()
        elif tag.has("header"):
            header_name = header.text("name").lower()
            if not header_name:
                raise header.wrong("name", "is missing")
            default = header.text("defaultValue")
            found.append(CustomTag(name=str(name), value=default, header=header_name))
            header.finish()
        else:
            tags.report(str(name), "only literal and header are known at waypoints; the tag is left out")
    return tuple(found)


def _logging(entry: Fields, known: _Known, policy: TelemetryPolicy) -> TelemetryPolicy:
    applies = _applies(entry)
    names = [(child.text("name"), child) for child in entry.children("providers")]
    for name, child in names:
        if name not in known.logs:
            child.report("name", f"{name or '(none)'} is no access log of a waypoint; it gets no lines")
    disabled = entry.boolean("disabled")
    above = 0
    expression = entry.child("filter").text("expression")
    if expression:
        match = _FILTER.fullmatch(expression)
        if match is None:
            entry.report(
                "filter", "only response.code >= N is known at waypoints; all requests are logged", "error"
            )
        else:
            above = int(match[2]) + (match[1] == ">")
    entry.finish()
    if not applies or (names and not any(name in known.logs for name, _ in names)):
        return policy
    return replace(policy, log=not disabled, log_above=above)


def _metrics(entries: list[Fields]) -> list[MetricOverride]:
    found = []
    for entry in entries:
        for child in entry.children("providers"):
            if child.text("name") not in ("", "prometheus"):
                child.report("name", "only prometheus is known; the entry holds for it")
        for override in entry.children("overrides"):
            made = _override(override)
            if made is not None:
                found.append(made)
        entry.finish()
    return found


def _override(entry: Fields) -> MetricOverride | None:
    match = entry.child("match")
    applies = _applies(entry)
    name = match.text("metric", "ALL_METRICS")
    if match.has("customMetric") or name not in _METRICS:
        match.report("metric", f"a waypoint has no such metric; one of {', '.join(_METRICS)}", "error")
        applies = False
    removed = []
    tags = entry.child("tagOverrides")
    for label in tags.names():
        tag = tags.child(label)
        if tag.choice("operation", ("UPSERT", "REMOVE"), "UPSERT") == "UPSERT":
            tags.report(str(label), "labels cannot be set at waypoints, only removed; no effect")
        elif label not in _LABELS:
            tags.report(str(label), "is no label of the metric; no effect")
        else:
            removed.append(str(label))
    disabled = entry.boolean("disabled") if entry.has("disabled") else None
    entry.finish()
    if not applies:
        return None
    return MetricOverride(metric=_METRICS[name], disabled=disabled, removed=tuple(removed))


__all__ = ["GROUP", "KIND", "LOGS", "translate_telemetry"]
