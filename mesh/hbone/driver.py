# SPDX-License-Identifier: Apache-2.0
"""One HBONE connection on asyncio: the codec between a TLS transport and its tunnels.

Frames of all tunnels that were written in one turn of the loop leave in one write, so
one TLS record and one system call where they fit. The socket is always read: PINGs are
answered and credit is taken while applications are stuck. Loop thread only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from mesh.hbone.codec import Codec
from mesh.hbone.frames import MAX_STREAM_ID, ConnectionFailedError, ErrorCode, TunnelLimitError
from mesh.hbone.hpack import Header
from mesh.hbone.limits import Limits
from mesh.hbone.stream import Role, Stream
from mesh.hbone.tunnel import ClientTunnel, Response, ServerTunnel, Tunnel
from mesh.runtime.clock import Clock
from mesh.telemetry.reasons import Reason

__all__ = ["ClientTunnel", "HboneConnection", "Limits", "Response", "Role", "ServerTunnel", "Tunnel"]

_PING = b"ambit-ka"
_CLOSE_S = 2.0
"""Time for the last frames and the TLS close; then the socket is aborted."""
_WRITE_BUFFER_BYTES = 1024 * 1024
_LARGE_BYTES = 16 * 1024
"""A piece as long as a TLS record."""
_ANSWER_BYTES = 64
"""Frames that answer the peer's are shorter."""
_SLICE_BYTES = 64 * 1024


class HboneConnection(asyncio.Protocol):
    """Owns one transport; tunnels live no longer than it. `on_close` is called exactly once."""

    def __init__(
        self,
        *,
        role: Role,
        limits: Limits,
        on_request: Callable[[ServerTunnel], None] | None,
        on_close: Callable[[HboneConnection, Reason], None],
        clock: Clock,
    ) -> None:
        self.role = role
        self.limits = limits
        self.codec = Codec(role, limits, self, clock.monotonic)
        self.full = False
        """Whether the transport has too many unsent bytes: tunnels hold their sources."""
        self.paused: set[Tunnel] = set()
        """Tunnels that hold their source."""
        self.peer_der = b""
        """The peer's leaf certificate, DER; empty without TLS."""
        self.settled = False
        """Whether the peer's SETTINGS arrived."""
        self._on_request = on_request
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tunnels: set[Tunnel] = set()
        self._scheduled = False
        self._heard = False
        self._pinged = False
        self._unread_answers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._draining: Reason | None = None
        self._goaway: Reason | None = None
        self._reason: Reason | None = None
        self._closed = False

    # --- State

    @property
    def tunnels(self) -> int:
        """Tunnels that are open or asked for."""
        return len(self._tunnels)

    @property
    def room(self) -> int:
        """Tunnels that may be opened now; 0 on a connection that is no use for new ones."""
        if self._transport is None or self._reason is not None or self._draining is not None:
            return 0
        return self.codec.room

    @property
    def usable(self) -> bool:
        """Whether `open_tunnel` would succeed now."""
        return self.room > 0

    @property
    def closed(self) -> bool:
        """Whether the transport is gone."""
        return self._closed

    @property
    def transport(self) -> asyncio.Transport | None:
        """The transport below, for addresses."""
        return self._transport

    # --- Use

    def open_tunnel(self, authority: str, headers: Sequence[Header] = ()) -> ClientTunnel:
        """Ask the peer for a tunnel to `authority`; its `opened` tells the answer.

        Raises:
            TunnelLimitError: no room; safe to retry on another connection.
        """
        if not self.usable:
            if self._reason is not None or self._draining is not None or self.codec.closing:
                raise TunnelLimitError(Reason.GOAWAY, "the connection is closing; open another one")
            raise TunnelLimitError(
                Reason.LIMIT_EXCEEDED,
                f"{self.tunnels} tunnels open, own limit {self.limits.max_tunnels}, "
                f"peer's {self.codec.peer_max_tunnels}; open another connection",
            )
        tunnel = ClientTunnel(self)
        tunnel.bind(self.codec.open(authority.encode(), headers, tunnel))
        self._tunnels.add(tunnel)
        self.wake()
        return tunnel

    def drain(self, reason: Reason = Reason.DRAINED) -> None:
        """Take no new tunnel; live ones run on, and the connection ends with the last one."""
        if self._draining is not None or self._reason is not None:
            return
        self._draining = reason
        if self.role is Role.SERVER and self.settled:
            # Tunnels already on their way are served: the second GOAWAY follows the PING's answer.
            self.codec.goaway(ErrorCode.NO_ERROR, last_stream_id=MAX_STREAM_ID)
            self.codec.ping(_PING)
        else:
            self.codec.stop_opening()
            self.codec.goaway(ErrorCode.NO_ERROR)
        self.wake()
        self._close_if_drained()

    def close(self, reason: Reason, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """End the connection and every tunnel on it, for `reason`."""
        if self._reason is not None:
            return
        self._reason = reason
        if not self.codec.closing:
            self.codec.goaway(code, reason.value.encode())
        self._end_tunnels(reason)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None and not self._closed:
            self._flush()
            self._transport.close()
            self._timer = self._loop.call_later(_CLOSE_S, self._transport.abort)

    def wake(self) -> None:
        """Write what the codec has at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def forget(self, tunnel: Tunnel) -> None:
        """A tunnel is over; called by it."""
        self._tunnels.discard(tunnel)
        self.paused.discard(tunnel)
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._tunnels or self._reason is not None:
            return
        if self._goaway is not None and self.role is Role.CLIENT:
            self._loop.call_soon(self.close, self._goaway)
        elif self._draining is not None and (
            self.role is Role.CLIENT or self.codec.closing or not self.settled
        ):
            self._loop.call_soon(self.close, self._draining)

    def _flush(self) -> None:
        self._scheduled = False
        out = self.codec.out
        if not out or self._transport is None or self._closed:
            return
        if max(map(len, out)) < _LARGE_BYTES:
            self._transport.write(self.codec.take())
        else:
            self._write_large(self._transport)

    def _write_large(self, transport: asyncio.Transport) -> None:
        """Write what is queued in slices, without joining.

        Joining would copy the payload. TLS encrypts each write into one buffer: slices keep that
        one small, so that it stays in the processor's cache and in the heap.
        """
        pieces = self.codec.out.copy()
        self.codec.out.clear()
        begin = size = 0
        for at, piece in enumerate(pieces, 1):
            size += len(piece)
            if size >= _SLICE_BYTES:
                transport.writelines(pieces[begin:at])
                begin, size = at, 0
        if size:
            transport.writelines(pieces[begin:])

    def _count_unread_answers(self) -> None:
        """Bound what a peer makes us say while it does not read; tunnels are held then by themselves."""
        self._unread_answers += sum(len(piece) for piece in self.codec.out if len(piece) <= _ANSWER_BYTES)
        if self._unread_answers > self.limits.max_unread_answers_bytes:
            self._reason = Reason.H2_FLOOD
            if self._transport is not None:
                self._transport.abort()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin: the TLS handshake is done, SETTINGS leave."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(_WRITE_BUFFER_BYTES)
        if self._reason is not None:
            self._transport.abort()
            return
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.peer_der = tls.getpeercert(binary_form=True) or b""
            if tls.selected_alpn_protocol() not in ("h2", None):
                self.close(Reason.H2_HANDSHAKE_FAILED)
                return
        self._timer = self._loop.call_later(self.limits.handshake_timeout_s, self._handshake_late)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Feed the codec; write what it answers."""
        self._heard = True
        if self._reason is not None:
            return
        codec = self.codec
        try:
            codec.receive(data)
        except ConnectionFailedError as error:
            self.close(error.reason, error.code)
            return
        if codec.out:
            if self.full:
                self._count_unread_answers()
            if not self._scheduled:
                self.wake()

    def eof_received(self) -> bool:
        """Close: a TLS connection has no half-close that HTTP/2 could use."""
        return False

    def pause_writing(self) -> None:
        """Tunnels hold their sources as they write."""
        self.full = True

    def resume_writing(self) -> None:
        """Let the sources go on."""
        self.full = False
        self._unread_answers = 0
        for tunnel in list(self.paused):
            tunnel.release_source()

    def connection_lost(self, exc: Exception | None) -> None:
        """End every tunnel and tell the owner."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reason is None:
            self._reason = self._cause(exc)
        self._end_tunnels(self._reason)
        self._on_close(self, self._reason)

    def _cause(self, exc: Exception | None) -> Reason:
        if isinstance(exc, ssl.SSLError):
            return Reason.TLS_FAILURE
        if not self.settled:
            # TLS 1.3: a client learns only after its handshake that its certificate was refused, and
            # event loops tell neither side's protocol of the alert: silence and then the end.
            refused = self.role is Role.CLIENT and self.peer_der and not self._heard
            return Reason.TLS_FAILURE if refused else Reason.H2_HANDSHAKE_FAILED
        if self._draining is not None and exc is None:
            return self._draining
        if self._goaway is not None:
            return self._goaway
        if exc is None or isinstance(exc, ConnectionError):
            return Reason.PEER_CLOSED
        return Reason.IO_ERROR

    def _end_tunnels(self, reason: Reason) -> None:
        for tunnel in list(self._tunnels):
            tunnel.lost(reason)

    # --- Timers

    def _handshake_late(self) -> None:
        self.close(Reason.H2_HANDSHAKE_FAILED, ErrorCode.SETTINGS_TIMEOUT)

    def _keep_alive(self) -> None:
        limits = self.limits
        if self._heard:
            self._heard = self._pinged = False
            self._timer = self._loop.call_later(limits.keepalive_interval_s, self._keep_alive)
        elif self._pinged:
            self.close(Reason.KEEPALIVE_TIMEOUT)
        else:
            self._pinged = True
            self.codec.ping(_PING)
            self.wake()
            self._timer = self._loop.call_later(limits.keepalive_timeout_s, self._keep_alive)

    # --- ConnectionEvents

    def on_request(self, stream: Stream, authority: bytes, headers: Sequence[Header]) -> ServerTunnel:
        """Hand a request to the owner, who accepts or refuses it, now or later."""
        tunnel = ServerTunnel(self, authority.decode("latin-1"), tuple(headers))
        tunnel.bind(stream)
        self._tunnels.add(tunnel)
        if self._on_request is None:
            tunnel.refuse(503, Reason.INTERNAL_ERROR)
        else:
            self._on_request(tunnel)
        return tunnel

    def on_settings(self) -> None:
        """The peer speaks HTTP/2: keepalive begins."""
        self.settled = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self.limits.keepalive_interval_s, self._keep_alive)

    def on_ping_ack(self) -> None:
        """After the first GOAWAY of a drain: all tunnels on their way have arrived."""
        if self._draining is not None and self.role is Role.SERVER and not self.codec.closing:
            self.codec.stop_opening()
            self.codec.goaway(ErrorCode.NO_ERROR)
            self.wake()
            self._close_if_drained()

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        """No new tunnels; when the peer closes on live ones, its code says why."""
        self._goaway = Reason.GOAWAY if code is ErrorCode.NO_ERROR else Reason.H2_PROTOCOL_ERROR
        self._close_if_drained()
