# SPDX-License-Identifier: Apache-2.0
"""External authorisers over real wires: Envoy's gRPC service on grpcio, and an HTTP one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import grpc
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from envoy.type.v3 import http_status_pb2
from google.rpc import status_pb2

from mesh.model.provider import Authoriser, AuthoriserProtocol
from mesh.model.workload import NamespacedHostname
from mesh.net.relay import End, TcpEnd
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from tests.support.http_proxy import free_port
from waypoint.filters.authoriser import Allowed, Denied, Question, ask
from waypoint.http.message import Framing, RequestHead
from waypoint.proxy.call import Open
from waypoint.proxy.pool import Endpoint, Pool
from waypoint.proxy.pool2 import Http2Pool

PROVIDER = Authoriser(
    name="opa",
    service=NamespacedHostname(namespace="shop", hostname="opa.shop.svc.cluster.local"),
    port=9000,
    protocol=AuthoriserProtocol.GRPC,
    timeout_s=5.0,
)
HEAD = RequestHead(
    method="GET",
    target="/orders?x=1",
    authority="web.shop",
    headers=[("x-user", "ann"), ("x-user", "bob"), ("authorization", "Bearer t"), ("x-request-id", "r-1")],
    framing=Framing.NONE,
)
QUESTION = Question(
    head=HEAD,
    source_address="10.0.0.1",
    source_port=4000,
    source_principal="spiffe://cluster.local/ns/shop/sa/web",
    destination_address="10.0.0.2",
    destination_port=80,
    destination_principal="",
)


HTTP = replace(
    PROVIDER,
    protocol=AuthoriserProtocol.HTTP,
    path_prefix="/check",
    request_headers=("x-us*",),
    additional_headers=(("x-mesh", "ambit"),),
    upstream_headers=("x-tier",),
)


@dataclass(frozen=True)
class Address:
    port: int

    @property
    def key(self) -> int:
        return self.port

    @property
    def label(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def opener(port: int) -> AsyncIterator[Callable[[bool], Open]]:
    owner = TaskOwner("test")
    ends: list[TcpEnd] = []

    async def dial(endpoint: Endpoint) -> End:
        assert isinstance(endpoint, Address)
        try:
            _, end = await asyncio.get_running_loop().create_connection(TcpEnd, "127.0.0.1", endpoint.port)
        except OSError as error:
            raise DialError(Reason.CONNECT_REFUSED, f"{endpoint.label}: {error.strerror}") from error
        ends.append(end)
        return end

    def later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback)

    pool = Pool(dial=dial, call_later=later, owner=owner)
    pool2 = Http2Pool(dial=dial, call_later=later, owner=owner)
    try:
        yield lambda http2: lambda events: (pool2 if http2 else pool).open(Address(port), "", events)
    finally:
        await owner.close()
        for end in ends:
            end.abort(Reason.FORCED_CLOSE)
        while not all(end.closed for end in ends):
            await asyncio.sleep(0)


class Service(external_auth_pb2_grpc.AuthorizationServicer):
    def __init__(self, answer: external_auth_pb2.CheckResponse | None) -> None:
        self.answer = answer
        self.asked: list[external_auth_pb2.CheckRequest] = []

    async def Check(  # noqa: N802 - gRPC's name
        self, request: external_auth_pb2.CheckRequest, context: grpc.aio.ServicerContext
    ) -> external_auth_pb2.CheckResponse:
        self.asked.append(request)
        if self.answer is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no rules are loaded")
        return self.answer


@asynccontextmanager
async def serve(service: Service) -> AsyncIterator[int]:
    server = grpc.aio.server()
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def option(key: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=key, value=value))


async def test_a_grpc_authoriser_is_told_the_request_and_changes_it() -> None:
    ok = external_auth_pb2.OkHttpResponse(
        headers=[option("X-Tier", "gold")],
        headers_to_remove=["X-User"],
        response_headers_to_add=[option("x-checked", "yes")],
    )
    service = Service(external_auth_pb2.CheckResponse(status=status_pb2.Status(code=0), ok_response=ok))
    async with serve(service) as port, opener(port) as begin:
        found = await ask(PROVIDER, QUESTION, begin)
    assert found == Allowed(
        set_headers=[("x-tier", "gold")],
        remove_headers=("x-user",),
        response_headers=[("x-checked", "yes")],
    )
    (asked,) = service.asked
    http = asked.attributes.request.http
    assert (http.method, http.path, http.host, http.id) == ("GET", "/orders?x=1", "web.shop", "r-1")
    assert http.headers["x-user"] == "ann,bob"
    assert http.headers["authorization"] == "Bearer t"
    assert asked.attributes.source.principal == QUESTION.source_principal
    assert asked.attributes.source.address.socket_address.address == "10.0.0.1"
    assert asked.attributes.destination.address.socket_address.port_value == 80


async def test_a_grpc_refusal_is_the_clients_answer() -> None:
    denied = external_auth_pb2.DeniedHttpResponse(
        status=http_status_pb2.HttpStatus(code=http_status_pb2.Unauthorized),
        headers=[option("WWW-Authenticate", "Bearer")],
        body="who are you?",
    )
    service = Service(
        external_auth_pb2.CheckResponse(
            status=status_pb2.Status(code=16, message="no token"), denied_response=denied
        )
    )
    async with serve(service) as port, opener(port) as begin:
        found = await ask(PROVIDER, QUESTION, begin)
    assert isinstance(found, Denied)
    assert (found.status, found.headers, found.body) == (
        401,
        [("www-authenticate", "Bearer")],
        b"who are you?",
    )
    assert "no token" in found.detail


@pytest.mark.parametrize(("fail_open", "expected"), [(False, Denied), (True, Allowed)])
async def test_a_failing_grpc_authoriser_closes_unless_its_provider_says_else(
    fail_open: bool, expected: type
) -> None:
    provider = replace(PROVIDER, fail_open=fail_open, status_on_error=503)
    async with serve(Service(None)) as port, opener(port) as begin:
        found = await ask(provider, QUESTION, begin)
    assert isinstance(found, expected)
    if isinstance(found, Denied):
        assert found.status == 503
        assert "no rules are loaded" in found.detail
        assert "opa" in found.detail


async def test_an_authoriser_that_is_not_there_or_silent_closes_by_name() -> None:
    async with opener(free_port()) as begin:
        gone = await ask(PROVIDER, QUESTION, begin)
    assert isinstance(gone, Denied)
    assert "connect" in gone.detail
    async with http_server(b"") as (port, _), opener(port) as begin:
        late = await ask(replace(HTTP, timeout_s=0.05), QUESTION, begin)
    assert isinstance(late, Denied)
    assert "0.05 s" in late.detail


@asynccontextmanager
async def http_server(answer: bytes) -> AsyncIterator[tuple[int, list[str]]]:
    """Answer every request with these bytes; without any, never."""
    asked: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(answer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def test_an_http_authoriser_gets_the_path_and_the_named_headers() -> None:
    answer = b"HTTP/1.1 200 OK\r\nx-tier: gold\r\nx-else: 1\r\ncontent-length: 0\r\n\r\n"
    async with http_server(answer) as (port, asked), opener(port) as begin:
        found = await ask(HTTP, QUESTION, begin)
    assert found == Allowed(set_headers=[("x-tier", "gold")])
    assert asked[0].startswith("GET /check/orders?x=1 HTTP/1.1\r\n")
    assert "host: web.shop" in asked[0].lower()
    assert "authorization: Bearer t" in asked[0]
    assert "x-user: ann" in asked[0]
    assert "x-mesh: ambit" in asked[0]
    assert "x-request-id" not in asked[0]


async def test_an_http_refusal_is_the_clients_answer_and_a_failure_closes() -> None:
    answer = b"HTTP/1.1 302 Found\r\nlocation: /login\r\nserver: x\r\ncontent-length: 2\r\n\r\nno"
    async with http_server(answer) as (port, _), opener(port) as begin:
        found = await ask(HTTP, QUESTION, begin)
    assert isinstance(found, Denied)
    assert (found.status, found.headers, found.body) == (302, [("location", "/login")], b"no")
    answer = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
    async with http_server(answer) as (port, _), opener(port) as begin:
        broken = await ask(HTTP, QUESTION, begin)
    assert isinstance(broken, Denied)
    assert broken.status == 403
    assert "500" in broken.detail
