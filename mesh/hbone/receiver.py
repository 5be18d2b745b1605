# SPDX-License-Identifier: Apache-2.0
"""The half of the codec that reads: bytes into frames, DATA frames into bytes of tunnels. Pure.

A DATA frame is never gathered: its payload is passed on as it arrives. Other frames are
bounded before they are buffered, then go to `control`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.control import ControlFrames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode, StreamFailedError
from mesh.hbone.limits import Limits
from mesh.hbone.stream import ConnectionEvents, Role, Stream
from mesh.telemetry.reasons import Reason

_frame_header = struct.Struct(">IBI").unpack_from
"""Length u24 and type u8 as one word, flags u8, reserved bit and stream u31."""


class Receiver(ControlFrames):
    """The reading half of `Codec`."""

    def __init__(
        self, role: Role, limits: Limits, events: ConnectionEvents, now: Callable[[], float]
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
            self.goaway(error.code, error.detail.encode()[:256])
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
            if end - at < frames.HEADER_BYTES:
                break
            word, flags, stream_id = _frame_header(data, at)
            size, kind = word >> 8, word & 0xFF
            stream_id &= frames.MAX_STREAM_ID
            if kind == frames.DATA:
                if not flags and size <= end - at - frames.HEADER_BYTES:
                    stream = self.streams.get(stream_id)
                    if stream is not None and self._take_plain_data(
                        stream, data, at + frames.HEADER_BYTES, size
                    ):
                        at += frames.HEADER_BYTES + size
                        continue
                if flags & frames.PADDED and size and end - at < frames.HEADER_BYTES + 1:
                    break
                at = self._begin_data(data, at + frames.HEADER_BYTES, size, flags, stream_id)
                continue
            self._check_size(kind, size)
            stop = at + frames.HEADER_BYTES + size
            if stop > end:
                break
            self._take_frame(kind, flags, stream_id, data[at + frames.HEADER_BYTES : stop])
            at = stop
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
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if size > self.limits.max_header_block_bytes:
                raise self._calm(f"header frame of {size} bytes (limit {self.limits.max_header_block_bytes})")
        elif size > self.limits.max_control_frame_bytes:
            raise ConnectionFailedError(
                ErrorCode.FRAME_SIZE_ERROR,
                f"frame type {kind} of {size} bytes (limit {self.limits.max_control_frame_bytes})",
            )

    # --- DATA

    def _take_plain_data(self, stream: Stream, data: bytes, at: int, size: int) -> bool:
        """Take a whole DATA frame without flags on an open tunnel, the common case; False: another case."""
        window = stream.receive
        if (
            not size
            or size > window.left
            or size > self._receive_left
            or size > self.limits.max_frame_bytes
            or stream.received_end
            or not stream.answered
            or self._block is not None
            or stream.events is None
        ):
            return False
        window.left -= size
        self._receive_left -= size
        self._return_credit(size)
        stream.events.on_data(data[at : at + size])
        credit = window.take(size)
        if credit and stream.id in self.streams:
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
            self._check_known(stream_id, "DATA")
            # In flight when the stream was reset: dropped, but it counts (RFC 9113 §5.1).
            self._spend("DATA on closed streams")
        elif stream.received_end:
            self._fail_stream(stream, StreamFailedError(ErrorCode.STREAM_CLOSED, "DATA after END_STREAM"))
            stream = None
        elif not stream.answered and self.role is Role.CLIENT:
            self._fail_stream(stream, StreamFailedError(ErrorCode.PROTOCOL_ERROR, "DATA before the response"))
            stream = None
        self._receive_left -= size
        if self._receive_left < 0:
            raise ConnectionFailedError(
                ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded", Reason.H2_FLOW_CONTROL_ERROR
            )
        if stream is not None:
            stream.receive.left -= size
            if stream.receive.left < 0:
                error = StreamFailedError(ErrorCode.FLOW_CONTROL_ERROR, "tunnel window exceeded")
                self._fail_stream(stream, error)
                stream = None
        self._return_credit(size)
        pad = 0
        if flags & frames.PADDED:
            if not size or data[at] >= size:
                raise ConnectionFailedError(ErrorCode.PROTOCOL_ERROR, "padding exceeds its DATA frame")
            pad = data[at]
            at += 1
            if stream is not None:
                self._credit_stream(stream, pad + 1)
            size -= 1 + pad
        if not size and not flags & frames.END_STREAM:
            self._spend("empty DATA frames")
        self._in_data = True
        self._data_stream = stream
        self._data_left = size
        self._pad_left = pad
        self._data_end = bool(flags & frames.END_STREAM)
        return at

    def _continue_data(self, data: bytes, at: int, end: int) -> int:
        """Pass on what is there of the current DATA frame, skip its padding, end it."""
        at = self._take_data(data, at, end)
        skipped = min(self._pad_left, end - at)
        at += skipped
        self._pad_left -= skipped
        if not self._data_left and not self._pad_left:
            self._in_data = False
            if self._data_end:
                self._end_data()
        return at

    def _take_data(self, data: bytes, at: int, end: int) -> int:
        size = min(self._data_left, end - at)
        if not size:
            return at
        self._data_left -= size
        stream = self._data_stream
        stop = at + size
        # A stream that was reset meanwhile is out of the table.
        if stream is not None and stream.id in self.streams and stream.events is not None:
            stream.events.on_data(data if size == len(data) else data[at:stop])
            self._credit_stream(stream, size)
        return stop

    def _end_data(self) -> None:
        stream, self._data_stream, self._data_end = self._data_stream, None, False
        if stream is not None and stream.id in self.streams:
            self._receive_end(stream)

    def _return_credit(self, size: int) -> None:
        self._receive_owed += size
        if self._receive_owed * 2 >= self.limits.connection_window_bytes:
            self.out.append(frames.window_update(0, self._receive_owed))
            self._receive_left += self._receive_owed
            self._receive_owed = 0

    def _credit_stream(self, stream: Stream, size: int) -> None:
        credit = stream.receive.take(size)
        if credit and stream.id in self.streams and not self._data_end:
            self.out.append(frames.window_update(stream.id, credit))
