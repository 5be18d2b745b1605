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
from mesh.runtime.clock import Clock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.state.balance import Random
from waypoint.decision import Decisions, Waiting
from waypoint.dial import Dialer
from waypoint.fetch import begin_own
from waypoint.filters.keys import KeyStore
from waypoint.filters.tokens import TokenChecker
from waypoint.http.grpc import is_grpc
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead
from waypoint.passage import Passage, open_passage
from waypoint.proxy.call import Open
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.pool import Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import CallLater, Downstream
from waypoint.routing.plan import Answer, Forward, answer
from waypoint.tables import Tables
from waypoint.telemetry import Client, Destination, Telemetry
from waypoint.tracing import Tracing
from waypoint.tries import Shared, Tries
from waypoint.upstreams import Upstreams

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
    dialer: Dialer
    pool: Pool
    pool2: Http2Pool
    shared: Shared
    tasks: TaskOwner
    keys: KeyStore
    checker: TokenChecker
    clock: Clock
    telemetry: Telemetry
    tracing: Tracing
    call_later: CallLater
    random: Random
    new_id: Callable[[], str] = _random_id


class Requests:
    """Decides the requests of one tunnel; the `Service` of its HTTP servers."""

    def __init__(
        self,
        proxy: Proxy,
        client: Client,
        destination: Destination,
        *,
        route: Callable[[RequestHead], Forward | Answer] | None = None,
    ) -> None:
        """Build it; `route` decides those that policies let pass, None: by the destination's routes."""
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
            route=route,
        )
        self._service = destination.service.key if destination.service is not None else None
        self.admit_connection = self._decisions.admit_connection
        self._address = str(client.peer.address)
        self.http2 = False
        """Whether the client speaks HTTP/2: then so is spoken to ports that declare nothing."""

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        """Make the exchange of a request; the caller starts it."""
        proxy = self._proxy
        grpc = is_grpc(head.headers)
        self._clean(head)
        client, destination = self._client, self._destination
        observed = proxy.tables.observed(self._service)
        trace = proxy.tracing.begin(observed, head, client, destination, http2=self.http2, grpc=grpc)
        decision = self._decisions.decide(head)
        started_s = proxy.telemetry.monotonic()
        tries = Tries(proxy.shared, client, destination, grpc=grpc, http2=self.http2)

        def done(record: ExchangeRecord) -> None:
            tries.finish()
            reported = self.reported(record)
            proxy.telemetry.request(
                client,
                reported,
                record,
                reached=tries.reached,
                started_s=started_s,
                protocol="grpc" if grpc else "http",
                observed=observed,
            )
            if trace is not None:
                trace.end(record, tries.reached, reported)

        exchange = Exchange(
            request=head,
            plan=None if callable(decision) else decision,
            downstream=downstream,
            connect=tries.connect if trace is None else trace.connect(tries.connect),
            call_later=proxy.call_later,
            random=proxy.random,
            on_done=done,
            admit_retry=tries.admit_retry,
        )
        if callable(decision):
            create_task(self._decide_later(exchange, decision), name="decision", owner=proxy.tasks)
        return exchange

    def reported(self, record: ExchangeRecord) -> Destination:
        """Say who a finished request was for."""
        return self._destination

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
            observed=self._proxy.tables.observed(self._service),
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
        own = self._address
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
        pool = proxy.pool2 if http2 else proxy.pool
        return begin_own(proxy.tables, proxy.upstreams, pool, provider.service, provider.port)

    def passage(self, avoid: frozenset[str]) -> Passage:
        """Choose where a connection that is not HTTP goes.

        Raises:
            DialError: there is no endpoint, or no further connection is allowed; says why.
        """
        return open_passage(self._proxy.shared, self._client, self._destination, avoid)
