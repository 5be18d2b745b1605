# SPDX-License-Identifier: Apache-2.0
"""What one connection is, for its log line and its metric labels; filled in as it becomes known.

Writes the one line that a connection leaves behind. Keys and order are those of
Istio's ztunnel; `reason` is ours: the code that log, metric and admin share.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mesh.model.service import Service
from mesh.model.workload import Workload
from mesh.net.sockets import Peer
from mesh.telemetry.logging import Bare, FieldValue, fields
from mesh.telemetry.metrics import TcpFlow
from mesh.telemetry.reasons import Reason

_log = logging.getLogger("access")

OUTBOUND = "outbound"
INBOUND = "inbound"


@dataclass(slots=True, kw_only=True)
class Flow:
    """Who talks to whom; one per connection, written by its handler only."""

    direction: str
    """OUTBOUND or INBOUND, seen from the pod."""
    source: Peer
    destination: Peer
    """As the client asked for it; once an endpoint is chosen, that."""
    source_workload: Workload | None = None
    source_identity: str = ""
    destination_workload: Workload | None = None
    destination_identity: str = ""
    hbone: Peer | None = None
    """Where the tunnel runs to (outbound) or was asked for (inbound)."""
    service: Service | None = None
    mutual_tls: bool = False

    @property
    def reporter(self) -> str:
        """Which side counts: `source` or `destination`."""
        return "source" if self.direction == OUTBOUND else "destination"

    def labels(self, response_flags: str = "-") -> tuple[str, ...]:
        """Fill the labels of the TCP metrics."""
        return TcpFlow(
            reporter=self.reporter,
            source=self.source_workload,
            source_principal=self.source_identity,
            destination=self.destination_workload,
            destination_principal=self.destination_identity,
            service=self.service,
            mutual_tls=self.mutual_tls,
        ).labels(response_flags)

    def fields(self) -> dict[str, FieldValue]:
        """List the log fields that are known, in Istio's order."""
        known: dict[str, FieldValue] = {"src.addr": Bare(self.source)}
        known.update(_peer("src", self.source_workload, self.source_identity))
        known["dst.addr"] = Bare(self.hbone or self.destination)
        if self.hbone is not None:
            known["dst.hbone_addr"] = Bare(self.destination)
        if self.service is not None:
            known["dst.service"] = self.service.hostname
        known.update(_peer("dst", self.destination_workload, self.destination_identity))
        known["direction"] = self.direction
        return known


def _peer(prefix: str, workload: Workload | None, identity: str) -> dict[str, FieldValue]:
    known: dict[str, FieldValue] = {}
    if workload is not None:
        known[f"{prefix}.workload"] = workload.name
        known[f"{prefix}.namespace"] = workload.namespace
    if identity:
        known[f"{prefix}.identity"] = identity
    if workload is not None:
        known[f"{prefix}.cluster"] = workload.cluster_id
    return known


def log_opened(flow: Flow) -> None:
    """Write the debug line of an established connection."""
    if _log.isEnabledFor(logging.DEBUG):
        _log.debug("connection opened", extra=fields(flow.fields()))


def log_done(
    flow: Flow, reason: Reason, detail: str, *, to_server: int, to_client: int, duration_s: float
) -> None:
    """Write the line of a connection that was joined: info when it ended well, else error.

    `bytes_sent` is what this side's workload sent: requests outbound, responses inbound.
    """
    level = logging.INFO if reason.ok else logging.ERROR
    if not _log.isEnabledFor(level):
        return
    outbound = flow.direction == OUTBOUND
    entry = flow.fields()
    entry["bytes_sent"] = to_server if outbound else to_client
    entry["bytes_recv"] = to_client if outbound else to_server
    entry["duration"] = f"{duration_s * 1000:.0f}ms"
    entry["reason"] = Bare(reason.value)
    if not reason.ok:
        entry["error"] = detail or reason.text
    _log.log(level, "connection complete", extra=fields(entry))


def log_failed(flow: Flow, reason: Reason, detail: str, *, duration_s: float) -> None:
    """Write the line of a connection that was never joined."""
    entry = flow.fields()
    entry["duration"] = f"{duration_s * 1000:.0f}ms"
    entry["reason"] = Bare(reason.value)
    entry["error"] = detail or reason.text
    _log.warning("connection failed", extra=fields(entry))
