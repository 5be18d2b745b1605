# SPDX-License-Identifier: Apache-2.0
"""What the scopes of telemetry add up to, and that it survives the wire."""

from __future__ import annotations

import pytest

from mesh.model.telemetry import (
    CustomTag,
    MetricOverride,
    Observed,
    TelemetryPolicy,
    Tracer,
    TracerProtocol,
    Tracing,
    observe,
)
from mesh.model.workload import NamespacedHostname
from mesh.xds.telemetry import decode_telemetry, encode_telemetry

WEB = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")


def tracer(name: str) -> Tracer:
    service = NamespacedHostname(namespace="watch", hostname=f"{name}.watch.svc.cluster.local")
    return Tracer(name=name, service=service, port=4317, protocol=TracerProtocol.OTLP_GRPC)


def policy(name: str, namespace: str = "shop", **parts: object) -> TelemetryPolicy:
    return TelemetryPolicy(name=name, namespace=namespace, **parts)  # type: ignore[arg-type]


def observed(*policies: TelemetryPolicy, service: NamespacedHostname | None = WEB) -> Observed:
    return observe(policies, gateway="shop/wp", service=service, root="istio-system")


def test_nothing_said_is_istios_default() -> None:
    assert observed() == Observed(tracers=(), sampling_percent=1.0)


def test_narrower_scopes_win_and_inherit_the_rest() -> None:
    scopes = [
        policy("", "istio-system", tracing=Tracing(tracers=(tracer("mesh"),), sampling_percent=2)),
        policy("all", "istio-system", tracing=Tracing(sampling_percent=3)),
        policy("class", "istio-system", waypoints=("*",), tracing=Tracing(sampling_percent=4)),
        policy("default", tracing=Tracing(sampling_percent=5)),
        policy("wp", waypoints=("shop/wp",), tracing=Tracing(sampling_percent=6)),
        policy("web", services=(WEB,), tracing=Tracing(sampling_percent=7)),
    ]
    for upto in range(1, len(scopes) + 1):
        found = observed(*reversed(scopes[:upto]))
        assert found.sampling_percent == upto + 1
        assert [each.name for each in found.tracers] == ["mesh"]
    assert observed(*scopes, service=None).sampling_percent == 6


def test_what_is_for_others_has_no_effect() -> None:
    other = NamespacedHostname(namespace="shop", hostname="other.shop.svc.cluster.local")
    traced = Tracing(tracers=(tracer("x"),))
    assert (
        observed(
            policy("a", "elsewhere", tracing=traced),
            policy("b", services=(other,), tracing=traced),
            policy("c", waypoints=("shop/another",), tracing=traced),
        )
        == Observed()
    )


def test_a_scope_may_turn_tracing_off_and_on_again() -> None:
    mesh = policy("", "istio-system", tracing=Tracing(tracers=(tracer("mesh"),)))
    off = policy("default", tracing=Tracing(disabled=True))
    on = policy("web", services=(WEB,), tracing=Tracing(disabled=False))
    assert observed(mesh, off).tracers == ()
    assert len(observed(mesh, off, on).tracers) == 1


def test_overrides_of_metrics_add_up() -> None:
    found = observed(
        policy("all", "istio-system", metrics=(MetricOverride(metric="", disabled=True),)),
        policy("default", metrics=(MetricOverride(metric="istio_requests", disabled=False, removed=("a",)),)),
        policy("web", services=(WEB,), metrics=(MetricOverride(metric="", removed=("b",)),)),
    )
    assert found.without("istio_request_bytes")
    assert not found.without("istio_requests")
    assert found.removed("istio_requests") == {"a", "b"}
    assert found.removed("istio_request_bytes") == {"b"}


@pytest.mark.parametrize(
    "made",
    [
        policy("", "istio-system"),
        policy("a", tracing=Tracing(tracers=(), tags=(), sampling_percent=0.0, disabled=False), log=False),
        policy(
            "b",
            services=(WEB,),
            waypoints=("shop/wp", "*"),
            tracing=Tracing(
                tracers=(
                    Tracer(
                        name="z",
                        service=WEB,
                        port=9411,
                        protocol=TracerProtocol.ZIPKIN,
                        path="/api/v2/spans",
                        headers=(("x-key", "k"),),
                        timeout_s=2.5,
                        max_tag_length=10,
                    ),
                ),
                sampling_percent=12.5,
                disabled=True,
                tags=(CustomTag(name="t", value="v", header="x-t"),),
            ),
            log=True,
            log_above=400,
            metrics=(MetricOverride(metric="istio_requests", disabled=True, removed=("source_app",)),),
        ),
    ],
    ids=["empty", "all unset", "full"],
)
def test_it_survives_the_wire(made: TelemetryPolicy) -> None:
    assert decode_telemetry(encode_telemetry(made)) == made


def test_a_collector_without_an_address_is_refused() -> None:
    broken = policy(
        "a",
        tracing=Tracing(
            tracers=(
                Tracer(
                    name="z",
                    service=NamespacedHostname(namespace="", hostname=""),
                    port=1,
                    protocol=TracerProtocol.ZIPKIN,
                ),
            )
        ),
    )
    with pytest.raises(ValueError, match="names no service and port"):
        decode_telemetry(encode_telemetry(broken))
    with pytest.raises(ValueError, match="not a telemetry policy"):
        decode_telemetry(b"\xff")
