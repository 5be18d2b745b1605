# SPDX-License-Identifier: Apache-2.0
"""The table of live connections: one end each, counted once, judged by the current state."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from mesh.authz.evaluate import Connection
from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import Action, Scope
from mesh.net.sockets import Peer
from mesh.state.store import StateUpdate
from mesh.telemetry.metrics import (
    CONNECTIONS_CLOSED,
    CONNECTIONS_FAILED,
    CONNECTIONS_OPENED,
    REASONS,
    RECEIVED_BYTES,
    SENT_BYTES,
    SOCKETS_OPEN,
    Metric,
)
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Recorder, Totals
from mesh.testing.fake_clock import FakeClock
from tests.support.mesh_builders import policy, store, workload
from ztunnel.access import INBOUND, OUTBOUND, Flow
from ztunnel.connections import Connections, LimitReachedError, LiveConnection

LOCAL = workload("cart", "10.0.0.2")


class FakeRelay:
    """A joined pair that remembers how it was closed."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.closed: list[Reason] = []

    def close(self, reason: Reason) -> None:
        self.closed.append(reason)


class Table:
    """A table with what it counted."""

    def __init__(self, limit: int = 10) -> None:
        self.recorder = Recorder()
        self.totals = Totals(max_series=100)
        self.table = Connections(clock=FakeClock(), recorder=self.recorder, max_connections=limit)
        self.cancelled: list[str] = []

    def open(self, pod: str = "p", direction: str = INBOUND) -> LiveConnection:
        flow = Flow(
            direction=direction,
            source=Peer(ip_address("10.0.0.1"), 40000),
            destination=Peer(ip_address("10.0.0.2"), 8080),
        )
        return self.table.open(pod, flow, lambda: self.cancelled.append(pod))

    def joined(self, pod: str = "p") -> tuple[LiveConnection, FakeRelay]:
        row, relay = self.open(pod), FakeRelay()
        row.workload = LOCAL
        row.policy = Connection(
            source_identity=SpiffeId.parse("spiffe://cluster.local/ns/shop/sa/web"),
            source_ip=ip_address("10.0.0.1"),
            destination_ip=ip_address("10.0.0.2"),
            destination_port=8080,
        )
        self.table.joined(row, relay)
        return row, relay

    def value(self, metric: Metric) -> float:
        self.totals.apply("w", self.recorder.take(), 0.0)
        return sum(values[0] for each, _, values in self.totals if each is metric)


def access(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, dict[str, object]]]:
    return [(r.levelname, r.getMessage(), dict(r.fields)) for r in caplog.records if r.name == "access"]


def test_a_connection_that_ends_well_leaves_one_info_line_and_its_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    t = Table()
    row, relay = t.joined()
    relay.sent, relay.received = 5, 7
    t.table.finish(row, Reason.COMPLETE)
    t.table.finish(row, Reason.IO_ERROR)
    ((level, message, found),) = access(caplog)
    assert (level, message) == ("INFO", "connection complete")
    assert (found["bytes_sent"], found["bytes_recv"]) == (7, 5)  # The pod's view: it answered 7.
    assert (found["reason"], found["direction"]) == ("complete", "inbound")
    assert "error" not in found
    assert (t.value(CONNECTIONS_OPENED), t.value(CONNECTIONS_CLOSED)) == (1, 1)
    assert (t.value(RECEIVED_BYTES), t.value(SENT_BYTES)) == (5, 7)
    assert (t.value(SOCKETS_OPEN), t.value(CONNECTIONS_FAILED), len(t.table)) == (0, 0, 0)


def test_a_connection_that_was_never_joined_is_a_failure_and_no_closing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    t = Table()
    t.table.finish(t.open(direction=OUTBOUND), Reason.CONNECT_REFUSED, "connect to x: refused")
    ((level, message, found),) = access(caplog)
    assert (level, message) == ("WARNING", "connection failed")
    assert (found["reason"], found["error"]) == ("connect_refused", "connect to x: refused")
    assert (t.value(CONNECTIONS_FAILED), t.value(REASONS)) == (1, 1)
    assert (t.value(CONNECTIONS_OPENED), t.value(CONNECTIONS_CLOSED)) == (0, 0)


def test_live_bytes_are_counted_once_however_often_they_are_sampled() -> None:
    t = Table()
    row, relay = t.joined()
    t.open("unjoined")
    relay.sent = 100
    t.table.sample()
    assert t.value(RECEIVED_BYTES) == 100
    t.table.sample()
    relay.sent, relay.received = 150, 10
    t.table.finish(row, Reason.COMPLETE)
    assert (t.value(RECEIVED_BYTES), t.value(SENT_BYTES)) == (150, 10)


def test_closing_names_the_cause_that_the_log_then_has(caplog: pytest.LogCaptureFixture) -> None:
    t = Table()
    row, relay = t.joined()
    t.table.close(row, Reason.POLICY_REVOKED, "because")
    t.table.close(row, Reason.DRAIN_DEADLINE)
    assert relay.closed == [Reason.POLICY_REVOKED]
    t.table.finish(row, Reason.PEER_RESET)
    ((level, _, found),) = access(caplog)
    assert (level, found["reason"], found["error"]) == ("ERROR", "policy_revoked", "because")
    opening = t.open("q")
    t.table.close(opening, Reason.FORCED_CLOSE)
    assert t.cancelled == ["q"]


def test_the_limit_is_kept_exactly() -> None:
    t = Table(limit=2)
    first = t.open()
    t.open()
    with pytest.raises(LimitReachedError, match="2 connections are live"):
        t.open()
    t.table.finish(first, Reason.COMPLETE)
    t.open()
    assert t.value(SOCKETS_OPEN) == 2


def judge_again(t: Table, state: object, update: StateUpdate, local: object = LOCAL) -> int:
    changes = state.apply(update)  # type: ignore[attr-defined]
    return len(t.table.judge_again(changes, state, lambda _pod: local))  # type: ignore[arg-type,return-value]


def test_row_14_a_policy_change_closes_what_it_denies_and_nothing_else() -> None:
    t, state = Table(), store(LOCAL)
    row, relay = t.joined()
    assert judge_again(t, state, StateUpdate(policies=(policy("elsewhere", namespace="other"),))) == 0
    assert judge_again(t, state, StateUpdate(policies=(policy("deny", Action.DENY),))) == 1
    assert relay.closed == [Reason.POLICY_REVOKED]
    assert row.ending is not None
    assert "shop/deny" in row.ending[1]


def test_defect_1_the_workload_is_looked_up_as_it_is_now() -> None:
    t = Table()
    state = store(LOCAL, policy("pick", Action.DENY, scope=Scope.WORKLOAD_SELECTOR))
    _, relay = t.joined()
    labelled = workload("cart", "10.0.0.2", authorization_policies=("shop/pick",))
    assert judge_again(t, state, StateUpdate(workloads=(labelled,)), labelled) == 1
    assert relay.closed == [Reason.POLICY_REVOKED]


def test_a_workload_that_left_is_judged_by_what_was_last_known() -> None:
    t, state = Table(), store(LOCAL)
    _, relay = t.joined()
    assert judge_again(t, state, StateUpdate(removed_addresses=(LOCAL.uid,)), None) == 0
    assert relay.closed == []
    assert judge_again(t, state, StateUpdate(policies=(policy("deny", Action.DENY),)), None) == 1


def test_outbound_connections_are_not_judged_here() -> None:
    t, state = Table(), store(LOCAL)
    t.open(direction=OUTBOUND)
    assert judge_again(t, state, StateUpdate(policies=(policy("deny", Action.DENY),))) == 0


def test_closing_where_and_waiting_for_the_last() -> None:
    async def scenario() -> None:
        t = Table()
        (first, _), (second, relay) = t.joined("p"), t.joined("q")
        assert t.table.close_where(lambda row: row.pod == "q", Reason.FORCED_CLOSE) == 1
        assert relay.closed == [Reason.FORCED_CLOSE]
        waiting = asyncio.get_running_loop().create_task(t.table.wait_empty())
        t.table.finish(first, Reason.COMPLETE)
        await asyncio.sleep(0)
        assert not waiting.done()
        t.table.finish(second, Reason.COMPLETE)
        async with asyncio.timeout(1):
            await waiting

    asyncio.run(scenario())
