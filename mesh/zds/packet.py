# SPDX-License-Identifier: Apache-2.0
"""Datagrams with descriptors over a SOCK_SEQPACKET unix socket, for asyncio (and uvloop).

A descriptor that was received belongs to exactly one owner at any moment: a datagram
that is refused closes its own before the error is raised.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mesh.zds.messages import MAX_MESSAGE_BYTES, ZdsProtocolError

_UCRED = struct.Struct("3i")
"""Shape: pid, uid, gid, native order. Source: unix(7), SO_PEERCRED."""
_MAX_FDS = 8
"""More than anyone may send, so that a sender of too many is seen; the kernel closes what exceeds this."""


class ZdsClosedError(Exception):
    """The connection ended; says why. Safe to retry on the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who connected or listens, as the kernel recorded it at that time."""

    pid: int
    """0: a process that this pid namespace cannot see."""
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return the credentials of the process at the other end."""
    pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(pid=pid, uid=uid, gid=gid)


def close_fds(fds: Iterable[int]) -> None:
    """Close descriptors that nobody took."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class PacketSocket:
    """One connected socket; at most one `receive` and one `send` wait at a time. Loop thread only."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._wake: set[asyncio.Future[None]] = set()
        self.peer = peer_credentials(sock)

    @property
    def closed(self) -> bool:
        """Whether this side has closed it."""
        return self._sock.fileno() < 0

    def close(self) -> None:
        """Close at once; whoever waits gets `ZdsClosedError`."""
        if self.closed:
            return
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for waiter in self._wake:
            if not waiter.done():
                waiter.set_exception(ZdsClosedError("closed here"))

    async def receive(self) -> tuple[bytes, list[int]]:
        """Return the next datagram and its descriptors (close-on-exec), which the caller then owns.

        Raises:
            ZdsClosedError: the connection ended.
            ZdsProtocolError: the datagram or its descriptors were too many to take whole; all are closed.
        """
        while True:
            if self.closed:
                raise ZdsClosedError("closed here")
            try:
                data, control, flags, _ = self._sock.recvmsg(
                    MAX_MESSAGE_BYTES, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
                )
                break
            except BlockingIOError:
                await self._until(self._loop.add_reader, self._loop.remove_reader)
            except OSError as error:
                raise ZdsClosedError(f"receiving failed: {error}") from error
        fds = _descriptors(control)
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_fds(fds)
            raise ZdsProtocolError(
                f"a datagram of more than {MAX_MESSAGE_BYTES} bytes or {_MAX_FDS} descriptors"
            )
        if not data:
            close_fds(fds)
            raise ZdsClosedError("the peer closed the connection")
        return data, fds

    async def send(self, data: bytes, fd: int | None = None) -> None:
        """Send one datagram, with at most one descriptor, which stays the caller's.

        Raises:
            ZdsClosedError: the connection ended.
            OSError: EBADF, the descriptor is not open (local fault).
        """
        ancillary = []
        if fd is not None:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        while True:
            if self.closed:
                raise ZdsClosedError("closed here")
            try:
                self._sock.sendmsg([data], ancillary)
            except BlockingIOError:
                await self._until(self._loop.add_writer, self._loop.remove_writer)
            except (BrokenPipeError, ConnectionError) as error:
                raise ZdsClosedError(f"sending failed: {error}") from error
            else:
                return

    async def _until(
        self,
        watch: Callable[[socket.socket, Callable[[asyncio.Future[None]], None], asyncio.Future[None]], None],
        unwatch: Callable[[socket.socket], object],
    ) -> None:
        """Wait until the socket is ready, or closed."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._wake.add(waiter)
        watch(self._sock, _ready, waiter)
        try:
            await waiter
        finally:
            self._wake.discard(waiter)
            if not self.closed:
                unwatch(self._sock)


def _ready(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            # A truncated list may end within a number; the kernel installed only whole ones.
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)
