# SPDX-License-Identifier: Apache-2.0
"""Transports in memory: one that records, and a pair that delivers in the loop's turns."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast


class FakeSocket:
    """Records options."""

    def __init__(self) -> None:
        self.options: list[tuple[int, int, bytes]] = []

    def setsockopt(self, level: int, name: int, value: bytes) -> None:
        self.options.append((level, name, value))

    @property
    def resets(self) -> bool:
        """Whether closing it sends RST."""
        return any(option[:2] == (socket.SOL_SOCKET, socket.SO_LINGER) for option in self.options)


class FakeTransport(asyncio.Transport):
    """Records what its protocol does; the test plays the peer."""

    def __init__(self, protocol: asyncio.Protocol, **extra: Any) -> None:
        self.socket = FakeSocket()
        super().__init__({"socket": self.socket, **extra})
        self.protocol = protocol
        self.written = bytearray()
        self.writes = 0
        self.eof = False
        self.closing = False
        self.aborted = False
        self.reading = True
        self.buffered = 0
        self.far: FakeTransport | None = None
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof, "no write after the end of file"
        assert not self.closing, "no write after close"
        self.written += data
        self.writes += 1

    def write_eof(self) -> None:
        assert not self.eof
        self.eof = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.lose, None)

    def abort(self) -> None:
        self.aborted = True
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.lose, None)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def lose(self, exc: Exception | None) -> None:
        """End the connection, as the loop would."""
        self.closing = True
        protocol, self.protocol = self.protocol, cast(asyncio.Protocol, None)
        if protocol is not None:
            protocol.connection_lost(exc)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        taken = bytes(self.written)
        self.written.clear()
        return taken


async def turns(count: int = 3) -> None:
    """Let the loop run what is ready."""
    for _ in range(count):
        await asyncio.sleep(0)


async def pump(left: FakeTransport, right: FakeTransport) -> None:
    """Move bytes between two transports until nothing moves any more."""
    quiet = 0
    while quiet < 2:
        await turns(2)
        quiet += 1
        for one, other in ((left, right), (right, left)):
            data = one.take()
            if data and other.protocol is not None and not other.closing:
                quiet = 0
                other.protocol.data_received(data)
            if one.protocol is None and other.protocol is not None and not other.closing:
                quiet = 0
                if not other.protocol.eof_received():
                    other.close()
