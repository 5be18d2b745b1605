# SPDX-License-Identifier: Apache-2.0
"""Sockets of the data plane with their options: in-pod listeners and upstream dials.

Only makes and connects sockets; what is spoken on them is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from dataclasses import dataclass
from functools import lru_cache

from mesh.model.address import IPAddress, format_host_port, parse_ip
from mesh.telemetry.reasons import Reason
from ztunnel.netns import PodNamespace

APP_MARK = 0x111
"""Mark of dials towards applications: the pod routes answers to them back to lo (table 100)."""
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_V6ONLY = 26
_SOL_IP = socket.IPPROTO_IP
_SOL_IPV6 = socket.IPPROTO_IPV6


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


def tcp_listener(
    namespace: PodNamespace, family: socket.AddressFamily, port: int, backlog: int
) -> socket.socket:
    """Open one in-pod listener on every address of a family; several workers may share the port.

    Raises:
        OSError: the port is taken by a process of the pod; names port and family.
    """
    sock = namespace.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(_SOL_IPV6, _IPV6_V6ONLY, 1)
        _bind(sock, "0.0.0.0" if family == socket.AF_INET else "::", port)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def udp_listener(namespace: PodNamespace, family: socket.AddressFamily, port: int) -> socket.socket:
    """Open one UDP socket on the pod's loopback.

    Raises:
        OSError: the port is taken by a process of the pod; names port and family.
    """
    sock = namespace.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _bind(sock, "127.0.0.1" if family == socket.AF_INET else "::1", port)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, host: str, port: int) -> None:
    try:
        sock.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                error.errno,
                f"port {port} ({'IPv6' if ':' in host else 'IPv4'}) is in use inside the pod: "
                "it is reserved for the mesh; move the application to another port",
            ) from error
        raise


async def dial(
    namespace: PodNamespace,
    target: Peer,
    *,
    timeout_s: float,
    source: IPAddress | None = None,
    what: str = "",
    keepalive: bool = False,
) -> socket.socket:
    """Connect from inside a pod; with `source` from that (foreign) address, marked for the way back.

    TCP keepalive is for peers elsewhere that nothing else watches: an application in the pod
    cannot vanish unseen, and HBONE has its own pings.

    Raises:
        DialError: refused, unreachable, timed out, or the source address cannot be used.
    """
    label = what or str(target)
    try:
        sock = namespace.socket(family_of(target.address), socket.SOCK_STREAM)
    except OSError as error:
        raise DialError(Reason.INTERNAL_ERROR, f"no socket for {label}: {error}") from error
    try:
        if keepalive:
            set_keepalive(sock)
        if source is not None:
            _bind_source(sock, source)
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


def _bind_source(sock: socket.socket, source: IPAddress) -> None:
    if source.version == 4:
        sock.setsockopt(_SOL_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(_SOL_IPV6, _IPV6_TRANSPARENT, 1)
    # The kernel draws the port at connect: unique per tuple, not per address.
    sock.setsockopt(_SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, APP_MARK)
    sock.bind((str(source), 0))


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
