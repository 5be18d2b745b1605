# SPDX-License-Identifier: Apache-2.0
"""What the peer's header blocks do: requests and responses begin, trailers end them. Pure.

Source: RFC 9113 §4.3, §6.2, §6.10, §8.
"""

from __future__ import annotations

from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.hpack import HpackError, HpackFloodError
from mesh.hbone.stream import Role
from waypoint.http.h2_control import ControlFrames
from waypoint.http.h2_fields import FieldReader
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import ConnectionEvents, Stream
from waypoint.http.message import BadMessageError, Framing, Headers

_REMEMBERED_GAPS = 64
"""Ranges of stream identifiers that a client skipped: such a stream never was."""


class HeaderFrames(ControlFrames):
    """What each frame of the peer other than DATA does."""

    def __init__(
        self, role: Role, limits: Http2Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        super().__init__(role, limits, events, now)
        self._block_end = False
        self._continuations = 0
        self._fields = FieldReader(limits)
        self._gaps: list[tuple[int, int]] = []

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
        self._note_reset(stream_id)
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
