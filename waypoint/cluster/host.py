# SPDX-License-Identifier: Apache-2.0
"""One endpoint: how it is reached, and what requests have shown of it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from mesh.model.address import IPAddress, format_host_port
from mesh.model.destination import ClientTls, Keepalive
from mesh.model.workload import TunnelProtocol, Workload

Socket = tuple[IPAddress, int]
"""Address and port."""
EWMA_DECAY_S = 10.0
"""Time constant of the latency's decay. Source: Linkerd's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What is done on the way to an endpoint, besides connecting."""

    tls: ClientTls | None = None
    sni: str = ""
    proxy_protocol: int = 0
    """Version of the PROXY header; 0: none."""
    connect_timeout_s: float | None = None
    """None: the process's own."""
    keepalive: Keepalive | None = None
    client: Socket | None = None
    """Whom the PROXY header names; connections are not shared with other clients."""
    target: Socket | None = None
    """What the client had addressed."""


PLAIN = Way()


@dataclass(frozen=True, slots=True)
class Address:
    """One endpoint of a service, with the way to it. Equal keys share connections."""

    workload: Workload
    address: IPAddress | None
    """None: the workload has only a name, resolved when dialled."""
    port: int
    service: str
    """Hostname of the service that it was chosen for; empty: addressed by itself."""
    key: Hashable
    label: str
    way: Way = field(default=PLAIN)
    asked: str = ""
    """What a tunnel asks for: `host:port` behind a waypoint; empty: the endpoint itself."""

    @property
    def tunnelled(self) -> bool:
        """Whether it is reached through HBONE."""
        return self.workload.tunnel_protocol is TunnelProtocol.HBONE


def make_address(
    workload: Workload,
    address: IPAddress | None,
    port: int,
    service: str,
    *,
    pool: str = "",
    way: Way = PLAIN,
) -> Address:
    """Name an endpoint; `pool` is equal for those that may share connections."""
    label = format_host_port(address, port) if address is not None else f"{workload.hostname}:{port}"
    # One text: its hash is worked out once.
    key = f"{pool} {workload.uid} {label} {workload.tunnel_protocol.value}"
    return Address(workload, address, port, service, key, label, way)


class Host:
    """An endpoint of a cluster: its weight and state. Compared by identity; outlives updates."""

    __slots__ = (
        "active",
        "added_s",
        "address",
        "back_s",
        "ejected",
        "ejections",
        "errors",
        "gateway_errors",
        "gone",
        "label",
        "labels",
        "latency_s",
        "local_failures",
        "measured_s",
        "weight",
    )

    def __init__(self, address: Address, weight: int, labels: dict[str, str], now_s: float) -> None:
        self.address = address
        self.label = address.label
        self.weight: float = weight
        self.labels = labels
        self.added_s = now_s
        self.gone = False
        """No endpoint any more: what runs on it may end."""
        self.active = 0
        """Requests under way."""
        self.latency_s = 0.0
        self.measured_s = -math.inf
        self.errors = 0
        """Answers 5xx in a row, and failures to connect where they are not counted by themselves."""
        self.gateway_errors = 0
        self.local_failures = 0
        self.ejected = False
        self.ejections = 0
        self.back_s = -math.inf
        """When the present, or the last, ejection ends."""

    @property
    def workload(self) -> Workload:
        """The workload behind it."""
        return self.address.workload

    def observe(self, latency_s: float, now_s: float) -> None:
        """Take a latency: one above the average replaces it at once, one below pulls it down slowly."""
        if latency_s >= self.latency_s:
            self.latency_s = latency_s
        else:
            kept = math.exp((self.measured_s - now_s) / EWMA_DECAY_S)
            self.latency_s = self.latency_s * kept + latency_s * (1 - kept)
        self.measured_s = now_s

    def cost(self, now_s: float) -> float:
        """Return the time that one more request will take, by all that is known; it decays unless renewed."""
        if not self.latency_s:
            # Never measured: one request finds out, further ones wait for its result.
            return self.active * UNKNOWN_COST_S
        decayed = self.latency_s * math.exp((self.measured_s - now_s) / EWMA_DECAY_S)
        return decayed * (self.active + 1)


UNKNOWN_COST_S = 1.0
"""Cost of each request under way at an endpoint that has not answered yet."""
