# SPDX-License-Identifier: Apache-2.0
"""What both sides of the proxy share in HTTP/2: the bytes of a connection, its time, its end.

Frames made in one turn of the loop leave in one write. The way in is always read: PINGs
are answered and credit is taken while applications are stuck. Loop thread only.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from mesh.hbone.frames import MAX_STREAM_ID, ConnectionFailedError, ErrorCode
from mesh.hbone.stream import Role
from mesh.net.relay import End, RelayOwner
from mesh.telemetry.reasons import Reason
from waypoint.http.h2 import Http2Codec
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import Stream
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.streams import CallLater, Timer

_PING = b"ambit-wp"
_ANSWER_BYTES = 64
"""Frames that answer the peer's are shorter."""


class Http2Connection(ABC):
    """One connection: an `End` for the peer's bytes and the owner of the way to the peer.

    The caller starts it with the peer's end and that end with it, as both peer and owner.
    """

    _peer: End

    def __init__(
        self,
        role: Role,
        *,
        call_later: CallLater,
        limits: Http2Limits | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Http2Limits()
        self.codec = Http2Codec(role, self.limits, self, now)
        self.full = False
        """Whether the way to the peer is full: streams stop their sources as they write."""
        self.held: set[StreamSide] = set()
        """Streams whose source is stopped."""
        self.closed = False
        """Whether it is of no use any more: nothing is read or written."""
        self._call_later = call_later
        self._now = now
        self._scheduled = False
        self._draining = False
        self._peer_ended = False
        self._farewell = ""
        """What the peer's GOAWAY said was wrong."""
        self._unread_answers = 0
        self._began_s = self._heard_s = self._idle_s = now()
        self._partial_s: float | None = None
        self._pinged_s: float | None = None
        bounds = self.limits
        self._longest_tick_s = min(bounds.head_timeout_s, bounds.keepalive_timeout_s, bounds.idle_timeout_s)
        """A deadline that begins between two ticks is not missed by the second."""
        first_s = min(bounds.handshake_timeout_s, self._longest_tick_s)
        self._timer: Timer | None = call_later(first_s, self._on_tick)

    @property
    def idle(self) -> bool:
        """Whether no stream is open."""
        return not self.codec.streams

    def wake(self) -> None:
        """Write what the codec has at the end of this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self._call_later(0, self._on_turn)

    def _on_turn(self) -> None:
        self._scheduled = False
        self._flush()

    def _flush(self) -> None:
        if self.codec.out and not self.closed:
            self._peer.write(self.codec.take())

    # --- End: bytes of the peer

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Take the way to the peer; `owner` is this connection itself."""
        self._peer = peer
        self.wake()

    def write(self, data: bytes) -> None:
        """Take bytes of the peer."""
        if self.closed:
            return
        self._heard_s = self._now()
        self._pinged_s = None
        codec = self.codec
        # What is made meanwhile leaves below, without a turn of its own.
        scheduled, self._scheduled = self._scheduled, True
        try:
            codec.receive(data)
        except ConnectionFailedError as error:
            self._give_up(self._explain(error, data), by_peer=False)
            return
        finally:
            self._scheduled = scheduled
        if codec.mid_frame:
            self._partial_s = self._partial_s or self._heard_s
        else:
            self._partial_s = None
        if codec.out:
            if self.full:
                self._count_unread_answers()
            self._flush()

    def _explain(self, error: ConnectionFailedError, data: bytes) -> str:
        """Say what the peer did wrong."""
        return f"HTTP/2 rules broken: {error.detail}"

    def write_eof(self) -> None:
        """The peer sends no more: HTTP/2 has no use for half a connection."""
        self._peer_ended = True
        self._give_up("the peer closed the connection", by_peer=True)

    def abort(self, reason: Reason) -> None:
        """The way to the peer broke."""
        self._lose(f"connection lost: {reason.text}")

    def end_closed(self, end: End, reason: Reason) -> None:
        """The way to the peer is gone (RelayOwner)."""
        self._lose(f"connection lost: {reason.text}")
        self._set_timer(None, self._on_tick)
        self._on_gone()

    def pause_reading(self) -> None:
        """The way to the peer is full: streams stop their sources as they write."""
        self.full = True

    def resume_reading(self) -> None:
        """The way to the peer has room again."""
        self.full = False
        self._unread_answers = 0
        for side in list(self.held):
            side.on_drained()

    def _count_unread_answers(self) -> None:
        """Bound what a peer makes us say while it does not read; bodies are held then by themselves."""
        self._unread_answers += sum(len(piece) for piece in self.codec.out if len(piece) <= _ANSWER_BYTES)
        if self._unread_answers > self.limits.max_unread_answers_bytes:
            limit = self.limits.max_unread_answers_bytes
            self._lose(f"the peer leaves more than {limit} bytes of answers unread", by_peer=False)
            self._peer.abort(Reason.H2_FLOOD)

    # --- Ends

    def shut_down(self) -> None:
        """Take no further stream; close after the last one, at once when there is none."""
        if self._draining or self.closed:
            return
        self._draining = True
        if self.codec.role is Role.SERVER and self.codec.settled:
            # Requests already on their way are served: the second GOAWAY follows the PING's answer.
            self.codec.goaway(ErrorCode.NO_ERROR, last_stream_id=MAX_STREAM_ID)
            self.codec.ping(_PING)
        else:
            self.codec.stop_opening()
            self.codec.goaway(ErrorCode.NO_ERROR)
            self._call_later(0, self._close_if_drained)
        self.wake()

    def close(self) -> None:
        """End the connection and every stream on it."""
        if not self.closed:
            self.codec.goaway(ErrorCode.NO_ERROR)
            self._give_up("the connection is closed here", by_peer=True)

    def _close_if_drained(self) -> None:
        if self._draining and self.codec.closing and self.idle and not self.closed:
            self._give_up("the connection is drained", by_peer=True)

    def _give_up(self, detail: str, *, by_peer: bool) -> None:
        """End our side after what the codec has to say; a peer that does not end its own is reset."""
        if self.closed:
            return
        self._flush()
        self._lose(detail, by_peer=by_peer)
        self._peer.write_eof()
        self._set_timer(None if self._peer_ended else self.limits.close_s, self._break_off)

    def _break_off(self) -> None:
        self._timer = None
        self._peer.abort(Reason.FORCED_CLOSE)

    def _lose(self, detail: str, *, by_peer: bool = True) -> None:
        if self.closed:
            return
        self.closed = True
        detail += self._farewell
        self._set_timer(None, self._on_tick)
        self.codec.abandon(ErrorCode.CANCEL, detail, by_peer=by_peer)
        self._on_lost(detail, by_peer=by_peer)

    @abstractmethod
    def _on_lost(self, detail: str, *, by_peer: bool) -> None:
        """Nothing can be sent any more; `by_peer` as for `on_reset`."""

    @abstractmethod
    def _on_gone(self) -> None:
        """The way to the peer is gone for good."""

    # --- Time

    def _set_timer(self, seconds: float | None, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._call_later(seconds, callback)

    def _on_tick(self) -> None:
        """See which deadline has passed; one timer serves them all, so that none is set per request."""
        self._timer = None
        now, limits, codec = self._now(), self.limits, self.codec
        deadlines = [now + self._longest_tick_s]
        if not codec.settled:
            if not self._due(deadlines, now, self._began_s + limits.handshake_timeout_s):
                self._end_late(
                    ErrorCode.SETTINGS_TIMEOUT, f"no SETTINGS within {limits.handshake_timeout_s:g} s"
                )
                return
        elif self._partial_s is not None and not self._due(
            deadlines, now, self._partial_s + limits.head_timeout_s
        ):
            self._end_late(
                ErrorCode.ENHANCE_YOUR_CALM, f"a frame is not complete within {limits.head_timeout_s:g} s"
            )
            return
        elif self._pinged_s is not None:
            if not self._due(deadlines, now, self._pinged_s + limits.keepalive_timeout_s):
                self._end_late(
                    ErrorCode.NO_ERROR, f"no answer to PING within {limits.keepalive_timeout_s:g} s"
                )
                return
        elif not self._due(deadlines, now, self._heard_s + limits.keepalive_interval_s):
            self._pinged_s = now
            codec.ping(_PING)
            self.wake()
        if (
            self.idle
            and codec.settled
            and not self._due(deadlines, now, self._idle_s + limits.idle_timeout_s)
        ):
            self.shut_down()
        self._set_timer(max(0.0, min(deadlines) - now), self._on_tick)

    def _due(self, deadlines: list[float], now: float, deadline: float) -> bool:
        """Note a deadline that is still to come; False: it has passed."""
        if deadline <= now:
            return False
        deadlines.append(deadline)
        return True

    def _end_late(self, code: ErrorCode, detail: str) -> None:
        self.codec.goaway(code, detail.encode())
        self._give_up(detail, by_peer=True)

    # --- ConnectionEvents

    def on_request(self, stream: Stream, head: RequestHead) -> None:
        """Servers only."""
        raise NotImplementedError

    def on_refused(self, stream: Stream, error: BadMessageError) -> None:
        """Servers only."""
        raise NotImplementedError

    def on_settings(self) -> None:
        """The peer speaks HTTP/2: from now on it can be idle."""
        self._idle_s = self._now()

    def on_ping_ack(self) -> None:
        """After the first GOAWAY of a drain: all requests on their way have arrived."""
        if self._draining and not self.codec.closing:
            self.codec.stop_opening()
            self.codec.goaway(ErrorCode.NO_ERROR)
            self._call_later(0, self._close_if_drained)

    def on_goaway(self, code: ErrorCode, debug: bytes) -> None:
        """The peer opens (or takes) no new stream; the connection ends with the last one."""
        self._draining = True
        if code is not ErrorCode.NO_ERROR:
            words = debug.decode("ascii", "replace")
            self._farewell = f" after GOAWAY {code.name} {words!r}"
        self.codec.stop_opening()
        self._call_later(0, self._close_if_drained)

    def on_room(self) -> None:
        """A stream ended."""
        if self.idle:
            self._idle_s = self._now()
            if self._draining:
                self._call_later(0, self._close_if_drained)


class StreamSide(ABC):
    """Our side of one stream: sends a body, and stops its source while the peer takes no more."""

    __slots__ = ("_blocked",)

    def __init__(self) -> None:
        self._blocked = False

    def _send(self, connection: Http2Connection, stream: Stream, data: bytes) -> None:
        codec = connection.codec
        codec.send_data(stream, data)
        if (
            (connection.full or stream.queued_bytes > connection.limits.send_queue_bytes)
            and stream.open
            and not self._blocked
        ):
            self._blocked = True
            connection.held.add(self)
            self._source_blocked(True)

    def _unblock(self, connection: Http2Connection, stream: Stream) -> None:
        """Let the source go on where nothing waits any more."""
        if self._blocked and not connection.full and not stream.queued_bytes:
            self._blocked = False
            connection.held.discard(self)
            self._source_blocked(False)

    @abstractmethod
    def on_drained(self) -> None:
        """Let the source go on if there is room."""

    @abstractmethod
    def _source_blocked(self, blocked: bool) -> None:
        """Stop the source of the body, or let it go on."""
