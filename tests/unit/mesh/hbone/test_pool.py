# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from mesh.hbone.pool import Pool, PoolKey, PoolLimits, Step

KEY = PoolKey(
    source_identity="spiffe://cluster.local/ns/a/sa/a",
    destination_identities=frozenset({"spiffe://cluster.local/ns/b/sa/b"}),
    address=ip_address("10.0.0.2"),
    port=15008,
    source_ip=ip_address("10.0.0.1"),
)
SMALL = PoolLimits(
    max_connections=3, max_connections_per_key=2, max_waiting=3, tunnels_per_dial=2, idle_timeout_s=10
)


@dataclass(eq=False)
class Connection:
    room: int = 2
    tunnels: int = 0


@pytest.fixture
def pool() -> Pool[Connection]:
    return Pool(SMALL)


def test_the_first_caller_dials_and_the_next_share(pool: Pool[Connection]) -> None:
    assert pool.acquire(KEY, "a") is Step.DIAL
    assert pool.acquire(KEY, "b") is Step.WAIT
    connection = Connection()
    assert pool.opened(KEY, connection) == ["b"]
    assert pool.acquire(KEY, "b") is connection
    assert len(pool) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"source_identity": "spiffe://cluster.local/ns/a/sa/other"},
        {"destination_identities": frozenset({"spiffe://cluster.local/ns/b/sa/other"})},
        {"address": ip_address("10.0.0.3")},
        {"port": 15009},
        {"source_ip": ip_address("10.0.0.9")},
    ],
)
def test_no_part_of_the_key_is_ever_shared(pool: Pool[Connection], change: dict[str, object]) -> None:
    assert pool.acquire(KEY, "a") is Step.DIAL
    pool.opened(KEY, Connection())
    assert pool.acquire(replace(KEY, **change), "b") is Step.DIAL  # type: ignore[arg-type]


def test_more_waiters_than_a_connection_will_take_begin_another_dial(pool: Pool[Connection]) -> None:
    steps = [pool.acquire(KEY, n) for n in range(4)]
    assert steps == [Step.DIAL, Step.WAIT, Step.DIAL, Step.WAIT]


def test_limit_per_key_is_kept_then_callers_wait_then_are_refused(pool: Pool[Connection]) -> None:
    steps = [pool.acquire(KEY, n) for n in range(6)]
    assert steps == [Step.DIAL, Step.WAIT, Step.DIAL, Step.WAIT, Step.WAIT, Step.FULL]


def test_limit_of_all_keys_is_kept() -> None:
    pool: Pool[Connection] = Pool(replace(SMALL, max_connections=1))
    assert pool.acquire(KEY, "a") is Step.DIAL
    assert pool.acquire(replace(KEY, port=1), "b") is Step.FULL
    assert list(pool._groups) == [KEY], "a refused key leaves nothing"
    pool.failed(KEY)
    assert pool.acquire(replace(KEY, port=1), "b") is Step.DIAL


def test_full_connections_at_the_limit_refuse(pool: Pool[Connection]) -> None:
    for name in ("a", "b"):
        assert pool.acquire(KEY, name) is Step.DIAL
        pool.opened(KEY, Connection(room=0))
    assert pool.acquire(KEY, "c") is Step.FULL


def test_a_failed_dial_wakes_its_waiters_and_leaves_nothing(pool: Pool[Connection]) -> None:
    pool.acquire(KEY, "a")
    pool.acquire(KEY, "b")
    assert pool.failed(KEY) == ["b"]
    assert len(pool) == 0
    assert not pool._groups


def test_one_of_two_dials_failing_keeps_the_rest_waiting(pool: Pool[Connection]) -> None:
    for name in "abcde":
        pool.acquire(KEY, name)
    assert pool.failed(KEY) == ["b"]
    assert pool.opened(KEY, Connection(room=1)) == ["d", "e"], "the last dial leaves nobody behind"


def test_opened_wakes_no_more_than_find_room_while_another_dial_runs() -> None:
    pool: Pool[Connection] = Pool(replace(SMALL, tunnels_per_dial=3, max_waiting=9))
    for name in "abcdef":
        pool.acquire(KEY, name)
    assert pool.opened(KEY, Connection(room=2)) == ["b"], "one place is the dialler's own"


def test_a_cancelled_waiter_is_not_woken(pool: Pool[Connection]) -> None:
    pool.acquire(KEY, "a")
    pool.acquire(KEY, "b")
    pool.cancel(KEY, "b")
    assert pool.opened(KEY, Connection()) == []


def test_the_newest_connection_with_room_is_taken(pool: Pool[Connection]) -> None:
    old, new = Connection(), Connection()
    for connection in (old, new):
        old.room = 0
        assert pool.acquire(KEY, "x") is Step.DIAL
        pool.opened(KEY, connection)
    old.room = 2
    assert pool.acquire(KEY, "x") is new
    new.room = 0
    assert pool.acquire(KEY, "x") is old


def test_a_closed_connection_is_not_used_again(pool: Pool[Connection]) -> None:
    connection = Connection()
    pool.acquire(KEY, "a")
    pool.opened(KEY, connection)
    pool.closed(KEY, connection)
    pool.closed(KEY, connection)
    assert len(pool) == 0
    assert pool.acquire(KEY, "b") is Step.DIAL


def test_idle_connections_expire_at_their_time_and_busy_ones_do_not(pool: Pool[Connection]) -> None:
    idle, busy = Connection(), Connection(room=0, tunnels=1)
    pool.acquire(KEY, "a")
    pool.opened(KEY, busy)
    pool.acquire(KEY, "b")
    pool.opened(KEY, idle)
    assert pool.expire(100.0) == []
    assert pool.expire(109.9) == []
    idle.tunnels = 1
    assert pool.expire(111.0) == [], "in use again"
    idle.tunnels = 0
    assert pool.expire(112.0) == []
    assert pool.expire(122.0) == [idle]
    assert [c for _, c in pool.connections()] == [busy]


def test_retire_takes_out_what_matches_only(pool: Pool[Connection]) -> None:
    other = replace(KEY, source_identity="spiffe://cluster.local/ns/c/sa/c")
    mine, theirs = Connection(), Connection()
    pool.acquire(KEY, "a")
    pool.opened(KEY, mine)
    pool.acquire(other, "b")
    pool.opened(other, theirs)
    assert pool.retire(lambda key: key.source_identity == KEY.source_identity) == [mine]
    assert pool.connections() == [(other, theirs)]
    assert pool.acquire(KEY, "c") is Step.DIAL
