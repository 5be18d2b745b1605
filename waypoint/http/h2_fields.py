# SPDX-License-Identifier: Apache-2.0
"""Header blocks of HTTP/2 into heads, and heads into blocks, both through caches.

What a reader lets through is one form only: lower-case names, no field of a single
connection, one length, one authority. A block that left the HPACK table as it was
means the same until the table changes, so its result is remembered by its bytes.

Source: RFC 9113 §8.2, §8.3; RFC 7541 §7.1.3 for fields that are never indexed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from mesh.hbone.frames import ErrorCode, StreamFailedError
from mesh.hbone.hpack import Header, HpackDecoder, encode, list_bytes
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.message import BadMessageError, Framing, Headers, RequestHead, ResponseHead

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\x09\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}")
_PATH = re.compile(r"/[\x21\x22\x24-\x7e]*|\*")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]+)(?::[0-9]{1,5})?")
_DIGITS = re.compile(r"[0-9]{1,18}")
_STATUS = re.compile(r"[1-5][0-9]{2}")
_CONNECTION_SPECIFIC = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "http2-settings"}
)
_NOT_IN_TRAILERS = frozenset({"content-length", "host", "authorization"})
_REQUEST_PSEUDO = frozenset({":method", ":authority", ":scheme", ":path", ":protocol"})
_RESPONSE_PSEUDO = frozenset({":status"})
_NONE: frozenset[str] = frozenset()
_BODILESS = frozenset({204, 304})

_CACHED_FIELDS = 4096
_CACHED_BLOCKS = 256
_CACHED_BYTES = 512
"""Longer fields and blocks are not worth a place in a cache."""
_SECRET = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
"""Fields whose values are not kept longer than their message."""

T = TypeVar("T")
V = TypeVar("V")
_Request = tuple[str, str, str, Headers, int, bool, bool]
_Response = tuple[int, Headers, int, bool]

_decoded: dict[Header, tuple[str, str]] = {}
_encoded: dict[tuple[str, str], bytes] = {}


class FieldReader:
    """Decodes the header blocks that one peer sends, in order."""

    __slots__ = ("_filling", "_hpack", "_limits", "_requests", "_responses", "_trailers", "_version")

    def __init__(self, limits: Http2Limits) -> None:
        self._limits = limits
        self._hpack = HpackDecoder(limits.header_table_bytes)
        self._version = 0
        self._requests: dict[bytes, _Request] = {}
        self._responses: dict[bytes, _Response] = {}
        self._trailers: dict[bytes, Headers] = {}
        self._filling: dict[bytes, tuple[_Response, list[Header], int]] = {}
        """Blocks that do not depend on the table and add to it: result, additions, their size."""

    def request(self, block: bytes, *, end: bool) -> RequestHead:
        """Decode a request's head; `end`: no body follows.

        Raises:
            HpackError: the connection's state is lost (peer).
            StreamFailedError: malformed (peer).
            BadMessageError: over a limit, with the status that says so (peer).
        """
        method, target, authority, headers, length, expects, hop = self._requests.get(block) or self._read(
            block, self._requests, self._parse_request
        )
        if end:
            if length > 0:
                raise _malformed(f"content-length {length} without a body")
            framing = Framing.NONE
        else:
            framing = Framing.CHUNKED if length < 0 else Framing.LENGTH
        return RequestHead(
            method=method,
            target=target,
            authority=authority,
            headers=headers.copy(),
            framing=framing,
            length=max(length, 0),
            expects_continue=expects,
            hop_by_hop=hop,
        )

    def response(self, block: bytes, method: str, *, end: bool) -> ResponseHead:
        """Decode the head of a response to a request by `method`. Raises as `request`."""
        status, headers, length, hop = self._responses.get(block) or self._read_response(block)
        if status < 200:
            if end:
                raise _malformed(f"interim response {status} that ends the stream")
            framing = Framing.NONE
        elif method == "HEAD" or status in _BODILESS:
            framing, length = Framing.NONE, 0
        elif length < 0:
            framing = Framing.CHUNKED
        elif end and length:
            raise _malformed(f"content-length {length} without a body")
        else:
            framing = Framing.LENGTH
        return ResponseHead(
            status=status,
            reason="",
            headers=headers.copy(),
            framing=framing,
            length=max(length, 0),
            hop_by_hop=hop,
        )

    def trailers(self, block: bytes) -> Headers:
        """Decode a trailer section. Raises as `request`."""
        found = self._trailers.get(block)
        return (self._read(block, self._trailers, _parse_trailers) if found is None else found).copy()

    def skip(self, block: bytes) -> None:
        """Decode a block of a stream that is gone, for the table's sake.

        Raises:
            HpackError: the connection's state is lost (peer).
        """
        self._decode(block)

    def _decode(self, block: bytes) -> list[Header] | None:
        hpack = self._hpack
        headers = hpack.decode(block, self._limits.max_header_list_bytes)
        if hpack.version != self._version:
            self._table_changed()
        return headers

    def _table_changed(self) -> None:
        """Forget what blocks meant: the same bytes may mean something else from now on."""
        self._version = self._hpack.version
        self._requests.clear()
        self._responses.clear()
        self._trailers.clear()

    def _read(self, block: bytes, cache: dict[bytes, T], parse: Callable[[list[Header]], T]) -> T:
        before = self._version
        headers = self._decode(block)
        if headers is None:
            limit = self._limits.max_header_list_bytes
            raise BadMessageError(f"header list over {limit} bytes", 431)
        if len(headers) > self._limits.max_fields:
            raise BadMessageError(f"more than {self._limits.max_fields} fields", 431)
        parsed = parse(headers)
        if self._version == before and len(block) <= _CACHED_BYTES and len(cache) < _CACHED_BLOCKS:
            cache[block] = parsed
        return parsed

    def _read_response(self, block: bytes) -> _Response:
        """Read a block that is not remembered, or one that fills the table anew each time, as nginx's do."""
        known = self._filling.get(block)
        if known is not None:
            parsed, added, size = known
            self._hpack.repeat(added, size)
            self._table_changed()
            return parsed
        parsed = self._read(block, self._responses, _parse_response)
        hpack = self._hpack
        if hpack.added and not hpack.depends and len(block) <= _CACHED_BYTES:
            if len(self._filling) >= _CACHED_BLOCKS:
                self._filling.clear()
            self._filling[block] = parsed, hpack.added, list_bytes(hpack.added)
        return parsed

    def _parse_request(self, headers: list[Header]) -> _Request:
        pseudo, regular, special = _split(headers, _REQUEST_PSEUDO)
        method = pseudo.get(":method", "")
        if not _METHOD.fullmatch(method):
            raise _malformed(f":method {method!r}")
        authority = _authority(pseudo.get(":authority"), special.get("host"))
        if method == "CONNECT":
            raise BadMessageError("CONNECT is not served here", 501)
        path = pseudo.get(":path", "")
        if ":protocol" in pseudo or pseudo.get(":scheme") not in ("http", "https"):
            raise _malformed(f":scheme {pseudo.get(':scheme')!r}")
        if not _PATH.fullmatch(path) or (path == "*" and method != "OPTIONS"):
            raise _malformed(f":path {path[:64]!r}")
        if len(path) > self._limits.max_target_bytes:
            raise BadMessageError(f"target over {self._limits.max_target_bytes} bytes", 414)
        if "cookie" in special:
            regular = _join_cookies(regular)
        if "host" in special:
            regular = [field for field in regular if field[0] != "host"]
        expects = special.get("expect", [""])[0].lower() == "100-continue"
        return method, path, authority, regular, _length(special), expects, _has_hop_by_hop(special)


def _parse_response(headers: list[Header]) -> _Response:
    pseudo, regular, special = _split(headers, _RESPONSE_PSEUDO)
    status = pseudo.get(":status", "")
    if not _STATUS.fullmatch(status) or status == "101":
        raise _malformed(f":status {status!r}")
    return int(status), regular, _length(special), _has_hop_by_hop(special)


def _parse_trailers(headers: list[Header]) -> Headers:
    _, regular, special = _split(headers, _NONE)
    for name in special:
        if name in _NOT_IN_TRAILERS:
            raise _malformed(f"{name} in trailers")
    return regular


_SPECIAL = frozenset({"host", "cookie", "content-length", "expect", "authorization", "te", "trailer"})


def _split(
    headers: list[Header], allowed: frozenset[str]
) -> tuple[dict[str, str], Headers, dict[str, list[str]]]:
    """Return pseudo-header fields, regular fields in order, and of these the values that need a look."""
    pseudo: dict[str, str] = {}
    regular: Headers = []
    special: dict[str, list[str]] = {}
    for header in headers:
        field = _decoded.get(header) or _check(header)
        name = field[0]
        if name[0] == ":":
            if regular or name not in allowed or name in pseudo:
                raise _malformed(f"unexpected {name}")
            pseudo[name] = field[1]
            continue
        regular.append(field)
        if name in _SPECIAL:
            special.setdefault(name, []).append(field[1])
    return pseudo, regular, special


def _check(header: Header) -> tuple[str, str]:
    """Check one field by itself."""
    name, value = header
    if not _NAME.fullmatch(name):
        raise _malformed(f"name {name[:64]!r}")
    field = (name.decode("ascii"), value.decode("latin-1"))
    if not _VALUE.fullmatch(value):
        raise _malformed(f"value of {field[0]}")
    if field[0] in _CONNECTION_SPECIFIC or (field[0] == "te" and field[1] != "trailers"):
        raise _malformed(f"connection-specific field {field[0]}")
    _remember(_decoded, header, field, field[0], len(name) + len(value))
    return field


def _remember(cache: dict[T, V], key: T, value: V, name: str, size: int) -> None:
    if size <= _CACHED_BYTES and name not in _SECRET:
        if len(cache) >= _CACHED_FIELDS:
            cache.clear()
        cache[key] = value


def _authority(pseudo: str | None, hosts: list[str] | None) -> str:
    """Return the one authority; Host may repeat `:authority`, not contradict it (RFC 9113 §8.3.1)."""
    named = {value.lower() for value in hosts or ()}
    if pseudo is not None:
        named.add(pseudo.lower())
    if len(named) != 1:
        raise _malformed("no authority" if not named else ":authority and host differ")
    authority = pseudo if pseudo is not None else (hosts or [""])[0]
    if not _AUTHORITY.fullmatch(authority):
        raise _malformed(f"authority {authority[:64]!r}")
    return authority


def _length(special: dict[str, list[str]]) -> int:
    values = special.get("content-length")
    if values is None:
        return -1
    if len(values) > 1 or not _DIGITS.fullmatch(values[0]):
        raise _malformed("content-length")
    return int(values[0])


def _has_hop_by_hop(special: dict[str, list[str]]) -> bool:
    """Whether fields are there that HTTP/2 allows and that are for one connection only."""
    return "te" in special or "trailer" in special


def _join_cookies(headers: Headers) -> Headers:
    """Join what a client split for compression's sake: applications expect one field (RFC 9113 §8.2.3)."""
    crumbs = [value for name, value in headers if name == "cookie"]
    if len(crumbs) == 1:
        return headers
    return [*(field for field in headers if field[0] != "cookie"), ("cookie", "; ".join(crumbs))]


def _malformed(what: str) -> StreamFailedError:
    return StreamFailedError(ErrorCode.PROTOCOL_ERROR, f"malformed header list: {what}")


# --- Writing


def encode_request(head: RequestHead) -> bytes:
    """Encode a request's head; fields for one connection only are left out, `te: trailers` stays."""
    return encode_fields(
        [
            (":method", head.method),
            (":scheme", "http"),
            (":authority", head.authority),
            (":path", head.target),
        ]
    ) + encode_fields(head.headers)


def encode_response(head: ResponseHead) -> bytes:
    """Encode a response's head, interim ones included; fields for one connection only are left out."""
    return _field((":status", str(head.status))) + encode_fields(head.headers)


def encode_fields(headers: Headers) -> bytes:
    """Encode fields in order.

    Nothing enters the peer's dynamic table, so one request's fields never show in another's
    length; and all literals are marked never to be indexed, as the mark of those that came
    with it has to stay (RFC 7541 §6.2.3) and says nothing of the others that would be wrong.
    """
    try:
        return b"".join(map(_encoded.__getitem__, headers))
    except KeyError:
        dropped = _named_by_connection(headers)
        return b"".join([_field(field) for field in headers if field[0] not in dropped])


def _named_by_connection(headers: Headers) -> frozenset[str]:
    values = [value for name, value in headers if name == "connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(",")) - {"te"}


def _field(field: tuple[str, str]) -> bytes:
    found = _encoded.get(field)
    if found is not None:
        return found
    name, value = field[0].lower(), field[1]
    if name == "te":
        value = "trailers" if "trailers" in {token.strip().lower() for token in value.split(",")} else ""
    if name in _CONNECTION_SPECIFIC or (name == "te" and not value):
        block = b""
    else:
        block = encode([(name.encode("ascii"), value.strip(" \t").encode("latin-1"))])
        if block[0] < 0x10:
            block = bytes([block[0] | 0x10]) + block[1:]
    if name != "connection":
        # The other fields that it names depend on its value: a list with it is never taken as known.
        _remember(_encoded, field, block, name, len(block))
    return block
