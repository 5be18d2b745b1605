# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 framing, strict and bounded, in both directions, without I/O.

One form of each construct is read: CRLF line ends, one Host, one length, no folded
fields, no space before a colon, no length beside chunked coding. Anything else is a
`BadMessageError`: two readers that disagree on a message are how requests are
smuggled (RFC 9112 §11.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from waypoint.http.message import (
    HOP_BY_HOP,
    BadMessageError,
    Event,
    Framing,
    Headers,
    MessageEnd,
    RequestHead,
    ResponseHead,
)

_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}) ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\x09\x20-\x7e\x80-\xff]*))?")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x09\x20-\x7e\x80-\xff]*)")
_AUTHORITY = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._~%!$&'()*+,;=-]*)(?::[0-9]{1,5})?")
_DIGITS = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\x09\x20-\x7e\x80-\xff]*)?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LINE_LIMIT = 512
"""Longest chunk-size line, extensions included, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one message may ask of us."""

    head_bytes: int = 65_536
    """Request or status line with all fields; beyond it 431."""
    fields: int = 100
    """Fields of a head or trailer section; beyond it 431."""
    target_bytes: int = 16_384
    """Request target; beyond it 414."""


class MessageReader:
    """Turns a byte stream into messages, one after the other.

    `feed` takes any chunking. After an end event the reader waits for `next_message`,
    so bytes of a pipelined or upgraded continuation stay in `take_rest`. Raises
    BadMessageError (remote fault; the connection cannot be used further).
    """

    def __init__(self, *, requests: bool, limits: Limits | None = None) -> None:
        self._requests = requests
        self._limits = limits or Limits()
        self._buffer = bytearray()
        self._left = 0
        self._state = _HEAD
        self._head_method = ""

    def feed(self, data: bytes) -> None:
        """Append bytes of the peer."""
        self._buffer += data

    @property
    def pending(self) -> bool:
        """Whether bytes wait that no event has carried yet."""
        return bool(self._buffer)

    @property
    def idle(self) -> bool:
        """Whether a message may begin and none has."""
        return self._state is _HEAD and not self._buffer

    def next_message(self, request_method: str = "") -> None:
        """Begin the next message; a response needs the method that it answers."""
        self._state = _HEAD
        self._head_method = request_method

    def take_rest(self) -> bytes:
        """Return and forget unread bytes (after an upgrade)."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def eof(self) -> Event | None:
        """The peer closed: return the end of a body that runs until close, else None.

        Raises:
            BadMessageError: a message was cut off.
        """
        if self._state is _UNTIL_CLOSE:
            self._state = _DONE
            return MessageEnd()
        if self._state is _DONE or self.idle:
            return None
        raise BadMessageError("connection closed inside a message")

    def events(self) -> Iterator[Event]:
        """Yield what the bytes so far amount to; stops where more are needed."""
        while self._state is not _DONE:
            event = self._step()
            if event is None:
                return
            yield event

    def _step(self) -> Event | None:
        if self._state is _HEAD:
            return self._read_head()
        if self._state is _END:
            self._state = _DONE
            return MessageEnd()
        if self._state is _BODY:
            return self._read_body(_END)
        if self._state is _CHUNK_BODY:
            return self._read_body(_CHUNK_END)
        if self._state is _UNTIL_CLOSE:
            return self.take_rest() if self._buffer else None
        return self._read_chunk_framing()

    def _read_head(self) -> Event | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > self._limits.head_bytes:
                raise BadMessageError(f"head over {self._limits.head_bytes} bytes", 431)
            self._check_early_garbage()
            return None
        if end > self._limits.head_bytes:
            raise BadMessageError(f"head over {self._limits.head_bytes} bytes", 431)
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        head: RequestHead | ResponseHead
        if self._requests:
            head = _parse_request(lines, self._limits)
        else:
            head = _parse_response(lines, self._limits, self._head_method)
        self._enter_body(head)
        return head

    def _check_early_garbage(self) -> None:
        """Refuse at once what no later byte can make a head of, such as TLS or HTTP/2."""
        if self._buffer and not 0x20 < self._buffer[0] < 0x7F:
            raise BadMessageError("not an HTTP/1.1 message")
        if _BARE_LF.search(self._buffer) is not None:
            raise BadMessageError("line not ended by CRLF")

    def _enter_body(self, head: RequestHead | ResponseHead) -> None:
        if isinstance(head, ResponseHead) and head.interim:
            return
        if head.framing is Framing.CHUNKED:
            self._state = _CHUNK_SIZE_LINE
        elif head.framing is Framing.CLOSE:
            self._state = _UNTIL_CLOSE
        elif head.framing is Framing.LENGTH and head.length:
            self._left = head.length
            self._state = _BODY
        else:
            self._state = _END

    def _read_body(self, after: str) -> bytes | None:
        if not self._buffer:
            return None
        piece = bytes(self._buffer[: self._left])
        del self._buffer[: self._left]
        self._left -= len(piece)
        if not self._left:
            self._state = after
        return piece

    def _read_chunk_framing(self) -> Event | None:
        while True:
            if self._state is _TRAILERS:
                return self._read_trailers()
            if self._state is _CHUNK_END:
                if len(self._buffer) < 2:
                    return None
                if self._buffer[:2] != b"\r\n":
                    raise BadMessageError("chunk not ended by CRLF")
                del self._buffer[:2]
                self._state = _CHUNK_SIZE_LINE
            line = self._take_line()
            if line is None:
                return None
            match = _CHUNK_SIZE.fullmatch(line)
            if match is None:
                raise BadMessageError("invalid chunk size")
            self._left = int(match[1], 16)
            if self._left:
                self._state = _CHUNK_BODY
                return self._read_body(_CHUNK_END)
            self._state = _TRAILERS

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(b"\r\n", 0, _LINE_LIMIT)
        if end < 0:
            if len(self._buffer) >= _LINE_LIMIT:
                raise BadMessageError(f"chunk line over {_LINE_LIMIT} bytes")
            if b"\n" in self._buffer:
                raise BadMessageError("line not ended by CRLF")
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return line

    def _read_trailers(self) -> Event | None:
        if self._buffer[:2] == b"\r\n":
            del self._buffer[:2]
            self._state = _DONE
            return MessageEnd()
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > self._limits.head_bytes:
                raise BadMessageError(f"trailers over {self._limits.head_bytes} bytes", 431)
            return None
        trailers, special = _parse_fields(bytes(self._buffer[:end]).split(b"\r\n"), self._limits)
        del self._buffer[: end + 4]
        for name, _ in (*trailers, *special):
            if name in _FORBIDDEN_TRAILERS:
                raise BadMessageError(f"field {name} is not allowed in trailers")
        self._state = _DONE
        return MessageEnd(trailers=trailers)


_HEAD, _BODY, _CHUNK_SIZE_LINE, _CHUNK_BODY, _CHUNK_END, _TRAILERS, _UNTIL_CLOSE, _END, _DONE = (
    "head",
    "body",
    "chunk size",
    "chunk body",
    "chunk end",
    "trailers",
    "until close",
    "end",
    "done",
)
_FORBIDDEN_TRAILERS = frozenset(
    {"content-length", "transfer-encoding", "host", "connection", "authorization"}
)


_SPECIAL = frozenset({"host", "content-length", "expect", *HOP_BY_HOP})
"""Fields that this protocol itself reads."""
_CACHED_LINES = 4096
_CACHED_BYTES = 128
_Field = tuple[tuple[str, str], bool]
_fields: dict[bytes, _Field] = {}
"""Lines that came before: most fields of a client are the same in every request."""


def _parse_fields(lines: list[bytes], limits: Limits) -> tuple[Headers, Headers]:
    """Return all fields but Host, and those that this protocol reads."""
    if len(lines) > limits.fields:
        raise BadMessageError(f"more than {limits.fields} fields", 431)
    headers: Headers = []
    special: Headers = []
    known = _fields
    for line in lines:
        found = known.get(line)
        if found is None:
            found = _parse_field(line)
        field, is_special = found
        if is_special:
            special.append(field)
            if field[0] == "host":
                continue
        headers.append(field)
    return headers, special


def _parse_field(line: bytes) -> _Field:
    match = _FIELD.fullmatch(line)
    if match is None:
        raise BadMessageError("invalid header field")
    name = match[1].decode("ascii").lower()
    found = ((name, match[2].decode("latin-1").rstrip(" \t")), name in _SPECIAL)
    if len(line) <= _CACHED_BYTES:
        if len(_fields) >= _CACHED_LINES:
            _fields.clear()
        _fields[line] = found
    return found


_request_lines: dict[bytes, tuple[str, str, int]] = {}
_authorities: set[str] = set()


def _parse_request_line(line: bytes) -> tuple[str, str, int]:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise BadMessageError("invalid request line")
    found = match[1].decode("ascii"), match[2].decode("ascii"), int(match[3])
    if len(line) <= _CACHED_BYTES:
        if len(_request_lines) >= _CACHED_LINES:
            _request_lines.clear()
        _request_lines[line] = found
    return found


def _check_authority(authority: str) -> None:
    if _AUTHORITY.fullmatch(authority) is None:
        raise BadMessageError("invalid Host")
    if len(authority) <= _CACHED_BYTES:
        if len(_authorities) >= _CACHED_LINES:
            _authorities.clear()
        _authorities.add(authority)


class _Control:
    """What the fields that this protocol reads say of one message."""

    __slots__ = ("codings", "expect", "hops", "hosts", "lengths", "tokens", "upgrades")

    def __init__(self, special: Headers) -> None:
        self.hosts: list[str] = []
        self.lengths: list[str] = []
        self.codings: list[str] = []
        self.upgrades: list[str] = []
        self.tokens: list[str] = []
        self.expect = False
        self.hops = False
        for name, value in special:
            if name == "host":
                self.hosts.append(value)
            elif name == "content-length":
                self.lengths.append(value)
            elif name == "expect":
                self.expect = self.expect or value.lower() == "100-continue"
            else:
                self.hops = True
                if name == "transfer-encoding":
                    self.codings.append(value)
                elif name == "upgrade":
                    self.upgrades.append(value.lower())
                elif name == "connection":
                    self.tokens += [token.strip().lower() for token in value.split(",")]

    def keep_alive(self, minor: int) -> bool:
        """Whether the connection goes on after the message (RFC 9112 §9.3)."""
        return "close" not in self.tokens if minor else "keep-alive" in self.tokens

    def framing(self, minor: int) -> tuple[Framing | None, int]:
        """How the body ends, and its length (RFC 9112 §6.3)."""
        if self.codings:
            if self.lengths:
                raise BadMessageError("both Content-Length and Transfer-Encoding")
            if not minor:
                raise BadMessageError("Transfer-Encoding in HTTP/1.0")
            if len(self.codings) > 1 or self.codings[0].lower() != "chunked":
                raise BadMessageError("unsupported transfer coding", 501)
            return Framing.CHUNKED, 0
        if not self.lengths:
            return None, 0
        if len(self.lengths) > 1 or _DIGITS.fullmatch(self.lengths[0]) is None:
            raise BadMessageError("invalid Content-Length")
        return Framing.LENGTH, int(self.lengths[0])


def _parse_request(lines: list[bytes], limits: Limits) -> RequestHead:
    method, target, minor = _request_lines.get(lines[0]) or _parse_request_line(lines[0])
    if len(target) > limits.target_bytes:
        raise BadMessageError(f"target over {limits.target_bytes} bytes", 414)
    headers, special = _parse_fields(lines[1:], limits)
    control = _Control(special)
    hosts = control.hosts
    if len(hosts) > 1 or (minor and not hosts):
        raise BadMessageError("exactly one Host field is needed")
    authority = hosts[0] if hosts else ""
    if authority not in _authorities:
        _check_authority(authority)
    framing, length = control.framing(minor)
    upgrade = ""
    if minor and "upgrade" in control.tokens and len(control.upgrades) == 1:
        upgrade = control.upgrades[0]
    return RequestHead(
        method=method,
        target=target if target[0] == "/" and "#" not in target else _origin_form(method, target, authority),
        authority=authority,
        headers=headers,
        framing=framing or Framing.NONE,
        length=length,
        keep_alive=control.keep_alive(minor),
        upgrade=upgrade,
        expects_continue=control.expect,
        version_minor=minor,
        hop_by_hop=control.hops,
    )


def _origin_form(method: str, target: str, authority: str) -> str:
    if "#" in target:
        raise BadMessageError("fragment in request target")
    if method == "CONNECT" or (target == "*" and method == "OPTIONS") or target.startswith("/"):
        return target
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise BadMessageError("invalid request target")
    cut = len(rest) if (cut := _first_of(rest, "/?")) < 0 else cut
    if rest[:cut].lower() != authority.lower():
        raise BadMessageError("authority of the request target differs from Host")
    path = rest[cut:]
    return path if path.startswith("/") else "/" + path


def _first_of(text: str, characters: str) -> int:
    return min((index for c in characters if (index := text.find(c)) >= 0), default=-1)


def _parse_response(lines: list[bytes], limits: Limits, request_method: str) -> ResponseHead:
    match = _STATUS_LINE.fullmatch(lines[0])
    if match is None:
        raise BadMessageError("invalid status line")
    minor, status = int(match[1]), int(match[2])
    headers, special = _parse_fields(lines[1:], limits)
    control = _Control(special)
    framing, length = control.framing(minor)
    bodiless = status < 200 or status in (204, 304) or request_method == "HEAD"
    if bodiless or (request_method == "CONNECT" and status < 300):
        framing, length = Framing.NONE, 0
    return ResponseHead(
        status=status,
        reason=(match[3] or b"").decode("latin-1"),
        headers=headers,
        framing=framing or Framing.CLOSE,
        length=length,
        keep_alive=control.keep_alive(minor),
        hop_by_hop=control.hops,
    )


def format_request(method: str, target: str, authority: str, headers: Headers, *, chunked: bool) -> bytes:
    """Format a request head for HTTP/1.1; `headers` hold no Host and no hop-by-hop fields."""
    lines = [f"{method} {target} HTTP/1.1\r\nhost: {authority}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    lines.append("transfer-encoding: chunked\r\n\r\n" if chunked else "\r\n")
    return "".join(lines).encode("latin-1")


def format_response(status: int, reason: str, headers: Headers, *, chunked: bool, close: bool) -> bytes:
    """Format a response head for HTTP/1.1; `headers` hold no hop-by-hop fields."""
    lines = [f"HTTP/1.1 {status} {reason}\r\n"]
    lines += [f"{name}: {value}\r\n" for name, value in headers]
    if chunked:
        lines.append("transfer-encoding: chunked\r\n")
    if close:
        lines.append("connection: close\r\n")
    lines.append("\r\n")
    return "".join(lines).encode("latin-1")


def format_chunk(data: bytes) -> bytes:
    """Format one body piece as a chunk; empty data formats nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def format_last_chunk(trailers: Headers) -> bytes:
    """Format the end of a chunked body."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in trailers)
    return f"0\r\n{fields}\r\n".encode("latin-1")
