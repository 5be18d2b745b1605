# SPDX-License-Identifier: Apache-2.0
"""TCP sockets of proxies: addresses of peers, dials with their deadlines and reasons, resets.

Only makes and connects sockets; what is spoken on them is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mesh.model.address import IPAddress, format_host_port, parse_ip
from mesh.net.relay import TcpEnd
from mesh.telemetry.reasons import Reason

MakeSocket = Callable[[int, int], socket.socket]
"""Makes a non-blocking socket of a family and type. Raises OSError."""


class DialError(Exception):
    """An upstream was not reached: a reason and its words; the remote side's fault unless they say else."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Peer:
    """Address and port, canonical."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return format_host_port(self.address, self.port)

    @property
    def sockaddr(self) -> tuple[str, int]:
        """As the socket module takes it."""
        return str(self.address), self.port


@lru_cache(maxsize=8192)
def cached_ip(text: str) -> IPAddress:
    """Parse an address as `parse_ip`, without its scope; the same few come with every connection.

    Raises:
        ValueError: the text is no IP address.
    """
    return parse_ip(text.partition("%")[0])


def parse_sockaddr(name: object) -> Peer:
    """Convert `getsockname`/`getpeername`'s tuple; v4-mapped becomes IPv4."""
    if not isinstance(name, tuple) or len(name) < 2:
        raise ValueError(f"{name!r} is no IP socket address")
    return Peer(cached_ip(str(name[0])), int(name[1]))


def family_of(address: IPAddress) -> socket.AddressFamily:
    """Return the socket family for an address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def plain_socket(family: int, kind: int) -> socket.socket:
    """Make a non-blocking socket in this process's own network namespace."""
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


async def dial(
    make_socket: MakeSocket,
    target: Peer,
    *,
    timeout_s: float,
    prepare: Callable[[socket.socket], None] | None = None,
    what: str = "",
    keepalive: bool = False,
) -> socket.socket:
    """Connect a socket; `prepare` sets its options and source before.

    TCP keepalive is for peers elsewhere that nothing else watches: HBONE has its own pings.

    Raises:
        DialError: refused, unreachable, timed out, or the source address cannot be used.
    """
    label = what or str(target)
    try:
        sock = make_socket(family_of(target.address), socket.SOCK_STREAM)
    except OSError as error:
        raise DialError(Reason.INTERNAL_ERROR, f"no socket for {label}: {error}") from error
    try:
        if keepalive:
            set_keepalive(sock)
        if prepare is not None:
            prepare(sock)
        async with asyncio.timeout(timeout_s):
            await _connect(sock, target)
    except TimeoutError as error:
        sock.close()
        raise DialError(
            Reason.CONNECT_TIMEOUT,
            f"no answer from {label} within {timeout_s:g} s; "
            f"is a NetworkPolicy or firewall dropping port {target.port}?",
        ) from error
    except OSError as error:
        sock.close()
        raise DialError(_connect_reason(error), f"connect to {label}: {error.strerror or error}") from error
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(sock: socket.socket, target: Peer) -> None:
    """Connect a non-blocking socket to an address.

    uvloop's own `sock_connect` asks its thread pool to resolve even an address, which costs
    more than the connection.
    """
    try:
        sock.connect(target.sockaddr)
    except (BlockingIOError, InterruptedError):
        pass
    else:
        return
    with contextlib.suppress(OSError):
        # Within one machine the handshake is over by now, as often as not.
        sock.getpeername()
        return
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    number = sock.fileno()
    loop.add_writer(number, _connected, sock, done)
    try:
        await done
    finally:
        loop.remove_writer(number)


def _connected(sock: socket.socket, done: asyncio.Future[None]) -> None:
    if done.done():
        return
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        done.set_exception(OSError(error, os.strerror(error)))
    else:
        done.set_result(None)


def _connect_reason(error: OSError) -> Reason:
    if error.errno == errno.ECONNREFUSED:
        return Reason.CONNECT_REFUSED
    if error.errno == errno.ETIMEDOUT:
        return Reason.CONNECT_TIMEOUT
    if error.errno in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
        return Reason.SOURCE_ADDRESS_UNAVAILABLE
    return Reason.CONNECT_UNREACHABLE


def set_keepalive(sock: socket.socket) -> None:
    """Have the kernel find out when a peer elsewhere is gone."""
    # Source: ztunnel's KEEPALIVE_* defaults.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 180)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 180)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees RST: it must not take a refusal for an orderly end."""
    with contextlib.suppress(OSError):
        # Closed already (a failed TLS handshake does that): then there is nothing left to say.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    sock.close()


async def tcp_end(sock: socket.socket) -> TcpEnd:
    """Make an end of a connected socket, which it owns from here on.

    Raises:
        DialError: PEER_RESET, the socket is dead already.
    """
    end = TcpEnd()
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: end, sock)
    except OSError as error:
        sock.close()
        raise DialError(Reason.PEER_RESET, f"the socket is dead: {error}") from error
    except BaseException:
        sock.close()
        raise
    return end
