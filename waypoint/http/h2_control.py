# SPDX-License-Identifier: Apache-2.0
"""A connection's state, and what the peer's frames that carry no message do to it. Pure.

These are credit, resets, settings, signs of life, the end of the connection. Every rule
that the peer can break here has the error that it earns: of the stream or of the
connection (GOAWAY). What a frame costs us, its sender pays for.

Source: RFC 9113 §5, §6.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.flow import Bucket, GrowthBudget, ReceiveWindow
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from waypoint.http.h2_limits import MAX_WINDOW, Http2Limits
from waypoint.http.h2_stream import ConnectionEvents, Stream

_ASSUMED_STREAMS = 100
"""Streams opened before the peer's SETTINGS say how many it takes (RFC 9113 §6.5.2's minimum advice)."""
_REMEMBERED_RESETS = 1024
"""Streams that we reset last: their frames still on the way are no fault of the peer."""
_CRUMB_BYTES = 1024
"""Credit below this is counted against the flood limit."""


class ControlFrames(ABC):
    """Connection state, and what frames other than HEADERS, CONTINUATION and DATA do to it."""

    def __init__(
        self, role: Role, limits: Http2Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        self.role = role
        self.limits = limits
        self.events = events
        self.out: list[bytes | memoryview] = []
        """Encoded frames in the order of writing."""
        self.streams: dict[int, Stream] = {}
        self.last_peer_id = 0
        """Highest stream that the peer opened (server)."""
        self.peer_max_streams = _ASSUMED_STREAMS
        self.closing = False
        """Whether GOAWAY was sent or received: no stream is opened any more."""
        self.settled = False
        """Whether the peer's SETTINGS arrived."""
        self._next_id = 1
        self._block: bytearray | None = None
        """Header block whose CONTINUATION frames are still to come."""
        self._block_stream = 0
        self._reset_here: dict[int, None] = {}
        self._growth = GrowthBudget(limits.growth_budget_bytes)
        self._control = Bucket(limits.control_burst, limits.control_per_s, now)
        self._resets = Bucket(limits.reset_burst, limits.reset_per_s, now)
        self._receive_left = max(limits.connection_window_bytes, frames.DEFAULT_WINDOW)
        self._receive_owed = 0
        self._send_window = frames.DEFAULT_WINDOW
        self._peer_initial_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.DEFAULT_FRAME
        self._waiting: dict[int, Stream] = {}
        """Streams that wait for the connection's window, in the order of their turns."""

    # --- What the writing half does for this one

    @abstractmethod
    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream at once."""

    @abstractmethod
    def _pump(self, stream: Stream, turn: int) -> None: ...

    @abstractmethod
    def _window_opened(self) -> None: ...

    # --- Order

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"frame type {kind} inside a header block")
        if not self.settled and kind != frames.SETTINGS:
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR, f"frame type {kind} before SETTINGS", Reason.H2_HANDSHAKE_FAILED
            )

    def _check_known(self, stream_id: int, what: str) -> None:
        """Reject frames on streams that were never opened; closed ones pass."""
        opened = self.last_peer_id if self.role is Role.SERVER else self._next_id - 2
        if not stream_id or stream_id > opened or not stream_id & 1:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    # --- Ends of streams

    def _remove(self, stream: Stream) -> None:
        del self.streams[stream.id]
        stream.open = False
        if stream.queue:
            self._waiting.pop(stream.id, None)
            stream.queue = None
            stream.queued_bytes = 0
        if stream.receive is not None:
            stream.receive.release()
        self.events.on_room()

    def _note_reset(self, stream_id: int) -> None:
        """Note that we reset a stream: frames of it may still be on their way."""
        if len(self._reset_here) >= _REMEMBERED_RESETS:
            del self._reset_here[next(iter(self._reset_here))]
        self._reset_here[stream_id] = None

    def _fail_stream(self, stream: Stream, error: StreamFailedError) -> None:
        """Reset a stream by its peer's fault; such resets are bounded (made-you-reset)."""
        self._spend_reset(error.detail)
        if stream.open:
            self.reset(stream, error.code)
            if stream.events is not None:
                stream.events.on_reset(error.code, error.detail, by_peer=False)

    def _take_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")
        self._check_known(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None or stream.answered or self.role is Role.CLIENT:
            self._spend("RST_STREAM frames")
        else:
            self._spend_reset("streams reset before they were answered")
        if stream is not None:
            self._remove(stream)
            if stream.events is not None:
                code = ErrorCode.of(int.from_bytes(payload, "big"))
                stream.events.on_reset(code, f"RST_STREAM {code.name}", by_peer=True)

    # --- Credit

    def _take_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if increment < _CRUMB_BYTES:
            self._spend("small WINDOW_UPDATE frames")
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > MAX_WINDOW:
                raise ConnectionFailedError(
                    ErrorCode.PROTOCOL_ERROR if not increment else ErrorCode.FLOW_CONTROL_ERROR,
                    f"WINDOW_UPDATE of {increment} on the connection",
                )
            if self._waiting:
                self._window_opened()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_known(stream_id, "WINDOW_UPDATE")
            self._spend("WINDOW_UPDATE frames on closed streams")
            return
        stream.send_window += increment
        if not increment or stream.send_window > MAX_WINDOW:
            code = ErrorCode.PROTOCOL_ERROR if not increment else ErrorCode.FLOW_CONTROL_ERROR
            self._fail_stream(stream, StreamFailedError(code, f"WINDOW_UPDATE of {increment} on a stream"))
        elif stream.queue and stream.id not in self._waiting:
            self._pump(stream, MAX_WINDOW)

    def _make_window(self, stream: Stream) -> ReceiveWindow:
        limits = self.limits
        window = ReceiveWindow(limits.initial_window_bytes, limits.max_window_bytes, self._growth)
        window.resume()
        stream.receive = window
        return window

    # --- The connection

    def _take_priority(self, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        stream = self.streams.get(stream_id)
        if len(payload) != 5:
            if stream is None:
                raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {len(payload)} bytes")
            self._fail_stream(stream, StreamFailedError(ErrorCode.FRAME_SIZE_ERROR, "malformed PRIORITY"))
        elif int.from_bytes(payload[:4], "big") & frames.MAX_STREAM_ID == stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} depends on itself")

    def _take_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"PING on stream {stream_id}")
        if len(payload) != 8:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, f"PING of {len(payload)} bytes")
        if flags & frames.ACK:
            self.events.on_ping_ack()
        else:
            self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _take_goaway(self, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"GOAWAY on stream {stream_id}")
        if len(payload) < 8:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY")
        code, debug = ErrorCode.of(int.from_bytes(payload[4:8], "big")), payload[8:264]
        if self.role is Role.CLIENT:
            self.closing = True
            last = int.from_bytes(payload[:4], "big") & frames.MAX_STREAM_ID
            # Streams above were not acted on: REFUSED_STREAM says that a retry is safe.
            for stream in [s for s in self.streams.values() if s.id > last]:
                self._remove(stream)
                if stream.events is not None:
                    detail = f"GOAWAY {code.name}, not acted on"
                    stream.events.on_reset(ErrorCode.REFUSED_STREAM, detail, by_peer=True)
        self.events.on_goaway(code, debug)

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self.settled:
                raise ConnectionFailedError(
                    ErrorCode.PROTOCOL_ERROR, "SETTINGS ACK first", Reason.H2_HANDSHAKE_FAILED
                )
            return
        if len(payload) % 6:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        first, self.settled = not self.settled, True
        for name, value in frames.parse_settings(payload):
            self._apply_setting(name, value)
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if first:
            self.events.on_settings()

    def _apply_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            self._change_initial_window(value)
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value < 2**24:
                raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self._frame_bytes = min(value, self.limits.send_frame_bytes)
        elif name == frames.MAX_CONCURRENT_STREAMS:
            grown, self.peer_max_streams = value > self.peer_max_streams, value
            if grown:
                self.events.on_room()
        elif name in (frames.ENABLE_PUSH, frames.ENABLE_CONNECT_PROTOCOL) and (
            value > 1 or (name == frames.ENABLE_PUSH and value and self.role is Role.CLIENT)
        ):
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"setting {name} of {value}")

    def _change_initial_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFailedError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        # The change touches every stream, and one frame may hold thousands of them.
        self._spend("changes of the initial window", 1 + len(self.streams) / 10)
        change = value - self._peer_initial_window
        self._peer_initial_window = value
        for stream in list(self.streams.values()):
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFailedError(
                    ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value} overflows stream {stream.id}"
                )
            if change > 0 and stream.queue:
                self._pump(stream, MAX_WINDOW)

    # --- Floods

    def _spend(self, what: str, cost: float = 1.0) -> None:
        if not self._control.spend(cost):
            raise self._calm(f"too many {what}")

    def _spend_reset(self, what: str) -> None:
        if not self._resets.spend():
            raise self._calm(f"too many resets, the last by: {what}")

    def _calm(self, detail: str) -> ConnectionFailedError:
        return ConnectionFailedError(ErrorCode.ENHANCE_YOUR_CALM, detail, Reason.H2_FLOOD)
