# SPDX-License-Identifier: Apache-2.0
"""Panels about requests, which waypoints see: of the mesh, of services, of the waypoints themselves."""

from __future__ import annotations

from tools.panels import (
    OF_WAYPOINTS,
    PAIR,
    PAIR_LEGEND,
    RATE,
    Panel,
    percentiles,
    quantile,
    rated,
    success,
)

FAILED = 'response_code=~"5.."'
_HTTP = 'reporter=~"source|waypoint"'
_HTTP_SERVICE = f'{_HTTP},destination_service=~"$service"'
_WAYPOINT_SERVICE = 'destination_service=~"$service"'
_REQUESTS = f'reporter="waypoint",{_WAYPOINT_SERVICE}'

MESH_HTTP = (
    Panel(
        title="Requests",
        unit="reqps",
        queries=((PAIR_LEGEND, rated("istio_requests_total", PAIR, _HTTP)),),
        about="By caller and service, where a waypoint sees them.",
    ),
    Panel(
        title="Success of requests",
        unit="percentunit",
        queries=(
            (
                "{{destination_service_name}}",
                success("istio_requests_total", "destination_service_name", _HTTP, FAILED),
            ),
        ),
        about="Not 5xx.",
    ),
    Panel(
        title="4xx and 5xx",
        unit="reqps",
        queries=(
            (
                "{{destination_service_name}} {{response_code}}",
                rated(
                    "istio_requests_total",
                    "destination_service_name, response_code",
                    f'{_HTTP},response_code=~"4..|5.."',
                ),
            ),
        ),
    ),
    Panel(
        title="Latency, 99th percentile",
        unit="ms",
        queries=(
            (
                "{{destination_service_name}}",
                quantile(0.99, "istio_request_duration_milliseconds", "destination_service_name", _HTTP),
            ),
        ),
    ),
)
SERVICE_HTTP = (
    Panel(
        title="Requests by caller",
        unit="reqps",
        queries=(
            (
                "{{source_workload_namespace}}/{{source_workload}}",
                rated("istio_requests_total", "source_workload, source_workload_namespace", _HTTP_SERVICE),
            ),
        ),
        about="Where a waypoint sees them.",
    ),
    Panel(
        title="Requests by answer",
        unit="reqps",
        queries=(("{{response_code}}", rated("istio_requests_total", "response_code", _HTTP_SERVICE)),),
    ),
    Panel(
        title="Success of requests",
        unit="percentunit",
        queries=(
            (
                "answered, not by 5xx",
                success("istio_requests_total", "", _HTTP_SERVICE, FAILED),
            ),
        ),
    ),
    Panel(
        title="Latency",
        unit="ms",
        queries=percentiles("istio_request_duration_milliseconds", "", "", _HTTP_SERVICE),
    ),
)
WAYPOINT = (
    Panel(
        title="Requests by service",
        unit="reqps",
        queries=(
            ("{{destination_service}}", rated("istio_requests_total", "destination_service", _REQUESTS)),
        ),
    ),
    Panel(
        title="Success by service",
        unit="percentunit",
        queries=(
            (
                "{{destination_service}}",
                success("istio_requests_total", "destination_service", _REQUESTS, FAILED),
            ),
        ),
        about="Not 5xx.",
    ),
    Panel(
        title="Latency by service",
        unit="ms",
        queries=percentiles(
            "istio_request_duration_milliseconds",
            "destination_service",
            "{{destination_service}} ",
            _REQUESTS,
        ),
    ),
    Panel(
        title="Answers",
        unit="reqps",
        queries=(
            (
                "{{destination_service}} {{response_code}} {{grpc_response_status}}",
                rated(
                    "istio_requests_total",
                    "destination_service, response_code, grpc_response_status",
                    _REQUESTS,
                ),
            ),
        ),
    ),
    Panel(
        title="Requests by route",
        unit="reqps",
        queries=(
            (
                "{{destination_service}} {{rule}} {{response_code}}",
                rated(
                    "ambit_route_requests_total",
                    "destination_service, rule, response_code",
                    _WAYPOINT_SERVICE,
                ),
            ),
        ),
        about="By the rule that decided: a route, a policy that refused, or the service's default.",
    ),
    Panel(
        title="Success by route",
        unit="percentunit",
        queries=(
            (
                "{{destination_service}} {{rule}}",
                success(
                    "ambit_route_requests_total",
                    "destination_service, rule",
                    _WAYPOINT_SERVICE,
                    FAILED,
                ),
            ),
        ),
    ),
    Panel(
        title="Latency by route, 99th percentile",
        unit="ms",
        queries=(
            (
                "{{destination_service}} {{rule}}",
                quantile(
                    0.99, "ambit_route_duration_milliseconds", "destination_service, rule", _WAYPOINT_SERVICE
                ),
            ),
        ),
    ),
    Panel(
        title="Requests by workload that answers",
        unit="reqps",
        queries=(
            (
                "{{destination_workload}} {{destination_version}}",
                rated("istio_requests_total", "destination_workload, destination_version", _REQUESTS),
            ),
        ),
        about="Shows canaries move.",
    ),
    Panel(
        title="Response flags",
        unit="reqps",
        queries=(
            (
                "{{destination_service}} {{response_flags}}",
                rated(
                    "istio_requests_total",
                    "destination_service, response_flags",
                    f'{_REQUESTS},response_flags!="-"',
                ),
            ),
        ),
        about="Envoy's: UF no connection, UC reset, UH no endpoint, UO bound reached, UT timeout, "
        "URX retries exhausted, DC client gone, NR no route, FI and DI injected faults, UAEX authoriser.",
    ),
    Panel(
        title="Retries",
        unit="reqps",
        queries=(
            (
                "{{destination_service}}",
                rated("ambit_http_retries_total", "destination_service", _WAYPOINT_SERVICE),
            ),
        ),
    ),
    Panel(
        title="Bounds that are reached",
        unit="short",
        queries=(
            (
                "{{destination_service}}:{{destination_port}} {{destination_subset}} {{limit}}",
                "sum by (destination_service, destination_port, destination_subset, limit) "
                f"(ambit_circuit_open{{{_WAYPOINT_SERVICE}}})",
            ),
        ),
        about="Waypoint pods whose circuit is open now.",
    ),
    Panel(
        title="Not allowed by a bound",
        unit="reqps",
        queries=(
            (
                "{{destination_service}} {{limit}}",
                rated("ambit_circuit_overflows_total", "destination_service, limit", _WAYPOINT_SERVICE),
            ),
        ),
    ),
    Panel(
        title="Endpoints left out",
        unit="short",
        queries=(
            (
                "{{destination_service}} {{destination_subset}}",
                "sum by (destination_service, destination_subset) "
                f"(ambit_endpoints_ejected{{{_WAYPOINT_SERVICE}}})",
            ),
        ),
        about="By outlier detection, now.",
    ),
    Panel(
        title="Ejections",
        unit="cps",
        queries=(
            (
                "{{destination_service}} {{cause}}",
                rated("ambit_endpoint_ejections_total", "destination_service, cause", _WAYPOINT_SERVICE),
            ),
        ),
    ),
    Panel(
        title="Open",
        unit="short",
        queries=(("{{instance}} {{kind}}", "sum by (instance, kind) (ambit_waypoint_open)"),),
        about="Connections of clients (hbone), tunnels in those, connections to endpoints, waiting requests.",
    ),
    Panel(
        title="Handshakes to endpoints, 99th percentile",
        unit="s",
        queries=(
            (
                "{{instance}}",
                "histogram_quantile(0.99, sum by (instance, le) "
                f"(rate(ambit_tunnel_handshake_seconds_bucket[{RATE}]) {OF_WAYPOINTS}))",
            ),
        ),
    ),
    Panel(
        title="Denied by policy",
        unit="reqps",
        queries=(
            (
                "{{policy_namespace}}/{{policy}}",
                f"sum by (policy, policy_namespace) (rate(ambit_policy_denied_total[{RATE}]) {OF_WAYPOINTS})",
            ),
        ),
    ),
    Panel(
        title="Spans",
        unit="cps",
        queries=(("{{provider}} {{result}}", rated("ambit_trace_spans_total", "provider, result")),),
    ),
    Panel(
        title="Time to the end of certificates",
        unit="s",
        queries=(
            (
                "{{instance}}",
                f"min by (instance) (ambit_cert_expiry_timestamp_seconds {OF_WAYPOINTS}) - time()",
            ),
        ),
    ),
    Panel(
        title="Age of the configuration",
        unit="s",
        queries=(("{{instance}}", f"max by (instance) (ambit_config_sync_age_seconds {OF_WAYPOINTS})"),),
        about="0 while connected; grows when the controller cannot be reached.",
    ),
    Panel(
        title="CPU",
        unit="short",
        queries=(
            (
                "{{instance}}",
                f"sum by (instance) (rate(process_cpu_seconds_total[{RATE}]) {OF_WAYPOINTS})",
            ),
        ),
    ),
    Panel(
        title="Memory",
        unit="bytes",
        queries=(("{{instance}}", f"sum by (instance) (process_resident_memory_bytes {OF_WAYPOINTS})"),),
    ),
)
