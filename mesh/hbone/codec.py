# SPDX-License-Identifier: Apache-2.0
"""The HBONE engine: HTTP/2 with CONNECT tunnels only, both roles, strict and bounded.

Bytes in by `receive`, bytes out by `take`; what the peer did goes to callbacks, as an
object per DATA frame would cost more than the frame. No I/O and no clock of its own.

Flow control cannot deadlock across tunnels: connection credit is returned when bytes
arrive, tunnel credit when the tunnel's consumer has room. A tunnel that nobody reads
holds at most its own window, and no other tunnel's.

Source: RFC 9113, RFC 7541; reference ztunnel's wire behaviour where the RFC leaves room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mesh.hbone import frames
from mesh.hbone.flow import ReceiveWindow
from mesh.hbone.frames import ErrorCode, TunnelLimitError
from mesh.hbone.hpack import Header, encode, list_bytes
from mesh.hbone.limits import MAX_WINDOW, Limits
from mesh.hbone.receiver import Receiver
from mesh.hbone.stream import ConnectionEvents, Role, Stream, StreamEvents
from mesh.telemetry.reasons import Reason

_TURN_BYTES = 64 * 1024
"""What one tunnel may send before the next one's turn, when the connection's window is short."""


class Codec(Receiver):
    """One HTTP/2 connection; `Receiver` holds the half that reads, this one the half that writes."""

    def __init__(
        self, role: Role, limits: Limits, events: ConnectionEvents, now: Callable[[], float]
    ) -> None:
        super().__init__(role, limits, events, now)
        announced = {
            frames.MAX_CONCURRENT_STREAMS: limits.max_tunnels,
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
        return data

    # --- Tunnels

    @property
    def room(self) -> int:
        """Tunnels that may be opened now (client)."""
        if self.role is not Role.CLIENT or self.closing or self._next_id > frames.MAX_STREAM_ID:
            return 0
        return max(0, min(self.limits.max_tunnels, self.peer_max_tunnels) - len(self.streams))

    def open(self, authority: bytes, headers: Sequence[Header], events: StreamEvents) -> Stream:
        """Ask for a tunnel (client).

        Raises:
            TunnelLimitError: the connection takes none now; nothing was sent, safe to retry on another.
        """
        if self.closing:
            raise TunnelLimitError(Reason.GOAWAY, "the connection is being closed; open another one")
        if self.room <= 0:
            raise TunnelLimitError(
                Reason.LIMIT_EXCEEDED,
                f"{len(self.streams)} tunnels open (own limit {self.limits.max_tunnels}, "
                f"peer's {self.peer_max_tunnels}); open another connection",
            )
        block = [(b":method", b"CONNECT"), (b":authority", authority), *headers]
        if list_bytes(block) > self._peer_max_header_list:
            raise TunnelLimitError(
                Reason.LIMIT_EXCEEDED,
                f"header list of {list_bytes(block)} bytes exceeds the peer's {self._peer_max_header_list}",
            )
        stream = Stream(self._next_id, self._peer_initial_window, self._receive_window())
        stream.events = events
        self._next_id += 2
        self.streams[stream.id] = stream
        self._send_headers(stream, block, end=False)
        return stream

    def respond(
        self, stream: Stream, status: int, headers: Sequence[Header] = (), *, end: bool = False
    ) -> None:
        """Answer a request (server); `end` refuses it and stops the peer from sending (RFC 9113 §8.1)."""
        if stream.id not in self.streams or stream.answered:
            return
        stream.answered = True
        self._send_headers(stream, [(b":status", b"%d" % status), *headers], end=end)
        if end:
            stream.sent_end = True
            self._remove(stream)
            self.out.append(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))

    def _send_headers(self, stream: Stream, block: Sequence[Header], *, end: bool) -> None:
        self.out.append(
            frames.headers(stream.id, encode(block), end_stream=end, max_frame_bytes=frames.DEFAULT_FRAME)
        )

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a tunnel at once; what is queued on it is dropped, no further event of it follows."""
        if stream.id in self.streams:
            self._remove(stream)
            self.out.append(frames.rst_stream(stream.id, code))

    def send(self, stream: Stream, data: bytes) -> None:
        """Frame bytes of a tunnel as far as the windows allow, queue the rest; loop thread only.

        The caller watches `stream.queued_bytes` and stops its source.
        """
        size = len(data)
        window = self._send_window
        if stream.queue or size > window or size > stream.send_window or size > self._frame_bytes:
            if size and not stream.sent_end and not stream.end_queued and stream.id in self.streams:
                stream.queue.append(data)
                stream.queued_bytes += size
                self._pump(stream, MAX_WINDOW)
            return
        if size and not stream.sent_end and not stream.end_queued and stream.id in self.streams:
            stream.send_window -= size
            self._send_window = window - size
            # Length and type DATA, no flags, stream.
            self.out.append((size << 48 | stream.id).to_bytes(9, "big"))
            self.out.append(data)

    def send_end(self, stream: Stream) -> None:
        """Half-close a tunnel after what was sent on it."""
        if stream.sent_end or stream.end_queued or stream.id not in self.streams:
            return
        if stream.queue:
            stream.end_queued = True
        else:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.sent_end = True
        self.out.append(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
        self._close_if_done(stream)

    # --- Queues

    def _pump(self, stream: Stream, turn: int) -> None:
        """Frame queued bytes, at most `turn`; note the stream when the connection's window is what lacks."""
        queue, out = stream.queue, self.out
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
            out.append((size << 48 | stream.id).to_bytes(9, "big"))
            out.append(data)
        if stream.end_queued and not stream.sent_end:
            stream.end_queued = False
            self._end(stream)
        if stream.events is not None:
            stream.events.on_drained()

    def _window_opened(self) -> None:
        """Serve the tunnels that wait for the connection's window, in turns."""
        while self._waiting and self._send_window > 0:
            stream_id = next(iter(self._waiting))
            stream = self._waiting.pop(stream_id)
            self._pump(stream, _TURN_BYTES)

    # --- Credit

    def pause(self, stream: Stream) -> None:
        """The consumer of a tunnel is full: the peer gets no more credit for it."""
        stream.receive.pause()

    def resume(self, stream: Stream) -> None:
        """The consumer of a tunnel has room: return the credit that is due."""
        credit = stream.receive.resume()
        if credit and not stream.received_end and stream.id in self.streams:
            self.out.append(frames.window_update(stream.id, credit))

    def _receive_window(self) -> ReceiveWindow:
        return ReceiveWindow(self.limits.initial_window_bytes, self.limits.max_window_bytes, self._growth)

    # --- Connection

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; eight bytes."""
        self.out.append(frames.frame(frames.PING, 0, 0, payload))

    def goaway(self, code: ErrorCode, debug: bytes = b"", *, last_stream_id: int | None = None) -> None:
        """Tell the peer that streams above the last one are not served; live ones go on."""
        last = self.last_peer_id if last_stream_id is None else last_stream_id
        self.out.append(frames.goaway(last, code, debug))

    def stop_opening(self) -> None:
        """Open no further tunnel (client)."""
        self.closing = True
