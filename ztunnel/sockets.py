# SPDX-License-Identifier: Apache-2.0
"""Sockets of the data plane with their options: in-pod listeners, and dials from foreign addresses.

Only makes sockets; what is spoken on them is decided elsewhere.
"""

from __future__ import annotations

import errno
import socket

from mesh.model.address import IPAddress
from ztunnel.netns import PodNamespace

APP_MARK = 0x111
"""Mark of dials towards applications: the pod routes answers to them back to lo (table 100)."""
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_IP_BIND_ADDRESS_NO_PORT = 24
_IPV6_V6ONLY = 26
_SOL_IP = socket.IPPROTO_IP
_SOL_IPV6 = socket.IPPROTO_IPV6


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


def bind_source(sock: socket.socket, source: IPAddress) -> None:
    """Let a dial come from a foreign address, marked for the way back.

    Raises:
        OSError: the address cannot be used.
    """
    if source.version == 4:
        sock.setsockopt(_SOL_IP, _IP_TRANSPARENT, 1)
    else:
        sock.setsockopt(_SOL_IPV6, _IPV6_TRANSPARENT, 1)
    # The kernel draws the port at connect: unique per tuple, not per address.
    sock.setsockopt(_SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, APP_MARK)
    sock.bind((str(source), 0))
