# SPDX-License-Identifier: Apache-2.0
"""Recording and alert rules for Prometheus; the summary of each alert says what follows and where to look."""

from __future__ import annotations

from typing import Any

RULES: dict[str, Any] = {
    "groups": [
        {
            "name": "ambit",
            "rules": [
                {
                    "record": "ambit:connections:rate5m",
                    "expr": "sum by (source_workload, source_workload_namespace, destination_service) "
                    '(rate(istio_tcp_connections_opened_total{reporter="source"}[5m]))',
                },
                {
                    "alert": "AmbitConfigurationStale",
                    "expr": "max by (node) (ambit_config_sync_age_seconds) > 120",
                    "for": "2m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "The ztunnel of {{ $labels.node }} has not heard from the controller "
                        "for {{ $value | humanizeDuration }}; what is in force stays"
                    },
                },
                {
                    "alert": "AmbitCertificateExpiresSoon",
                    "expr": "min by (node) (ambit_cert_expiry_timestamp_seconds - time()) < 7200",
                    "for": "5m",
                    "labels": {"severity": "critical"},
                    "annotations": {
                        "summary": "A workload certificate on {{ $labels.node }} ends in "
                        "{{ $value | humanizeDuration }}: renewal fails"
                    },
                },
                {
                    "alert": "AmbitMapAlmostFull",
                    "expr": "ambit_bpf_map_entries / ambit_bpf_map_capacity > 0.9",
                    "for": "5m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "BPF map {{ $labels.map }} of {{ $labels.node }} is "
                        "{{ $value | humanizePercentage }} full; further pods or connections will be refused"
                    },
                },
                {
                    "record": "ambit:requests:rate5m",
                    "expr": "sum by (source_workload, source_workload_namespace, destination_service, "
                    'response_code) (rate(istio_requests_total{reporter="waypoint"}[5m]))',
                },
                {
                    "record": "ambit:requests:errors_share5m",
                    "expr": 'sum by (destination_service) (rate(istio_requests_total{reporter="waypoint",'
                    'response_code=~"5.."}[5m])) / sum by (destination_service) '
                    '(rate(istio_requests_total{reporter="waypoint"}[5m]))',
                },
                {
                    "record": "ambit:request_duration_milliseconds:p99_5m",
                    "expr": "histogram_quantile(0.99, sum by (destination_service, le) "
                    '(rate(istio_request_duration_milliseconds_bucket{reporter="waypoint"}[5m])))',
                },
                {
                    "alert": "AmbitServiceFails",
                    "expr": 'sum by (destination_service) (rate(istio_requests_total{reporter="waypoint",'
                    'response_code=~"5.."}[5m])) / sum by (destination_service) '
                    '(rate(istio_requests_total{reporter="waypoint"}[5m])) > 0.05',
                    "for": "5m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "{{ $value | humanizePercentage }} of the requests to "
                        "{{ $labels.destination_service }} are answered 5xx; the Waypoint dashboard's "
                        "response flags say by whom"
                    },
                },
                {
                    "alert": "AmbitWaypointStale",
                    "expr": "max by (instance) (ambit_config_sync_age_seconds and on (instance) "
                    'istio_build{component="waypoint"}) > 120',
                    "for": "2m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "Waypoint {{ $labels.instance }} has not heard from the controller for "
                        "{{ $value | humanizeDuration }}; what is in force stays"
                    },
                },
                {
                    "alert": "AmbitWaypointCertificateExpiresSoon",
                    "expr": "min by (instance) (ambit_cert_expiry_timestamp_seconds and on (instance) "
                    'istio_build{component="waypoint"}) - time() < 7200',
                    "for": "5m",
                    "labels": {"severity": "critical"},
                    "annotations": {
                        "summary": "The certificate of waypoint {{ $labels.instance }} ends in "
                        "{{ $value | humanizeDuration }}: renewal fails"
                    },
                },
                {
                    "alert": "AmbitWaypointRequestsWait",
                    "expr": 'max by (instance) (ambit_waypoint_open{kind="pending"}) > 256',
                    "for": "1m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "{{ $value }} requests wait at waypoint {{ $labels.instance }} for a "
                        "connection to an endpoint; endpoints are slow, or too few"
                    },
                },
                {
                    "alert": "AmbitCircuitOpen",
                    "expr": "sum by (destination_service, limit) (ambit_circuit_open) > 0",
                    "for": "5m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "The bound {{ $labels.limit }} of {{ $labels.destination_service }} "
                        "(DestinationRule, connectionPool) is reached; what exceeds it is answered 503 UO"
                    },
                },
                {
                    "alert": "AmbitSpansLost",
                    "expr": 'sum by (provider) (rate(ambit_trace_spans_total{result!="exported"}[5m])) > 0',
                    "for": "10m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "Collector {{ $labels.provider }} does not take the spans it is sent; "
                        "the waypoints' logs say why"
                    },
                },
                {
                    "alert": "AmbitObjectRejected",
                    "expr": 'sum(ambit_config_problems{severity=~"rejected|error"}) > 0',
                    "for": "5m",
                    "labels": {"severity": "warning"},
                    "annotations": {
                        "summary": "{{ $value }} objects are not in force as written; see the controller's "
                        "/debug/problems"
                    },
                },
            ],
        }
    ]
}
