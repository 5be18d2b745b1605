# SPDX-License-Identifier: Apache-2.0
"""The requests of one tunnel: judged, planned, sent on, recorded.

One `Requests` per tunnel, so that who asks and what was addressed are settled once. Order
of a request: canonical path, policy, route, endpoint. The path that is judged is the path
that is forwarded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from mesh.model.provider import Authoriser
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import Workload
from mesh.net.sockets import DialError
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.state.balance import Random
from mesh.telemetry.reasons import Reason
from waypoint.decision import Decisions, Waiting
from waypoint.filters.keys import KeyStore
from waypoint.filters.tokens import TokenChecker
from waypoint.http.grpc import is_grpc
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead
from waypoint.proxy.call import Open
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.pool import Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import CallLater, Downstream, Upstream, UpstreamEvents
from waypoint.routing.plan import Forward, answer
from waypoint.tables import Tables
from waypoint.telemetry import Client, Destination, Telemetry
from waypoint.upstreams import Address, Upstreams, make_address, why_none

_FORGEABLE = frozenset({"x-forwarded-client-cert", "x-envoy-internal", "x-envoy-original-path"})
"""Fields in which a proxy vouches for something: dropped from every client."""


def _random_id() -> str:
    """Return a version 4 UUID; names a request, keeps no secret."""
    text = f"{random.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


@dataclass(slots=True, kw_only=True)
class Proxy:
    """The parts that all tunnels share."""

    tables: Tables
    upstreams: Upstreams
    pool: Pool
    pool2: Http2Pool
    tasks: TaskOwner
    keys: KeyStore
    checker: TokenChecker
    clock: Clock
    telemetry: Telemetry
    call_later: CallLater
    random: Random
    new_id: Callable[[], str] = _random_id


class Requests:
    """Decides the requests of one tunnel; the `Service` of its HTTP servers."""

    def __init__(self, proxy: Proxy, client: Client, destination: Destination) -> None:
        self._proxy = proxy
        self._client = client
        self._destination = destination
        self._decisions = Decisions(
            client,
            destination,
            tables=proxy.tables,
            telemetry=proxy.telemetry,
            keys=proxy.keys,
            checker=proxy.checker,
            clock=proxy.clock,
            random=proxy.random,
            open_provider=self._open_provider,
        )
        self.admit_connection = self._decisions.admit_connection
        self.http2 = False
        """Whether the client speaks HTTP/2: then so is spoken to ports that declare nothing."""

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        """Make the exchange of a request; the caller starts it."""
        proxy = self._proxy
        grpc = is_grpc(head.headers)
        self._clean(head)
        decision = self._decisions.decide(head)
        started_s = proxy.telemetry.monotonic()
        reached: list[Workload] = []

        def connect(plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Upstream:
            endpoint, detail = self._choose(plan, avoid)
            if endpoint is not None:
                reached[:] = [endpoint.workload]
            pool = proxy.pool2 if self._upstream_http2(plan) else proxy.pool
            return pool.open(endpoint, detail, events)

        def done(record: ExchangeRecord) -> None:
            proxy.telemetry.request(
                self._client,
                self._destination,
                record,
                reached=reached[0] if reached else None,
                started_s=started_s,
                protocol="grpc" if grpc else "http",
            )

        exchange = Exchange(
            request=head,
            plan=None if callable(decision) else decision,
            downstream=downstream,
            connect=connect,
            call_later=proxy.call_later,
            random=proxy.random,
            on_done=done,
        )
        if callable(decision):
            create_task(self._decide_later(exchange, decision), name="decision", owner=proxy.tasks)
        return exchange

    def refused(self, error: BadMessageError) -> None:
        """Count and log a request that was not valid."""
        head = RequestHead(method="-", target="-", authority="", headers=[], framing=Framing.NONE)
        plan = answer(error.status, flag="DPE", detail=error.reason)
        record = ExchangeRecord(request=head, plan=plan, status=error.status, flag="DPE", detail=error.reason)
        telemetry = self._proxy.telemetry
        telemetry.request(
            self._client,
            self._destination,
            record,
            reached=None,
            started_s=telemetry.monotonic(),
            protocol="http",
        )

    def _clean(self, head: RequestHead) -> None:
        """Drop what a client could forge, say who it is, and give the request a name."""
        headers: Headers = []
        forwarded = request_id = ""
        for name, value in head.headers:
            if name == "x-forwarded-for":
                forwarded = f"{forwarded}, {value}" if forwarded else value
            elif name not in _FORGEABLE:
                headers.append((name, value))
                if name == "x-request-id":
                    request_id = value
        own = str(self._client.peer.address)
        headers.append(("x-forwarded-for", f"{forwarded}, {own}" if forwarded else own))
        if not request_id:
            headers.append(("x-request-id", self._proxy.new_id()))
        head.headers = headers

    async def _decide_later(self, exchange: Exchange, waiting: Waiting) -> None:
        try:
            plan = await waiting()
        except Exception as error:
            exchange.decide(answer(500, flag="-", detail=f"deciding the request failed: {error!r}"))
            raise
        exchange.decide(plan)

    def _open_provider(self, provider: Authoriser, http2: bool) -> Open:
        proxy = self._proxy
        service = proxy.tables.service(provider.service)
        endpoint = None
        why = f"service {provider.service} is not known"
        if service is not None:
            endpoint = proxy.upstreams.choose(service, provider.port, frozenset())
            why = why_none(proxy.tables, service, provider.port) if endpoint is None else ""
        pool = proxy.pool2 if http2 else proxy.pool
        return lambda events: pool.open(endpoint, why, events)

    def endpoint(self, avoid: frozenset[str]) -> Address:
        """Choose where a connection that is not HTTP goes.

        Raises:
            DialError: there is no endpoint; says why.
        """
        destination = self._destination
        if destination.service is None:
            assert destination.workload is not None
            return make_address(destination.workload, destination.peer.address, destination.peer.port, "")
        proxy, service, port = self._proxy, destination.service, destination.peer.port
        found = proxy.upstreams.choose(proxy.tables.service(service.key) or service, port, avoid)
        if found is None:
            raise DialError(Reason.NO_HEALTHY_UPSTREAM, why_none(proxy.tables, service, port))
        return found

    def _upstream_http2(self, plan: Forward) -> bool:
        if plan.head.upgrade:
            return False  # Upgrades are a thing of HTTP/1.1.
        declared = protocol_of(self._proxy.tables.service(plan.service), plan.port)
        if declared is AppProtocol.UNKNOWN:
            return self.http2
        return declared in (AppProtocol.HTTP2, AppProtocol.GRPC)

    def _choose(self, plan: Forward, avoid: frozenset[str]) -> tuple[Address | None, str]:
        destination = self._destination
        if destination.workload is not None:
            workload, peer = destination.workload, destination.peer
            return make_address(workload, peer.address, peer.port, ""), ""
        proxy = self._proxy
        service = proxy.tables.service(plan.service)
        if service is None:
            return None, f"{plan.source or 'the request'}: service {plan.service} is not known"
        endpoint = proxy.upstreams.choose(service, plan.port, avoid)
        if endpoint is None:
            return None, why_none(proxy.tables, service, plan.port)
        return endpoint, ""


def protocol_of(service: Service | None, port: int) -> AppProtocol:
    """Return what a port is declared to speak."""
    declared = service.port(port) if service is not None else None
    return declared.app_protocol if declared is not None else AppProtocol.UNKNOWN
