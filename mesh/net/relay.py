# SPDX-License-Identifier: Apache-2.0
"""The byte loop: two ends that push into each other, callback to callback.

An `End` is one side of a pair: a TCP socket (`TcpEnd`), a tunnel, a waypoint's parser.
Nothing here decides anything: who may talk to whom was settled before `join`. No
object, log line or lookup per chunk. Loop thread only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from mesh.telemetry.reasons import Reason

HELD_BYTES = 64 * 1024
"""What a socket may deliver before `start`; then it is read no further."""
WRITE_BUFFER_BYTES = 256 * 1024
"""Unsent bytes of a socket above which its peer is no longer read; a quarter of it: read again."""
_LINGER_RST = struct.pack("ii", 1, 0)


class RelayOwner(Protocol):
    """Learns when an end is gone for good."""

    def end_closed(self, end: End, reason: Reason) -> None:
        """Take note that `end` is closed both ways; called exactly once per started end."""
        ...


class End(Protocol):
    """One side of a pair.

    An end that fails calls `abort` of its peer itself, then tells its owner. An end that
    finished both ways (`Reason.COMPLETE`) only tells its owner.
    """

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Let bytes flow to `peer`; what arrived before is delivered first. Once."""
        ...

    def write(self, data: bytes) -> None:
        """Take bytes of the peer; never blocks, asks for a pause through `peer.pause_reading`."""
        ...

    def write_eof(self) -> None:
        """The peer sends no more: half-close this end. The other direction goes on."""
        ...

    def abort(self, reason: Reason) -> None:
        """Break off visibly: RST on a socket, RST_STREAM on a tunnel. Idempotent."""
        ...

    def pause_reading(self) -> None:
        """The peer is full: stop pushing soon."""
        ...

    def resume_reading(self) -> None:
        """The peer has room again."""
        ...


class CountedEnd(End, Protocol):
    """An end that counts what it pushed."""

    @property
    def delivered(self) -> int:
        """Bytes pushed into the peer so far."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayResult:
    """How a pair ended."""

    reason: Reason
    sent: int
    """Bytes from left to right."""
    received: int
    """Bytes from right to left."""


class Relay:
    """A joined pair; reports once, when both ends are closed."""

    __slots__ = ("_left", "_on_done", "_open", "_reason", "_right", "_started")

    def __init__(self, left: CountedEnd, right: CountedEnd, on_done: Callable[[RelayResult], None]) -> None:
        self._left = left
        self._right = right
        self._on_done = on_done
        self._open = 2
        self._reason = Reason.COMPLETE
        self._started = False

    @property
    def sent(self) -> int:
        """Bytes from left to right until now."""
        return self._left.delivered

    @property
    def received(self) -> int:
        """Bytes from right to left until now."""
        return self._right.delivered

    @property
    def done(self) -> bool:
        """Whether both ends are closed."""
        return self._open == 0

    def start(self) -> None:
        """Let bytes flow both ways; what either end held back goes first."""
        self._left.start(self._right, self)
        self._right.start(self._left, self)
        self._started = True

    def close(self, reason: Reason) -> None:
        """Break both ends off, for `reason`; a pair that is done stays as it is."""
        if self._open:
            self._note(reason)
            self._left.abort(reason)
            self._right.abort(reason)

    def end_closed(self, end: End, reason: Reason) -> None:
        """Count an end out; the second one ends the pair."""
        self._note(reason)
        self._open -= 1
        if self._open:
            return
        if self._started:
            self._report()
        else:
            # Both were gone before they met: the caller of `join` gets its relay first.
            asyncio.get_running_loop().call_soon(self._report)

    def _report(self) -> None:
        self._on_done(RelayResult(reason=self._reason, sent=self.sent, received=self.received))

    def _note(self, reason: Reason) -> None:
        # The first cause counts: what follows on the other end is its echo.
        if self._reason is Reason.COMPLETE:
            self._reason = reason


def join(left: CountedEnd, right: CountedEnd, on_done: Callable[[RelayResult], None]) -> Relay:
    """Start relaying between two ends; `on_done` is called once, never before this returns its relay."""
    relay = Relay(left, right, on_done)
    relay.start()
    return relay


class TcpEnd(asyncio.Protocol):
    """A TCP socket as an end; made by a listener or dialler, holds bytes back until `start`."""

    __slots__ = (
        "_closed",
        "_eof_in",
        "_eof_out",
        "_held",
        "_on_connected",
        "_owner",
        "_peer",
        "_peer_full",
        "_reason",
        "_transport",
        "_write_paused",
        "delivered",
    )

    def __init__(self, on_connected: Callable[[TcpEnd], None] | None = None) -> None:
        self._on_connected = on_connected
        self._transport: asyncio.Transport | None = None
        self._peer: End | None = None
        self._owner: RelayOwner | None = None
        self._held: list[bytes] = []
        self._eof_in = False
        self._eof_out = False
        self._write_paused = False
        self._peer_full = False
        self._closed = False
        self._reason: Reason | None = None
        self.delivered = 0

    @property
    def closed(self) -> bool:
        """Whether the socket is gone: a dial on its behalf can stop."""
        return self._closed

    @property
    def reason(self) -> Reason | None:
        """Why the socket is gone; None while it lives."""
        return self._reason if self._closed else None

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport below, for addresses and socket options."""
        return self._transport

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket over."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        if self._reason is not None:
            self._reset()
        elif self._on_connected is not None:
            self._on_connected(self)

    def data_received(self, data: bytes) -> None:
        """Push bytes into the peer, or hold them until there is one."""
        peer = self._peer
        if peer is None:
            self._held.append(data)
            if sum(map(len, self._held)) >= HELD_BYTES and self._transport is not None:
                self._transport.pause_reading()
            return
        self.delivered += len(data)
        peer.write(data)

    def eof_received(self) -> bool:
        """Pass the half-close on; the socket lives until both directions are finished."""
        self._eof_in = True
        if self._peer is not None:
            self._peer.write_eof()
        return not self._eof_out

    def pause_writing(self) -> None:
        """The socket's buffer is full: the peer is to push no more."""
        self._write_paused = True
        if self._peer is not None:
            self._peer.pause_reading()

    def resume_writing(self) -> None:
        """The socket's buffer has room again."""
        self._write_paused = False
        if self._peer is not None:
            self._peer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the peer and the owner, once."""
        self._closed = True
        if self._reason is None:
            self._reason = self._cause(exc)
        if self._owner is not None:
            self._report()

    def _cause(self, exc: Exception | None) -> Reason:
        if exc is None:
            return Reason.COMPLETE if self._eof_in and self._eof_out else Reason.PEER_CLOSED
        if isinstance(exc, ConnectionError):
            return Reason.PEER_RESET
        return Reason.IO_ERROR

    def _report(self) -> None:
        assert self._peer is not None
        assert self._owner is not None
        reason = self._reason or Reason.IO_ERROR
        if reason is not Reason.COMPLETE:
            self._peer.abort(reason)
        self._owner.end_closed(self, reason)

    # --- End

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Let bytes flow to `peer`; held bytes and a held end of file go first."""
        self._peer = peer
        self._owner = owner
        held, self._held = self._held, []
        for data in held:
            self.delivered += len(data)
            peer.write(data)
        if self._eof_in:
            peer.write_eof()
        if self._closed:
            self._report()
            return
        if self._write_paused:
            peer.pause_reading()
        if not self._peer_full and self._transport is not None and sum(map(len, held)) >= HELD_BYTES:
            self._transport.resume_reading()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._reason is None and self._transport is not None:
            self._transport.write(data)

    def write_eof(self) -> None:
        """Send FIN after what was written; closes the socket when the other side sent its own."""
        if self._eof_out or self._reason is not None or self._transport is None:
            return
        self._eof_out = True
        if self._eof_in:
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:
            # asyncio shuts down at once: ENOTCONN when the other side's RST was not read yet.
            self.abort(Reason.PEER_RESET)

    def abort(self, reason: Reason) -> None:
        """Send RST and drop what is unsent."""
        if self._closed or self._reason is not None:
            return
        self._reason = reason
        if self._transport is not None:
            self._reset()

    def _reset(self) -> None:
        assert self._transport is not None
        sock: socket.socket | None = self._transport.get_extra_info("socket")
        if sock is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RST)
            except OSError:
                # The descriptor is gone already: nothing is left to reset.
                self._transport.abort()
                return
        self._transport.abort()

    def pause_reading(self) -> None:
        """Stop reading the socket: its window closes towards the sender."""
        self._peer_full = True
        if self._reason is None and self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read the socket again."""
        self._peer_full = False
        if self._reason is None and self._transport is not None:
            self._transport.resume_reading()
