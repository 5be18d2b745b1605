# SPDX-License-Identifier: Apache-2.0
"""Bytes into frames in any pieces, DATA frames, and the windows that bound them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mesh.hbone import frames
from mesh.hbone.frames import ConnectionFailedError, ErrorCode
from mesh.hbone.limits import Limits
from mesh.hbone.stream import Role
from mesh.telemetry.reasons import Reason
from tests.support.h2peer import CONNECT, RawPeer, Side, data, request

WINDOW = frames.WINDOW_UPDATE
RST = frames.RST_STREAM


def reset(stream_id: int, code: ErrorCode) -> tuple[int, int, int, bytes]:
    return (RST, 0, stream_id, code.to_bytes(4, "big"))


@pytest.mark.parametrize("cut", range(1, 24))
def test_the_preface_may_come_in_any_pieces(cut: int) -> None:
    side = Side(Role.SERVER)
    whole = frames.PREFACE + frames.settings({})
    side.codec.receive(whole[:cut])
    side.codec.receive(whole[cut:])
    assert side.log == ["settings"]


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n"]
)
def test_another_protocol_is_named(first: bytes) -> None:
    with pytest.raises(ConnectionFailedError) as caught:
        Side(Role.SERVER).codec.receive(first)
    assert caught.value.reason is Reason.H2_HANDSHAKE_FAILED


def test_padding_longer_than_its_frame() -> None:
    for payload in (b"", b"\x01", b"\x05abcd"):
        peer = RawPeer(Role.SERVER)
        peer.connect()
        assert peer.fails(data(1, payload, frames.PADDED)).code is ErrorCode.PROTOCOL_ERROR


def test_data_before_the_response_is_refused() -> None:
    peer = RawPeer(Role.CLIENT)
    recorder = peer.side.open()
    assert reset(1, ErrorCode.PROTOCOL_ERROR) in peer.send(data(1, b"x"))
    assert recorder.log == [("reset", "PROTOCOL_ERROR", "own")]


def test_a_padded_frame_in_any_pieces() -> None:
    encoded = request() + data(1, b"\x04abc" + bytes(4), frames.PADDED) + data(1, b"d", frames.END_STREAM)
    for step in range(1, 12):
        peer = RawPeer(Role.SERVER)
        for at in range(0, len(encoded), step):
            peer.send(encoded[at : at + step])
        assert peer.side.recorders[1].data == b"abcd"
        assert peer.side.recorders[1].log == ["end"]


def test_frames_in_flight_on_a_reset_stream_are_dropped_and_credited() -> None:
    limits = replace(Limits(), connection_window_bytes=65535)
    peer = RawPeer(Role.SERVER, limits)
    peer.connect()
    peer.side.codec.reset(peer.side.recorders[1].stream, ErrorCode.CANCEL)  # type: ignore[arg-type]
    answers = peer.send(
        data(1, bytes(16384)), data(1, bytes(16384)), frames.window_update(1, 5), request(1, CONNECT)
    )
    assert (WINDOW, 0, 0, (32768).to_bytes(4, "big")) in answers
    assert peer.side.recorders[1].data == b""


def test_a_long_header_frame_is_refused_by_its_header_alone() -> None:
    peer = RawPeer(Role.SERVER, replace(Limits(), max_header_block_bytes=1000))
    assert (
        peer.fails((1001 << 8 | frames.HEADERS).to_bytes(4, "big") + b"\x04\x00\x00\x00\x01").reason
        is Reason.H2_FLOOD
    )


def test_frame_limits() -> None:
    limits = replace(Limits(), max_frame_bytes=20000, max_control_frame_bytes=100)
    peer = RawPeer(Role.SERVER, limits)
    peer.connect()
    peer.send(data(1, bytes(20000)), frames.frame(0xBE, 0, 0, bytes(100)))
    assert len(peer.side.recorders[1].data) == 20000
    assert peer.fails(data(1, bytes(20001))).code is ErrorCode.FRAME_SIZE_ERROR
    peer = RawPeer(Role.SERVER, limits)
    assert peer.fails(frames.frame(0xBE, 0, 0, bytes(101))).code is ErrorCode.FRAME_SIZE_ERROR


def test_windows_of_tunnel_and_connection() -> None:
    limits = replace(Limits(), initial_window_bytes=65535, connection_window_bytes=131072)
    peer = RawPeer(Role.SERVER, limits)
    peer.side.read = False
    peer.connect(1)
    peer.send(*[data(1, bytes(16384))] * 3, data(1, bytes(16383)))
    assert len(peer.side.recorders[1].data) == 65535
    assert reset(1, ErrorCode.FLOW_CONTROL_ERROR) in peer.send(data(1, b"x"))
    peer = RawPeer(Role.SERVER, replace(limits, max_frame_bytes=200_000))
    error = peer.fails(request(1) + (131073 << 8).to_bytes(4, "big") + b"\x00\x00\x00\x00\x01")
    assert error.reason is Reason.H2_FLOW_CONTROL_ERROR


@pytest.mark.parametrize("step", [1000, 16393, 20000])
@pytest.mark.parametrize("flags", [0, frames.PADDED])
def test_credit_returns_for_frames_in_any_pieces(step: int, flags: int) -> None:
    limits = replace(Limits(), initial_window_bytes=65535, max_window_bytes=65535)
    peer = RawPeer(Role.SERVER, limits)
    peer.connect()
    payload = b"\x09" + bytes(16383) if flags else bytes(16384)
    encoded = data(1, payload, flags) * 40
    for at in range(0, len(encoded), step):
        peer.send(encoded[at : at + step])
    assert len(peer.side.recorders[1].data) == 40 * (16384 - (10 if flags else 0))
    assert peer.side.recorders[1].log == []


def test_padding_is_credited_to_its_tunnel() -> None:
    limits = replace(Limits(), initial_window_bytes=65535, max_window_bytes=65535)
    peer = RawPeer(Role.SERVER, limits)
    peer.connect()
    peer.send(data(1, b"\xff" + b"x" * 4 + bytes(255), frames.PADDED) * 1000)
    assert peer.side.recorders[1].data == b"x" * 4000
    assert peer.side.recorders[1].log == []
