# SPDX-License-Identifier: Apache-2.0
"""The requests of one tunnel: judged, planned, sent on, recorded.

One `Requests` per tunnel, so that who asks and what was addressed are settled once. Order
of a request: canonical path, policy, route, endpoint. The path that is judged is the path
that is forwarded.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mesh.authz.http import Asked
from mesh.identity.spiffe import SpiffeId
from mesh.model.provider import Authoriser
from mesh.model.route import HeaderOperations
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import NamespacedHostname, Workload
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.state.balance import Random
from mesh.telemetry.reasons import Reason
from waypoint.filters.authoriser import Denied, Question, ask
from waypoint.http.grpc import is_grpc
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead
from waypoint.http.path import normalise_path
from waypoint.proxy.call import Open
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.pool import Pool
from waypoint.proxy.pool2 import Http2Pool
from waypoint.proxy.streams import CallLater, Downstream, Upstream, UpstreamEvents
from waypoint.routing.plan import Answer, Forward, answer, plan_request
from waypoint.routing.rewrite import change_headers
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
        self._identity = SpiffeId.parse(client.identity)
        self.http2 = False
        """Whether the client speaks HTTP/2: then so is spoken to ports that declare nothing."""

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        """Make the exchange of a request; the caller starts it."""
        proxy = self._proxy
        grpc = is_grpc(head.headers)
        self._clean(head)
        decision = self._decide(head)
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
            plan=None if isinstance(decision, Authoriser) else decision,
            downstream=downstream,
            connect=connect,
            call_later=proxy.call_later,
            random=proxy.random,
            on_done=done,
        )
        if isinstance(decision, Authoriser):
            asking = self._ask(exchange, head, decision)
            create_task(asking, name=f"authoriser {decision.name}", owner=proxy.tasks)
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

    def _decide(self, head: RequestHead) -> Forward | Answer | Authoriser:
        """Return what becomes of a request, or whom to ask."""
        try:
            verdict = self._judge(head)
            return verdict if verdict is not None else self._route(head)
        except BadMessageError as error:
            return answer(error.status, flag="DPE", detail=error.reason)

    def _route(self, head: RequestHead) -> Forward | Answer:
        service, port, proxy = self._destination.service, self._destination.peer.port, self._proxy
        if service is None:
            key, matcher = _workload_key(self._destination), None
        else:
            key, matcher = service.key, proxy.tables.routes(service.key, port, self._client.namespace)
        return plan_request(head, service=key, port=port, matcher=matcher, random=proxy.random)

    async def _ask(self, exchange: Exchange, head: RequestHead, provider: Authoriser) -> None:
        """Ask an external authoriser and decide by its answer."""
        client, destination = self._client.peer, self._destination
        question = Question(
            head=head,
            source_address=str(client.address),
            source_port=client.port,
            source_principal=self._client.identity,
            destination_address=str(destination.peer.address),
            destination_port=destination.peer.port,
            destination_principal=destination.workload.identity if destination.workload is not None else "",
        )
        found = await ask(provider, question, partial(self._open_provider, provider))
        if isinstance(found, Denied):
            exchange.decide(
                Answer(
                    status=found.status,
                    headers=found.headers,
                    body=found.body,
                    flag="UAEX",
                    detail=found.detail,
                    source=f"extensionProvider/{provider.name}",
                )
            )
            return
        changes = HeaderOperations(set=tuple(found.set_headers), remove=found.remove_headers)
        head.headers = change_headers(head.headers, changes)
        try:
            plan = self._route(head)
        except BadMessageError as error:
            plan = answer(error.status, flag="DPE", detail=error.reason)
        if found.response_headers and isinstance(plan, Forward):
            added = HeaderOperations(add=tuple(found.response_headers))
            plan = replace(plan, response_headers=(*plan.response_headers, added))
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

    def _judge(self, head: RequestHead) -> Answer | Authoriser | None:
        """Return the refusal of a request that policy does not allow, or who is to be asked of it."""
        service = self._destination.service
        guard = self._proxy.tables.guard(service.key if service is not None else None)
        if guard.unusable:
            return self._denial(None, Reason.POLICY_UNKNOWN, guard.unusable)
        if not guard.policies:
            return None
        path = head.target.partition("?")[0]
        verdict = guard.policies.judge(
            self.asked(
                method=head.method,
                host=head.authority,
                path=path if path == "*" else normalise_path(path),
                headers=head.headers,
            )
        )
        if not verdict.allowed:
            return self._denial(verdict.policy, Reason.POLICY_DENIED, verdict.reason)
        if not verdict.ask:
            return None
        provider = self._proxy.tables.provider(verdict.ask)
        if provider is None:
            why = (
                f"CUSTOM policy {verdict.policy} asks provider {verdict.ask}, which MeshConfig's "
                "extensionProviders do not define"
            )
            return self._denial(verdict.policy, Reason.POLICY_UNKNOWN, why)
        return provider

    def asked(self, *, method: str, host: str, path: str, headers: Headers) -> Asked:
        """Collect what policies may ask; empty texts for a connection that is not HTTP."""
        joined: dict[str, str] = {}
        for name, value in headers:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
        client, destination = self._client, self._destination
        return Asked(
            identity=self._identity,
            source_ip=client.peer.address,
            remote_ip=client.peer.address,
            destination_ip=destination.peer.address,
            port=destination.peer.port,
            method=method,
            host=host,
            path=path,
            headers=joined,
        )

    def admit_connection(self) -> None:
        """Judge a connection that is not HTTP.

        Raises:
            DialError: denied; says by which policy.
        """
        service = self._destination.service
        guard = self._proxy.tables.guard(service.key if service is not None else None)
        reason, policy, detail = Reason.POLICY_UNKNOWN, None, guard.unusable
        if not detail:
            if not guard.policies:
                return
            verdict = guard.policies.judge(self.asked(method="", host="", path="", headers=[]))
            if verdict.allowed and not verdict.ask:
                return
            reason, policy, detail = Reason.POLICY_DENIED, verdict.policy, verdict.reason
        self._proxy.telemetry.denied(policy, reason.value)
        raise DialError(reason, detail)

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

    def _denial(self, policy: str | None, reason: Reason, detail: str) -> Answer:
        self._proxy.telemetry.denied(policy, reason.value)
        return Answer(
            status=403,
            headers=[("content-type", "text/plain")],
            body=b"RBAC: access denied",
            flag="-",
            detail=detail,
            source=f"AuthorizationPolicy/{policy}" if policy else "AuthorizationPolicy",
        )

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


def _workload_key(destination: Destination) -> NamespacedHostname:
    workload = destination.workload
    assert workload is not None
    return NamespacedHostname(namespace=workload.namespace, hostname=workload.name)


def protocol_of(service: Service | None, port: int) -> AppProtocol:
    """Return what a port is declared to speak."""
    declared = service.port(port) if service is not None else None
    return declared.app_protocol if declared is not None else AppProtocol.UNKNOWN
