# SPDX-License-Identifier: Apache-2.0
"""Destination policies on loopback: real clients and servers around the parts of a waypoint."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mesh.model.destination import (
    Balancer,
    Balancing,
    ConnectionPool,
    ConsistentHash,
    DestinationPolicy,
    HashKind,
    OutlierDetection,
    RetryBudget,
    Subset,
    TrafficPolicy,
)
from mesh.model.route import Backend, Retry, RouteRule, RouteTable
from mesh.runtime.tasks import TaskOwner, create_task
from tests.support.eventually import eventually_async
from tests.support.waypoint import WEB, Waypoint, waypoint

pytestmark = pytest.mark.timeout(30)
SOURCE = "DestinationRule/shop/web"


@dataclass(eq=False)
class Server:
    """An HTTP/1.1 server that does as it is told."""

    port: int = 0
    status: int = 200
    delay_s: float = 0.0
    requests: int = 0
    connections: int = 0
    open: int = 0
    most: int = 0
    hold: asyncio.Event | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.add(writer)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.requests += 1
                self.open += 1
                self.most = max(self.most, self.open)
                if self.hold is not None:
                    await self.hold.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                self.open -= 1
                body = str(self.port).encode()
                writer.write(
                    b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (self.status, len(body), body)
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()


@asynccontextmanager
async def server(**values: Any) -> AsyncIterator[Server]:
    made = Server(**values)
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listener.close()
        if made.hold is not None:
            made.hold.set()
        for writer in tuple(made.writers):
            writer.close()


@dataclass(slots=True)
class Answer:
    status: int
    headers: str
    body: str


class Client:
    """A keep-alive client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def get(self, path: str = "/", headers: str = "") -> Answer:
        self._writer.write(f"GET {path} HTTP/1.1\r\nhost: web\r\n{headers}\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        body = await self._reader.readexactly(int(fields["content-length"]))
        return Answer(int(head.split()[1]), head, body.decode())

    def close(self) -> None:
        self._writer.close()


@dataclass(eq=False)
class Bed:
    """A waypoint, servers behind it, clients before it."""

    wp: Waypoint
    servers: list[Server]
    clients: list[Client] = field(default_factory=list)

    async def client(self) -> Client:
        self.clients.append(await Client.connect(self.wp.port))
        return self.clients[-1]

    async def get(self, path: str = "/", headers: str = "") -> Answer:
        client = await self.client()
        try:
            return await client.get(path, headers)
        finally:
            client.close()

    async def many(self, count: int, *, clients: int = 8, headers: str = "") -> Counter[tuple[int, str]]:
        """Send `count` requests over keep-alive clients; return statuses and bodies."""
        found: Counter[tuple[int, str]] = Counter()
        left = iter(range(count))

        async def run() -> None:
            client = await self.client()
            for _ in left:
                answer = await client.get("/", headers)
                found[answer.status, answer.body.partition(" ")[0]] += 1
            client.close()

        await asyncio.gather(*(run() for _ in range(clients)))
        return found


def bed(count: int = 2) -> Callable[[Callable[[Bed], Coroutine[Any, Any, None]]], Callable[[], None]]:
    def wrap(test: Callable[[Bed], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def main() -> None:
            async with AsyncExitStack() as stack:
                servers = [await stack.enter_async_context(server()) for _ in range(count)]
                made = Bed(await stack.enter_async_context(waypoint()), servers)
                made.wp.endpoints(*(each.port for each in servers))
                try:
                    await test(made)
                finally:
                    for client in made.clients:
                        client.close()
                for each in servers:
                    if each.hold is not None:
                        each.hold.set()
                await eventually_async(lambda: not counted(made.wp), "nothing is counted that is over")

        def run() -> None:
            asyncio.run(main())

        run.__doc__ = test.__doc__
        return run

    return wrap


def counted(wp: Waypoint) -> list[object]:
    """What clusters hold for under way."""
    found: list[object] = []
    for cluster in wp.app.proxy.upstreams._clusters.values():
        circuit, budget = cluster.circuit, cluster.budget
        found += [circuit.requests, circuit.pending, circuit.retries, budget.active, budget.retrying]
        found += [host.active for host in cluster.hosts.values()]
    return [count for count in found if count != 0]


def policy(**values: Any) -> DestinationPolicy:
    return DestinationPolicy(service=WEB, sources=(SOURCE,), policy=TrafficPolicy(**values))


def shares(found: Counter[tuple[int, str]]) -> dict[str, float]:
    return {body: count / found.total() for (_, body), count in found.items()}


@bed()
async def test_requests_follow_the_weights_of_endpoints(b: Bed) -> None:
    one, two = (each.port for each in b.servers)
    for balancer in (Balancer.RANDOM, Balancer.ROUND_ROBIN, Balancer.LEAST_REQUEST):
        b.wp.endpoints(one, two, weights={one: 70, two: 30})
        b.wp.policy(policy(balancing=Balancing(balancer=balancer)))
        found = shares(await b.many(2000, clients=1))
        assert found[str(one)] == pytest.approx(0.7, abs=0.04), balancer


@bed(5)
async def test_peak_ewma_leaves_a_slow_endpoint_alone_within_two_seconds(b: Bed) -> None:
    b.wp.policy(policy(balancing=Balancing(balancer=Balancer.PEAK_EWMA)))
    b.servers[0].delay_s = 0.2
    counts: list[tuple[float, str]] = []
    began_s = time.monotonic()

    async def run() -> None:
        client = await b.client()
        while (elapsed_s := time.monotonic() - began_s) < 3.5:
            counts.append((elapsed_s, (await client.get()).body))
            await asyncio.sleep(0.01)

    await asyncio.gather(*(run() for _ in range(8)))
    late = Counter(body for elapsed_s, body in counts if elapsed_s >= 2)
    assert late[str(b.servers[0].port)] / late.total() < 0.1
    assert len(late) >= 4


@bed(3)
async def test_a_cookie_is_set_once_and_leads_to_the_same_endpoint(b: Bed) -> None:
    by = ConsistentHash(kind=HashKind.COOKIE, name="user", cookie_path="/", cookie_ttl_s=60.0)
    b.wp.policy(policy(balancing=Balancing(hash=by)))
    first = await b.get()
    (line,) = [line for line in first.headers.split("\r\n") if line.startswith("set-cookie: ")]
    assert line.endswith("; Max-Age=60; Path=/; HttpOnly")
    cookie = line.partition(": ")[2].partition(";")[0]
    for _ in range(10):
        again = await b.get(headers=f"cookie: {cookie}\r\n")
        assert again.body == first.body
        assert "set-cookie" not in again.headers
    assert len(await b.many(60)) == 3


@bed(4)
async def test_header_and_query_keys_stay_put_and_only_a_lost_share_moves(b: Bed) -> None:
    b.wp.policy(policy(balancing=Balancing(hash=ConsistentHash(kind=HashKind.QUERY, name="u"))))
    client = await b.client()
    before = {n: (await client.get(f"/?u={n}")).body for n in range(120)}
    assert before == {n: (await client.get(f"/?u={n}")).body for n in range(120)}
    lost = b.servers[0]
    b.wp.endpoints(*(each.port for each in b.servers[1:]))
    after = {n: (await client.get(f"/?u={n}")).body for n in range(120)}
    assert {before[n] for n in before if before[n] != after[n]} == {str(lost.port)}


@bed(3)
async def test_a_failing_endpoint_is_left_out_and_taken_back(b: Bed) -> None:
    lines: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = lines.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("waypoint.upstreams")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        out = OutlierDetection(consecutive_5xx=3, base_ejection_s=4.0, max_ejection_percent=50)
        b.wp.policy(policy(outliers=out))
        b.servers[0].status = 500
        found = await b.many(100)
        assert found[500, str(b.servers[0].port)] <= 3 + 8
        labels = (WEB.hostname, "shop", "80", "")
        assert b.wp.series("ambit_endpoints_ejected")[labels] == 1
        assert b.wp.series("ambit_endpoint_ejections")[*labels, "consecutive_5xx"] == 1
        b.servers[0].status = 200
        await eventually_async(lambda: b.wp.series("ambit_endpoints_ejected")[labels] == 0, "its return")
        assert len(await b.many(100)) == 3
        said = [record.getMessage() for record in lines]
        assert said == ["endpoint left out", "endpoint taken back"]
    finally:
        logger.removeHandler(handler)


@bed(1)
async def test_with_all_endpoints_out_the_answer_says_so(b: Bed) -> None:
    b.wp.policy(policy(outliers=OutlierDetection(consecutive_5xx=1, base_ejection_s=30)))
    b.servers[0].status = 502
    assert (await b.get()).status == 502
    refused = await b.get()
    assert refused.status == 503
    assert f"1 endpoints, 1 left out by outlier detection ({SOURCE})" in refused.body


@bed(2)
async def test_an_endpoint_that_refuses_connections_costs_no_request(b: Bed) -> None:
    b.wp.policy(policy(outliers=OutlierDetection(consecutive_5xx=2, max_ejection_percent=50)))
    b.wp.endpoints(b.servers[0].port, 1)
    found = await b.many(100)
    assert found == {(200, str(b.servers[0].port)): 100}
    assert sum(b.wp.series("ambit_endpoint_ejections").values()) == 1


@bed(1)
async def test_a_request_beyond_the_bound_is_answered_at_once(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_requests=2)))
    only = b.servers[0]
    only.hold = asyncio.Event()
    owner = TaskOwner("test")
    held = [create_task(b.get(), name="held", owner=owner) for _ in range(2)]
    await eventually_async(lambda: only.open == 2, "two requests at the server")
    place = (WEB.hostname, "shop", "80", "", "http2MaxRequests")
    refused = await b.get()
    assert refused.status == 503
    assert f"2 of 2 requests under way (http2MaxRequests of {SOURCE})" in refused.body
    assert b.wp.series("ambit_circuit_overflows")[place] == 1
    assert b.wp.series("ambit_circuit_open")[place] == 1
    only.hold.set()
    assert [answer.status for answer in await asyncio.gather(*held)] == [200, 200]
    assert b.wp.series("ambit_circuit_open")[place] == 0
    assert (await b.get()).status == 200


@bed(1)
async def test_connections_are_bounded_and_requests_wait_for_one(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_connections=2)))
    only = b.servers[0]
    only.delay_s = 0.005
    assert await b.many(60, clients=12) == {(200, str(only.port)): 60}
    assert only.connections == only.most == 2


@bed(1)
async def test_waiting_requests_are_bounded_as_istio_shows_it(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_connections=1, max_pending_requests=1)))
    b.servers[0].delay_s = 0.02
    found = await b.many(60, clients=3)
    assert found[200, str(b.servers[0].port)] >= 2
    assert sum(count for (status, _), count in found.items() if status == 503) > 10
    assert (
        b.wp.series("ambit_circuit_overflows")[WEB.hostname, "shop", "80", "", "http1MaxPendingRequests"] > 10
    )


@bed(1)
async def test_a_connection_serves_as_many_requests_as_allowed(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_requests_per_connection=5)))
    assert await b.many(20, clients=1) == {(200, str(b.servers[0].port)): 20}
    assert b.servers[0].connections == 4


def retrying(attempts: int = 3) -> RouteTable:
    rule = RouteRule(
        source="HTTPRoute/shop/web#0",
        backends=(Backend(service=WEB, port=80),),
        retry=Retry(attempts=attempts, status_codes=(503,), backoff_s=0.0),
    )
    return RouteTable(service=WEB, port=80, rules=(rule,))


@bed(2)
async def test_a_budget_bounds_retries_to_a_fifth_on_top(b: Bed) -> None:
    b.wp.routes(retrying())
    b.wp.policy(policy(retry_budget=RetryBudget(percent=20, interval_s=10)))
    for each in b.servers:
        each.status = 503
    found = await b.many(500)
    assert sum(found.values()) == 500
    tries = sum(each.requests for each in b.servers)
    assert 560 < tries <= 600
    place = (WEB.hostname, "shop", "80", "", "retryBudget")
    assert b.wp.series("ambit_circuit_overflows")[place] > 300


@bed(2)
async def test_the_budget_of_a_route_holds_beside_that_of_its_service(b: Bed) -> None:
    b.wp.routes(replace(retrying(), retry_budget=RetryBudget(percent=10, interval_s=10)))
    for each in b.servers:
        each.status = 503
    await b.many(300)
    assert 320 < sum(each.requests for each in b.servers) <= 330


@bed(2)
async def test_without_an_outage_every_retry_is_allowed(b: Bed) -> None:
    b.wp.routes(retrying())
    b.servers[0].status = 503
    found = await b.many(60)
    assert found == {(200, str(b.servers[1].port)): 60}


@bed(2)
async def test_retries_under_way_are_bounded(b: Bed) -> None:
    b.wp.routes(retrying(1))
    b.wp.policy(policy(pool=ConnectionPool(max_retries=1)))
    for each in b.servers:
        each.status, each.delay_s = 503, 0.02
    found = await b.many(40, clients=4)
    assert sum(found.values()) == 40
    assert b.wp.series("ambit_circuit_overflows")[WEB.hostname, "shop", "80", "", "maxRetries"] > 10
    assert sum(each.requests for each in b.servers) < 70


@bed(2)
async def test_a_subset_has_the_endpoints_with_its_labels(b: Bed) -> None:
    one, two = (each.port for each in b.servers)
    b.wp.labels({one: {"version": "v1"}, two: {"version": "v2"}})
    named = DestinationPolicy(
        service=WEB,
        sources=(SOURCE,),
        subsets=(
            Subset(name="v2", labels=(("version", "v2"),)),
            Subset(name="v3", labels=(("version", "v3"),)),
        ),
    )
    b.wp.policy(named)

    def to(subset: str) -> None:
        backend = Backend(service=WEB, port=80, subset=subset)
        rule = RouteRule(source="VirtualService/shop/web#0", backends=(backend,))
        b.wp.routes(RouteTable(service=WEB, port=80, rules=(rule,)))

    to("v2")
    assert await b.many(20) == {(200, str(two)): 20}
    to("v3")
    assert f"subset v3: no endpoint has the subset's labels ({SOURCE})" in (await b.get()).body
    to("v4")
    refused = await b.get()
    assert refused.status == 503
    assert "VirtualService/shop/web#0: no DestinationRule defines subset v4" in refused.body
    # Labels may come later than the policy.
    b.wp.labels({one: {"version": "v3"}})
    to("v3")
    assert await b.many(20) == {(200, str(one)): 20}


# --- plain TCP: the servers answer a line that looks like a request to them


async def line(b: Bed) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", b.wp.tcp_port)
    writer.write(b"hello\r\n\r\n")
    found = (await reader.readuntil(b"\r\n\r\n")) + await reader.read(5)
    return reader, writer, found.decode()


@bed(1)
async def test_connections_that_are_no_http_are_bounded(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_connections=1)))
    _, writer, _ = await line(b)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await line(b)
    place = (WEB.hostname, "shop", "80", "", "maxConnections")
    assert b.wp.series("ambit_circuit_overflows")[place] == 1
    assert b.wp.series("ambit_circuit_open")[place] == 1
    writer.close()
    await eventually_async(lambda: b.wp.series("ambit_circuit_open")[place] == 0, "room for another")
    _, writer, _ = await line(b)
    writer.close()


@bed(1)
async def test_a_refusing_endpoint_is_left_out_for_tcp_as_well(b: Bed) -> None:
    b.wp.policy(policy(outliers=OutlierDetection(consecutive_5xx=2, max_ejection_percent=50)))
    b.wp.endpoints(b.servers[0].port, 1)
    for _ in range(12):
        _, writer, found = await line(b)
        assert found.startswith("HTTP/1.1 200")
        writer.close()
    assert sum(b.wp.series("ambit_endpoint_ejections").values()) == 1


@bed(1)
async def test_an_idle_connection_is_ended_and_a_busy_one_is_not(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(tcp_idle_timeout_s=1.0)))
    reader, writer, _ = await line(b)
    began_s = time.monotonic()
    for _ in range(9):
        await asyncio.sleep(0.15)
        writer.write(b"again\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
    assert time.monotonic() - began_s > 1.2
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(100), 5)
    writer.close()


@bed(1)
async def test_an_old_connection_is_ended(b: Bed) -> None:
    b.wp.policy(policy(pool=ConnectionPool(max_connection_age_s=0.3)))
    reader, writer, _ = await line(b)
    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(100), 5)
    writer.close()


@bed(4)
async def test_changes_of_policy_and_endpoints_cost_no_request(b: Bed) -> None:
    ports = [each.port for each in b.servers]
    stop = False

    async def change() -> None:
        turn = 0
        while not stop:
            turn += 1
            b.wp.endpoints(*(port for index, port in enumerate(ports) if index != turn % 4))
            balancer = (Balancer.RANDOM, Balancer.PEAK_EWMA, Balancer.ROUND_ROBIN)[turn % 3]
            by = ConsistentHash(kind=HashKind.HEADER, name="x") if turn % 2 else None
            b.wp.policy(
                policy(
                    balancing=Balancing(balancer=balancer, hash=by),
                    pool=ConnectionPool(max_requests_per_connection=turn % 5 + 1),
                )
            )
            await asyncio.sleep(0.01)

    changing = create_task(change(), name="change", owner=TaskOwner("test"))
    found = await b.many(3000, clients=16, headers="x: y\r\n")
    stop = True
    await changing
    assert {status for status, _ in found} == {200}
    assert found.total() == 3000
