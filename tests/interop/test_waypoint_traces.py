# SPDX-License-Identifier: Apache-2.0
"""Spans over real wires: OTLP's service on grpcio, OTLP and Zipkin over HTTP, decoded by others' types."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from mesh.model.service import AppProtocol, Service, ServicePort
from mesh.model.telemetry import CustomTag, TelemetryPolicy, Tracer, TracerProtocol, Tracing
from mesh.model.workload import NamespacedHostname, PortMap, TunnelProtocol, Workload
from mesh.telemetry.trace import FIELDS
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE
from mesh.xds.telemetry import TELEMETRY_TYPE, encode_telemetry
from tests.support.eventually import PATIENCE
from tests.support.http_proxy import free_port
from tests.support.waypoint import WEB, Waypoint, waypoint
from waypoint.trace_queue import GRPC_PATH
from waypoint.tracing import RequestTrace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1"}
COLLECTOR = NamespacedHostname(namespace="watch", hostname="collector.watch.svc.cluster.local")
TRACER = Tracer(name="otel", service=COLLECTOR, port=4317, protocol=TracerProtocol.OTLP_GRPC)


@dataclass
class Collector:
    """Takes spans; flat dictionaries of what came, whatever the protocol."""

    tracer: Tracer
    port: int = 0
    requests: int = 0
    spans: list[dict[str, Any]] = field(default_factory=list)
    resource: dict[str, str] = field(default_factory=dict)

    def take_otlp(self, body: bytes) -> None:
        self.requests += 1
        message = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
        for group in message.resource_spans:
            self.resource = {each.key: each.value.string_value for each in group.resource.attributes}
            for scope in group.instrumentation_library_spans:  # `scope_spans` by its older name.
                self.spans += [_flat(span) for span in scope.spans]

    def take_zipkin(self, body: bytes) -> None:
        self.requests += 1
        for span in json.loads(body):
            assert span["duration"] >= 1
            self.resource = {"service.name": span["localEndpoint"]["serviceName"]}
            self.spans.append(
                {
                    "trace": span["traceId"],
                    "id": span["id"],
                    "parent": span.get("parentId", ""),
                    "kind": span["kind"],
                    "name": span["name"],
                    "error": "error" in span["tags"],
                    **span["tags"],
                }
            )

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["kind"] == kind]


def _flat(span: Any) -> dict[str, Any]:
    assert span.end_time_unix_nano >= span.start_time_unix_nano > 10**18
    found = {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "state": span.trace_state,
        "kind": {2: "SERVER", 3: "CLIENT"}[span.kind],
        "name": span.name,
        "error": span.status.code == 2,
    }
    for each in span.attributes:
        found[each.key] = str(getattr(each.value, each.value.WhichOneof("value")))
    return found


@asynccontextmanager
async def collecting(protocol: TracerProtocol) -> AsyncIterator[Collector]:
    """A collector on a free port."""
    paths = {TracerProtocol.OTLP_HTTP: "/v1/traces", TracerProtocol.ZIPKIN: "/api/v2/spans"}
    made = Collector(
        replace(TRACER, protocol=protocol, path=paths.get(protocol, ""), headers=(("x-key", "k"),))
    )
    if protocol is TracerProtocol.OTLP_GRPC:
        server = grpc.aio.server()

        async def export(request: bytes, context: Any) -> bytes:
            assert ("x-key", "k") in [(key, value) for key, value in context.invocation_metadata()]
            made.take_otlp(request)
            return trace_service_pb2.ExportTraceServiceResponse().SerializeToString()

        service, _, method = GRPC_PATH[1:].partition("/")
        handlers = {method: grpc.unary_unary_rpc_method_handler(export)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        made.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield made
        finally:
            await server.stop(None)
        return
    take = made.take_zipkin if protocol is TracerProtocol.ZIPKIN else made.take_otlp

    async def answer(head: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        assert head == f"POST {made.tracer.path} HTTP/1.1"
        assert headers["x-key"] == "k"
        take(body)
        return (202, b"") if protocol is TracerProtocol.ZIPKIN else (200, b"")

    async with serving(answer) as port:
        made.port = port
        yield made


Handler = Callable[[str, dict[str, str], bytes], Awaitable[tuple[int, bytes]]]


@asynccontextmanager
async def serving(answer: Handler) -> AsyncIterator[int]:
    """A server of HTTP/1.1 on a free port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(": ") for line in head[1:] if line)
                headers = {name.lower(): value for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                status, payload = await answer(head[0], headers, body)
                writer.write(
                    f"HTTP/1.1 {status} x\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload
                )
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def watch(made: Waypoint, tracer: Tracer, port: int, *, percent: float | None = None) -> None:
    """Tell a waypoint of a collector on a port of loopback."""
    service = Service(
        name="collector",
        namespace=COLLECTOR.namespace,
        hostname=COLLECTOR.hostname,
        ports=(ServicePort(service_port=4317, target_port=1, app_protocol=AppProtocol.UNKNOWN),),
    )
    workload = Workload(
        uid="collector",
        name="collector",
        namespace=COLLECTOR.namespace,
        addresses=(ip_address("127.0.0.1"),),
        tunnel_protocol=TunnelProtocol.NONE,
        services={COLLECTOR: PortMap(ports={4317: port})},
    )
    made.take(ADDRESS_TYPE, {resource_name(each): encode_address(each) for each in (service, workload)})
    policy = TelemetryPolicy(
        name="default",
        namespace="shop",
        tracing=Tracing(
            tracers=(tracer,),
            sampling_percent=percent,
            tags=(CustomTag(name="tenant", header="x-tenant", value="none"),),
        ),
    )
    made.take(TELEMETRY_TYPE, {policy.key: encode_telemetry(policy)})


async def get(port: int, headers: dict[str, str], target: str = "/a?secret=1") -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {target} HTTP/1.1\r\nHost: web.shop\r\n{fields}Connection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return answer.partition("\r\n")[0]


async def until(ready: Callable[[], object], what: str) -> None:
    async with asyncio.timeout(10 * PATIENCE):
        while not ready():
            await asyncio.sleep(0.02)
    assert ready(), what


@asynccontextmanager
async def backend(seen: list[dict[str, str]], *statuses: int) -> AsyncIterator[int]:
    """A server that answers these statuses in turn, the last one ever after."""
    left = list(statuses or (200,))

    async def answer(head: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        seen.append(headers)
        return (left.pop(0) if len(left) > 1 else left[0]), b"hello"

    async with serving(answer) as port:
        yield port


@pytest.mark.parametrize("protocol", list(TracerProtocol))
async def test_a_trace_is_continued_and_exported(protocol: TracerProtocol) -> None:
    seen: list[dict[str, str]] = []
    async with collecting(protocol) as collector, backend(seen) as port, waypoint() as made:
        made.endpoints(port)
        watch(made, collector.tracer, collector.port)
        assert await get(made.port, {**SAMPLED, "x-tenant": "t1"}) == "HTTP/1.1 200 x"
        await until(lambda: len(collector.spans) == 2, "both spans come")
        (server,), (client,) = collector.of_kind("SERVER"), collector.of_kind("CLIENT")
        assert (server["trace"], server["parent"]) == (TRACE, SPAN) == (client["trace"], SPAN)
        assert client["parent"] == server["id"] != client["id"]
        assert seen[0]["traceparent"] == f"00-{TRACE}-{client['id']}-01"
        assert seen[0]["tracestate"] == "a=1"
        assert server["name"] == client["name"] == "GET"
        assert server["http.response.status_code"] == client["http.response.status_code"] == "200"
        assert (server["url.path"], client["url.full"]) == ("/a", "http://web.shop/a")
        assert (client["server.address"], client["server.port"]) == ("127.0.0.1", str(port))
        assert server["istio.destination_workload"] or server["istio.destination_service"] == WEB.hostname
        assert server["tenant"] == "t1"
        assert not server["error"]
        assert not client["error"]
        assert collector.resource["service.name"] == "wp.shop"
        await until(
            lambda: made.series("ambit_trace_spans").get(("otel", "exported")) == 2,
            "what was taken is counted",
        )


async def test_each_try_has_a_span() -> None:
    seen: list[dict[str, str]] = []
    async with collecting(TracerProtocol.OTLP_GRPC) as collector, backend(seen) as port, waypoint() as made:
        closed = free_port()
        made.endpoints(closed, port)
        watch(made, collector.tracer, collector.port)
        for _ in range(20):
            assert await get(made.port, SAMPLED) == "HTTP/1.1 200 x"
        await until(lambda: len(collector.of_kind("SERVER")) == 20, "all requests have spans")
        failed = [span for span in collector.of_kind("CLIENT") if span["error"]]
        again = [span for span in collector.of_kind("CLIENT") if "http.request.resend_count" in span]
        assert failed
        assert {span["error.type"] for span in failed} == {"connect"}
        assert len(again) == len(failed)
        assert {span["server.port"] for span in again if not span["error"]} == {str(port)}
        assert not any(span["error"] for span in collector.of_kind("SERVER"))


@pytest.mark.parametrize("code", [grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNAVAILABLE])
async def test_grpc_calls_have_their_own_names_and_statuses(code: grpc.StatusCode) -> None:
    seen: list[dict[str, Any]] = []

    async def say(request: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        if code is not grpc.StatusCode.OK:
            await context.abort(code, "as asked")
        return request

    server = grpc.aio.server()
    handlers = {"Say": grpc.unary_unary_rpc_method_handler(say)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with collecting(TracerProtocol.OTLP_GRPC) as collector, waypoint(AppProtocol.GRPC) as made:
            made.endpoints(port)
            watch(made, collector.tracer, collector.port)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port2}") as channel:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await channel.unary_unary("/shop.Echo/Say")(b"x", metadata=tuple(SAMPLED.items()))
            await until(lambda: collector.of_kind("SERVER"), "the server's span comes")
    finally:
        await server.stop(None)
    (span,), tries = collector.of_kind("SERVER"), collector.of_kind("CLIENT")
    assert {each["name"] for each in (span, *tries)} == {"shop.Echo/Say"}
    assert {each["rpc.grpc.status_code"] for each in (span, *tries)} == {str(code.value[0])}
    assert span["error"] is (code is grpc.StatusCode.UNAVAILABLE)
    assert {each["error"] for each in tries} == {code is not grpc.StatusCode.OK}
    assert [each["traceparent"] for each in seen] == [f"00-{TRACE}-{each['id']}-01" for each in tries]
    assert span["network.protocol.version"] == "2"


async def test_a_5xx_is_an_error_of_both_sides() -> None:
    async with (
        collecting(TracerProtocol.OTLP_HTTP) as collector,
        backend([], 500) as port,
        waypoint() as made,
    ):
        made.endpoints(port)
        watch(made, collector.tracer, collector.port)
        assert await get(made.port, SAMPLED) == "HTTP/1.1 500 x"
        await until(lambda: len(collector.spans) == 2, "both spans come")
        assert [(span["error"], span["error.type"]) for span in collector.spans] == [(True, "500")] * 2


async def test_what_is_not_sampled_makes_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an object was made for a request that is not sampled")

    monkeypatch.setattr(RequestTrace, "__init__", refuse)
    seen: list[dict[str, str]] = []
    async with backend(seen) as port, waypoint() as made:
        made.endpoints(port)
        assert await get(made.port, {}) == "HTTP/1.1 200 x"
        assert not FIELDS & seen[-1].keys(), "without a collector nothing is added"
        watch(made, TRACER, free_port(), percent=0)
        assert await get(made.port, {}) == "HTTP/1.1 200 x"
        assert seen[-1]["traceparent"].endswith("-00"), "the decision goes on"
        no = {"traceparent": f"00-{TRACE}-{SPAN}-00", "b3": f"{TRACE}-{SPAN}-0"}
        watch(made, TRACER, free_port(), percent=100)
        assert await get(made.port, no) == "HTTP/1.1 200 x"
        assert {name: seen[-1][name] for name in no} == no, "what came goes on as it is"


async def test_a_b3_client_gets_b3_on_the_other_side() -> None:
    seen: list[dict[str, str]] = []
    async with collecting(TracerProtocol.ZIPKIN) as collector, backend(seen) as port, waypoint() as made:
        made.endpoints(port)
        watch(made, collector.tracer, collector.port, percent=100)
        came = {"x-b3-traceid": TRACE[16:], "x-b3-spanid": SPAN}
        assert await get(made.port, came) == "HTTP/1.1 200 x"
        await until(lambda: len(collector.spans) == 2, "both spans come")
        (client,) = collector.of_kind("CLIENT")
        assert seen[0]["x-b3-traceid"] == client["trace"] == "0" * 16 + TRACE[16:]
        assert seen[0]["x-b3-spanid"] == client["id"]
        assert seen[0]["x-b3-parentspanid"] == client["parent"]
        assert seen[0]["x-b3-sampled"] == "1"


async def test_a_collector_that_is_away_costs_its_spans_only() -> None:
    async with backend([]) as port, waypoint() as made:
        made.endpoints(port)
        watch(made, TRACER, free_port())
        made.app.traces._limits = replace(
            made.app.traces._limits, spans=8, batch=4, attempts=1, interval_s=0.01
        )
        answers = await asyncio.gather(*(get(made.port, SAMPLED) for _ in range(40)))
        assert set(answers) == {"HTTP/1.1 200 x"}
        await until(lambda: not made.app.traces._queues, "the queue is empty")
        counted = made.series("ambit_trace_spans")
        assert counted[("otel", "failed")] + counted.get(("otel", "dropped"), 0) == 80
        assert ("otel", "exported") not in counted


async def test_the_end_of_the_process_sends_what_is_there() -> None:
    async with collecting(TracerProtocol.OTLP_GRPC) as collector, backend([]) as port, waypoint() as made:
        made.endpoints(port)
        watch(made, collector.tracer, collector.port)
        made.app.traces._limits = replace(made.app.traces._limits, interval_s=3600)
        assert await get(made.port, SAMPLED) == "HTTP/1.1 200 x"
        await made.app.traces.drain(10 * PATIENCE)
        assert len(collector.spans) == 2


OTELCOL = shutil.which("otelcol")
COLLECTOR_CONFIG = """
receivers:
  otlp:
    protocols: {{grpc: {{endpoint: "127.0.0.1:{grpc}"}}, http: {{endpoint: "127.0.0.1:{http}"}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{traces: {{receivers: [otlp], exporters: [debug]}}}}
"""


@pytest.mark.skipif(OTELCOL is None, reason="needs OpenTelemetry's collector (otelcol) on PATH")
@pytest.mark.parametrize("protocol", [TracerProtocol.OTLP_GRPC, TracerProtocol.OTLP_HTTP])
async def test_opentelemetrys_own_collector_takes_the_spans(protocol: TracerProtocol, tmp_path: Path) -> None:
    assert OTELCOL is not None
    ports = {"grpc": free_port(), "http": free_port()}
    (tmp_path / "config.yaml").write_text(COLLECTOR_CONFIG.format(**ports))
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            OTELCOL, f"--config={tmp_path}/config.yaml", stdout=output, stderr=output
        )
    tracer = replace(TRACER, protocol=protocol, path="/v1/traces")
    port = ports["grpc" if protocol is TracerProtocol.OTLP_GRPC else "http"]
    try:
        await until(lambda: "Everything is ready" in log.read_text(), "the collector is ready")
        async with backend([]) as web, waypoint() as made:
            made.endpoints(web)
            watch(made, tracer, port)
            assert await get(made.port, SAMPLED) == "HTTP/1.1 200 x"
            await until(
                lambda: made.series("ambit_trace_spans").get(("otel", "exported")) == 2,
                "the collector took them",
            )
        text = log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
    assert "service.name: Str(wp.shop)" in text
    for wanted in (f"Trace ID       : {TRACE}", f"Parent ID      : {SPAN}", "Kind           : Server"):
        assert wanted in text, text
    assert "TraceState     : a=1" in text
    assert "InstrumentationScope ambit.waypoint" in text
    assert "http.response.status_code: Int(200)" in text
