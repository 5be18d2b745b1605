# SPDX-License-Identifier: Apache-2.0
"""What becomes of one request: forwarded to a backend, or answered here.

Pure: a compiled table, a request head and a random draw in, a plan out. Which
endpoint of the backend takes the request is `waypoint.cluster`'s question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mesh.model.route import Backend, Fault, HeaderOperations, Mirror, Redirect, Retry, RouteRule
from mesh.model.workload import NamespacedHostname
from waypoint.http.message import Headers, RequestHead
from waypoint.http.path import normalise_path
from waypoint.routing.cors import is_preflight, preflight_headers, response_operations
from waypoint.routing.match import Chosen, Request, RouteMatcher
from waypoint.routing.rewrite import change_headers, redirect_location, rewrite_path

Random = Callable[[], float]
"""Draws from [0, 1)."""

DEFAULT_RETRY = Retry(attempts=2, on_connect_failure=True, on_refused=True)
"""Where no route says otherwise: of Istio's default what cannot have reached the application."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """The request goes on to an endpoint of `service`."""

    head: RequestHead
    """As the upstream shall see it; hop-by-hop fields are the codec's."""
    service: NamespacedHostname
    port: int
    subset: str = ""
    """Of the service's `DestinationPolicy`; empty: all its endpoints."""
    source: str
    """Rule that decided, `kind/namespace/name#index`; empty: none, the service's default."""
    response_headers: tuple[HeaderOperations, ...] = ()
    request_timeout_s: float | None = None
    try_timeout_s: float | None = None
    retry: Retry = DEFAULT_RETRY
    delay_s: float = 0.0
    """Injected delay before the first try."""
    mirrors: tuple[Mirror, ...] = ()
    """Who gets a copy of this request."""
    copied: bool = False
    """It is such a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The waypoint answers itself."""

    status: int
    headers: Headers
    body: bytes
    flag: str
    """Response flag of the access log (Envoy's short names); `-` where nothing is wrong."""
    detail: str
    source: str = ""
    delay_s: float = 0.0
    """Injected delay before it."""


def plan_request(
    head: RequestHead,
    *,
    service: NamespacedHostname,
    port: int,
    matcher: RouteMatcher | None,
    random: Random,
    scheme: str = "http",
) -> Forward | Answer:
    """Decide one request to `port` of `service`; `scheme` is the client's, for redirects.

    Raises:
        BadMessageError: the path has no canonical form (remote fault, 400).
    """
    path, _, query = head.target.partition("?")
    if path != "*":
        path = normalise_path(path)
    if matcher is None:
        return Forward(head=_with_target(head, path, query), service=service, port=port, source="")
    request = Request(
        method=head.method, authority=head.authority, path=path, query=query, fields=head.headers
    )
    chosen = matcher.choose(request)
    if chosen is None:
        return answer(404, flag="NR", detail=f"no rule of {service} matches {head.method} {path}")
    rule = chosen.rule
    if (own := _answer_of_rule(rule, request)) is not None:
        return own
    delay_s = 0.0
    if rule.fault is not None:
        delay_s, aborted = _inject(rule.fault, rule.source, random)
        if aborted is not None:
            return aborted
    if rule.redirect is not None:
        return _redirect(head, path, query, (scheme, port), chosen, rule.redirect)
    backend = draw_backend(rule.backends, random)
    if backend is None or backend.service is None:
        why = "the rule has no backend with a weight" if backend is None else backend.problem
        status = 500 if backend is None else backend.problem_status
        return answer(status, flag="NC", detail=f"{rule.source}: {why}", source=rule.source)
    plan = _forward(head, path, query, chosen, backend, backend.service)
    if not (delay_s or rule.mirrors or rule.cors):
        return plan
    cors = HeaderOperations() if rule.cors is None else response_operations(rule.cors, request)
    return replace(
        plan,
        delay_s=delay_s,
        mirrors=tuple(mirror for mirror in rule.mirrors if random() * 100 < mirror.percent),
        response_headers=(*plan.response_headers, cors) if cors else plan.response_headers,
    )


def _answer_of_rule(rule: RouteRule, request: Request) -> Answer | None:
    """Answer a preflight or by the rule's own response."""
    if rule.cors is not None and is_preflight(request):
        headers = preflight_headers(rule.cors, request)
        if headers is not None or not rule.cors.forward_unmatched:
            return Answer(
                status=200, headers=headers or [], body=b"", flag="-", detail="preflight", source=rule.source
            )
    if rule.direct is not None:
        return Answer(
            status=rule.direct.status,
            headers=change_headers([], rule.response_headers),
            body=rule.direct.body,
            flag="-",
            detail="direct response",
            source=rule.source,
        )
    return None


def _inject(fault: Fault, source: str, random: Random) -> tuple[float, Answer | None]:
    delay_s = fault.delay_s if random() * 100 < fault.delay_percent else 0.0
    if random() * 100 >= fault.abort_percent or not (fault.abort_status or fault.abort_grpc is not None):
        return delay_s, None
    flag = "DI,FI" if delay_s else "FI"
    if fault.abort_grpc is not None:
        status = [("grpc-status", str(fault.abort_grpc)), ("grpc-message", "fault filter abort")]
        headers = [("content-type", "application/grpc"), *status]
        detail = f"{source}: injected gRPC status {fault.abort_grpc}"
        return delay_s, Answer(
            status=200, headers=headers, body=b"", flag=flag, detail=detail, source=source, delay_s=delay_s
        )
    detail = f"{source}: injected fault"
    return delay_s, replace(
        answer(fault.abort_status, flag=flag, detail=detail, source=source), delay_s=delay_s
    )


def answer(
    status: int, *, flag: str, detail: str, source: str = "", headers: Headers | None = None
) -> Answer:
    """Answer with a line of text that says why; `detail` reaches the client."""
    body = (detail + "\n").encode()
    return Answer(
        status=status,
        headers=[("content-type", "text/plain; charset=utf-8"), *(headers or ())],
        body=body,
        flag=flag,
        detail=detail,
        source=source,
    )


def draw_backend(backends: Sequence[Backend], random: Random) -> Backend | None:
    """Draw by weight; None where no backend has one."""
    if len(backends) == 1:
        return backends[0] if backends[0].weight > 0 else None
    point = random() * sum(backend.weight for backend in backends)
    for backend in backends:
        point -= backend.weight
        if point < 0:
            return backend
    return None


def _redirect(
    head: RequestHead, path: str, query: str, own: tuple[str, int], chosen: Chosen, redirect: Redirect
) -> Answer:
    scheme, port = own
    host, _, own_port = head.authority.rpartition(":")
    if not host or not own_port.isdigit():
        host, own_port = head.authority, str(port)
    location = redirect_location(
        scheme=scheme,
        host=host,
        port=int(own_port),
        path=path,
        query=query,
        match=chosen.match,
        redirect=redirect,
    )
    headers = change_headers([("location", location)], chosen.rule.response_headers)
    return Answer(
        status=redirect.status,
        headers=headers,
        body=b"",
        flag="-",
        detail="redirect",
        source=chosen.rule.source,
    )


def _forward(
    head: RequestHead, path: str, query: str, chosen: Chosen, backend: Backend, service: NamespacedHostname
) -> Forward:
    rule = chosen.rule
    authority = head.authority
    if rule.rewrite is not None:
        if rule.rewrite.path is not None and path != "*":
            path = rewrite_path(path, chosen.match, rule.rewrite.path)
        if rule.rewrite.hostname is not None:
            authority = rule.rewrite.hostname
    headers = change_headers(change_headers(head.headers, rule.request_headers), backend.request_headers)
    if headers is not head.headers:
        headers, authority = _split_host(headers, authority)
        head = replace(head, headers=headers, hop_by_hop=True)
    if authority != head.authority:
        head = replace(head, authority=authority)
    return Forward(
        head=_with_target(head, path, query),
        service=service,
        port=backend.port,
        subset=backend.subset,
        source=rule.source,
        response_headers=tuple(
            operations for operations in (backend.response_headers, rule.response_headers) if operations
        ),
        request_timeout_s=rule.request_timeout_s,
        try_timeout_s=rule.try_timeout_s,
        retry=rule.retry if rule.retry is not None else DEFAULT_RETRY,
    )


def _split_host(headers: Headers, authority: str) -> tuple[Headers, str]:
    """Let a header operation on `host` set the authority, as VirtualService users do."""
    for name, value in headers:
        if name in ("host", ":authority"):
            authority = value
    return [(name, value) for name, value in headers if name not in ("host", ":authority")], authority


def _with_target(head: RequestHead, path: str, query: str) -> RequestHead:
    """Return the head with this target: itself where that is its own already."""
    target = f"{path}?{query}" if query or head.target.endswith("?") else path
    return head if target == head.target else replace(head, target=target)
