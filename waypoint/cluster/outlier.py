# SPDX-License-Identifier: Apache-2.0
"""Outlier detection: hosts that fail many times in a row are left out for a time.

Counts and times as Envoy has them; what is counted is the result of real requests only.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Collection

from mesh.model.destination import OutlierDetection
from waypoint.cluster.host import Host

_GATEWAY_ERRORS = (502, 503, 504)


class Cause(enum.Enum):
    """Why a host is ejected."""

    ERRORS = "consecutive_5xx"
    GATEWAY_ERRORS = "consecutive_gateway_errors"
    LOCAL_FAILURES = "consecutive_local_failures"


class Outliers:
    """The detector of one cluster."""

    __slots__ = ("ejected", "policy")

    def __init__(self, policy: OutlierDetection | None) -> None:
        self.policy = policy
        """None: no host is ejected."""
        self.ejected: set[Host] = set()

    def answered(self, host: Host, status: int) -> Cause | None:
        """Count an answer (gRPC statuses as their HTTP counterparts); return why it is too much."""
        policy = self.policy
        if policy is None or host.ejected:
            return None
        if policy.split_local_errors:
            host.local_failures = 0
        if status < 500:
            host.errors = host.gateway_errors = 0
            return None
        host.errors += 1
        host.gateway_errors = host.gateway_errors + 1 if status in _GATEWAY_ERRORS else 0
        return self._too_much(host, policy)

    def failed(self, host: Host) -> Cause | None:
        """Count a try without an answer: no connection, a reset, a timeout."""
        policy = self.policy
        if policy is None or host.ejected:
            return None
        if policy.split_local_errors:
            host.local_failures += 1
            if host.local_failures >= policy.consecutive_local_failures > 0:
                return Cause.LOCAL_FAILURES
            return None
        host.errors += 1
        host.gateway_errors += 1
        return self._too_much(host, policy)

    def connected(self, host: Host) -> None:
        """Count a connection that carries no HTTP as a success."""
        if self.policy is not None:
            host.local_failures = 0
            if not self.policy.split_local_errors:
                host.errors = host.gateway_errors = 0

    @staticmethod
    def _too_much(host: Host, policy: OutlierDetection) -> Cause | None:
        if host.gateway_errors >= policy.consecutive_gateway_errors > 0:
            return Cause.GATEWAY_ERRORS
        if host.errors >= policy.consecutive_5xx > 0:
            return Cause.ERRORS
        return None

    def eject(self, host: Host, hosts: Collection[Host], now_s: float) -> bool:
        """Leave a host out, as far as the limit on ejected hosts allows; return whether it is."""
        policy = self.policy
        if policy is None or host.ejected or host.gone:
            return False
        if self.ejected and 100 * (len(self.ejected) + 1) > policy.max_ejection_percent * len(hosts):
            return False
        # Each interval in service takes one ejection off the count.
        rested = (now_s - host.back_s) / policy.interval_s if host.ejections else 0.0
        host.ejections = max(0, host.ejections - math.floor(rested)) + 1
        longest = max(policy.max_ejection_s, policy.base_ejection_s)
        host.back_s = now_s + min(policy.base_ejection_s * host.ejections, longest)
        host.ejected = True
        self.ejected.add(host)
        return True

    def due(self) -> float:
        """Return when the next host comes back; infinity: none is out."""
        return min((host.back_s for host in self.ejected), default=math.inf)

    def turn(self, now_s: float) -> list[Host]:
        """Take back the hosts whose time is over, or all where nothing is detected any more."""
        back = [host for host in self.ejected if host.back_s <= now_s or self.policy is None or host.gone]
        for host in back:
            self.ejected.discard(host)
            host.ejected = False
            host.errors = host.gateway_errors = host.local_failures = 0
        return back
