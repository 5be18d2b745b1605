# SPDX-License-Identifier: Apache-2.0
"""The table of live connections of one worker: counted, listed, judged again, closed.

One owner of every connection's end: whoever ends it (peer, policy, drain, pod removal),
`finish` runs once, writes its one log line and its counters and drops it from the table.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from mesh.authz.evaluate import Connection as PolicyView
from mesh.model.workload import Workload
from mesh.runtime.clock import Clock
from mesh.runtime.notify import Signal
from mesh.state.store import Changes, Store
from mesh.telemetry.metrics import (
    CONNECTIONS_CLOSED,
    CONNECTIONS_FAILED,
    CONNECTIONS_OPENED,
    POLICY_DENIED,
    REASONS,
    RECEIVED_BYTES,
    SENT_BYTES,
    SOCKETS_OPEN,
    UNKNOWN,
)
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Recorder
from ztunnel.access import Flow, log_done, log_failed, log_opened
from ztunnel.resolve.judge import Judgement, judge


class Joined(Protocol):
    """The running byte loop of a connection, as the table needs it (`mesh.net.relay.Relay`)."""

    @property
    def sent(self) -> int:
        """Bytes that have gone from client to server."""
        ...

    @property
    def received(self) -> int:
        """Bytes that have gone from server to client."""
        ...

    def close(self, reason: Reason) -> None:
        """Break off both sides."""
        ...


@dataclass(slots=True, eq=False)
class LiveConnection:
    """One row; written by its handler and the table only."""

    number: int
    pod: str
    """uid of the pod it belongs to."""
    flow: Flow
    opened_s: float
    cancel: Callable[[], None]
    """Ends the handler while the connection is not joined yet."""
    policy: PolicyView | None = None
    """What policies may ask; None: not judged here (outbound)."""
    workload: Workload | None = None
    """The pod's workload when last known: stands in while xDS does not know it."""
    relay: Joined | None = None
    ending: tuple[Reason, str] | None = None
    """Why it is being closed by this side, set before its parts go down."""
    labels: tuple[str, ...] = ()
    counted_to_server: int = 0
    counted_to_client: int = 0
    done: bool = field(default=False)


class LimitReachedError(Exception):
    """The table is full; the connection must be closed."""


class Connections:
    """Every live connection of this worker; loop thread only."""

    def __init__(self, *, clock: Clock, recorder: Recorder, max_connections: int) -> None:
        self.max_connections = max_connections
        self._clock = clock
        self._recorder = recorder
        self._live: dict[int, LiveConnection] = {}
        self._numbers = itertools.count(1)
        self._emptied = Signal()

    def __len__(self) -> int:
        return len(self._live)

    def __iter__(self) -> Iterator[LiveConnection]:
        return iter(tuple(self._live.values()))

    def open(self, pod: str, flow: Flow, cancel: Callable[[], None]) -> LiveConnection:
        """Enter an accepted connection.

        Raises:
            LimitReachedError: `max_connections` are live.
        """
        if len(self._live) >= self.max_connections:
            raise LimitReachedError(
                f"{self.max_connections} connections are live in this worker (AMBIT_MAX_CONNECTIONS); "
                "raise it or add workers"
            )
        row = LiveConnection(next(self._numbers), pod, flow, self._clock.monotonic(), cancel)
        self._live[row.number] = row
        self._recorder.add(SOCKETS_OPEN, (flow.reporter,), 1)
        return row

    def joined(self, row: LiveConnection, relay: Joined) -> None:
        """Note that bytes flow; from here on it counts as opened."""
        row.relay = relay
        row.labels = row.flow.labels()
        self._recorder.add(CONNECTIONS_OPENED, row.labels)
        log_opened(row.flow)

    def finish(self, row: LiveConnection, reason: Reason, detail: str = "") -> None:
        """Take a connection out; a second call does nothing. What `close` named wins over `reason`."""
        if row.done:
            return
        row.done = True
        del self._live[row.number]
        if not self._live:
            self._emptied.fire()
        if row.ending is not None:
            reason, detail = row.ending
        flow = row.flow
        duration_s = self._clock.monotonic() - row.opened_s
        self._recorder.add(SOCKETS_OPEN, (flow.reporter,), -1)
        self._recorder.add(REASONS, (flow.reporter, reason.value))
        if row.relay is None:
            self._recorder.add(CONNECTIONS_FAILED, flow.labels(reason.response_flag))
            log_failed(flow, reason, detail, duration_s=duration_s)
            return
        self._count(row)
        flag = reason.response_flag
        self._recorder.add(CONNECTIONS_CLOSED, row.labels if flag == "-" else flow.labels(flag))
        log_done(
            flow,
            reason,
            detail,
            to_server=row.relay.sent,
            to_client=row.relay.received,
            duration_s=duration_s,
        )

    def close(self, row: LiveConnection, reason: Reason, detail: str = "") -> None:
        """Break a connection off and say why."""
        if row.done or row.ending is not None:
            return
        row.ending = (reason, detail or reason.text)
        if row.relay is not None:
            row.relay.close(reason)
        else:
            row.cancel()

    def close_where(self, matches: Callable[[LiveConnection], bool], reason: Reason, detail: str = "") -> int:
        """Break off every connection that matches; return how many."""
        chosen = [row for row in self if matches(row)]
        for row in chosen:
            self.close(row, reason, detail)
        return len(chosen)

    async def wait_empty(self) -> None:
        """Return once no connection is live."""
        while self._live:
            await self._emptied.wait()

    def judge_again(
        self, changes: Changes, store: Store, local: Callable[[str], Workload | None]
    ) -> list[tuple[LiveConnection, Judgement]]:
        """Judge connections that a change may affect by the state as it is now; close the denied ones.

        `local` finds a pod's workload now. While xDS does not know it (a pod that is ending)
        its last known one stands in: a live connection is not cut for that alone.
        """
        denied = []
        for row in self:
            if row.policy is None:
                continue
            before = row.workload
            now = local(row.pod) or before
            if now is None or not (changes.touches(now) or (before is not None and changes.touches(before))):
                continue
            row.workload = now
            verdict = judge(store, now, row.policy)
            if not verdict.allowed:
                denied.append((row, verdict))
                count_denial(self._recorder, verdict.policy, Reason.POLICY_REVOKED)
                self.close(row, Reason.POLICY_REVOKED, f"no longer allowed: {verdict.detail}")
        return denied

    def sample(self) -> None:
        """Count the bytes that live connections moved since the last sample."""
        for row in self._live.values():
            if row.relay is not None:
                self._count(row)

    def _count(self, row: LiveConnection) -> None:
        if row.relay is None:
            return
        to_server, to_client = row.relay.sent, row.relay.received
        if to_server > row.counted_to_server:
            self._recorder.add(RECEIVED_BYTES, row.labels, to_server - row.counted_to_server)
            row.counted_to_server = to_server
        if to_client > row.counted_to_client:
            self._recorder.add(SENT_BYTES, row.labels, to_client - row.counted_to_client)
            row.counted_to_client = to_client


def count_denial(recorder: Recorder, policy: str, reason: Reason) -> None:
    """Count a connection that policy refused or ended; `policy` is `namespace/name` or empty."""
    namespace, _, name = policy.partition("/")
    recorder.add(POLICY_DENIED, (name or UNKNOWN, namespace or UNKNOWN, reason.value))
