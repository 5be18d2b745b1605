# SPDX-License-Identifier: Apache-2.0
"""One service port (and subset): its hosts, who of them takes a request, what results do to them.

Time comes in with each call. Tables are made anew only when hosts, their health or the
policy change; in between, choosing costs a few draws.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mesh.model.address import IPAddress
from mesh.model.destination import Balancer, ConsistentHash, TrafficPolicy, Warmup
from mesh.model.locality import Locality
from mesh.model.service import AppProtocol, LoadBalancing
from mesh.model.workload import NamespacedHostname
from mesh.state.balance import Random
from waypoint.cluster.budget import DEFAULT_BUDGET, Budget
from waypoint.cluster.circuit import Circuit
from waypoint.cluster.hashing import Table, build_table
from waypoint.cluster.host import Address, Host
from waypoint.cluster.locality import Levels, Self, make_levels, spread
from waypoint.cluster.outlier import Cause, Outliers
from waypoint.cluster.pick import Picker, make_picker

OTHER_HOST_DRAWS = 4
"""Further draws for a host that a request has not been to. Source: Istio's hostSelectionRetryMaxAttempts."""
_WARMUP_STEPS = 50
FAILURE_LATENCY_S = 5.0
"""Latency that a failure counts as: one that fails fast must not look quick. Source: Linkerd."""
_TOO_MANY = 429
_MANTISSA = 2**53 - 1
OLDER_DRAWS = 8
"""Entries of an older table that are looked at for a host that is still there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterKey:
    """What a cluster is of."""

    service: NamespacedHostname
    port: int
    subset: str = ""

    def __str__(self) -> str:
        return f"{self.service}:{self.port}" + (f" subset {self.subset}" if self.subset else "")


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint as the configuration has it."""

    address: Address
    weight: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds for a cluster."""

    policy: TrafficPolicy = field(default_factory=TrafficPolicy)
    sources: tuple[str, ...] = ()
    """Objects that wrote the policy."""
    service: LoadBalancing = field(default_factory=LoadBalancing)
    own: Self = field(default_factory=lambda: Self(workload=None))
    declared: AppProtocol = AppProtocol.UNKNOWN
    """What the port is declared to speak."""


class _Share:
    """Hosts that take a part of the requests, with the picker among them."""

    __slots__ = ("building", "hosts", "older", "picker", "table")

    def __init__(self, hosts: tuple[Host, ...], picker: Picker) -> None:
        self.hosts = hosts
        self.picker = picker
        self.table: Table | None = None
        """Made when the first request with a key comes."""
        self.building: Generator[None, None, Table] | None = None
        self.older: Table | None = None
        """One of former hosts, that serves until there is a new one."""


class Cluster:
    """Loop thread only.

    `on_ejected` and `on_back` are told of hosts that are left out and taken back. `defer`
    calls what it is given time and again, with pauses, until that returns False; None: all
    is done at once.
    """

    def __init__(
        self,
        key: ClusterKey,
        random: Random,
        *,
        on_ejected: Callable[[Cluster, Host, Cause], None] = lambda *_: None,
        on_back: Callable[[Cluster, Host], None] = lambda *_: None,
        defer: Callable[[Callable[[], bool]], None] | None = None,
    ) -> None:
        self.key = key
        self._random = random
        self._on_ejected = on_ejected
        self._on_back = on_back
        self._defer = defer
        self.settings = Settings()
        self.circuit = Circuit(str(key))
        self.budget = Budget(DEFAULT_BUDGET)
        self.outliers = Outliers(None)
        self.hosts: dict[Hashable, Host] = {}
        self.used_s = -math.inf
        """When it was last asked for a host."""
        self.stale = True
        """Whether its endpoints or its policy may have changed since the last update."""
        self._levels: Levels = ()
        self._shape: object = None
        self._made: object = None
        """The shape that the present tables are of."""
        self._shares: list[_Share] = []
        self._bounds: list[float] = []
        self._due_s = -math.inf

    # --- configuration

    def update(self, members: Sequence[Member], settings: Settings, now_s: float) -> list[Host]:
        """Take endpoints and policy over; return the hosts that are none any more."""
        hosts: dict[Hashable, Host] = {}
        for member in members:
            key = member.address.key
            host = self.hosts.get(key)
            if host is None:
                host = Host(member.address, member.weight, dict(member.labels), now_s)
            else:
                host.address, host.weight = member.address, member.weight
                host.labels = dict(member.labels)
            hosts[key] = host
        gone = [host for key, host in self.hosts.items() if key not in hosts]
        for host in gone:
            host.gone = True
        self.hosts = hosts
        self._take_policy(settings)
        shape = (
            tuple((key, h.weight, _place(h), tuple(sorted(h.labels.items()))) for key, h in hosts.items()),
            (settings.policy, settings.service),
            settings.own.place,
        )
        if shape != self._shape:
            self._shape = shape
            self._levels = make_levels(
                list(hosts.values()),
                settings.own,
                settings.service,
                settings.policy.balancing.locality,
                failover=settings.policy.outliers is not None,
            )
            self._due_s = -math.inf
        return gone

    def _take_policy(self, settings: Settings) -> None:
        self.settings = settings
        policy = settings.policy
        self.circuit.policy = policy.pool
        self.circuit.source = ", ".join(settings.sources)
        self.outliers.policy = policy.outliers
        budget = policy.retry_budget
        if budget is None and policy.pool.max_retries is None:
            # Who bounds retries by their number has said how many there may be.
            budget = DEFAULT_BUDGET
        if budget != self.budget.policy:
            self.budget.configure(budget)

    # --- choice

    def pick(self, key: int | None, avoid: frozenset[str], now_s: float) -> Host | None:
        """Choose a host, not one of `avoid` (labels) if there is another; None: nobody may be chosen.

        Requests of an equal `key` go to one host; None: by the balancer.
        """
        self.used_s = now_s
        if now_s >= self._due_s:
            self.turn(now_s)
        if not self._shares:
            return None
        host = self._draw(key, 0, now_s)
        if not avoid or host.label not in avoid:
            return host
        for attempt in range(1, OTHER_HOST_DRAWS + 1):
            other = self._draw(key, attempt, now_s)
            if other.label not in avoid:
                return other
        others = [each for share in self._shares for each in share.hosts if each.label not in avoid]
        return others[int(self._random() * len(others))] if others else host

    def _draw(self, key: int | None, attempt: int, now_s: float) -> Host:
        share = self._shares[0]
        if len(self._shares) > 1:
            # A key keeps its place, too, as long as places keep their shares.
            # Another hash of it, as the key itself decides within the place.
            point = self._random() if key is None else (hash((key, 1)) & _MANTISSA) / (_MANTISSA + 1)
            share = self._shares[min(bisect_right(self._bounds, point), len(self._shares) - 1)]
        by = self.settings.policy.balancing.hash
        if key is None or by is None:
            return share.picker.pick(self._random, now_s)
        table = share.table or self._table(share, by)
        if table is not None:
            return table.find(key, attempt)
        for step in range(attempt, attempt + OLDER_DRAWS):
            host = share.older.find(key, step) if share.older is not None else None
            if host is not None and not host.gone and not host.ejected:
                return host
        return share.picker.pick(self._random, now_s)

    def _table(self, share: _Share, by: ConsistentHash) -> Table | None:
        """Return the table of a share; None: it is being built, the older one serves meanwhile."""
        if share.building is None:
            share.building = build_table(by, share.hosts, lambda host: host.weight)
            if share.older is not None and self._defer is not None:
                self._defer(lambda: self._build_on(share))
        if share.older is None or self._defer is None:
            while self._build_on(share):
                pass
        return share.table

    def _build_on(self, share: _Share) -> bool:
        """Build a piece of a table; return whether there is more to do."""
        if share.building is None or share not in self._shares:
            return False
        try:
            next(share.building)
        except StopIteration as done:
            share.table, share.building, share.older = done.value, None, None
            return False
        return True

    def find(self, address: IPAddress) -> Host | None:
        """Find the host with an address, where the policy lets clients choose; None: nobody is found."""
        if self.settings.policy.balancing.balancer is not Balancer.PASSTHROUGH:
            return None
        return next((host for host in self.hosts.values() if host.address.address == address), None)

    def turn(self, now_s: float) -> None:
        """Bring health and weights up to date; `pick` does so when it is due."""
        for host in self.outliers.turn(now_s):
            self._on_back(self, host)
        policy = self.settings.policy
        panic = policy.outliers.min_health_percent if policy.outliers is not None else 0
        shares = spread(self._levels, lambda host: not host.ejected, panic)
        warmup = policy.balancing.warmup
        balancer = policy.balancing.balancer

        def weight(host: Host) -> float:
            return host.weight if warmup is None else host.weight * _warmth(host, warmup, now_s)

        # Tables are dear: those of the same hosts, weights and policy stay.
        before = [share.table or share.older for share in self._shares]
        older = next((table for table in before if table is not None), None)
        kept = {share.hosts: share.table for share in self._shares} if self._made is self._shape else {}
        self._made = self._shape
        self._shares = [_Share(hosts, make_picker(balancer, hosts, weight)) for _, hosts in shares]
        for share in self._shares:
            share.table = kept.get(share.hosts)
            share.older = older if share.table is None else None
        self._bounds = list(accumulate(part for part, _ in shares))
        self._due_s = min(self.outliers.due(), self._next_step(warmup, now_s))

    def _next_step(self, warmup: Warmup | None, now_s: float) -> float:
        if warmup is None or all(now_s - host.added_s >= warmup.duration_s for host in self.hosts.values()):
            return math.inf
        return now_s + warmup.duration_s / _WARMUP_STEPS

    # --- results

    def begin(self, host: Host) -> None:
        """Count a try in."""
        host.active += 1
        self.circuit.requests += 1

    def end(self, host: Host) -> None:
        """Count a try out."""
        host.active -= 1
        self.circuit.requests -= 1

    def rated(self, host: Host, status: int, now_s: float) -> None:
        """Take the status of an answer (gRPC's as its HTTP counterpart)."""
        if status >= 500 or status == _TOO_MANY:
            host.observe(FAILURE_LATENCY_S, now_s)
        if self.outliers.policy is not None:
            self._eject(host, self.outliers.answered(host, status), now_s)

    def failed(self, host: Host, latency_s: float, now_s: float) -> None:
        """Take a try that ended without an answer."""
        host.observe(max(latency_s, FAILURE_LATENCY_S), now_s)
        self._eject(host, self.outliers.failed(host), now_s)

    def _eject(self, host: Host, cause: Cause | None, now_s: float) -> None:
        if cause is not None and self.outliers.eject(host, self.hosts.values(), now_s):
            self._due_s = -math.inf
            self._on_ejected(self, host, cause)


def _place(host: Host) -> tuple[Locality, str, str, str]:
    workload = host.workload
    return (workload.locality, workload.node, workload.cluster_id, workload.network)


def _warmth(host: Host, warmup: Warmup, now_s: float) -> float:
    """Return the part of its weight that a host has; Envoy's slow start."""
    age_s = now_s - host.added_s
    if age_s >= warmup.duration_s:
        return 1.0
    grown: float = (max(age_s, 0.0) / warmup.duration_s) ** (1 / warmup.aggression)
    return max(grown, warmup.minimum_percent / 100, 1e-6)
