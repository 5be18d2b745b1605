# SPDX-License-Identifier: Apache-2.0
"""The control channel over a real socketpair: order, large messages, descriptors, the end."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from ztunnel.control import Channel, Message


async def test_messages_and_descriptors_arrive_in_order_and_large_ones_whole() -> None:
    left, right = socket.socketpair()
    received: list[tuple[Message, list[int]]] = []
    ended: list[str] = []
    done = asyncio.Event()

    def take(message: Message, fds: list[int]) -> None:
        received.append((message, fds))
        if message.kind == "last":
            done.set()

    sender = Channel(left, lambda _m, _f: None, lambda: ended.append("left"))
    receiver = Channel(right, take, lambda: ended.append("right"))
    read, write = os.pipe()
    sender.send(Message("first", {"n": 1}))
    sender.send(Message("with", {}, (b"x" * 3_000_000,)), (write,))
    sender.send(Message("two", {}), (read, write))
    sender.send(Message("last"))
    async with asyncio.timeout(5):
        await done.wait()
    assert [(m.kind, len(fds)) for m, fds in received] == [("first", 0), ("with", 1), ("two", 2), ("last", 0)]
    assert len(received[1][0].blobs[0]) == 3_000_000
    os.write(received[1][1][0], b"hi")
    assert os.read(received[2][1][0], 2) == b"hi"
    for fd in (read, write, *received[1][1], *received[2][1]):
        os.close(fd)
    assert sender.unsent_bytes == 0
    sender.close()
    sender.close()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while not receiver.closed:
            await asyncio.sleep(0)
    assert ended == ["left", "right"]
    receiver.send(Message("nobody"))


async def test_what_was_not_sent_is_given_up_with_its_descriptors() -> None:
    left, right = socket.socketpair()
    sender = Channel(left, lambda _m, _f: None, lambda: None)
    read, write = os.pipe()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        sender.send(Message("stuck", {}, (b"x" * 1_000_000,)), (write,))
    assert sender.unsent_bytes > 1_000_000
    sender.close()
    right.close()
    # Both ends of the pair and every duplicate are gone.
    assert len(os.listdir("/proc/self/fd")) == before - 2
    os.close(read)
    os.close(write)


async def test_a_message_that_cannot_be_taken_closes_the_channel_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    left, right = socket.socketpair()
    taken: list[str] = []
    ended = asyncio.Event()

    def take(message: Message, _fds: list[int]) -> None:
        taken.append(message.kind)
        if message.kind == "bad":
            raise RuntimeError("a defect")

    receiver = Channel(right, take, ended.set)
    sender = Channel(left, lambda _m, _f: None, lambda: None)
    for kind in ("good", "bad", "never"):
        sender.send(Message(kind))
    async with asyncio.timeout(5):
        await ended.wait()
    assert taken == ["good", "bad"]
    assert receiver.closed
    assert "a defect" in caplog.text
    sender.close()
