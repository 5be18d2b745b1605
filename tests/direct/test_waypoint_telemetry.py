# SPDX-License-Identifier: Apache-2.0
"""What Telemetry objects do to metrics and access logs of a waypoint on loopback."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from mesh.model.service import AppProtocol
from mesh.model.telemetry import MetricOverride, TelemetryPolicy, Tracer, TracerProtocol, Tracing
from mesh.runtime.http import Response
from mesh.telemetry.metrics import HTTP_LABELS, TCP_LABELS
from mesh.xds.telemetry import TELEMETRY_TYPE, encode_telemetry
from tests.support.eventually import PATIENCE
from tests.support.waypoint import WEB, Waypoint, waypoint
from waypoint.admin import Admin


def tell(made: Waypoint, policy: TelemetryPolicy | None) -> None:
    if policy is None:
        made.take(TELEMETRY_TYPE, {}, ["shop/default"])
    else:
        made.take(TELEMETRY_TYPE, {"shop/default": encode_telemetry(policy)})


def policy(**parts: object) -> TelemetryPolicy:
    return TelemetryPolicy(name="default", namespace="shop", **parts)  # type: ignore[arg-type]


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(5 * PATIENCE):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def get(port: int) -> bytes:
    return await ask(port, b"GET /a HTTP/1.1\r\nHost: web.shop\r\nConnection: close\r\n\r\n")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4096)
    writer.write(b"HTTP/1.1 404 x\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno")
    writer.close()


async def test_metrics_lose_labels_and_go_away() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, waypoint() as made:
        made.endpoints(server.sockets[0].getsockname()[1])
        await get(made.port)
        ((full, count),) = made.series("istio_requests").items()
        assert (full[HTTP_LABELS.index("source_principal")], count) == (
            "spiffe://cluster.local/ns/shop/sa/client",
            1,
        )
        tell(
            made,
            policy(
                metrics=(
                    MetricOverride(metric="istio_requests", removed=("source_principal",)),
                    MetricOverride(metric="istio_request_bytes", disabled=True),
                )
            ),
        )
        await get(made.port)
        (cut,) = set(made.series("istio_requests")) - {full}
        at = HTTP_LABELS.index("source_principal")
        assert cut == (*full[:at], "", *full[at + 1 :])
        assert made.series("istio_request_bytes") == {full: 1}, "the first request alone"
        assert len(made.series("istio_response_bytes")) == 1
        tell(made, None)
        await get(made.port)
        assert made.series("istio_requests")[full] == 2


async def test_requests_are_counted_by_the_rule_that_decided() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, waypoint() as made:
        made.endpoints(server.sockets[0].getsockname()[1])
        await get(made.port)
        assert made.series("ambit_route_requests") == {
            ("web.shop.svc.cluster.local", "shop", "default", "404"): 1
        }
        assert list(made.series("ambit_route_duration_milliseconds")) == [
            ("web.shop.svc.cluster.local", "shop", "default")
        ]


async def test_connections_lose_labels_too() -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, waypoint(AppProtocol.TCP) as made:
        made.endpoints(server.sockets[0].getsockname()[1])
        tell(
            made,
            policy(
                metrics=(
                    MetricOverride(metric="", removed=("source_principal",)),
                    MetricOverride(metric="istio_tcp_sent_bytes", disabled=True),
                )
            ),
        )
        assert b"404" in await ask(made.tcp_port, b"hello")
        async with asyncio.timeout(5 * PATIENCE):
            while not made.series("istio_tcp_connections_opened"):
                await asyncio.sleep(0.02)
        ((labels, count),) = made.series("istio_tcp_connections_opened").items()
        assert (labels[TCP_LABELS.index("source_principal")], count) == ("", 1)
        assert made.series("istio_tcp_received_bytes")
        assert not made.series("istio_tcp_sent_bytes")


async def test_the_admin_port_shows_policies_without_keys() -> None:
    key = Tracer(
        name="otel", service=WEB, port=80, protocol=TracerProtocol.OTLP_HTTP, headers=(("x-key", "hunter2"),)
    )
    async with waypoint() as made:
        tell(made, policy(tracing=Tracing(tracers=(key,))))
        admin = Admin(
            made.app.config,
            made.app.tables,
            certificates=tuple,
            clusters=dict,
            status=dict,
            explain=lambda _: Response(),
            quit_now=lambda: None,
        )
        server = admin.server()
        await server.start("127.0.0.1", 0)
        try:
            text = await ask(
                server.port, b"GET /config_dump HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
        finally:
            await server.close()
    (found,) = json.loads(text.partition(b"\r\n\r\n")[2])["telemetry"]
    assert found["tracing"]["tracers"][0]["headers"] == [["x-key", "..."]]
    assert b"hunter2" not in text


@pytest.mark.parametrize(
    ("told", "lines"),
    [
        (None, 0),
        (policy(log=True), 1),
        (policy(log=True, log_above=404), 1),
        (policy(log=True, log_above=500), 0),
        (policy(log=False), 0),
    ],
    ids=["unsaid", "all", "404 and more", "500 and more", "off"],
)
async def test_lines_of_the_access_log(
    told: TelemetryPolicy | None, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "access")
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, waypoint() as made:
        made.endpoints(server.sockets[0].getsockname()[1])
        if told is not None:
            tell(made, told)
        assert b"404" in await get(made.port)
        assert [record.message for record in caplog.records if record.name == "access"] == (
            ["request complete"] * lines
        )
