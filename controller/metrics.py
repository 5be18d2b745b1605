# SPDX-License-Identifier: Apache-2.0
"""Metrics of the controller, under Istio's names where it has one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PUSH_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """One registry per process; every series exists from the start where its labels are known."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.build = Gauge("istio_build", "Component and version", ("component", "tag"), registry=registry)
        self.streams = Gauge("pilot_xds", "Connected proxies", ("version",), registry=registry)
        self.pushes = Counter("pilot_xds_pushes", "Responses sent, by type", ("type",), registry=registry)
        self.refusals = Counter(
            "pilot_total_xds_rejects", "Responses that a proxy refused, by type", ("type",), registry=registry
        )
        self.convergence = Histogram(
            "pilot_proxy_convergence_time",
            "Seconds from a change of the objects to its last response",
            buckets=_PUSH_SECONDS,
            registry=registry,
        )
        self.translation = Histogram(
            "ambit_translation_seconds",
            "Seconds to translate all objects",
            buckets=_PUSH_SECONDS,
            registry=registry,
        )
        self.objects = Gauge("ambit_objects", "Objects in force, by kind", ("kind",), registry=registry)
        self.unfollowed = Gauge(
            "ambit_objects_unfollowed_seconds",
            "For how long a kind could not be followed on the API server; 0: it is followed",
            ("kind",),
            registry=registry,
        )
        self.resources = Gauge("ambit_resources", "Resources served, by type", ("type",), registry=registry)
        self.problems = Gauge(
            "ambit_config_problems",
            "Documents refused and fields not honoured",
            ("severity",),
            registry=registry,
        )
        self.issued = Counter(
            "citadel_server_success_cert_issuance_count", "Certificates issued", registry=registry
        )
        self.refused = Counter(
            "citadel_server_authentication_failure_count",
            "Certificates refused, by reason",
            ("reason",),
            registry=registry,
        )
        self.root_expiry = Gauge(
            "citadel_server_root_cert_expiry_timestamp",
            "When the root expires, Unix seconds",
            registry=registry,
        )
