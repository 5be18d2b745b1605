# SPDX-License-Identifier: Apache-2.0
"""What the peer's frames other than DATA do: requests, responses, credit, settings, signs of life. Pure.

Every rule that the peer can break here has the error that it earns: of the stream or of
the connection (GOAWAY). What a frame costs us, its sender pays for.

Source: RFC 9113 §5, §6, §8.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.flow import Bucket, GrowthBudget, ReceiveWindow
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.hpack import HpackError, HpackFloodError
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from waypoint.http.h2_fields import FieldReader
from waypoint.http.h2_limits import MAX_WINDOW, Http2Limits
from waypoint.http.h2_stream import ConnectionEvents, Stream
from waypoint.http.message import BadMessageError, Framing, Headers

_ASSUMED_STREAMS = 100
"""Streams opened before the peer's SETTINGS say how many it takes (RFC 9113 §6.5.2's minimum advice)."""
_REMEMBERED_RESETS = 1024
"""Streams that we reset last: their frames still on the way are no fault of the peer."""
_REMEMBERED_GAPS = 64
"""Ranges of stream identifiers that a client skipped: such a stream never was."""
_CRUMB_BYTES = 1024
"""Credit below this is counted against the flood limit."""


class ControlFrames(ABC):
    """Connection state, and what each frame of the peer other than DATA does to it."""

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
        self._block_end = False
        self._continuations = 0
        self._fields = FieldReader(limits)
        self._reset_here: dict[int, None] = {}
        self._gaps: list[tuple[int, int]] = []
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

    # --- Frames

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self._check_order(kind, stream_id)
        if kind == frames.HEADERS:
            self._take_headers(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._take_window_update(stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._take_continuation(flags, stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._take_reset(stream_id, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")
        else:
            self._spend("control frames")
            if kind == frames.PING:
                self._take_ping(flags, stream_id, payload)
            elif kind == frames.SETTINGS:
                self._take_settings(flags, stream_id, payload)
            elif kind == frames.GOAWAY:
                self._take_goaway(stream_id, payload)
            elif kind == frames.PRIORITY:
                self._take_priority(stream_id, payload)

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

    # --- Header blocks

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        if flags & (frames.PADDED | frames.HAS_PRIORITY):
            payload = self._strip(flags, stream_id, payload)
        self._block_stream = stream_id
        self._block_end = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._take_block(payload)
        else:
            self._continuations = 0
            self._block = bytearray(payload)

    def _strip(self, flags: int, stream_id: int, payload: bytes) -> bytes:
        begin, end = 0, len(payload)
        if flags & frames.PADDED:
            begin, end = 1, end - payload[0] if payload else -1
        if flags & frames.HAS_PRIORITY:
            if int.from_bytes(payload[begin : begin + 4], "big") & frames.MAX_STREAM_ID == stream_id:
                raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} depends on itself")
            begin += 5
        if begin > end:
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR, "HEADERS shorter than its padding or priority"
            )
        return payload[begin:end]

    def _take_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION outside a header block")
        self._continuations += 1
        block += payload
        limits = self.limits
        if self._continuations > limits.max_continuations or len(block) > limits.max_header_block_bytes:
            raise self._calm(
                f"header block of {len(block)} bytes in {self._continuations} CONTINUATION frames "
                f"(limits {limits.max_header_block_bytes}, {limits.max_continuations})"
            )
        if flags & frames.END_HEADERS:
            self._block = None
            self._take_block(bytes(block))

    def _take_block(self, block: bytes) -> None:
        stream_id, end = self._block_stream, self._block_end
        stream = self.streams.get(stream_id)
        try:
            if stream is not None:
                self._take_more_headers(stream, block, end=end)
            elif self.role is Role.SERVER and stream_id > self.last_peer_id:
                self._take_request(stream_id, block, end=end)
            else:
                self._take_stray_headers(stream_id, block)
        except HpackFloodError as error:
            raise self._calm(str(error)) from error
        except HpackError as error:
            raise ConnectionFailedError(ErrorCode.COMPRESSION_ERROR, str(error)) from error

    def _take_stray_headers(self, stream_id: int, block: bytes) -> None:
        """Take a block on a stream that is gone: an error, unless we had reset the stream."""
        self._check_known(stream_id, "HEADERS")
        self._spend("HEADERS on closed streams")
        self._fields.skip(block)
        if self.role is Role.SERVER and stream_id not in self._reset_here:
            skipped = any(first <= stream_id <= last for first, last in self._gaps)
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR if skipped else ErrorCode.STREAM_CLOSED,
                f"HEADERS on stream {stream_id} after stream {self.last_peer_id}",
            )

    def _take_request(self, stream_id: int, block: bytes, *, end: bool) -> None:
        if stream_id > self.last_peer_id + 2:
            self._gaps = [*self._gaps[1 - _REMEMBERED_GAPS :], (self.last_peer_id + 1, stream_id - 1)]
        self.last_peer_id = stream_id
        if self.closing:
            # Opened after our last GOAWAY: not acted on, so safe to retry elsewhere.
            self._spend("streams after GOAWAY")
            self._refuse(stream_id, block)
            return
        if len(self.streams) >= self.limits.max_streams:
            self._spend_reset(f"more than {self.limits.max_streams} concurrent streams")
            self._refuse(stream_id, block)
            return
        stream = Stream(stream_id, self._peer_initial_window, "")
        stream.received_end = end
        self.streams[stream_id] = stream
        try:
            head = self._fields.request(block, end=end)
        except StreamFailedError as error:
            self._fail_stream(stream, error)
            self.events.on_refused(stream, BadMessageError(error.detail))
            return
        except BadMessageError as error:
            self._spend_reset(error.reason)
            self.events.on_refused(stream, error)
            return
        stream.method = head.method
        if head.framing is Framing.LENGTH:
            stream.expected = head.length
        self.events.on_request(stream, head)
        if end and stream.open and stream.events is not None:
            stream.events.on_end([])

    def _refuse(self, stream_id: int, block: bytes) -> None:
        self._fields.skip(block)
        self._forget_reset(stream_id)
        self.out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))

    def _take_more_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        try:
            self._read_more_headers(stream, block, end=end)
        except StreamFailedError as error:
            self._fail_stream(stream, error)
        except BadMessageError as error:
            self._fail_stream(stream, StreamFailedError(ErrorCode.ENHANCE_YOUR_CALM, error.reason))

    def _read_more_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        if stream.received_end:
            self._fields.skip(block)
            raise StreamFailedError(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if self.role is Role.CLIENT and not stream.answered:
            self._take_response(stream, block, end=end)
            return
        trailers = self._fields.trailers(block)
        if not end:
            raise StreamFailedError(ErrorCode.PROTOCOL_ERROR, "trailers that do not end the stream")
        self._receive_end(stream, trailers)

    def _take_response(self, stream: Stream, block: bytes, *, end: bool) -> None:
        head = self._fields.response(block, stream.method, end=end)
        if head.interim:
            self._spend("interim responses")
        else:
            stream.answered = True
            if head.framing is not Framing.CHUNKED:
                stream.expected = head.length
        if stream.events is not None:
            stream.events.on_response(head)
        if end and stream.open:
            self._receive_end(stream, [])

    def _receive_end(self, stream: Stream, trailers: Headers) -> None:
        if stream.expected > 0:
            detail = f"body ends {stream.expected} bytes short of its content-length"
            raise StreamFailedError(ErrorCode.PROTOCOL_ERROR, detail)
        stream.received_end = True
        if stream.sent_end:
            self._remove(stream)
        if stream.events is not None:
            stream.events.on_end(trailers)

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

    def _forget_reset(self, stream_id: int) -> None:
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
