# SPDX-License-Identifier: Apache-2.0
"""Spans of requests: one of the server's side for each sampled request, one of the client's for each try.

A request that is not sampled has no object here; where tracing is on, its headers say so to
whoever is next. Names and attributes follow OpenTelemetry's semantic conventions for HTTP,
and Istio's tags. Sending spans is `waypoint.trace_queue`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from mesh.model.telemetry import CustomTag, Observed
from mesh.model.workload import Workload
from mesh.runtime.clock import Clock
from mesh.state.balance import Random
from mesh.telemetry.trace import NewId, TraceContext, extract, inject, new_span_id, new_trace_id
from mesh.telemetry.trace_export import Span, SpanKind, Value
from waypoint.http.grpc import grpc_status
from waypoint.http.message import Headers, RequestHead, ResponseHead
from waypoint.proxy.exchange import ExchangeRecord
from waypoint.proxy.mirror import Connect
from waypoint.proxy.streams import Failure, Upstream, UpstreamEvents
from waypoint.routing.plan import Forward
from waypoint.telemetry import Client, Destination, find

Offer = Callable[[Observed, Span], None]
"""Takes a finished span; never waits."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_GRPC_SERVER_ERRORS = frozenset({"2", "4", "12", "13", "14", "15"})
"""Source: OpenTelemetry, semantic conventions for gRPC, status of server spans."""


class Tracing:
    """Begins the traces of requests; loop thread only."""

    def __init__(self, offer: Offer, clock: Clock, random: Random, new_id: NewId, cluster_id: str) -> None:
        self._offer = offer
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._cluster_id = cluster_id

    def begin(
        self,
        observed: Observed,
        head: RequestHead,
        client: Client,
        destination: Destination,
        *,
        http2: bool,
        grpc: bool,
    ) -> RequestTrace | None:
        """Decide whether a request is traced and make its headers say so; None: it is not.

        Whatever decision came with the request holds; else so many of a hundred are taken.
        """
        if not observed.tracers:
            return None
        came = extract(head.headers)
        if came is not None and came.sampled is False:
            return None  # It goes on as it came.
        taken = came is not None and came.sampled is True
        if not taken:
            taken = self._random() * 100 < observed.sampling_percent
            if came is None and not taken:
                self._decline(observed, head.headers)
                return None
        context = self._continue(came, observed, sampled=taken)
        head.headers = inject(head.headers, context)
        if not taken:
            return None
        return RequestTrace(self, observed, context, head, client, destination, http2=http2, grpc=grpc)

    def _decline(self, observed: Observed, headers: Headers) -> None:
        """Tell whoever is next that a request without a context is not sampled: what most requests cost."""
        trace_id, span_id = self._new_id(128) or 1, self._new_id(64) or 1
        headers.append(("traceparent", f"00-{trace_id:032x}-{span_id:016x}-00"))
        if observed.zipkin:
            headers.append(("x-b3-sampled", "0"))

    def _continue(self, came: TraceContext | None, observed: Observed, *, sampled: bool) -> TraceContext:
        """Make the context of the server's span."""
        span_id = new_span_id(self._new_id)
        if came is None or not came.trace_id:
            return TraceContext(
                trace_id=new_trace_id(self._new_id),
                span_id=span_id,
                sampled=sampled,
                b3_single=came is not None and came.b3_single,
                b3_multiple=observed.zipkin or (came is not None and came.b3_multiple),
            )
        return replace(came, span_id=span_id, parent_id=came.span_id, sampled=sampled)

    def new_child(self, context: TraceContext) -> TraceContext:
        """Make the context of a try."""
        return replace(context, span_id=new_span_id(self._new_id), parent_id=context.span_id)

    def now_ns(self) -> int:
        """Return the wall clock in nanoseconds."""
        return int(self._clock.wall() * 1e9)

    def monotonic(self) -> float:
        """Return the clock that durations are measured by."""
        return self._clock.monotonic()

    def offer(self, observed: Observed, span: Span) -> None:
        """Hand a finished span on."""
        self._offer(observed, span)

    @property
    def cluster_id(self) -> str:
        """The name of the cluster."""
        return self._cluster_id


class Stopwatch:
    """Start and end of a span: the wall clock read once, the rest by the monotonic one."""

    __slots__ = ("_began", "_tracing", "start_ns")

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self.start_ns = tracing.now_ns()
        self._began = tracing.monotonic()

    def end_ns(self) -> int:
        """Return now."""
        return self.start_ns + int((self._tracing.monotonic() - self._began) * 1e9)


class RequestTrace:
    """The spans of one sampled request."""

    def __init__(
        self,
        tracing: Tracing,
        observed: Observed,
        context: TraceContext,
        head: RequestHead,
        client: Client,
        destination: Destination,
        *,
        http2: bool,
        grpc: bool,
    ) -> None:
        self.tracing = tracing
        self.observed = observed
        self.context = context
        self._client = client
        self._time = Stopwatch(tracing)
        self.method = head.method if head.method in _METHODS else "_OTHER"
        self.rpc = _rpc(head.target) if grpc else {}
        self._name = "HTTP" if self.method == "_OTHER" else self.method
        if self.rpc:
            self._name = f"{self.rpc['rpc.service']}/{self.rpc['rpc.method']}"
        self._grpc = grpc
        self._attributes = _asked(head, self.method, client, destination, http2=http2)
        self._attributes |= self.rpc
        self._attributes |= _custom(observed.tags, head.headers)
        self._tries = 0

    def connect(self, inner: Connect) -> Connect:
        """Wrap what begins the tries, so that each has a span."""

        def begin(plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Upstream:
            if plan.copied:
                return inner(plan, avoid, events)
            self._tries += 1
            made = TracedTry(self, plan, events, self._tries)
            made.upstream = inner(plan, avoid, made)
            return made

        return begin

    def end(self, record: ExchangeRecord, reached: Workload | None, destination: Destination) -> None:
        """Finish the server's span; `destination` is who the request was for in the end."""
        attributes = self._attributes
        attributes |= _istio(self._client, destination, reached, self.tracing.cluster_id)
        error: str | None = None
        if record.status:
            attributes["http.response.status_code"] = record.status
            if record.status >= 500:
                attributes["error.type"], error = str(record.status), record.detail
        else:
            attributes["error.type"], error = "client_disconnected", record.detail
        attributes["http.request.body.size"] = record.request_bytes
        attributes["http.response.body.size"] = record.response_bytes
        attributes["response_flags"] = record.flag
        if record.plan is not None and record.plan.source:
            attributes["ambit.route"] = record.plan.source
        if record.detail:
            attributes["ambit.detail"] = record.detail
        if self._grpc:
            status = _grpc_status(record.response_headers, record.trailers, record.status)
            attributes["rpc.grpc.status_code"] = int(status) if status.isdecimal() else status
            if status in _GRPC_SERVER_ERRORS:
                attributes["error.type"], error = status, record.detail
        self.finish(self.context, SpanKind.SERVER, self._time, attributes, error)

    def finish(
        self,
        context: TraceContext,
        kind: SpanKind,
        time: Stopwatch,
        attributes: Mapping[str, Value],
        error: str | None,
    ) -> None:
        """Hand a span on."""
        span = Span(
            trace_id=context.trace_id,
            span_id=context.span_id,
            parent_id=context.parent_id,
            state=context.state,
            name=self._name,
            kind=kind,
            start_ns=time.start_ns,
            end_ns=time.end_ns(),
            attributes=attributes,
            error=error,
        )
        self.tracing.offer(self.observed, span)


class TracedTry:
    """One try of a sampled request: passes everything through, and leaves a span when it is over."""

    __slots__ = ("_attributes", "_context", "_events", "_failed", "_over", "_time", "_trace", "upstream")

    upstream: Upstream

    def __init__(self, trace: RequestTrace, plan: Forward, events: UpstreamEvents, number: int) -> None:
        self._trace = trace
        self._events = events
        self._context = trace.tracing.new_child(trace.context)
        self._time = Stopwatch(trace.tracing)
        self._over = False
        self._failed = ""
        path = plan.head.target.partition("?")[0]
        self._attributes: dict[str, Value] = {
            "http.request.method": trace.method,
            "url.full": f"http://{plan.head.authority}{path}",
            "upstream_cluster": f"outbound|{plan.port}|{plan.subset}|{plan.service.hostname}",
            **trace.rpc,
        }
        if number > 1:
            self._attributes["http.request.resend_count"] = number - 1

    # --- Upstream

    @property
    def endpoint(self) -> str:
        """Where it goes."""
        return self.upstream.endpoint

    @property
    def reused(self) -> bool:
        """Whether its connection had carried another request."""
        return self.upstream.reused

    def send_head(self, head: RequestHead) -> None:
        """Send the head with this try's context."""
        self.upstream.send_head(replace(head, headers=inject(head.headers, self._context)))

    def send_data(self, data: bytes) -> None:
        """Pass it on."""
        self.upstream.send_data(data)

    def send_end(self, trailers: Headers) -> None:
        """Pass it on."""
        self.upstream.send_end(trailers)

    def cancel(self) -> None:
        """Give the try up."""
        self._finish("cancelled", "given up before its response was complete")
        self.upstream.cancel()

    def pause_response(self) -> None:
        """Pass it on."""
        self.upstream.pause_response()

    def resume_response(self) -> None:
        """Pass it on."""
        self.upstream.resume_response()

    # --- UpstreamEvents

    def on_response(self, head: ResponseHead) -> None:
        """Note the status."""
        if not head.interim:
            self._attributes["http.response.status_code"] = head.status
            if status := find(head.headers, "grpc-status"):
                self._grpc_status(status)
        self._events.on_response(head)

    def on_data(self, data: bytes) -> None:
        """Pass it on."""
        self._events.on_data(data)

    def on_end(self, trailers: Headers) -> None:
        """The response is complete."""
        if status := find(trailers, "grpc-status"):
            self._grpc_status(status)
        self._finish(self._failed, "")
        self._events.on_end(trailers)

    def on_failure(self, failure: Failure, detail: str) -> None:
        """The try ended without a whole response."""
        self._finish(failure.value, detail)
        self._events.on_failure(failure, detail)

    def on_request_blocked(self, blocked: bool) -> None:
        """Pass it on."""
        self._events.on_request_blocked(blocked)

    def _grpc_status(self, status: str) -> None:
        self._attributes["rpc.grpc.status_code"] = int(status) if status.isdecimal() else status
        self._failed = "" if status == "0" else status

    def _finish(self, problem: str, detail: str) -> None:
        if self._over:
            return
        self._over = True
        attributes = self._attributes
        status = attributes.get("http.response.status_code")
        # One that is given up for another try has its answer by then.
        kind = str(status) if isinstance(status, int) and status >= 400 else problem
        if kind:
            attributes["error.type"] = kind
        host, _, port = self.upstream.endpoint.rpartition(":")
        if host and port.isdecimal():
            attributes["server.address"], attributes["server.port"] = host.strip("[]"), int(port)
        self._trace.finish(self._context, SpanKind.CLIENT, self._time, attributes, detail if kind else None)


def _asked(
    head: RequestHead, method: str, client: Client, destination: Destination, *, http2: bool
) -> dict[str, Value]:
    """Return the attributes that a request has from its start."""
    found: dict[str, Value] = {
        "http.request.method": method,
        "url.path": head.target.partition("?")[0],
        "url.scheme": "http",
        "client.address": str(client.peer.address),
        "server.address": _host(head.authority),
        "server.port": destination.peer.port,
        "network.protocol.name": "http",
        "network.protocol.version": "2" if http2 else f"1.{head.version_minor}",
        "component": "proxy",
    }
    if method != head.method:
        found["http.request.method_original"] = head.method
    for attribute, name in (("user_agent.original", "user-agent"), ("guid:x-request-id", "x-request-id")):
        if value := find(head.headers, name):
            found[attribute] = value
    return found


def _host(authority: str) -> str:
    host, _, port = authority.rpartition(":")
    return (host if host and port.isdecimal() else authority).strip("[]")


def _istio(
    client: Client, destination: Destination, reached: Workload | None, cluster_id: str
) -> dict[str, Value]:
    """Return who asked whom, as Istio's waypoints tag it."""
    service, source = destination.service, client.workload
    found: dict[str, Value] = {
        "istio.cluster_id": cluster_id,
        "istio.source_namespace": client.namespace,
        "istio.source_principal": client.identity,
    }
    if source is not None:
        found["istio.source_workload"] = source.workload_name
        found["istio.source_canonical_service"] = source.canonical_name
        found["istio.source_canonical_revision"] = source.canonical_revision
    if service is not None:
        found["istio.destination_service"] = service.hostname
    if reached is not None:
        found["istio.destination_workload"] = reached.workload_name
        found["istio.destination_namespace"] = reached.namespace
        found["istio.destination_canonical_service"] = reached.canonical_name
        found["istio.destination_canonical_revision"] = reached.canonical_revision
    return found


def _custom(tags: tuple[CustomTag, ...], headers: Headers) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for tag in tags:
        value = (find(headers, tag.header) or tag.value) if tag.header else tag.value
        if value:
            found[tag.name] = value
    return found


def _rpc(target: str) -> dict[str, Value]:
    """Return the attributes of a gRPC call by its path `/service/method`; empty: it has another form."""
    service, slash, method = target.partition("?")[0].removeprefix("/").rpartition("/")
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method} if slash and service else {}


def _grpc_status(headers: Headers, trailers: Headers, status: int) -> str:
    return find(trailers, "grpc-status") or find(headers, "grpc-status") or str(grpc_status(status))
