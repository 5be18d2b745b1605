# SPDX-License-Identifier: Apache-2.0
"""What a finished request or connection leaves behind: metrics, and a line of the access log."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from mesh.model.address import format_host_port
from mesh.model.service import Service
from mesh.model.telemetry import Observed
from mesh.model.workload import Workload
from mesh.net.sockets import Peer
from mesh.telemetry.logging import Bare, FieldValue, fields
from mesh.telemetry.metrics import (
    CONNECTIONS_CLOSED,
    CONNECTIONS_OPENED,
    HTTP_DURATION_MS,
    HTTP_REQUEST_BYTES,
    HTTP_REQUESTS,
    HTTP_RESPONSE_BYTES,
    HTTP_RETRIES,
    POLICY_DENIED,
    RECEIVED_BYTES,
    ROUTE_DURATION_MS,
    ROUTE_REQUESTS,
    SENT_BYTES,
    HttpFlow,
    Labels,
    Metric,
    TcpFlow,
)
from mesh.telemetry.series import Recorder
from waypoint.config import AccessLog
from waypoint.http.message import Headers
from waypoint.proxy.exchange import ExchangeRecord

_log = logging.getLogger("access")
MAX_OPEN_SERIES = 4096
DEFAULT_RULE = "default"
"""Stands for the rule where none decided: the service's own default."""


class _Cells:
    """One histogram's cells: a list of counts, +Inf, and the sum."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0.0] * (len(HTTP_DURATION_MS.buckets) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(HTTP_DURATION_MS.buckets, value)] += 1.0
        self.total += value

    def take(self) -> list[float]:
        return [*self.counts, self.total]


class _Series:
    """What was counted for one label set since the last flush; the three histograms share their bounds."""

    __slots__ = ("count", "duration_ms", "labels", "observed", "request_bytes", "response_bytes", "route")

    def __init__(self, labels: Labels, route: Labels, observed: Observed) -> None:
        self.labels = labels
        self.route = route
        """Labels of ROUTE_REQUESTS; empty: what was asked for is no service."""
        self.observed = observed
        self.count = 0
        self.duration_ms, self.request_bytes, self.response_bytes = _Cells(), _Cells(), _Cells()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Client:
    """Who asks: proven by the tunnel's certificate. Compared by identity: one a connection."""

    identity: str
    namespace: str
    peer: Peer
    workload: Workload | None
    """None: not known here, and it did not describe itself."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Destination:
    """What a tunnel was asked for. Compared by identity: one a tunnel."""

    service: Service | None
    workload: Workload | None
    """Of what was addressed without a service."""
    peer: Peer


class Telemetry:
    """Counts and logs; loop thread only."""

    def __init__(
        self,
        recorder: Recorder,
        access_log: AccessLog,
        monotonic: Callable[[], float],
        source: Callable[[], Workload | None] | None = None,
    ) -> None:
        """Build it.

        Args:
            recorder: takes the metrics.
            access_log: which requests are logged.
            monotonic: monotonic time.
            source: for an ingress gateway its own workload, the source of all that it reports.
        """
        self._source = source
        self.recorder = recorder
        self._access_log = access_log
        self.monotonic = monotonic
        self._series: dict[tuple[object, ...], _Series] = {}

    def flush(self) -> None:
        """Bring what was counted since the last call into the recorder; call it before its `take`."""
        recorder = self.recorder
        for series in self._series.values():
            labels = shown(series.observed, HTTP_REQUESTS, series.labels)
            if labels:
                recorder.add(HTTP_REQUESTS, labels, series.count)
            for metric, cells in (
                (HTTP_DURATION_MS, series.duration_ms),
                (HTTP_REQUEST_BYTES, series.request_bytes),
                (HTTP_RESPONSE_BYTES, series.response_bytes),
            ):
                labels = shown(series.observed, metric, series.labels)
                if labels:
                    recorder.merge(metric, labels, cells.take())
            if series.route:
                recorder.add(ROUTE_REQUESTS, series.route, series.count)
                recorder.merge(ROUTE_DURATION_MS, series.route[:-1], series.duration_ms.take())
        self._series.clear()

    def request(
        self,
        client: Client,
        destination: Destination,
        record: ExchangeRecord,
        *,
        reached: Workload | None,
        started_s: float,
        protocol: str,
        observed: Observed,
    ) -> None:
        """Record one finished request."""
        duration_ms = (self.monotonic() - started_s) * 1000
        grpc_status = ""
        if protocol == "grpc":
            grpc_status = find(record.trailers, "grpc-status") or find(record.response_headers, "grpc-status")
        uid = reached.uid if reached is not None else ""
        rule = (record.plan.source if record.plan is not None else "") or DEFAULT_RULE
        key = (client, destination, uid, protocol, record.status, grpc_status, record.flag, rule)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= MAX_OPEN_SERIES:
                self.flush()
            labels = self._make_labels(client, destination, record, reached, protocol, grpc_status)
            route = _route(destination, rule, record.status)
            series = self._series[key] = _Series(labels, route, observed)
        series.count += 1
        series.duration_ms.observe(duration_ms)
        series.request_bytes.observe(record.request_bytes)
        series.response_bytes.observe(record.response_bytes)
        service = destination.service
        if record.tries > 1 and service is not None:
            self.recorder.add(HTTP_RETRIES, (service.hostname, service.namespace), record.tries - 1)
        if self._wanted(record, observed):
            self._log_request(client, destination, record, reached, duration_ms, protocol, grpc_status)

    def denied(self, policy: str | None, reason: str) -> None:
        """Count a request or connection that policy refused."""
        namespace, _, name = (policy or "").partition("/")
        self.recorder.add(POLICY_DENIED, (name or "unknown", namespace or "unknown", reason))

    def connection(
        self,
        client: Client,
        destination: Destination,
        *,
        reached: Workload | None,
        flags: str,
        sent: int,
        received: int,
        started_s: float,
        detail: str,
        observed: Observed,
    ) -> None:
        """Record one finished connection that is not HTTP: bytes to the server and from it."""
        labels = TcpFlow(
            reporter="waypoint",
            source=client.workload,
            source_principal=client.identity,
            destination=reached,
            destination_principal=reached.identity if reached is not None else "",
            service=destination.service,
            mutual_tls=True,
        ).labels(flags)
        for metric, number in (
            (CONNECTIONS_OPENED, 1),
            (CONNECTIONS_CLOSED, 1),
            (RECEIVED_BYTES, sent),
            (SENT_BYTES, received),
        ):
            if of_metric := shown(observed, metric, labels):
                self.recorder.add(metric, of_metric, number)
        failed = flags != "-"
        wanted = self._access_log is AccessLog.ALL or (self._access_log is AccessLog.ERRORS and failed)
        if not (wanted if observed.log is None else observed.log):
            return
        values = {
            **_who(client, destination, reached),
            "flags": Bare(flags),
            "bytes_recv": sent,
            "bytes_sent": received,
            "duration": Bare(f"{(self.monotonic() - started_s) * 1000:.0f}ms"),
        }
        if detail:
            values["detail"] = detail
        _log.log(
            logging.WARNING if failed else logging.INFO,
            "connection failed" if failed else "connection complete",
            extra=fields(values),
        )

    def _make_labels(
        self,
        client: Client,
        destination: Destination,
        record: ExchangeRecord,
        reached: Workload | None,
        protocol: str,
        grpc_status: str,
    ) -> Labels:
        source, principal = client.workload, client.identity
        if self._source is not None:
            source = self._source()
            principal = source.identity if source is not None else ""
        flow = HttpFlow(
            reporter="waypoint" if self._source is None else "source",
            source=source,
            source_principal=principal,
            destination=reached,
            service=destination.service,
        )
        return flow.labels(
            protocol=protocol, status=str(record.status), grpc_status=grpc_status, flags=record.flag
        )

    def _wanted(self, record: ExchangeRecord, observed: Observed) -> bool:
        if observed.log is not None:
            return observed.log and record.status >= observed.log_above
        if self._access_log is AccessLog.ALL:
            return True
        return self._access_log is AccessLog.ERRORS and (record.flag != "-" or record.status >= 500)

    def _log_request(
        self,
        client: Client,
        destination: Destination,
        record: ExchangeRecord,
        reached: Workload | None,
        duration_ms: float,
        protocol: str,
        grpc_status: str,
    ) -> None:
        request = record.request
        values: dict[str, FieldValue] = {
            **_who(client, destination, reached),
            "method": request.method,
            "path": request.target,
            "host": request.authority,
            "protocol": Bare(protocol),
            "status": record.status,
            "flags": Bare(record.flag),
            "route": Bare((record.plan.source if record.plan is not None else "") or DEFAULT_RULE),
            "upstream": Bare(record.endpoint),
            "tries": record.tries,
            "bytes_recv": record.request_bytes,
            "bytes_sent": record.response_bytes,
            "duration": Bare(f"{duration_ms:.1f}ms"),
            "request_id": find(request.headers, "x-request-id"),
        }
        if context := find(request.headers, "traceparent"):
            values["trace_id"] = context[3:35]
        if grpc_status:
            values["grpc_status"] = Bare(grpc_status)
        if record.detail:
            values["detail"] = record.detail
        failed = record.status >= 500 or record.status == 0
        _log.log(logging.WARNING if failed else logging.INFO, "request complete", extra=fields(values))


def _who(client: Client, destination: Destination, reached: Workload | None) -> dict[str, FieldValue]:
    source, service = client.workload, destination.service
    return {
        "src.addr": Bare(client.peer),
        "src.workload": source.name if source is not None else "",
        "src.namespace": client.namespace,
        "src.identity": client.identity,
        "dst.addr": Bare(format_host_port(destination.peer.address, destination.peer.port)),
        "dst.service": service.hostname if service is not None else "",
        "dst.workload": reached.name if reached is not None else "",
        "dst.namespace": reached.namespace if reached is not None else "",
    }


def shown(observed: Observed, metric: Metric, labels: Labels) -> Labels:
    """Return the labels that a metric has under the overrides in force; empty: it is not counted."""
    if not observed.metrics:
        return labels
    if observed.without(metric.name):
        return ()
    removed = observed.removed(metric.name)
    return tuple("" if name in removed else value for name, value in zip(metric.labels, labels, strict=True))


def _route(destination: Destination, rule: str, status: int) -> Labels:
    service = destination.service
    return () if service is None else (service.hostname, service.namespace, rule, str(status))


def find(headers: Headers, name: str) -> str:
    """Return the first value of a header, empty when it is missing."""
    return next((value for key, value in headers if key == name), "")
