# SPDX-License-Identifier: Apache-2.0
"""The admin port's `/explain`: what would become of a request, by the code that decides real ones.

Decides with a telemetry of its own, so that a question is neither counted nor logged. What
needs a token's keys or an external authoriser is said to, never asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from ipaddress import ip_address

from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.model.address import format_host_port
from mesh.model.service import AppProtocol, Service
from mesh.model.workload import TunnelProtocol, Workload
from mesh.net.sockets import DialError, Peer
from mesh.runtime.http import BadRequestError, Request, Response, json_response
from mesh.state.balance import candidates
from mesh.telemetry.series import Recorder
from waypoint.config import AccessLog
from waypoint.decision import Decisions
from waypoint.http.message import Framing, Headers, RequestHead
from waypoint.inbound import Inbound, RefusedError
from waypoint.routing.plan import Answer, Forward
from waypoint.telemetry import Client, Destination, Telemetry
from waypoint.upstreams import protocol_of

DRAWS = 400
"""Requests that are tried to learn the shares of the possible outcomes."""
_GOLDEN = (math.sqrt(5) - 1) / 2
_TCP = frozenset({AppProtocol.TCP, AppProtocol.TLS})


def answer_question(inbound: Inbound, request: Request) -> Response:
    """Answer `?identity=SPIFFE&source_ip=IP&authority=IP:PORT[&method=M&path=P&host=H&headers=K:V%0A...]`.

    Raises:
        BadRequestError: a part is missing or wrong.
    """
    query = request.query
    try:
        identity = SpiffeId.parse(query.get("identity", ""))
        peer = Peer(ip_address(query.get("source_ip", "")), 1)
    except (IdentityError, ValueError) as error:
        raise BadRequestError(400, str(error)) from error
    client = Client(
        identity=str(identity),
        namespace=identity.namespace,
        peer=peer,
        workload=inbound.proxy.tables.store.find_workload(peer.address),
    )
    own = {"gateway": inbound.proxy.tables.gateway, "identity": str(inbound.config.identity)}
    try:
        destination = inbound.find(query.get("authority", ""), client)
    except RefusedError as refusal:
        refused = {"share": 1.0, "result": "refused", "status": refusal.status, "detail": str(refusal)}
        return json_response({**own, "service": None, "outcomes": [refused]})
    return json_response(
        {
            **own,
            "service": str(destination.service.key) if destination.service is not None else None,
            "outcomes": _outcomes(inbound, client, destination, query),
        }
    )


def _outcomes(
    inbound: Inbound, client: Client, destination: Destination, query: Mapping[str, str]
) -> list[dict[str, object]]:
    protocol = protocol_of(destination.service, destination.peer.port)
    if protocol in _TCP or query.get("method") == "-":
        return [{"share": 1.0, **_connection(inbound, client, destination)}]
    counts: dict[Hashable, int] = {}
    results: dict[Hashable, dict[str, object]] = {}
    for number in range(DRAWS):
        decisions = _decisions(inbound, client, destination, _sequence(number))
        result = _request(inbound, decisions, destination, query)
        key = tuple(result.get(name) for name in ("result", "source", "status", "service", "port", "subset"))
        counts[key] = counts.get(key, 0) + 1
        results.setdefault(key, result)
    by_share = sorted(results, key=lambda key: -counts[key])
    found: list[dict[str, object]] = [{"share": counts[key] / DRAWS, **results[key]} for key in by_share]
    return found


def _sequence(number: int) -> Callable[[], float]:
    """Return numbers in [0, 1) that cover it evenly over all draws, in several dimensions."""
    value = (number + 0.5) / DRAWS

    def following() -> float:
        nonlocal value
        found = value
        value = value * DRAWS * _GOLDEN % 1.0
        return found

    return following


def _decisions(
    inbound: Inbound, client: Client, destination: Destination, random: Callable[[], float]
) -> Decisions:
    proxy = inbound.proxy

    def never(*_: object) -> object:
        raise AssertionError("an explanation opens no connection")

    return Decisions(
        client,
        destination,
        tables=proxy.tables,
        telemetry=Telemetry(Recorder(), AccessLog.OFF, lambda: 0.0),
        keys=proxy.keys,
        checker=proxy.checker,
        clock=proxy.clock,
        random=random,
        open_provider=never,  # type: ignore[arg-type]
    )


def _connection(inbound: Inbound, client: Client, destination: Destination) -> dict[str, object]:
    """Say what becomes of a connection that is not HTTP."""
    try:
        _decisions(inbound, client, destination, lambda: 0.0).admit_connection()
    except DialError as error:
        return {"result": "answer", "status": 403, "detail": error.detail, "source": "AuthorizationPolicy"}
    service, workload = destination.service, destination.workload
    port = destination.peer.port
    return {
        "result": "forward",
        "source": "",
        "service": str(service.key) if service is not None else None,
        "port": port,
        "subset": "",
        "path": "",
        "endpoints": _endpoints(inbound, service, port, "")
        if service is not None
        else _alone(workload, port),
    }


def _request(
    inbound: Inbound, decisions: Decisions, destination: Destination, query: Mapping[str, str]
) -> dict[str, object]:
    decided = decisions.decide(_head(destination, query))
    if callable(decided):
        return {
            "result": "later",
            "detail": "a token's keys or an external authoriser decide when the request comes",
        }
    if isinstance(decided, Answer):
        return {
            "result": "answer",
            "status": decided.status,
            "detail": decided.detail,
            "source": decided.source,
        }
    return _forward(inbound, decided, destination)


def _forward(inbound: Inbound, plan: Forward, destination: Destination) -> dict[str, object]:
    service = inbound.proxy.tables.service(plan.service)
    if destination.service is None:
        endpoints = _alone(destination.workload, plan.port)
    else:
        endpoints = _endpoints(inbound, service, plan.port, plan.subset) if service is not None else []
    return {
        "result": "forward",
        "source": plan.source,
        "service": str(plan.service) if destination.service is not None else None,
        "port": plan.port,
        "subset": plan.subset,
        "path": plan.head.target,
        "delayS": plan.delay_s,
        "endpoints": endpoints,
    }


def _head(destination: Destination, query: Mapping[str, str]) -> RequestHead:
    headers: Headers = []
    for line in query.get("headers", "").splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError(400, f"headers: {line!r} is no NAME:VALUE")
        headers.append((name.strip().lower(), value.strip()))
    service = destination.service
    host = query.get("host") or (service.hostname if service is not None else str(destination.peer))
    target = query.get("path") or "/"
    if not target.startswith("/"):
        raise BadRequestError(400, f"path: {target!r} does not begin with /")
    return RequestHead(
        method=query.get("method") or "GET",
        target=target,
        authority=host,
        headers=headers,
        framing=Framing.NONE,
    )


def _endpoints(inbound: Inbound, service: Service, port: int, subset: str) -> list[dict[str, object]]:
    """List the endpoints that can be chosen now; load and ejections are on /clusters."""
    tables = inbound.proxy.tables
    policy = tables.destination(service.key)
    chosen = policy.subset(subset) if policy is not None and subset else None
    wanted = chosen.labels if chosen is not None else ()
    return [
        _described(target.workload, str(target.address or target.workload.hostname), target.port)
        for target in candidates(tables.store, service, port, ipv6=False)
        if all(tables.labels(target.workload.uid).get(name) == value for name, value in wanted)
    ]


def _alone(workload: Workload | None, port: int) -> list[dict[str, object]]:
    if workload is None:
        return []
    return [_described(workload, str(workload.addresses[0]) if workload.addresses else "", port)]


def _described(workload: Workload, address: str, port: int) -> dict[str, object]:
    hbone = workload.tunnel_protocol is TunnelProtocol.HBONE
    literal = bool(workload.addresses)
    return {
        "uid": workload.uid,
        "namespace": workload.namespace,
        "name": workload.name,
        "node": workload.node,
        "identity": workload.identity,
        "hbone": hbone,
        "address": address,
        "port": port,
        "authority": format_host_port(ip_address(address), port) if hbone and literal else "",
    }
