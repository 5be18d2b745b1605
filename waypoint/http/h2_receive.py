# SPDX-License-Identifier: Apache-2.0
"""The half of the HTTP/2 codec that reads: bytes into frames, DATA frames into bytes of bodies. Pure.

A DATA frame is never gathered: its payload is passed on as it arrives. Other frames are
bounded before they are buffered, then go to `h2_headers` and `h2_control`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from waypoint.http.h2_headers import HeaderFrames
from waypoint.http.h2_limits import Http2Limits
from waypoint.http.h2_stream import ConnectionEvents, Stream

_frame_header = struct.Struct(">IBI").unpack_from
"""Length u24 and type u8 as one word, flags u8, reserved bit and stream u31."""


class Receiver(HeaderFrames):
    """The reading half of `Http2Codec`."""

    def __init__(
        self, role: Role, limits: Http2Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        super().__init__(role, limits, events, now)
        self._preface = frames.PREFACE if role is Role.SERVER else b""
        self._rest = b""
        self._in_data = False
        """Whether a DATA frame's payload, padding or end is still to be taken."""
        self._data_stream: Stream | None = None
        self._data_left = 0
        self._pad_left = 0
        self._data_end = False

    @property
    def mid_frame(self) -> bool:
        """Whether a preface, frame header, control frame or header block has begun and not ended."""
        return bool(self._rest) or self._block is not None

    def receive(self, data: bytes) -> None:
        """Take bytes of the peer; effects are callbacks and frames to write.

        Raises:
            ConnectionFailedError: the peer broke a rule of the connection; GOAWAY is ready to be
                written, after that the connection is to be closed.
        """
        try:
            self._receive(data)
        except ConnectionFailedError as error:
            self.closing = True
            debug = error.detail.encode()[:256]
            self.out.append(frames.goaway(self.last_peer_id, error.code, debug))
            raise

    def _receive(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = self._take_preface(data) if self._preface else 0
        end = len(data)
        while True:
            if self._in_data:
                at = self._continue_data(data, at, end)
                if self._in_data:
                    return
            body = at + frames.HEADER_BYTES
            if body > end:
                break
            word, flags, stream_id = _frame_header(data, at)
            size, kind = word >> 8, word & 0xFF
            stream_id &= frames.MAX_STREAM_ID
            if kind == frames.DATA:
                if size <= end - body and not flags & frames.PADDED:
                    stream = self.streams.get(stream_id)
                    if stream is not None and self._take_whole_data(stream, data, body, size, flags):
                        at = body + size
                        continue
                if flags & frames.PADDED and size and body == end:
                    break
                at = self._begin_data(data, body, size, flags, stream_id)
                continue
            self._check_size(kind, size)
            if body + size > end:
                break
            at = body + size
            self._take_frame(kind, flags, stream_id, data[body:at])
        if at < end:
            self._rest = data[at:] if at else data

    def _take_preface(self, data: bytes) -> int:
        expected = self._preface
        size = min(len(data), len(expected))
        if data[:size] != expected[:size]:
            raise ConnectionFailedError(
                ErrorCode.PROTOCOL_ERROR, "no HTTP/2 connection preface", Reason.H2_HANDSHAKE_FAILED
            )
        self._preface = expected[size:]
        return size

    def _check_size(self, kind: int, size: int) -> None:
        limits = self.limits
        header = kind in (frames.HEADERS, frames.CONTINUATION)
        limit = limits.max_frame_bytes if header else limits.max_control_frame_bytes
        if size > limit:
            raise ConnectionFailedError(
                ErrorCode.FRAME_SIZE_ERROR, f"frame type {kind} of {size} bytes (limit {limit})"
            )
        if header and size > limits.max_header_block_bytes:
            raise self._calm(f"header frame of {size} bytes (limit {limits.max_header_block_bytes})")

    # --- DATA

    def _take_whole_data(self, stream: Stream, data: bytes, at: int, size: int, flags: int) -> bool:
        """Take a whole DATA frame as most are; False, and nothing done, where any rule needs a look."""
        window = stream.receive or self._make_window(stream)
        if (
            not size
            or size > window.left
            or size > self._receive_left
            or size > self.limits.max_frame_bytes
            or 0 <= stream.expected < size
            or stream.received_end
            or self._block is not None
            or stream.events is None
            or not (stream.answered or self.role is Role.SERVER)
        ):
            return False
        window.left -= size
        self._receive_left -= size
        self._return_credit(size)
        if stream.expected >= 0:
            stream.expected -= size
        stream.events.on_data(data[at : at + size])
        if not stream.open:
            return True
        if flags & frames.END_STREAM:
            self._end_body(stream)
        else:
            credit = window.take(size)
            if credit:
                self.out.append(frames.window_update(stream.id, credit))
        return True

    def _begin_data(self, data: bytes, at: int, size: int, flags: int, stream_id: int) -> int:
        self._check_order(frames.DATA, stream_id)
        if size > self.limits.max_frame_bytes:
            raise ConnectionFailedError(
                ErrorCode.FRAME_SIZE_ERROR, f"DATA of {size} bytes (limit {self.limits.max_frame_bytes})"
            )
        stream = self.streams.get(stream_id)
        if stream is None:
            self._take_stray_data(stream_id)
        elif (broken := self._data_error(stream)) is not None:
            self._fail_stream(stream, broken)
            stream = None
        self._receive_left -= size
        if self._receive_left < 0:
            raise ConnectionFailedError(
                ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded", Reason.H2_FLOW_CONTROL_ERROR
            )
        if stream is not None:
            window = stream.receive or self._make_window(stream)
            window.left -= size
            if window.left < 0:
                error = StreamFailedError(ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
                self._fail_stream(stream, error)
                stream = None
        self._return_credit(size)
        self._data_end = bool(flags & frames.END_STREAM)
        pad = 0
        if flags & frames.PADDED:
            if not size or data[at] >= size:
                raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "padding exceeds its DATA frame")
            pad = data[at]
            at += 1
            if stream is not None:
                self._credit_stream(stream, pad + 1)
            size -= 1 + pad
        if not size and not self._data_end:
            self._spend("empty DATA frames")
        if stream is not None and 0 <= stream.expected < size:
            error = StreamFailedError(ErrorCode.PROTOCOL_ERROR, "body exceeds its content-length")
            self._fail_stream(stream, error)
            stream = None
        self._in_data = True
        self._data_stream = stream
        self._data_left = size
        self._pad_left = pad
        return at

    def _data_error(self, stream: Stream) -> StreamFailedError | None:
        if stream.received_end:
            return StreamFailedError(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if not stream.answered and self.role is Role.CLIENT:
            return StreamFailedError(ErrorCode.PROTOCOL_ERROR, "DATA before the response")
        return None

    def _take_stray_data(self, stream_id: int) -> None:
        """Drop DATA on a stream that is gone; its window counts all the same (RFC 9113 §5.1)."""
        self._check_known(stream_id, "DATA")
        self._spend("DATA on closed streams")
        if stream_id not in self._reset_here:
            self.out.append(frames.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))

    def _continue_data(self, data: bytes, at: int, end: int) -> int:
        """Pass on what is there of the current DATA frame, skip its padding, end it."""
        at = self._take_data(data, at, end)
        skipped = min(self._pad_left, end - at)
        at += skipped
        self._pad_left -= skipped
        if not self._data_left and not self._pad_left:
            self._in_data = False
            stream, self._data_stream = self._data_stream, None
            if self._data_end and stream is not None and stream.open:
                self._end_body(stream)
        return at

    def _take_data(self, data: bytes, at: int, end: int) -> int:
        size = min(self._data_left, end - at)
        if not size:
            return at
        self._data_left -= size
        stream = self._data_stream
        stop = at + size
        # A stream that was reset meanwhile is closed.
        if stream is not None and stream.open and stream.events is not None:
            if stream.expected >= 0:
                stream.expected -= size
            stream.events.on_data(data if size == len(data) else data[at:stop])
            self._credit_stream(stream, size)
        return stop

    def _end_body(self, stream: Stream) -> None:
        try:
            self._receive_end(stream, [])
        except StreamFailedError as error:
            self._fail_stream(stream, error)

    def _return_credit(self, size: int) -> None:
        self._receive_owed += size
        if self._receive_owed * 2 >= self.limits.connection_window_bytes:
            self.out.append(frames.window_update(0, self._receive_owed))
            self._receive_left += self._receive_owed
            self._receive_owed = 0

    def _credit_stream(self, stream: Stream, size: int) -> None:
        window = stream.receive
        credit = window.take(size) if window is not None else 0
        if credit and stream.open and not self._data_end:
            self.out.append(frames.window_update(stream.id, credit))
