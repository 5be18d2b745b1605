# SPDX-License-Identifier: Apache-2.0
"""MeshConfig's extensionProviders to the collectors of spans, and to the names of access logs.

Source: istio.mesh.v1alpha1.MeshConfig.ExtensionProvider (OpenTelemetryTracingProvider,
ZipkinTracingProvider, EnvoyFileAccessLogProvider).
"""

from __future__ import annotations

from controller.translate.fields import Fields, IllTypedError
from controller.translate.hosts import Hosts
from controller.translate.providers import find_service, read_port
from controller.translate.world import World
from mesh.model.telemetry import DEFAULT_TAG_LENGTH, Tracer, TracerProtocol

ENVOY = "envoy"
"""Istio's built-in access log, to standard output."""
LOGS = "envoyFileAccessLog"
_OTLP_PATH = "/v1/traces"
_ZIPKIN_PATH = "/api/v2/spans"
_TIMEOUT_S = 10.0
"""Source: Istio, OpenTelemetryTracingProvider."""
_CONSEQUENCE = "the provider is left out; nobody is sent spans for its name"


def translate_tracers(
    world: World, config: Fields | None, hosts: Hosts
) -> tuple[dict[str, Tracer], frozenset[str]]:
    """Return the collectors by name, and the names that stand for the access log."""
    tracers: dict[str, Tracer] = {}
    logs = {ENVOY}
    if config is None:
        return tracers, frozenset(logs)
    try:
        entries = config.children("extensionProviders")
    except IllTypedError:
        return tracers, frozenset(logs)  # Reported with the authorisers.
    for entry in entries:
        try:
            name = entry.text("name")
            if entry.has("opentelemetry"):
                tracers[name] = _otlp(world, name, entry.child("opentelemetry"), hosts)
            elif entry.has("zipkin"):
                tracers[name] = _zipkin(world, name, entry.child("zipkin"), hosts)
            elif entry.has(LOGS):
                logs.add(name)
                _log(entry.child(LOGS))
        except IllTypedError as error:
            world.report(config.obj, error, _CONSEQUENCE)
    return tracers, frozenset(logs)


def _otlp(world: World, name: str, fields: Fields, hosts: Hosts) -> Tracer:
    http, grpc = fields.child("http"), fields.child("grpc")
    over_http = fields.has("http")
    if over_http and fields.has("grpc"):
        raise fields.wrong("grpc", "stands beside http; one of them is allowed")
    chosen = http if over_http else grpc
    timeout_s = chosen.duration("timeout")
    made = Tracer(
        name=name,
        service=find_service(world, fields, hosts),
        port=read_port(fields),
        protocol=TracerProtocol.OTLP_HTTP if over_http else TracerProtocol.OTLP_GRPC,
        path=(http.text("path") or _OTLP_PATH) if over_http else "",
        headers=_headers(chosen, "headers" if over_http else "initialMetadata"),
        timeout_s=timeout_s or _TIMEOUT_S,
        max_tag_length=_length(fields),
    )
    for given in ("resourceDetectors", "dynatraceSampler"):
        if fields.has(given):
            fields.report(given, "is not supported; no effect")
    chosen.finish()
    fields.finish()
    return made


def _zipkin(world: World, name: str, fields: Fields, hosts: Hosts) -> Tracer:
    fields.skip("enable64bitTraceId", "traceContextOption")  # Ids have 128 bits; both contexts are sent.
    timeout_s = fields.duration("timeout")
    made = Tracer(
        name=name,
        service=find_service(world, fields, hosts),
        port=read_port(fields),
        protocol=TracerProtocol.ZIPKIN,
        path=fields.text("path") or _ZIPKIN_PATH,
        headers=_headers(fields, "headers"),
        timeout_s=timeout_s or _TIMEOUT_S,
        max_tag_length=_length(fields),
    )
    fields.finish()
    return made


def _length(fields: Fields) -> int:
    return fields.integer("maxTagLength", DEFAULT_TAG_LENGTH, 0, 65_536) or DEFAULT_TAG_LENGTH


def _headers(fields: Fields, name: str) -> tuple[tuple[str, str], ...]:
    found = []
    for child in fields.children(name):
        header = child.text("name").lower()
        if not header or not header.isascii() or any(character in header for character in " :\r\n"):
            raise child.wrong("name", f"{header!r} is no name of a header field")
        if child.has("envName"):
            raise child.wrong("envName", "is not supported: a waypoint's environment holds no such secret")
        value = child.text("value")
        if not value.isprintable():
            raise child.wrong("value", "holds characters that no header field may")
        found.append((header, value))
        child.finish()
    return tuple(found)


def _log(fields: Fields) -> None:
    fields.skip("path")
    if fields.has("logFormat"):
        fields.report("logFormat", "lines keep their form: LOG_FORMAT of the waypoint chooses text or JSON")
    fields.finish()
