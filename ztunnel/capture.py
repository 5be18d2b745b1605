# SPDX-License-Identifier: Apache-2.0
"""What ztunnel asks of the capture's pinned maps: retire a listener, a pod's nameservers.

Reads and retires only; enrolment is the node agent's. Without pins ztunnel still serves
whatever reaches its listeners.
"""

from __future__ import annotations

import logging
from pathlib import Path

from bpf.errors import BpfError, NotLoadedError
from bpf.maps import NodeMaps
from mesh.model.address import IPAddress
from mesh.runtime.clock import Clock

_log = logging.getLogger("ztunnel.capture")

RESOLVERS_AGE_S = 5.0
"""How long a pod's nameservers are remembered; they change with its record only."""


class Capture:
    """Owns the opened maps; loop thread only."""

    def __init__(self, maps: NodeMaps, clock: Clock) -> None:
        self._maps = maps
        self._clock = clock
        self._resolvers: dict[int, tuple[IPAddress, ...]] = {}
        self._read_s = float("-inf")

    @classmethod
    def open(cls, bpffs: Path | None, clock: Clock) -> Capture | None:
        """Open the pins; None, said in the log, when there are none."""
        if bpffs is None:
            return None
        try:
            return cls(NodeMaps.open(bpffs), clock)
        except (BpfError, NotLoadedError, OSError) as error:
            _log.warning(
                "no capture maps: %s; pods' nameservers are unknown and listeners close unretired", error
            )
            return None

    def retire_listener(self, socket_cookie: int) -> bool:
        """Stop new connections from being handed to a listener; whether it was there."""
        try:
            return self._maps.retire_listener(socket_cookie)
        except BpfError as error:
            raise OSError(0, str(error)) from error

    def resolvers(self, netns_cookie: int) -> tuple[IPAddress, ...]:
        """Return a pod's nameservers in the order of its resolv.conf; empty when not known."""
        now = self._clock.monotonic()
        if now - self._read_s > RESOLVERS_AGE_S or netns_cookie not in self._resolvers:
            self._read_s = now
            try:
                self._resolvers = {cookie: pod.resolvers for cookie, pod in self._maps.pods().items()}
            except BpfError as error:
                _log.warning("pods' nameservers cannot be read: %s", error)
        return self._resolvers.get(netns_cookie, ())
