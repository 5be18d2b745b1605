# SPDX-License-Identifier: Apache-2.0
"""What the peer's frames other than DATA do: tunnels, credit, settings, signs of life. Pure.

Every rule that the peer can break here has the error that it earns: of the stream (the
tunnel ends) or of the connection (GOAWAY). What a frame costs us, its sender pays for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from mesh.hbone import frames
from mesh.hbone.flow import Bucket, GrowthBudget, ReceiveWindow
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.headers import check_request, check_response, check_trailers
from mesh.hbone.hpack import Header, HpackDecoder, HpackError, HpackFloodError
from mesh.hbone.limits import MAX_WINDOW, Limits
from mesh.hbone.stream import ConnectionEvents, Role, Stream
from mesh.telemetry.reasons import Reason

_ASSUMED_TUNNELS = 100
"""Tunnels opened before the peer's SETTINGS say how many it takes (RFC 9113 §6.5.2's minimum advice)."""


class ControlFrames(ABC):
    """Connection state, and what each frame of the peer other than DATA does to it."""

    def __init__(
        self, role: Role, limits: Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        self.role = role
        self.limits = limits
        self.events = events
        self.out: list[bytes | memoryview] = []
        """Encoded frames in the order of writing."""
        self.streams: dict[int, Stream] = {}
        self.last_peer_id = 0
        """Highest stream that the peer opened (server)."""
        self.peer_max_tunnels = _ASSUMED_TUNNELS
        self.closing = False
        """Whether GOAWAY was sent or received: no tunnel is opened any more."""
        self._next_id = 1
        self._settled = False
        self._block: bytearray | None = None
        """Header block whose CONTINUATION frames are still to come."""
        self._block_stream = 0
        self._block_end = False
        self._continuations = 0
        self._hpack = HpackDecoder(limits.header_table_bytes)
        self._growth = GrowthBudget(limits.growth_budget_bytes)
        self._control = Bucket(limits.control_burst, limits.control_per_s, now)
        self._resets = Bucket(limits.reset_burst, limits.reset_per_s, now)
        self._receive_left = limits.connection_window_bytes
        self._receive_owed = 0
        self._send_window = frames.DEFAULT_WINDOW
        self._peer_initial_window = frames.DEFAULT_WINDOW
        self._peer_max_header_list = 2**32
        self._frame_bytes = frames.DEFAULT_FRAME
        self._waiting: dict[int, Stream] = {}
        """Streams that wait for the connection's window, in the order of their turns."""

    # --- What the writing half does for this one

    @abstractmethod
    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a tunnel at once."""

    @abstractmethod
    def respond(
        self, stream: Stream, status: int, headers: Sequence[Header] = (), *, end: bool = False
    ) -> None:
        """Answer a request."""

    @abstractmethod
    def goaway(self, code: ErrorCode, debug: bytes = b"", *, last_stream_id: int | None = None) -> None:
        """Tell the peer that the connection ends."""

    @abstractmethod
    def _pump(self, stream: Stream, turn: int) -> None: ...

    @abstractmethod
    def _window_opened(self) -> None: ...

    @abstractmethod
    def _receive_window(self) -> ReceiveWindow: ...

    # --- Other frames

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
            elif kind == frames.PRIORITY and (len(payload) != 5 or not stream_id):
                raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "malformed PRIORITY")

    def _check_order(self, kind: int, stream_id: int) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"frame type {kind} inside a header block")
        if not self._settled and kind != frames.SETTINGS:
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR, f"frame type {kind} before SETTINGS", Reason.H2_HANDSHAKE_FAILED
            )

    def _check_known(self, stream_id: int, what: str) -> None:
        """Reject frames on streams that were never opened; closed ones pass."""
        opened = self.last_peer_id if self.role is Role.SERVER else self._next_id - 2
        if not stream_id or stream_id > opened or not stream_id & 1:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    def _take_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        begin, end = 0, len(payload)
        if flags & frames.PADDED:
            begin, end = 1, end - payload[0] if payload else -1
        if flags & frames.HAS_PRIORITY:
            begin += 5
        if begin > end:
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR, "HEADERS shorter than its padding or priority"
            )
        self._block_stream = stream_id
        self._block_end = bool(flags & frames.END_STREAM)
        self._continuations = 0
        if flags & frames.END_HEADERS:
            self._take_block(payload[begin:end])
        else:
            self._block = bytearray(payload[begin:end])

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
        try:
            headers = self._hpack.decode(block, self.limits.max_header_list_bytes)
        except HpackFloodError as error:
            raise self._calm(str(error)) from error
        except HpackError as error:
            raise ConnectionFailedError(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        stream_id, end = self._block_stream, self._block_end
        stream = self.streams.get(stream_id)
        if stream is None:
            if self.role is Role.SERVER and stream_id > self.last_peer_id:
                self._take_request(stream_id, headers, end=end)
            else:
                self._check_known(stream_id, "HEADERS")
                self._spend("HEADERS on closed streams")
            return
        try:
            self._take_more_headers(stream, headers, end=end)
        except StreamFailedError as error:
            self._fail_stream(stream, error)

    def _take_request(self, stream_id: int, headers: list[Header] | None, *, end: bool) -> None:
        self.last_peer_id = stream_id
        stream = Stream(stream_id, self._peer_initial_window, self._receive_window())
        stream.received_end = end
        if self.closing:
            # Opened after our last GOAWAY: not acted on, so safe to retry elsewhere.
            self._spend("tunnels after GOAWAY")
            self.out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        if len(self.streams) >= self.limits.max_tunnels:
            self._spend_reset(f"more than {self.limits.max_tunnels} concurrent tunnels")
            self.out.append(frames.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            return
        self.streams[stream_id] = stream
        if headers is None:
            self._spend_reset("header lists beyond the limit")
            self.respond(stream, 431, end=True)
            return
        try:
            request = check_request(headers)
        except StreamFailedError as error:
            self._fail_stream(stream, error)
            return
        if not request.connect:
            self._spend_reset("requests other than CONNECT")
            self.respond(stream, 400, end=True)
            return
        stream.events = self.events.on_request(stream, request.authority, request.headers)
        if end and stream.id in self.streams:
            stream.events.on_end()

    def _take_more_headers(self, stream: Stream, headers: list[Header] | None, *, end: bool) -> None:
        if stream.received_end:
            raise StreamFailedError(ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        if headers is None:
            raise StreamFailedError(
                ErrorCode.ENHANCE_YOUR_CALM, f"header list beyond {self.limits.max_header_list_bytes} bytes"
            )
        if self.role is Role.CLIENT and not stream.answered:
            status, regular = check_response(headers)
            if 100 <= status < 200:
                self._spend("interim responses")
                if end or status == 101:
                    raise StreamFailedError(ErrorCode.PROTOCOL_ERROR, f"response {status}")
                return
            stream.answered = True
            if stream.events is not None:
                stream.events.on_response(status, regular)
        else:
            check_trailers(headers)
            if not end:
                raise StreamFailedError(ErrorCode.PROTOCOL_ERROR, "HEADERS inside a tunnel")
        if end and stream.id in self.streams:
            self._receive_end(stream)

    def _receive_end(self, stream: Stream) -> None:
        stream.received_end = True
        if stream.events is not None:
            stream.events.on_end()
        self._close_if_done(stream)

    def _close_if_done(self, stream: Stream) -> None:
        if stream.sent_end and stream.received_end and stream.id in self.streams:
            self._remove(stream)
            if stream.events is not None:
                stream.events.on_closed()

    def _remove(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self._waiting.pop(stream.id, None)
        stream.queue.clear()
        stream.queued_bytes = 0
        stream.receive.release()

    def _fail_stream(self, stream: Stream, error: StreamFailedError) -> None:
        """Reset a stream by its peer's fault; such resets are bounded (made-you-reset)."""
        self._spend_reset(error.detail)
        self.reset(stream, error.code)
        if stream.events is not None:
            stream.events.on_reset(error.code, by_peer=False)

    def _take_reset(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM")
        self._check_known(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None or stream.answered or self.role is Role.CLIENT:
            self._spend("RST_STREAM frames")
        else:
            self._spend_reset("tunnels reset before they were answered")
        if stream is not None:
            self._remove(stream)
            if stream.events is not None:
                stream.events.on_reset(ErrorCode.of(int.from_bytes(payload, "big")), by_peer=True)

    def _take_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if increment < 4096:
            self._spend("small WINDOW_UPDATE frames")
        if not stream_id:
            self._send_window += increment
            if not increment or self._send_window > MAX_WINDOW:
                raise ConnectionFailedError(
                    ErrorCode.PROTOCOL_ERROR if not increment else ErrorCode.FLOW_CONTROL_ERROR,
                    f"WINDOW_UPDATE of {increment} on the connection",
                )
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
            self._fail_stream(stream, StreamFailedError(code, f"WINDOW_UPDATE of {increment} on a tunnel"))
        elif stream.queue and stream.id not in self._waiting:
            self._pump(stream, MAX_WINDOW)

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
        self.closing = True
        if self.role is Role.CLIENT:
            last = int.from_bytes(payload[:4], "big") & frames.MAX_STREAM_ID
            # Streams above were not acted on: REFUSED_STREAM says that a retry is safe.
            for stream in [s for s in self.streams.values() if s.id > last]:
                self._remove(stream)
                if stream.events is not None:
                    stream.events.on_reset(ErrorCode.REFUSED_STREAM, by_peer=True)
        self.events.on_goaway(ErrorCode.of(int.from_bytes(payload[4:8], "big")), payload[8:264])

    # --- SETTINGS

    def _take_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"SETTINGS on stream {stream_id}")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS ACK with a payload")
            if not self._settled:
                raise ConnectionFailedError(
                    ErrorCode.PROTOCOL_ERROR, "SETTINGS ACK first", Reason.H2_HANDSHAKE_FAILED
                )
            return
        if len(payload) % 6:
            raise ConnectionFailedError(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS of {len(payload)} bytes")
        for name, value in frames.parse_settings(payload):
            self._apply_setting(name, value)
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if not self._settled:
            self._settled = True
            self.events.on_settings()

    def _apply_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            self._change_initial_window(value)
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value < 2**24:
                raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
            self._frame_bytes = min(value, self.limits.send_frame_bytes)
        elif name == frames.MAX_CONCURRENT_STREAMS:
            self.peer_max_tunnels = value
        elif name == frames.MAX_HEADER_LIST_SIZE:
            self._peer_max_header_list = value
        elif name in (frames.ENABLE_PUSH, frames.ENABLE_CONNECT_PROTOCOL) and (
            value > 1 or (name == frames.ENABLE_PUSH and value and self.role is Role.CLIENT)
        ):
            raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, f"setting {name} of {value}")

    def _change_initial_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFailedError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        # The change touches every tunnel, and one frame may hold thousands of them.
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
