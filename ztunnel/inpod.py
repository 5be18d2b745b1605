# SPDX-License-Identifier: Apache-2.0
"""The listeners of one pod in one worker: opened all or none, retired before they close.

The kernel side finds them by itself: the capture programs note each listener that ztunnel
opens. Leaving them again (`retire`) is the first step of an upgrade.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from typing import Protocol

from mesh.net.listener import Listener, OnAccept
from ztunnel.config import DataPlaneConfig
from ztunnel.netns import PodNamespace
from ztunnel.original_dst import PLAINTEXT_PORT
from ztunnel.sockets import tcp_listener

_log = logging.getLogger("ztunnel.inpod")

__all__ = ["HBONE_PORT", "OUTBOUND_PORT", "PLAINTEXT_PORT", "ListenerMap", "PodListeners", "families"]

OUTBOUND_PORT = 15001
HBONE_PORT = 15008


class ListenerMap(Protocol):
    """The kernel's table of listeners, as far as a worker needs it (`bpf.maps.NodeMaps`)."""

    def retire_listener(self, socket_cookie: int) -> bool:
        """Stop new connections from being handed to a listener; whether it was there."""
        ...


def families(namespace: PodNamespace, *, ipv6: bool) -> Iterable[socket.AddressFamily]:
    """List the address families that the pod has."""
    yield socket.AF_INET
    if not ipv6:
        return
    try:
        probe = namespace.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        return
    with probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return  # IPv6 is switched off in this pod (net.ipv6.conf.*.disable_ipv6).
    yield socket.AF_INET6


class PodListeners:
    """Owns a pod's TCP listeners; loop thread only."""

    def __init__(
        self, namespace: PodNamespace, config: DataPlaneConfig, handlers: dict[int, OnAccept], name: str
    ) -> None:
        """Open one listener per port and family.

        Raises:
            OSError: a port is taken inside the pod; none stays open.
        """
        self._listeners: list[Listener] = []
        try:
            for family in families(namespace, ipv6=config.ipv6):
                for port, handler in handlers.items():
                    sock = tcp_listener(namespace, family, port, config.listen_backlog)
                    self._listeners.append(Listener(sock, handler, f"{name}:{port}"))
        except OSError:
            self.close()
            raise

    def retire(self, maps: ListenerMap) -> int:
        """Leave the kernel's table of listeners and go on accepting; return how many were in it."""
        count = 0
        for listener in self._listeners:
            try:
                count += maps.retire_listener(listener.cookie)
            except OSError as error:
                _log.warning(
                    "%s stays in the capture's listener table until it closes: %s", listener.name, error
                )
        return count

    def close(self) -> None:
        """Accept what is queued and stop listening."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
