# SPDX-License-Identifier: Apache-2.0
"""The codec against itself under any chunking, and against the `h2` package in both roles."""

from __future__ import annotations

from dataclasses import replace

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh.hbone import frames
from mesh.hbone.frames import ErrorCode, TunnelLimitError
from mesh.hbone.limits import Limits
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import RawPeer, Side, StreamRecorder, data, exchange, pair, split

SMALL = replace(
    Limits(),
    initial_window_bytes=65535,
    max_window_bytes=200_000,
    growth_budget_bytes=150_000,
    connection_window_bytes=100_000,
    send_frame_bytes=16384,
)


def test_a_tunnel_from_begin_to_end() -> None:
    client, server = pair()
    tunnel = client.open(b"[fd00::1]:80", [(b"baggage", b"a=b")])
    exchange(client, server)
    assert server.requests == [(b"[fd00::1]:80", [(b"baggage", b"a=b")])]
    assert tunnel.log == [("response", 200, [])]
    far = server.recorders[1]
    client.codec.send(tunnel.stream, b"request")  # type: ignore[arg-type]
    client.codec.send_end(tunnel.stream)  # type: ignore[arg-type]
    exchange(client, server)
    assert (far.data, far.log) == (b"request", ["end"])
    server.codec.send(far.stream, b"response after the half-close")  # type: ignore[arg-type]
    server.codec.send_end(far.stream)  # type: ignore[arg-type]
    exchange(client, server)
    assert tunnel.data == b"response after the half-close"
    assert tunnel.log[1:] == ["end", "closed"]
    assert far.log == ["end", "closed"]
    assert not client.codec.streams
    assert not server.codec.streams


def test_settings_tell_the_limits() -> None:
    side = Side(Role.SERVER)
    settings, window = split(side.codec.take())
    assert dict(frames.parse_settings(settings[3])) == {3: 200, 4: 262144, 5: 1048576, 6: 65536}
    assert int.from_bytes(window[3], "big") + 65535 == 16 * 1024 * 1024
    client = Side(Role.CLIENT).codec.take()
    assert client.startswith(frames.PREFACE)
    assert dict(frames.parse_settings(split(client[24:])[0][3]))[frames.ENABLE_PUSH] == 0


def test_one_stuck_tunnel_does_not_hold_another() -> None:
    """No deadlock across tunnels: nobody reads the first, the second moves 100 connection windows."""
    client, server = pair(SMALL, SMALL)
    server.read = False
    stuck = client.open()
    exchange(client, server)
    server.read = True
    free = client.open()
    exchange(client, server)
    client.codec.send(stuck.stream, bytes(1_000_000))  # type: ignore[arg-type]
    total = 100 * SMALL.connection_window_bytes
    for _ in range(total // 50_000):
        client.codec.send(free.stream, bytes(50_000))  # type: ignore[arg-type]
        exchange(client, server)
    assert len(server.recorders[3].data) == total
    assert len(server.recorders[1].data) == SMALL.initial_window_bytes, (
        "a stuck tunnel gets its window, no more"
    )
    server.codec.resume(server.recorders[1].stream)  # type: ignore[arg-type]
    exchange(client, server)
    assert len(server.recorders[1].data) == 1_000_000


def test_many_stuck_tunnels_hold_no_more_than_their_windows() -> None:
    client, server = pair(SMALL, SMALL)
    server.read = False
    tunnels = [client.open() for _ in range(50)]
    for tunnel in tunnels:
        client.codec.send(tunnel.stream, bytes(500_000))  # type: ignore[arg-type]
    exchange(client, server)
    assert sum(len(r.data) for r in server.recorders.values()) == 50 * SMALL.initial_window_bytes


def test_growth_is_bounded_by_the_budget_of_the_connection() -> None:
    client, server = pair(SMALL, SMALL)
    tunnels = [client.open() for _ in range(10)]
    for _ in range(10):
        for tunnel in tunnels:
            client.codec.send(tunnel.stream, bytes(100_000))  # type: ignore[arg-type]
        exchange(client, server)
    sizes = [r.stream.receive.size for r in server.recorders.values() if r.stream]
    assert max(sizes) > SMALL.initial_window_bytes
    assert sum(sizes) <= 10 * SMALL.initial_window_bytes + SMALL.growth_budget_bytes


def test_tunnels_share_a_short_connection_window_in_turns() -> None:
    peer = RawPeer(Role.CLIENT)
    tunnels = [peer.side.open() for _ in range(4)]
    peer.send(
        *[frames.headers(t.stream.id, b"\x88", end_stream=False, max_frame_bytes=16384) for t in tunnels]
    )  # type: ignore[union-attr]
    peer.send(frames.settings({4: 10_000_000}))
    for tunnel in tunnels:
        peer.side.codec.send(tunnel.stream, bytes(1_000_000))  # type: ignore[arg-type]
    peer.side.codec.take()
    sent = dict.fromkeys((1, 3, 5, 7), 0)
    for _ in range(16):
        for kind, _, stream_id, payload in peer.send(frames.window_update(0, 65536)):
            assert kind == frames.DATA
            sent[stream_id] += len(payload)
    assert set(sent.values()) == {4 * 65536}


@pytest.mark.parametrize("settings", [{4: 10_000_000}, {4: 20_000}])
def test_small_writes_stay_within_both_windows(settings: dict[int, int]) -> None:
    peer = RawPeer(Role.CLIENT, settings=settings)
    tunnels = [peer.side.open() for _ in range(2)]
    for _ in range(1000):
        for tunnel in tunnels:
            peer.side.codec.send(tunnel.stream, bytes(100))  # type: ignore[arg-type]
    sent = {1: 0, 3: 0}
    for kind, _, stream_id, payload in split(peer.side.codec.take()):
        sent[stream_id] += len(payload) if kind == frames.DATA else 0
    assert sum(sent.values()) == min(65535, 2 * settings[4])
    assert max(sent.values()) <= settings[4]


def test_lowered_initial_window_makes_windows_negative_and_nothing_is_sent_until_they_recover() -> None:
    peer = RawPeer(Role.CLIENT, settings={4: 100_000})
    tunnel = peer.side.open()
    peer.send(
        frames.headers(1, b"\x88", end_stream=False, max_frame_bytes=16384), frames.window_update(0, 10**6)
    )
    peer.side.codec.send(tunnel.stream, bytes(90_000))  # type: ignore[arg-type]
    peer.side.codec.take()
    peer.send(frames.settings({4: 1000}))
    assert tunnel.stream is not None
    assert tunnel.stream.send_window == -89_000
    peer.side.codec.send(tunnel.stream, b"waits")
    assert peer.send(frames.window_update(1, 89_000)) == []
    assert peer.send(frames.window_update(1, 3)) == [(0, 0, 1, b"wai")]
    assert peer.send(frames.settings({4: 1002})) == [(0, 0, 1, b"ts"), (frames.SETTINGS, 1, 0, b"")]


def test_raised_initial_window_overflow_is_an_error_of_the_connection() -> None:
    peer = RawPeer(Role.CLIENT)
    peer.side.open()
    peer.send(frames.window_update(1, 2**31 - 1 - 65535))
    assert peer.fails(frames.settings({4: 65536})).code is ErrorCode.FLOW_CONTROL_ERROR


def test_large_writes_become_frames_of_the_allowed_size() -> None:
    peer = RawPeer(Role.CLIENT, settings={4: 10**7, 5: 1 << 20})
    tunnel = peer.side.open()
    peer.send(
        frames.headers(1, b"\x88", end_stream=False, max_frame_bytes=16384), frames.window_update(0, 10**7)
    )
    payload = bytes(range(256)) * 1000
    peer.side.codec.send(tunnel.stream, payload)  # type: ignore[arg-type]
    sent = split(peer.side.codec.take())
    assert [len(p) for *_, p in sent] == [65536, 65536, 65536, 59392]
    assert b"".join(p for *_, p in sent) == payload


def test_reset_drops_what_is_queued_and_says_nothing_more() -> None:
    client, server = pair(SMALL, SMALL)
    server.read = False
    tunnel = client.open()
    exchange(client, server)
    client.codec.send(tunnel.stream, bytes(500_000))  # type: ignore[arg-type]
    client.codec.send_end(tunnel.stream)  # type: ignore[arg-type]
    client.codec.reset(tunnel.stream, ErrorCode.CONNECT_ERROR)  # type: ignore[arg-type]
    client.codec.send(tunnel.stream, b"after")  # type: ignore[arg-type]
    client.codec.send_end(tunnel.stream)  # type: ignore[arg-type]
    exchange(client, server)
    assert server.recorders[1].log == [("reset", "CONNECT_ERROR", "peer")]
    assert tunnel.log == [("response", 200, [])]
    assert not client.codec.streams


def test_a_refusal_ends_both_directions() -> None:
    client, server = pair()
    server.accept = False
    tunnel = client.open()
    exchange(client, server)
    server.codec.respond(server.recorders[1].stream, 401, [(b"a", b"b")], end=True)  # type: ignore[arg-type]
    exchange(client, server)
    assert tunnel.log == [("response", 401, [(b"a", b"b")]), "end", ("reset", "NO_ERROR", "peer")]
    assert not server.codec.streams
    assert not client.codec.streams


def test_client_keeps_the_peers_tunnel_limit_and_its_own() -> None:
    client, _ = pair(Limits(), replace(Limits(), max_tunnels=2))
    client.open()
    client.open()
    with pytest.raises(TunnelLimitError, match="peer's 2") as caught:
        client.open()
    assert caught.value.reason is Reason.LIMIT_EXCEEDED
    client, _ = pair(replace(Limits(), max_tunnels=1), Limits())
    client.open()
    with pytest.raises(TunnelLimitError, match="own limit 1"):
        client.open()


def test_client_keeps_the_peers_header_limit() -> None:
    client, _ = pair(Limits(), replace(Limits(), max_header_list_bytes=200))
    with pytest.raises(TunnelLimitError, match="exceeds the peer's 200"):
        client.open(headers=[(b"x", b"v" * 200)])


def test_stream_numbers_run_out_before_they_overflow() -> None:
    client, _ = pair()
    client.codec._next_id = 2**31 - 1
    client.open()
    assert client.codec.room == 0
    with pytest.raises(TunnelLimitError):
        client.open()


def test_a_server_opens_nothing() -> None:
    assert Side(Role.SERVER).codec.room == 0


# --- Any chunking, pause, half-close order and reset

CHUNK = st.sampled_from([1, 9, 5_000, 70_000, 250_000])


class Traffic(RuleBasedStateMachine):
    """Two codecs and a wire cut anywhere: bytes arrive equal and in order, windows hold."""

    def __init__(self) -> None:
        super().__init__()
        limits = replace(SMALL, connection_window_bytes=65535)
        self.client = Side(Role.CLIENT, limits)
        self.server = Side(Role.SERVER, limits)
        for _ in range(3):
            self.client.open()
        self.wires = {"client": bytearray(), "server": bytearray()}
        self.sent: dict[tuple[str, int], bytearray] = {}
        self.ended: set[tuple[str, int]] = set()
        self.reset: set[int] = set()
        self.paused: set[tuple[str, int]] = set()
        self.number = 0

    def side(self, name: str) -> Side:
        return self.client if name == "client" else self.server

    def streams(self, name: str) -> list[StreamRecorder]:
        side = self.side(name)
        return [r for i, r in side.recorders.items() if i in side.codec.streams]

    @rule()
    @precondition(lambda self: self.client.codec.room > 0 and len(self.client.recorders) < 8)
    def open(self) -> None:
        self.client.open()

    @rule(name=st.sampled_from(["client", "server"]), pick=st.integers(0, 7), size=CHUNK)
    def write(self, name: str, pick: int, size: int) -> None:
        live = self.streams(name)
        if not live:
            return
        stream = live[pick % len(live)].stream
        assert stream is not None
        if (name, stream.id) in self.ended or stream.queued_bytes > 300_000:
            return
        self.number += 1
        payload = (self.number.to_bytes(4, "big") * (size // 4 + 1))[:size]
        self.sent.setdefault((name, stream.id), bytearray()).extend(payload)
        self.side(name).codec.send(stream, payload)

    @rule(name=st.sampled_from(["client", "server"]), pick=st.integers(0, 7))
    def end(self, name: str, pick: int) -> None:
        live = self.streams(name)
        if live:
            stream = live[pick % len(live)].stream
            assert stream is not None
            self.ended.add((name, stream.id))
            self.side(name).codec.send_end(stream)

    @rule(name=st.sampled_from(["client", "server"]), pick=st.integers(0, 7))
    def abort(self, name: str, pick: int) -> None:
        live = self.streams(name)
        if live:
            stream = live[pick % len(live)].stream
            assert stream is not None
            self.reset.add(stream.id)
            self.side(name).codec.reset(stream, ErrorCode.CANCEL)

    @rule(name=st.sampled_from(["client", "server"]), pick=st.integers(0, 7), pause=st.booleans())
    def consume(self, name: str, pick: int, pause: bool) -> None:
        live = self.streams(name)
        if live:
            stream = live[pick % len(live)].stream
            assert stream is not None
            codec = self.side(name).codec
            (codec.pause if pause else codec.resume)(stream)
            (self.paused.add if pause else self.paused.discard)((name, stream.id))

    @rule(name=st.sampled_from(["client", "server"]), size=CHUNK)
    def deliver(self, name: str, size: int) -> None:
        """Move part of what one side wrote to the other."""
        wire = self.wires[name]
        wire += self.side(name).codec.take()
        part = bytes(wire[:size])
        del wire[:size]
        if part:
            self.side("server" if name == "client" else "client").codec.receive(part)

    @invariant()
    def books_are_kept(self) -> None:
        for side in (self.client, self.server):
            assert side.codec._send_window >= 0
            for stream in side.codec.streams.values():
                assert stream.queued_bytes == sum(map(len, stream.queue))
                assert stream.send_window >= 0
                assert stream.receive.left >= 0

    @invariant()
    def received_is_a_prefix_of_sent(self) -> None:
        for name, other in (("client", "server"), ("server", "client")):
            for stream_id, recorder in self.side(name).recorders.items():
                assert bytes(self.sent.get((other, stream_id), b"")).startswith(bytes(recorder.data))

    def teardown(self) -> None:
        for name in ("client", "server"):
            for recorder in self.streams(name):
                self.side(name).codec.resume(recorder.stream)  # type: ignore[arg-type]
        for _ in range(400):
            for name in ("client", "server"):
                self.deliver(name, 1 << 30)
        for name, other in (("client", "server"), ("server", "client")):
            for stream_id, recorder in self.side(name).recorders.items():
                if stream_id in self.reset:
                    continue
                assert recorder.data == self.sent.get((other, stream_id), b"")
                assert ("end" in recorder.log) == ((other, stream_id) in self.ended)
                both = {(name, stream_id), (other, stream_id)} <= self.ended
                assert ("closed" in recorder.log) == both
        self.received_is_a_prefix_of_sent()
        assert set(self.client.codec.streams) == set(self.server.codec.streams)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(deadline=None)


@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 4000), min_size=1, max_size=30), size=st.integers(1, 200_000))
def test_any_cut_of_the_wire_gives_the_same_events(cuts: list[int], size: int) -> None:
    client, server = pair()
    tunnel = client.open(headers=[(b"baggage", b"x" * 300)])
    payload = bytes(i % 253 for i in range(size))
    client.codec.send(tunnel.stream, payload)  # type: ignore[arg-type]
    client.codec.send_end(tunnel.stream)  # type: ignore[arg-type]
    client.codec.ping(b"12345678")
    wire, at, turn = client.codec.take(), 0, 0
    while at < len(wire):
        cut = cuts[turn % len(cuts)]
        server.codec.receive(wire[at : at + cut])
        at, turn = at + cut, turn + 1
    exchange(client, server)
    if tunnel.stream is not None and tunnel.stream.queued_bytes == 0:
        assert server.recorders[1].data == payload
        assert server.recorders[1].log == ["end"]
    assert client.log == ["settings", "ping ack"]


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_raise_anything_else(noise: bytes) -> None:
    for role in Role:
        peer = RawPeer(role)
        if role is Role.CLIENT:
            peer.side.open()
        else:
            peer.connect()
        try:
            peer.send(noise)
        except frames.ConnectionFailedError:
            assert peer.side.codec.closing


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=30)),
        max_size=12,
    )
)
def test_arbitrary_frames_never_raise_anything_else(spec: list[tuple[int, int, int, bytes]]) -> None:
    for role in Role:
        peer = RawPeer(role)
        peer.side.open() if role is Role.CLIENT else peer.connect()
        try:
            peer.send(*(frames.frame(*one) for one in spec))
        except frames.ConnectionFailedError:
            assert peer.side.codec.closing


# --- Against h2


class H2Peer:
    """`h2` on the other end."""

    def __init__(self, *, client: bool) -> None:
        config = h2.config.H2Configuration(client_side=client, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    def exchange(self, side: Side, step: int = 1 << 20) -> None:
        while True:
            to_us, to_it = self.h2.data_to_send(), side.codec.take()
            if not to_us and not to_it:
                return
            for at in range(0, len(to_us), step):
                side.codec.receive(to_us[at : at + step])
            if to_it:
                self.events += self.h2.receive_data(to_it)

    def body(self, stream_id: int) -> bytes:
        found = b""
        for event in self.events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id:
                found += event.data
        return found

    def acknowledge(self) -> None:
        for event in self.events:
            if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                event.flow_controlled_length = 0


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_our_server_with_an_h2_client(step: int) -> None:
    peer, server = H2Peer(client=True), Side(Role.SERVER)
    peer.exchange(server, step)
    peer.h2.send_headers(1, [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80"), (b"baggage", b"k=v")])
    peer.exchange(server, step)
    assert server.requests == [(b"10.0.0.1:80", [(b"baggage", b"k=v")])]
    payload = bytes(range(256)) * 100
    for at in range(0, len(payload), 10_000):
        peer.h2.send_data(1, payload[at : at + 10_000], pad_length=at % 200 or None)
    peer.h2.end_stream(1)
    peer.exchange(server, step)
    far = server.recorders[1]
    assert (far.data, far.log) == (payload, ["end"])
    server.codec.send(far.stream, payload * 10)  # type: ignore[arg-type]
    server.codec.send_end(far.stream)  # type: ignore[arg-type]
    for _ in range(50):
        peer.exchange(server, step)
        peer.acknowledge()
    assert peer.body(1) == payload * 10
    assert any(isinstance(e, h2.events.StreamEnded) for e in peer.events)
    assert far.log == ["end", "closed"]


def test_our_client_with_an_h2_server() -> None:
    peer, client = H2Peer(client=False), Side(Role.CLIENT)
    peer.h2.update_settings({h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 0})
    peer.exchange(client)
    tunnel = client.open(b"[fd00::1]:443", [(b"forwarded", b'for="10.0.0.9:1"')])
    peer.exchange(client)
    request = next(e for e in peer.events if isinstance(e, h2.events.RequestReceived))
    assert list(request.headers) == [
        (b":method", b"CONNECT"),
        (b":authority", b"[fd00::1]:443"),
        (b"forwarded", b'for="10.0.0.9:1"'),
    ]
    peer.h2.send_headers(1, [(b":status", b"200"), (b"baggage", b"a=b")])
    peer.exchange(client)
    assert tunnel.log == [("response", 200, [(b"baggage", b"a=b")])]
    payload = bytes(range(256)) * 3000
    client.codec.send(tunnel.stream, payload)  # type: ignore[arg-type]
    client.codec.send_end(tunnel.stream)  # type: ignore[arg-type]
    for _ in range(200):
        peer.exchange(client)
        peer.acknowledge()
    assert peer.body(1) == payload
    peer.h2.send_data(1, b"bye", end_stream=True)
    peer.exchange(client)
    assert tunnel.data == b"bye"
    assert tunnel.log[1:] == ["end", "closed"]


def test_h2_sees_our_reset_goaway_and_ping() -> None:
    peer, server = H2Peer(client=True), Side(Role.SERVER)
    peer.h2.send_headers(1, [(b":method", b"CONNECT"), (b":authority", b"a:1")])
    peer.exchange(server)
    server.codec.ping(b"abcdefgh")
    peer.exchange(server)
    assert "ping ack" in server.log
    server.codec.reset(server.recorders[1].stream, ErrorCode.CONNECT_ERROR)  # type: ignore[arg-type]
    server.codec.goaway(ErrorCode.NO_ERROR, b"drain")
    peer.exchange(server)
    reset = next(e for e in peer.events if isinstance(e, h2.events.StreamReset))
    assert reset.error_code == ErrorCode.CONNECT_ERROR
    goaway = next(e for e in peer.events if isinstance(e, h2.events.ConnectionTerminated))
    assert (goaway.error_code, goaway.last_stream_id, goaway.additional_data) == (0, 1, b"drain")


def test_an_h2_client_fills_exactly_our_window() -> None:
    limits = replace(SMALL, max_window_bytes=65535)
    peer, server = H2Peer(client=True), Side(Role.SERVER, limits, read=False)
    peer.exchange(server)
    peer.h2.send_headers(1, [(b":method", b"CONNECT"), (b":authority", b"a:1")])
    peer.exchange(server)
    assert peer.h2.local_flow_control_window(1) == 65535
    sent = 0
    while window := peer.h2.local_flow_control_window(1):
        size = min(window, 16384)
        peer.h2.send_data(1, bytes(size))
        sent += size
        peer.exchange(server)
    assert len(server.recorders[1].data) == sent == 65535
    server.codec.resume(server.recorders[1].stream)  # type: ignore[arg-type]
    peer.exchange(server)
    assert peer.h2.local_flow_control_window(1) == 65535


def test_data_after_our_codec_failed_is_a_matter_of_the_driver() -> None:
    peer = RawPeer(Role.SERVER)
    peer.fails(data(0, b"x"))
    assert peer.side.codec.closing
