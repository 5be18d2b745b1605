# SPDX-License-Identifier: Apache-2.0
"""The channel between supervisor and worker: framed messages and descriptors over a socketpair.

Both ends are this program at one version, so a malformed frame is a fault of ours: the
channel closes. What the messages mean is `supervisor`'s and `worker`'s business.
"""

from __future__ import annotations

import array
import asyncio
import json
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_log = logging.getLogger("ztunnel.control")

_HEAD = struct.Struct("!II")
"""Shape of a frame: u32 length of the JSON part, u32 length of the blobs, JSON, blobs."""
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A state of 200 MiB is the longest that xDS takes."""
_READ_BYTES = 256 * 1024
_MAX_FDS = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One message: what, JSON values, and bytes that JSON would only blow up."""

    kind: str
    body: Mapping[str, object] = field(default_factory=dict)
    blobs: tuple[bytes, ...] = ()


def encode(message: Message, fds: int = 0) -> bytes:
    """Encode a message that travels with `fds` descriptors."""
    head = {
        "kind": message.kind,
        "body": message.body,
        "blobs": [len(blob) for blob in message.blobs],
        "fds": fds,
    }
    text = json.dumps(head, separators=(",", ":")).encode()
    return b"".join((_HEAD.pack(len(text), sum(map(len, message.blobs))), text, *message.blobs))


class Decoder:
    """Bytes in, messages out; sans-io."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[Message, int]]:
        """Return the messages that are complete now, each with its number of descriptors.

        Raises:
            ValueError: the frame is malformed or longer than allowed.
        """
        self._buffer += data
        found = []
        while len(self._buffer) >= _HEAD.size:
            text_size, blob_size = _HEAD.unpack_from(self._buffer)
            size = _HEAD.size + text_size + blob_size
            if size > MAX_FRAME_BYTES:
                raise ValueError(f"a control frame of {size} bytes exceeds {MAX_FRAME_BYTES}")
            if len(self._buffer) < size:
                break
            found.append(_decode(bytes(self._buffer[_HEAD.size : size]), text_size))
            del self._buffer[:size]
        return found


def _decode(data: bytes, text_size: int) -> tuple[Message, int]:
    head = json.loads(data[:text_size])
    blobs, start = [], text_size
    for size in head["blobs"]:
        blobs.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError("a control frame's blobs do not fill it")
    return Message(head["kind"], head["body"], tuple(blobs)), int(head["fds"])


class Channel:
    """One end of the socketpair; owns the socket and the descriptors in flight. Loop thread only."""

    def __init__(
        self,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], None],
        on_close: Callable[[], None],
    ) -> None:
        """Take over `sock`; `on_message` owns the descriptors that it is given."""
        sock.setblocking(False)
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._fds: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, list[int]]] = deque()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def closed(self) -> bool:
        """Whether the other end is gone or `close` was called."""
        return self._closed

    @property
    def unsent_bytes(self) -> int:
        """What waits for the other end to read."""
        return sum(len(view) for view, _ in self._unsent)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message; descriptors are duplicated, the caller keeps its own. After the end: nothing."""
        if self._closed:
            return
        copies = [os.dup(fd) for fd in fds]
        self._unsent.append((memoryview(encode(message, len(copies))), copies))
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._unsent:
            view, fds = self._unsent[0]
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                sent = self._sock.sendmsg([view], ancillary)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self.close()
                return
            for fd in fds:
                os.close(fd)
            if sent == len(view):
                self._unsent.popleft()
            else:
                self._unsent[0] = (view[sent:], [])
        self._loop.remove_writer(self._sock.fileno())

    def _readable(self) -> None:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(_READ_BYTES, socket.CMSG_SPACE(4 * _MAX_FDS))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
                self._fds.extend(received)
        if not data:
            self.close()
            return
        try:
            for message, count in self._decoder.feed(data):
                fds = [self._fds.popleft() for _ in range(count)]
                self._on_message(message, fds)
        except Exception:  # noqa: BLE001 - a defect of either end, said in full below
            # Going on would leave the two ends with different states: a new worker gets all of it again.
            _log.exception("a control message could not be taken; the channel closes")
            self.close()

    def close(self) -> None:
        """Close this end; `on_close` runs once."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        for fd in self._fds:
            os.close(fd)
        self._unsent.clear()
        self._fds.clear()
        self._on_close()
