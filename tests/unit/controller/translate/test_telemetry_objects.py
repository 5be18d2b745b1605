# SPDX-License-Identifier: Apache-2.0
"""Telemetry objects and MeshConfig's providers: what is read, what is left out and reported where."""

from __future__ import annotations

from typing import Any

import yaml

from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import make_object
from mesh.model.telemetry import (
    CustomTag,
    MetricOverride,
    TelemetryPolicy,
    Tracer,
    TracerProtocol,
    Tracing,
)
from mesh.model.workload import NamespacedHostname

COLLECTOR = NamespacedHostname(namespace="watch", hostname="collector.watch.svc.cluster.local")
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: collector, namespace: watch}
spec: {clusterIP: 10.96.0.20, ports: [{port: 4317}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.21, ports: [{port: 80}]}
"""
CONFIG = """
extensionProviders:
- name: otel
  opentelemetry: {service: watch/collector.watch.svc.cluster.local, port: 4317}
- name: otel-http
  opentelemetry:
    service: collector.watch.svc.cluster.local
    port: 4318
    maxTagLength: 64
    http: {path: /otlp, timeout: 3s, headers: [{name: X-Key, value: k}]}
- name: zipkin
  zipkin: {service: collector.watch.svc.cluster.local, port: "9411"}
- name: lines
  envoyFileAccessLog: {path: /dev/stdout}
"""
OTEL = Tracer(name="otel", service=COLLECTOR, port=4317, protocol=TracerProtocol.OTLP_GRPC)


def mesh(spec: str, *, config: str = CONFIG, name: str = "default", namespace: str = "shop") -> Mesh:
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": config},
    }
    telemetry: dict[str, Any] = {
        "apiVersion": "telemetry.istio.io/v1",
        "kind": "Telemetry",
        "metadata": {"name": name, "namespace": namespace},
        "spec": yaml.safe_load(spec),
    }
    objects = [make_object(data) for data in (*yaml.safe_load_all(SERVICES), config_map, telemetry)]
    return translate({obj.key: obj for obj in objects}, Options())


def reasons(found: Mesh) -> list[str]:
    return [f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in found.problems]


def test_tracing_in_full() -> None:
    found = mesh(
        """
tracing:
- providers: [{name: otel}]
  randomSamplingPercentage: 12.5
  disableSpanReporting: false
  customTags:
    place: {literal: {value: here}}
    tenant: {header: {name: X-Tenant, defaultValue: none}}
"""
    )
    assert reasons(found) == []
    assert found.telemetry["shop/default"] == TelemetryPolicy(
        name="default",
        namespace="shop",
        tracing=Tracing(
            tracers=(OTEL,),
            sampling_percent=12.5,
            disabled=False,
            tags=(
                CustomTag(name="place", value="here"),
                CustomTag(name="tenant", value="none", header="x-tenant"),
            ),
        ),
    )


def test_providers_of_every_kind() -> None:
    found = mesh("{tracing: [{providers: [{name: otel-http}, {name: zipkin}]}]}")
    assert reasons(found) == []
    assert found.telemetry["shop/default"].tracing.tracers == (
        Tracer(
            name="otel-http",
            service=COLLECTOR,
            port=4318,
            protocol=TracerProtocol.OTLP_HTTP,
            path="/otlp",
            headers=(("x-key", "k"),),
            timeout_s=3.0,
            max_tag_length=64,
        ),
        Tracer(
            name="zipkin",
            service=COLLECTOR,
            port=9411,
            protocol=TracerProtocol.ZIPKIN,
            path="/api/v2/spans",
        ),
    )


def test_the_meshs_own_defaults() -> None:
    config = (
        CONFIG
        + """
enableTracing: true
accessLogFile: /dev/stdout
defaultProviders: {tracing: [otel]}
defaultConfig: {tracing: {sampling: 50}}
"""
    )
    found = mesh("{}", config=config)
    assert reasons(found) == []
    assert found.telemetry["istio-system/"] == TelemetryPolicy(
        name="", namespace="istio-system", tracing=Tracing(tracers=(OTEL,), sampling_percent=50.0), log=True
    )


def test_an_unknown_provider_is_reported_and_nobody_is_sent_spans() -> None:
    found = mesh("{tracing: [{providers: [{name: jaeger}]}]}")
    assert found.telemetry["shop/default"].tracing.tracers == ()
    (reason,) = reasons(found)
    assert reason.startswith("spec.tracing.0.providers.0.name: jaeger is no usable")


def test_a_provider_without_a_service_is_reported_by_path() -> None:
    config = "extensionProviders: [{name: otel, opentelemetry: {service: nowhere.svc, port: 1}}]"
    found = mesh("{}", config=config)
    (reason,) = reasons(found)
    assert reason.startswith("data.mesh.extensionProviders.0.opentelemetry.service: service nowhere.svc")


def test_access_logs() -> None:
    found = mesh(
        "{accessLogging: [{providers: [{name: lines}], filter: {expression: response.code >= 400}}]}"
    )
    assert reasons(found) == []
    assert (found.telemetry["shop/default"].log, found.telemetry["shop/default"].log_above) == (True, 400)
    off = mesh("{accessLogging: [{providers: [{name: envoy}], disabled: true}]}")
    assert off.telemetry["shop/default"].log is False
    other = mesh("{accessLogging: [{providers: [{name: als}]}]}")
    assert other.telemetry["shop/default"].log is None
    assert "als is no access log" in reasons(other)[0]
    wide = mesh("{accessLogging: [{filter: {expression: 'request.path == \"/\"'}}]}")
    assert (wide.telemetry["shop/default"].log, wide.telemetry["shop/default"].log_above) == (True, 0)
    assert reasons(wide)[0].startswith("spec.accessLogging.0.filter: only response.code >= N")


def test_overrides_of_metrics() -> None:
    found = mesh(
        """
metrics:
- providers: [{name: prometheus}]
  overrides:
  - match: {metric: REQUEST_COUNT, mode: SERVER}
    tagOverrides: {source_app: {operation: REMOVE}, method: {value: request.method}}
  - match: {metric: REQUEST_SIZE}
    disabled: true
  - match: {metric: GRPC_REQUEST_MESSAGES}
    disabled: true
  - match: {mode: CLIENT}
    disabled: true
"""
    )
    assert found.telemetry["shop/default"].metrics == (
        MetricOverride(metric="istio_requests", removed=("source_app",)),
        MetricOverride(metric="istio_request_bytes", disabled=True),
    )
    assert sorted(reason.partition(": ")[0] for reason in reasons(found)) == [
        "spec.metrics.0.overrides.0.tagOverrides.method",
        "spec.metrics.0.overrides.2.match.metric",
        "spec.metrics.0.overrides.3.match.mode",
    ]


def test_targets() -> None:
    found = mesh("{targetRefs: [{kind: Service, name: web}], tracing: [{randomSamplingPercentage: 5}]}")
    web = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
    assert found.telemetry["shop/default"].services == (web,)
    assert "not bound to a waypoint" in reasons(found)[0]


def test_what_cannot_be_read_has_no_effect_and_says_where() -> None:
    for spec, path in (
        ("{selector: {matchLabels: {app: web}}}", "spec.selector"),
        ("{tracing: [{randomSamplingPercentage: 101}]}", "spec.tracing.0.randomSamplingPercentage"),
        ("{tracing: {}}", "spec.tracing"),
        ("{accessLogging: [{disabled: maybe}]}", "spec.accessLogging.0.disabled"),
    ):
        found = mesh(spec)
        assert "shop/default" not in found.telemetry
        assert reasons(found)[0].startswith(f"{path}: ")


def test_unknown_fields_are_reported() -> None:
    assert reasons(mesh("{tracing: [{sampling: 5}]}")) == [
        "spec.tracing.0.sampling: field is not known and has no effect"
    ]
