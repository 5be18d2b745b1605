# SPDX-License-Identifier: Apache-2.0
"""Circuit breaking: bounds on what one waypoint has open towards one cluster."""

from __future__ import annotations

import enum
from collections import Counter

from mesh.model.destination import ConnectionPool


class Bound(enum.Enum):
    """What is bounded; the value is the field of a DestinationRule's connectionPool."""

    CONNECTIONS = "maxConnections"
    PENDING = "http1MaxPendingRequests"
    REQUESTS = "http2MaxRequests"
    RETRIES = "maxRetries"
    BUDGET = "retryBudget"


_WORDS = {
    Bound.CONNECTIONS: "connections open",
    Bound.PENDING: "requests waiting for a connection",
    Bound.REQUESTS: "requests under way",
    Bound.RETRIES: "retries under way",
}


class Circuit:
    """Counts of one cluster beside its bounds; whoever opens and closes keeps the counts."""

    __slots__ = ("connections", "name", "overflows", "pending", "policy", "requests", "retries", "source")

    def __init__(self, name: str = "", policy: ConnectionPool | None = None, source: str = "") -> None:
        self.name = name
        """Service, port and subset, for messages."""
        self.policy = policy or ConnectionPool()
        self.source = source
        """Objects that set the bounds."""
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.retries = 0
        self.overflows: Counter[Bound] = Counter()
        """What was refused since it was last looked at."""

    def usage(self) -> tuple[tuple[Bound, int, int | None], ...]:
        """Return each bound, what is open, and how much may be; None: unbounded."""
        policy = self.policy
        return (
            (Bound.CONNECTIONS, self.connections, policy.max_connections),
            (Bound.PENDING, self.pending, policy.max_pending_requests),
            (Bound.REQUESTS, self.requests, policy.max_requests),
            (Bound.RETRIES, self.retries, policy.max_retries),
        )

    @property
    def connections_full(self) -> bool:
        """Whether no further connection may be opened."""
        limit = self.policy.max_connections
        return limit is not None and self.connections >= limit

    @property
    def pending_full(self) -> bool:
        """Whether no further request may wait for a connection."""
        limit = self.policy.max_pending_requests
        return limit is not None and self.pending >= limit

    @property
    def requests_full(self) -> bool:
        """Whether no further request may be sent."""
        limit = self.policy.max_requests
        return limit is not None and self.requests >= limit

    @property
    def retries_full(self) -> bool:
        """Whether no further retry may begin."""
        limit = self.policy.max_retries
        return limit is not None and self.retries >= limit

    def overflow(self, bound: Bound) -> str:
        """Count a refusal; return the words for it."""
        self.overflows[bound] += 1
        for each, used, limit in self.usage():
            if each is bound:
                where = self.source or "the waypoint"
                return f"{self.name}: {used} of {limit} {_WORDS[bound]} ({bound.value} of {where})"
        return f"{self.name}: the retry budget is spent"
