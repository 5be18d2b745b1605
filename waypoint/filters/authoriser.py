# SPDX-License-Identifier: Apache-2.0
"""External authorisers of CUSTOM policies, in Envoy's two protocols (`ext_authz`).

Asks and translates the answer; whether one is asked is the policy's decision. An authoriser
that does not answer closes the request, unless its provider says `failOpen`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2
from google.protobuf.message import DecodeError

from mesh.model.provider import Authoriser, AuthoriserProtocol
from waypoint.http.message import Framing, Headers, RequestHead
from waypoint.proxy.call import CallError, CallResult, Open, call

MAX_ANSWER_BYTES = 65_536
_GRPC_PATH = "/envoy.service.auth.v3.Authorization/Check"
_ALWAYS_ASKED = ("authorization",)
"""Beside host, method, path and length. Source: Envoy, `ext_authz` HTTP service."""
_ALWAYS_ANSWERED = ("www-authenticate", "location", "proxy-authenticate", "set-cookie", "content-type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an authoriser is told."""

    head: RequestHead
    """Its path is canonical."""
    source_address: str
    source_port: int
    source_principal: str
    destination_address: str
    destination_port: int
    destination_principal: str


@dataclass(slots=True, kw_only=True)
class Allowed:
    """The request may go on, changed like this."""

    set_headers: Headers = field(default_factory=list)
    remove_headers: tuple[str, ...] = ()
    response_headers: Headers = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Denied:
    """The client is answered this."""

    status: int
    headers: Headers
    body: bytes
    detail: str


async def ask(provider: Authoriser, question: Question, begin: Callable[[bool], Open]) -> Allowed | Denied:
    """Ask whether a request may go on; never raises for what the authoriser does.

    Args:
        provider: whom.
        question: what.
        begin: makes the opener of a try; told whether HTTP/2 is spoken.
    """
    grpc = provider.protocol is AuthoriserProtocol.GRPC
    head, body = _grpc_question(provider, question) if grpc else (_http_question(provider, question), b"")
    try:
        answer = await call(
            begin(grpc), head, body, timeout_s=provider.timeout_s, max_answer_bytes=MAX_ANSWER_BYTES
        )
        return _grpc_answer(answer) if grpc else _http_answer(provider, answer)
    except CallError as error:
        detail = f"authoriser {provider.name}: {error}"
        if provider.fail_open:
            return Allowed()
        return Denied(status=provider.status_on_error, headers=[], body=b"", detail=detail)


# --- gRPC


def _grpc_question(provider: Authoriser, question: Question) -> tuple[RequestHead, bytes]:
    head = question.head
    context = attribute_context_pb2.AttributeContext()
    _set_peer(context.source, question.source_address, question.source_port, question.source_principal)
    _set_peer(
        context.destination,
        question.destination_address,
        question.destination_port,
        question.destination_principal,
    )
    http = context.request.http
    http.method, http.path, http.host, http.scheme = head.method, head.target, head.authority, "http"
    http.protocol = f"HTTP/1.{head.version_minor}"
    http.size = head.length if head.framing is Framing.LENGTH else -1
    for name, value in ((":authority", head.authority), (":method", head.method), (":path", head.target)):
        http.headers[name] = value
    for name, value in head.headers:
        http.headers[name] = f"{http.headers[name]},{value}" if name in http.headers else value
        if name == "x-request-id":
            http.id = value
    message = external_auth_pb2.CheckRequest(attributes=context).SerializeToString()
    framed = struct.pack("!BI", 0, len(message)) + message
    asked = RequestHead(
        method="POST",
        target=_GRPC_PATH,
        authority=f"{provider.service.hostname}:{provider.port}",
        headers=[
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", f"{min(int(provider.timeout_s * 1000), 99_999_999)}m"),
        ],
        framing=Framing.LENGTH,
        length=len(framed),
    )
    return asked, framed


def _set_peer(
    peer: attribute_context_pb2.AttributeContext.Peer, address: str, port: int, principal: str
) -> None:
    peer.address.socket_address.address = address
    peer.address.socket_address.port_value = port
    peer.principal = principal


def _grpc_answer(answer: CallResult) -> Allowed | Denied:
    status = _find(answer.trailers, "grpc-status") or _find(answer.headers, "grpc-status")
    if answer.status != 200 or status != "0":
        words = _find(answer.trailers, "grpc-message") or _find(answer.headers, "grpc-message")
        raise CallError(f"HTTP {answer.status}, gRPC status {status or 'missing'} {words}".rstrip())
    response = external_auth_pb2.CheckResponse()
    try:
        if len(answer.body) < 5 or answer.body[0] or len(answer.body) != 5 + int.from_bytes(answer.body[1:5]):
            raise CallError("its message is framed wrongly")
        response.ParseFromString(answer.body[5:])
    except DecodeError as error:
        raise CallError(f"its message cannot be read: {error}") from error
    if response.status.code == 0:
        ok = response.ok_response
        return Allowed(
            set_headers=[(option.header.key.lower(), option.header.value) for option in ok.headers],
            remove_headers=tuple(name.lower() for name in ok.headers_to_remove),
            response_headers=[(o.header.key.lower(), o.header.value) for o in ok.response_headers_to_add],
        )
    denied = response.denied_response
    return Denied(
        status=denied.status.code or 403,
        headers=[(option.header.key.lower(), option.header.value) for option in denied.headers],
        body=denied.body.encode(),
        detail=f"it answered code {response.status.code} {response.status.message}".rstrip(),
    )


# --- HTTP


def _http_question(provider: Authoriser, question: Question) -> RequestHead:
    head = question.head
    wanted = (*_ALWAYS_ASKED, *provider.request_headers)
    headers = [(name, value) for name, value in head.headers if _matches(name, wanted)]
    headers += provider.additional_headers
    return RequestHead(
        method=head.method,
        target=f"{provider.path_prefix}{head.target}",
        authority=head.authority,
        headers=[*headers, ("content-length", "0")],
        framing=Framing.LENGTH,
        length=0,
    )


def _http_answer(provider: Authoriser, answer: CallResult) -> Allowed | Denied:
    if answer.status == 200:
        return Allowed(
            set_headers=[h for h in answer.headers if _matches(h[0], provider.upstream_headers)],
            response_headers=[h for h in answer.headers if _matches(h[0], provider.allowed_headers)],
        )
    if answer.status >= 500:
        raise CallError(f"it answered {answer.status}")
    passed = (*_ALWAYS_ANSWERED, *provider.denied_headers) if provider.denied_headers else ("*",)
    dropped = ("content-length", "transfer-encoding", "connection", "keep-alive", "date", "server")
    return Denied(
        status=answer.status,
        headers=[(n, v) for n, v in answer.headers if n not in dropped and _matches(n, passed)],
        body=answer.body,
        detail=f"it answered {answer.status}",
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns
    )


def _find(headers: Headers, name: str) -> str:
    return next((value for key, value in headers if key == name), "")
