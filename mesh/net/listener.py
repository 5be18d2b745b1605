# SPDX-License-Identifier: Apache-2.0
"""Accepting: from a listening socket to raw connected sockets, in bounded batches.

The raw socket is handed on before any transport exists, because its options (original
destination) must be read first and a refused connection never needs a transport.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import struct
from collections.abc import Callable

from mesh.net.sockets import Peer, parse_sockaddr

_log = logging.getLogger("ambit.listener")

ACCEPT_BATCH = 32
"""Connections taken per loop turn, so that a burst does not starve running relays."""
PAUSE_S = 0.1
"""How long to leave the queue alone when nothing can be accepted."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_SO_COOKIE = 57
OnAccept = Callable[[socket.socket, Peer], None]


class Listener:
    """Owns one listening socket until `close`; loop thread only."""

    def __init__(self, sock: socket.socket, on_accept: OnAccept, name: str) -> None:
        self.name = name
        self.cookie = socket_cookie(sock)
        self._sock = sock
        self._on_accept = on_accept
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def port(self) -> int:
        """The port it listens on; 0 when closed."""
        return 0 if self._closed else int(self._sock.getsockname()[1])

    def _readable(self) -> None:
        for _ in range(ACCEPT_BATCH):
            if self._closed:
                return
            try:
                sock, name = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._failed(error)
                return
            try:
                sock.setblocking(False)
                peer = parse_sockaddr(name)
            except (OSError, ValueError):
                sock.close()  # The client is gone already.
                continue
            self._on_accept(sock, peer)

    def _failed(self, error: OSError) -> None:
        """Leave the queue alone for a moment: the same error would come back at once, and again."""
        remedy = (
            "; raise the limit of open files (LimitNOFILE, ulimit -n)" if error.errno in _EXHAUSTED else ""
        )
        _log.error("%s cannot accept: %s%s", self.name, error, remedy)
        self._loop.remove_reader(self._sock.fileno())
        self._loop.call_later(PAUSE_S, self._again)

    def _again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def close(self) -> None:
        """Take what is in the queue, then stop listening."""
        if self._closed:
            return
        self._readable()
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()


def socket_cookie(sock: socket.socket) -> int:
    """Return the kernel's own number of a socket: u64, never reused."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8))[0])
