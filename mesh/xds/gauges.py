# SPDX-License-Identifier: Apache-2.0
"""Metrics that are read from state when they are scraped: certificates, configuration, build."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from mesh.identity.certificate import WorkloadCertificate
from mesh.xds.client import Status


class StateCollector(Collector):
    """Asks for the state at each scrape; holds none of its own."""

    def __init__(
        self,
        certificates: Callable[[], Iterable[WorkloadCertificate]],
        configuration: Callable[[], Status],
        *,
        component: str,
        version: str,
    ) -> None:
        self._certificates = certificates
        self._configuration = configuration
        self._component = component
        self._version = version

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the families; an age that is not known is left out."""
        expiry = GaugeMetricFamily(
            "ambit_cert_expiry_timestamp_seconds",
            "End of a workload certificate's validity",
            labels=["identity"],
        )
        for certificate in self._certificates():
            expiry.add_metric([str(certificate.identity)], certificate.not_after_s)
        yield expiry
        status = self._configuration()
        if status.age_s is not None:
            yield GaugeMetricFamily(
                "ambit_config_sync_age_seconds",
                "Time since the configuration was last known to be current; 0: it is",
                value=status.age_s,
            )
        rejected = GaugeMetricFamily(
            "ambit_config_rejected", "Resources of the controller that were not taken"
        )
        rejected.add_metric([], len(status.rejected))
        yield rejected
        resources = GaugeMetricFamily("ambit_config_resources", "Resources in force", labels=["url"])
        for url, count in status.resources.items():
            resources.add_metric([url], count)
        yield resources
        build = GaugeMetricFamily("ambit_build_info", "This program", labels=["component", "version"])
        build.add_metric([self._component, self._version], 1)
        yield build
