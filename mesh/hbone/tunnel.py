# SPDX-License-Identifier: Apache-2.0
"""Tunnels as ends of a relay: one CONNECT stream, seen from the client or from the server.

Bytes of the peer go straight on; credit goes back to it as the other end has room. What
arrives before `start` is held: at most the stream's first window. Loop thread only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.hbone.frames import ErrorCode, TunnelError
from mesh.hbone.hpack import Header
from mesh.hbone.stream import Stream
from mesh.net.relay import End, RelayOwner
from mesh.telemetry.reasons import Reason

if TYPE_CHECKING:
    from mesh.hbone.driver import HboneConnection

REASON_HEADER = b"ambit-reason"
"""Response header of a refusal: our reason code, so that the client's log names the cause."""
_REFUSALS = {
    401: Reason.TUNNEL_UNAUTHORIZED,
    403: Reason.TUNNEL_UNAUTHORIZED,
    503: Reason.TUNNEL_UPSTREAM_FAILED,
}
# RFC 9113 §8.5: a TCP error on the far side is CONNECT_ERROR.
_RESET_CODES = {
    Reason.PEER_RESET: ErrorCode.CONNECT_ERROR,
    Reason.IO_ERROR: ErrorCode.CONNECT_ERROR,
    Reason.INTERNAL_ERROR: ErrorCode.INTERNAL_ERROR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The peer's answer to a tunnel request."""

    status: int
    headers: tuple[Header, ...]

    @property
    def reason(self) -> Reason | None:
        """Why the tunnel was refused; None when it is open."""
        if 200 <= self.status < 300:
            return None
        return _REFUSALS.get(self.status, Reason.TUNNEL_REFUSED)

    def get(self, name: bytes) -> bytes:
        """Return the first value of a header, empty when it is missing."""
        return next((value for key, value in self.headers if key == name), b"")


class Tunnel:
    """What both sides have in common: `mesh.net.relay.CountedEnd` over one stream."""

    __slots__ = (
        "_connection",
        "_deaf",
        "_held",
        "_held_end",
        "_owner",
        "_peer",
        "_reason",
        "_source_paused",
        "_stream",
        "delivered",
    )

    def __init__(self, connection: HboneConnection) -> None:
        self._connection = connection
        self._stream: Stream | None = None
        self._peer: End | None = None
        self._owner: RelayOwner | None = None
        self._held: list[bytes] = []
        self._held_end = False
        self._reason: Reason | None = None
        self._source_paused = False
        self._deaf = False
        self.delivered = 0

    @property
    def connection(self) -> HboneConnection:
        """The HBONE connection that carries this tunnel."""
        return self._connection

    @property
    def closed(self) -> bool:
        """Whether the tunnel is gone."""
        return self._reason is not None

    @property
    def reason(self) -> Reason | None:
        """Why the tunnel is gone; None while it lives."""
        return self._reason

    @property
    def stream_id(self) -> int:
        """The stream's number on its connection."""
        return self._stream.id if self._stream is not None else 0

    def bind(self, stream: Stream) -> None:
        """Take the stream; by the connection, once."""
        self._stream = stream

    # --- StreamEvents

    def on_response(self, status: int, headers: Sequence[Header]) -> None:
        """Ignore: only clients get responses."""

    def on_data(self, data: bytes) -> None:
        """Push bytes into the peer, or hold them until there is one."""
        peer = self._peer
        if peer is None:
            self._held.append(data)
            return
        self.delivered += len(data)
        peer.write(data)

    def on_end(self) -> None:
        """Pass the half-close on."""
        if self._peer is None:
            self._held_end = True
        else:
            self._peer.write_eof()

    def on_closed(self) -> None:
        """Both directions are finished."""
        self._finish(Reason.COMPLETE)

    def on_reset(self, code: ErrorCode, *, by_peer: bool) -> None:
        """Break the peer off, unless the stream was complete in the other direction."""
        if by_peer and code is ErrorCode.NO_ERROR and self._stream is not None and self._stream.received_end:
            # RFC 9113 §8.1: all was sent and no more is wanted. A RST now could destroy
            # bytes that the application has still to read; see `write`.
            self._deaf = True
            return
        self._finish(_reset_reason(code, by_peer=by_peer))

    def on_drained(self) -> None:
        """Let the source go on."""
        if self._source_paused and not self._connection.full:
            self.release_source()

    # --- End

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Let bytes flow to `peer`; held bytes and a held end go first."""
        self._peer = peer
        self._owner = owner
        held, self._held = self._held, []
        for data in held:
            self.delivered += len(data)
            peer.write(data)
        if self._held_end:
            peer.write_eof()
        if self._reason is not None:
            self._report()
        elif not self._deaf:
            self.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes of the peer; ask it to pause when too many wait."""
        stream = self._stream
        if self._reason is not None or stream is None:
            return
        if self._deaf:
            # As TCP does when data reaches a socket that is closed.
            self._finish(Reason.PEER_CLOSED)
            return
        connection = self._connection
        connection.codec.send(stream, data)
        connection.wake()
        if stream.queued_bytes > connection.limits.send_queue_bytes or connection.full:
            self._hold_source()

    def write_eof(self) -> None:
        """Half-close the tunnel after what was written."""
        if self._reason is not None or self._stream is None:
            return
        if self._deaf:
            self._finish(Reason.COMPLETE)
            return
        self._connection.codec.send_end(self._stream)
        self._connection.wake()

    def abort(self, reason: Reason) -> None:
        """Reset the tunnel."""
        if self._reason is not None:
            return
        if self._stream is not None:
            self._connection.codec.reset(self._stream, _RESET_CODES.get(reason, ErrorCode.CANCEL))
            self._connection.wake()
        self._finish(reason)

    def pause_reading(self) -> None:
        """The peer is full: return no credit."""
        if self._stream is not None:
            self._connection.codec.pause(self._stream)

    def resume_reading(self) -> None:
        """The peer has room: return credit."""
        if self._stream is not None and self._reason is None:
            self._connection.codec.resume(self._stream)
            self._connection.wake()

    # --- Inside the package

    def lost(self, reason: Reason) -> None:
        """The connection is gone."""
        if self._reason is None:
            self._finish(reason)

    def _hold_source(self) -> None:
        if not self._source_paused and self._peer is not None:
            self._source_paused = True
            self._connection.paused.add(self)
            self._peer.pause_reading()

    def release_source(self) -> None:
        """Let the source go on if what waits is little."""
        if (
            self._stream is not None
            and self._stream.queued_bytes * 2 > self._connection.limits.send_queue_bytes
        ):
            return
        self._source_paused = False
        self._connection.paused.discard(self)
        if self._peer is not None:
            self._peer.resume_reading()

    def _finish(self, reason: Reason) -> None:
        self._reason = reason
        self._connection.forget(self)
        if self._owner is not None:
            self._report()

    def _report(self) -> None:
        assert self._peer is not None
        assert self._owner is not None
        assert self._reason is not None
        if self._reason is not Reason.COMPLETE:
            self._peer.abort(self._reason)
        self._owner.end_closed(self, self._reason)


class ClientTunnel(Tunnel):
    """A tunnel that this side asked for."""

    __slots__ = ("opened",)

    def __init__(self, connection: HboneConnection) -> None:
        super().__init__(connection)
        self.opened: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        """The answer, whatever its status; TunnelError when the tunnel ended without one.

        A caller that stops waiting calls `abort`.
        """

    def on_response(self, status: int, headers: Sequence[Header]) -> None:
        """Hand the answer over; a refusal ends the tunnel."""
        response = Response(status=status, headers=tuple(headers))
        if not self.opened.done():
            self.opened.set_result(response)
        if (reason := response.reason) is not None:
            self.abort(reason)

    def on_reset(self, code: ErrorCode, *, by_peer: bool) -> None:
        """Fail the request when it had no answer yet."""
        if not self.opened.done():
            reason = _reset_reason(code, by_peer=by_peer)
            self._fail(reason, f"{code.name} before the answer", retryable=code is ErrorCode.REFUSED_STREAM)
        super().on_reset(code, by_peer=by_peer)

    def _finish(self, reason: Reason) -> None:
        if not self.opened.done():
            self._fail(reason, "before the answer", retryable=False)
        super()._finish(reason)

    def _fail(self, reason: Reason, detail: str, *, retryable: bool) -> None:
        self.opened.set_exception(TunnelError(reason, detail, retryable=retryable))
        # A caller that gave up does not look any more; that is no error of the loop's.
        self.opened.exception()


class ServerTunnel(Tunnel):
    """A tunnel that the peer asked for; ends with the request unless `accept` was called."""

    __slots__ = ("authority", "headers")

    def __init__(self, connection: HboneConnection, authority: str, headers: tuple[Header, ...]) -> None:
        super().__init__(connection)
        self.authority = authority
        """`:authority` as the peer sent it, to be parsed by the caller."""
        self.headers = headers

    def accept(self, headers: Sequence[Header] = ()) -> None:
        """Answer 200; bytes may flow. No effect on a tunnel that is gone."""
        if self._reason is None and self._stream is not None:
            self._connection.codec.respond(self._stream, 200, headers)
            self._connection.wake()

    def refuse(self, status: int, reason: Reason) -> None:
        """Answer `status` and end the tunnel. No effect on a tunnel that is gone."""
        if self._reason is None and self._stream is not None:
            header = (REASON_HEADER, reason.value.encode())
            self._connection.codec.respond(self._stream, status, [header], end=True)
            self._connection.wake()
            self._finish(reason)

    def get(self, name: bytes) -> bytes:
        """Return the first value of a request header, empty when it is missing."""
        return next((value for key, value in self.headers if key == name), b"")


def _reset_reason(code: ErrorCode, *, by_peer: bool) -> Reason:
    if not by_peer:
        return (
            Reason.H2_FLOW_CONTROL_ERROR if code is ErrorCode.FLOW_CONTROL_ERROR else Reason.H2_PROTOCOL_ERROR
        )
    if code is ErrorCode.CONNECT_ERROR:
        return Reason.PEER_RESET
    return Reason.TUNNEL_REFUSED if code is ErrorCode.REFUSED_STREAM else Reason.TUNNEL_RESET
