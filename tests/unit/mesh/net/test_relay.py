# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

from mesh.net.relay import HELD_BYTES, WRITE_BUFFER_BYTES, End, Relay, RelayResult, TcpEnd, join
from mesh.telemetry.reasons import Reason
from tests.support.transports import FakeTransport, turns
from tests.support.virtual import run_virtual


@dataclass
class Pair:
    """Two TCP ends with fake sockets, joined."""

    results: list[RelayResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left, self.right = TcpEnd(), TcpEnd()
        self.a, self.b = FakeTransport(self.left), FakeTransport(self.right)

    def join(self) -> Relay:
        self.relay = join(self.left, self.right, self.results.append)
        return self.relay


def virtual(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(test)

    run.__name__ = test.__name__
    return run


@virtual
async def test_bytes_flow_both_ways_and_are_counted_live() -> None:
    pair = Pair()
    relay = pair.join()
    pair.left.data_received(b"request")
    pair.right.data_received(b"re")
    pair.right.data_received(b"sponse")
    assert (bytes(pair.b.written), bytes(pair.a.written)) == (b"request", b"response")
    assert (relay.sent, relay.received) == (7, 8)
    assert not relay.done


@virtual
async def test_what_arrived_before_the_start_goes_first() -> None:
    pair = Pair()
    pair.left.data_received(b"early ")
    pair.left.data_received(b"bird ")
    pair.join()
    pair.left.data_received(b"late")
    assert bytes(pair.b.written) == b"early bird late"
    assert pair.relay.sent == 15


@virtual
async def test_connect_send_close_before_the_start_loses_nothing() -> None:
    pair = Pair()
    pair.left.data_received(b"all of it")
    assert pair.left.eof_received(), "the other direction lives"
    pair.join()
    assert bytes(pair.b.written) == b"all of it"
    assert pair.b.eof


@virtual
async def test_a_socket_is_not_read_on_and_on_before_the_start() -> None:
    pair = Pair()
    pair.left.data_received(bytes(HELD_BYTES - 1))
    assert pair.a.reading
    pair.left.data_received(b"x")
    assert not pair.a.reading
    pair.join()
    assert pair.a.reading


@virtual
async def test_held_bytes_that_fill_the_peer_keep_the_socket_paused() -> None:
    pair = Pair()
    pair.left.data_received(bytes(HELD_BYTES))
    pair.right.pause_writing()
    pair.join()
    assert not pair.a.reading
    pair.right.resume_writing()
    assert pair.a.reading


@virtual
async def test_a_socket_that_was_full_before_the_start_and_is_not_any_more() -> None:
    pair = Pair()
    pair.right.pause_writing()
    pair.right.resume_writing()
    pair.join()
    assert pair.a.reading


@pytest.mark.parametrize("first", ["left", "right"])
def test_half_close_in_both_orders(first: str) -> None:
    async def test() -> None:
        pair = Pair()
        pair.join()
        ends = [(pair.left, pair.b), (pair.right, pair.a)]
        (one, far_of_one), (other, far_of_other) = ends if first == "left" else ends[::-1]
        assert one.eof_received()
        assert far_of_one.eof
        assert not far_of_one.closing
        other.data_received(b"still flows")
        assert bytes(far_of_other.written) == b"still flows"
        keep_open = other.eof_received()
        if not keep_open:
            far_of_one.close()
        await turns()
        assert pair.results[0].reason is Reason.COMPLETE
        assert not pair.a.socket.resets
        assert not pair.b.socket.resets
        assert len(pair.results) == 1

    run_virtual(test)


@virtual
async def test_a_full_socket_pauses_the_other_one() -> None:
    pair = Pair()
    assert pair.a.high == WRITE_BUFFER_BYTES
    pair.join()
    pair.right.pause_writing()
    assert not pair.a.reading
    assert pair.b.reading
    pair.right.resume_writing()
    assert pair.a.reading


@virtual
async def test_a_reset_becomes_a_reset() -> None:
    pair = Pair()
    pair.join()
    pair.left.data_received(b"x")
    pair.a.lose(ConnectionResetError())
    assert pair.b.aborted
    assert pair.b.socket.resets
    await turns()
    assert pair.results == [RelayResult(reason=Reason.PEER_RESET, sent=1, received=0)]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BrokenPipeError(), Reason.PEER_RESET),
        (TimeoutError(), Reason.IO_ERROR),
        (OSError(errno.EHOSTUNREACH, "no route"), Reason.IO_ERROR),
        (None, Reason.PEER_CLOSED),
    ],
)
def test_the_first_cause_is_the_reason(error: Exception | None, reason: Reason) -> None:
    async def test() -> None:
        pair = Pair()
        pair.join()
        pair.a.lose(error)
        await turns()
        assert [r.reason for r in pair.results] == [reason]

    run_virtual(test)


@virtual
async def test_close_resets_both_and_reports_once() -> None:
    pair = Pair()
    relay = pair.join()
    relay.close(Reason.POLICY_REVOKED)
    relay.close(Reason.FORCED_CLOSE)
    await turns()
    assert pair.a.socket.resets
    assert pair.b.socket.resets
    assert [r.reason for r in pair.results] == [Reason.POLICY_REVOKED]
    relay.close(Reason.FORCED_CLOSE)
    assert relay.done


@virtual
async def test_nothing_is_written_to_an_end_that_is_gone() -> None:
    pair = Pair()
    pair.join()
    pair.right.abort(Reason.FORCED_CLOSE)
    pair.left.data_received(b"late")
    pair.left.eof_received()
    pair.right.write_eof()
    pair.right.pause_reading()
    pair.right.resume_reading()
    await turns()
    assert len(pair.results) == 1


@virtual
async def test_a_client_that_left_before_the_start_is_seen_and_ends_the_pair() -> None:
    pair = Pair()
    pair.left.data_received(b"x")
    pair.a.lose(ConnectionResetError())
    assert pair.left.closed
    assert pair.left.reason is Reason.PEER_RESET
    relay = pair.join()
    await turns()
    assert [r.reason for r in pair.results] == [Reason.PEER_RESET]
    assert pair.b.socket.resets
    assert relay.done


@virtual
async def test_join_returns_before_it_reports() -> None:
    pair = Pair()
    pair.a.lose(None)
    pair.b.lose(None)
    pair.join()
    assert pair.results == []
    await turns()
    assert len(pair.results) == 1


@virtual
async def test_a_half_close_that_meets_an_unread_reset_ends_the_pair() -> None:
    pair = Pair()
    pair.join()

    def reset() -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    pair.b.write_eof = reset  # type: ignore[method-assign]
    pair.left.eof_received()
    await turns()
    assert [r.reason for r in pair.results] == [Reason.PEER_RESET]


@virtual
async def test_the_first_abort_of_an_end_is_its_reason() -> None:
    pair = Pair()
    pair.join()
    pair.left.abort(Reason.POLICY_REVOKED)
    pair.left.abort(Reason.FORCED_CLOSE)
    await turns()
    assert pair.left.reason is Reason.POLICY_REVOKED


@virtual
async def test_a_peer_that_filled_and_drained_before_the_start_does_not_keep_it_paused() -> None:
    pair = Pair()
    pair.left.pause_reading()
    pair.left.resume_reading()
    pair.left.data_received(bytes(HELD_BYTES))
    pair.join()
    assert pair.a.reading


@virtual
async def test_an_end_aborted_before_its_socket_exists_resets_it() -> None:
    end = TcpEnd()
    end.abort(Reason.CONNECT_TIMEOUT)
    transport = FakeTransport(end)
    assert transport.aborted
    await turns()
    assert end.reason is Reason.CONNECT_TIMEOUT


@virtual
async def test_the_listener_is_told_of_each_socket() -> None:
    told: list[End] = []
    end = TcpEnd(told.append)
    transport = FakeTransport(end)
    assert told == [end]
    assert end.transport is transport
