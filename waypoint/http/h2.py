# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 without I/O, both roles, strict and bounded: requests with bodies and trailers.

Bytes in by `receive`, bytes out by `take`; what the peer did goes to callbacks, as an
object per frame would cost more than the frame.

Flow control cannot deadlock across streams: connection credit is returned when bytes
arrive, stream credit when the stream's consumer has room. A stream that nobody reads
holds at most its own window, and no other stream's.

Source: RFC 9113, RFC 7541.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode
from mesh.hbone.stream import Role
from waypoint.http.h2_limits import MAX_WINDOW, Http2Limits
from waypoint.http.h2_receive import Receiver
from waypoint.http.h2_stream import ConnectionEvents, Stream, StreamEvents

_TURN_BYTES = 16 * 1024
"""What one stream may send before the next one's turn, when the connection's window is short."""
_JOINED_BYTES = 4 * 1024
"""A DATA frame up to this size is one piece of output: cheaper to copy than to pass on in two."""
_HEADERS = (frames.HEADERS << 8 | frames.END_HEADERS) << 32
_HEADERS_LAST = _HEADERS | frames.END_STREAM << 32
_ENDED = [bytes([flags | frames.END_STREAM]) for flags in range(256)]


class Http2Codec(Receiver):
    """One HTTP/2 connection; `Receiver` holds the half that reads, this one the half that writes."""

    def __init__(
        self, role: Role, limits: Http2Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        super().__init__(role, limits, events, now)
        self._turn = 0
        announced = {
            frames.MAX_CONCURRENT_STREAMS: limits.max_streams,
            frames.INITIAL_WINDOW_SIZE: limits.initial_window_bytes,
            frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
            frames.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
        }
        if role is Role.CLIENT:
            self.out.append(frames.PREFACE)
            del announced[frames.MAX_CONCURRENT_STREAMS]
            announced[frames.ENABLE_PUSH] = 0
        if limits.header_table_bytes != 4096:
            announced[frames.HEADER_TABLE_SIZE] = limits.header_table_bytes
        self.out.append(frames.settings(announced))
        if limits.connection_window_bytes > frames.DEFAULT_WINDOW:
            self.out.append(frames.window_update(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW))

    def take(self) -> bytes:
        """Return everything that is to be written, and forget it."""
        out = self.out
        data = b"".join(out)
        out.clear()
        self._turn += 1
        return data

    # --- Messages

    @property
    def room(self) -> int:
        """Streams that may be opened now (client); 0 on a connection that is closing."""
        if self.closing or self._next_id > frames.MAX_STREAM_ID:
            return 0
        return max(0, min(self.limits.max_streams, self.peer_max_streams) - len(self.streams))

    def open(self, block: bytes, method: str, events: StreamEvents, *, end: bool) -> Stream:
        """Send a request's head (client); `end`: it has no body. The caller knows that there is `room`."""
        stream = Stream(self._next_id, self._peer_initial_window, method)
        stream.events = events
        self._next_id += 2
        self.streams[stream.id] = stream
        self._send_block(stream, block, end=end)
        stream.sent_end = end
        return stream

    def respond(self, stream: Stream, block: bytes) -> None:
        """Send the final response's head (server)."""
        if stream.open and not stream.answered:
            stream.answered = True
            self._send_block(stream, block, end=False)

    def send_interim(self, stream: Stream, block: bytes) -> None:
        """Send a 1xx head (server)."""
        if stream.open and not stream.answered:
            self._send_block(stream, block, end=False)
            stream.head_turn = -1

    def _send_block(self, stream: Stream, block: bytes, *, end: bool) -> None:
        stream.head_turn, stream.head_at = self._turn, len(self.out)
        size = len(block)
        if size <= frames.DEFAULT_FRAME:
            # Length, type HEADERS, flags, stream.
            kind_and_flags = _HEADERS_LAST if end else _HEADERS
            self.out.append((size << 48 | kind_and_flags | stream.id).to_bytes(9, "big") + block)
        else:
            self.out.append(
                frames.headers(stream.id, block, end_stream=end, max_frame_bytes=frames.DEFAULT_FRAME)
            )

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Frame bytes of a body as far as the windows allow, queue the rest.

        The caller watches `stream.queued_bytes` and stops its source.
        """
        size = len(data)
        if not size or not stream.open or stream.sent_end or stream.final is not None:
            return
        window = self._send_window
        if stream.queue or size > window or size > stream.send_window or size > self._frame_bytes:
            if stream.queue is None:
                stream.queue = deque()
            stream.queue.append(data)
            stream.queued_bytes += size
            self._pump(stream, MAX_WINDOW)
            return
        stream.send_window -= size
        self._send_window = window - size
        self._send_frame(stream, data, size)

    def _send_frame(self, stream: Stream, data: bytes | memoryview, size: int) -> None:
        out = self.out
        stream.head_turn, stream.head_at = self._turn, len(out)
        # Length and type DATA, no flags, stream.
        header = (size << 48 | stream.id).to_bytes(9, "big")
        if size <= _JOINED_BYTES:
            out.append(b"".join((header, data)))
        else:
            out.append(header)
            out.append(data)

    def send_end(self, stream: Stream, trailers: bytes = b"") -> None:
        """Complete our message after what was sent of it, with a trailer block where there is one.

        A response that is complete before its request stops the request (RFC 9113 §8.1).
        """
        if not stream.open or stream.sent_end or stream.final is not None:
            return
        if stream.queue:
            stream.final = trailers
        else:
            self._end(stream, trailers)

    def _end(self, stream: Stream, trailers: bytes) -> None:
        stream.sent_end = True
        if trailers:
            self._send_block(stream, trailers, end=True)
        elif stream.head_turn == self._turn:
            # Its last frame is not written yet: the end goes into it.
            piece = bytes(self.out[stream.head_at])
            self.out[stream.head_at] = b"%b%b%b" % (piece[:4], _ENDED[piece[4]], piece[5:])
        else:
            self.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
        if stream.received_end:
            self._remove(stream)
        elif self.role is Role.SERVER:
            self.reset(stream, ErrorCode.NO_ERROR)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream at once; what is queued on it is dropped, no further event of it follows."""
        if stream.open:
            self._note_reset(stream.id)
            self._remove(stream)
            self.out.append(frames.rst_stream(stream.id, code))

    def abandon(self, code: ErrorCode, detail: str, *, by_peer: bool) -> None:
        """The connection is over: end every stream as if it had been reset for that cause."""
        self.closing = True
        for stream in list(self.streams.values()):
            self._remove(stream)
            if stream.events is not None:
                stream.events.on_reset(code, detail, by_peer=by_peer)

    # --- Queues

    def _pump(self, stream: Stream, turn: int) -> None:
        """Frame queued bytes, at most `turn`; note the stream when the connection's window is what lacks."""
        queue = stream.queue
        while queue:
            allowed = min(stream.send_window, self._send_window, self._frame_bytes, turn)
            if allowed <= 0:
                if self._send_window <= 0 or turn <= 0:
                    self._waiting[stream.id] = stream
                return
            data = queue[0]
            size = len(data)
            if size > allowed:
                # A view: what is cut is not copied until it is written.
                view = memoryview(data)
                queue[0] = view[allowed:]
                data, size = view[:allowed], allowed
            else:
                queue.popleft()
            stream.queued_bytes -= size
            stream.send_window -= size
            self._send_window -= size
            turn -= size
            self._send_frame(stream, data, size)
        if stream.final is not None and not stream.sent_end:
            self._end(stream, stream.final)
        elif stream.events is not None:
            stream.events.on_drained()

    def _window_opened(self) -> None:
        """Serve the streams that wait for the connection's window, in turns."""
        while self._waiting and self._send_window > 0:
            stream_id = next(iter(self._waiting))
            stream = self._waiting.pop(stream_id)
            self._pump(stream, _TURN_BYTES)

    # --- Credit

    def pause(self, stream: Stream) -> None:
        """The consumer of a stream is full: the peer gets no more credit for it."""
        (stream.receive or self._make_window(stream)).pause()

    def resume(self, stream: Stream) -> None:
        """The consumer of a stream has room: return the credit that is due."""
        credit = stream.receive.resume() if stream.receive is not None else 0
        if credit and not stream.received_end and stream.open:
            self.out.append(frames.window_update(stream.id, credit))

    # --- Connection

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; eight bytes."""
        self.out.append(frames.frame(frames.PING, 0, 0, payload))

    def goaway(self, code: ErrorCode, debug: bytes = b"", *, last_stream_id: int | None = None) -> None:
        """Tell the peer that streams above the last one are not served; live ones go on."""
        last = self.last_peer_id if last_stream_id is None else last_stream_id
        self.out.append(frames.goaway(last, code, debug))

    def stop_opening(self) -> None:
        """Take and open no further stream."""
        self.closing = True
