# SPDX-License-Identifier: Apache-2.0
"""ZDS against raw bytes written by hand, on each side: what breaks it ends alone and leaks nothing."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import random
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.zds.connection import (
    ZdsClient,
)
from mesh.zds.packet import ZdsClosedError
from tests.support.eventually import eventually_async
from tests.support.zds import (
    LOOPS,
    ME,
    SEQPACKET,
    Agent,
    Pods,
    add,
    both,
    open_fds,
    raw_client,
    receive,
)


def send_with(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_the_server_sends_istios_bytes_and_one_descriptor(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd, ("u",))
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await eventually_async(lambda: agent.peers, "the greeting to be read")
            data = b""
            fds: list[int] = []

            def arrived() -> bool:
                nonlocal data, fds
                with contextlib.suppress(BlockingIOError):
                    data, fds, _, _ = socket.recv_fds(sock, 2048, 4)
                return bool(data)

            await eventually_async(arrived, "the first request")
            assert data == b"\x0a\x17\x0a\x01u\x12\x12\x0a\x05pod-u\x12\x04shop\x1a\x03web"
            assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(file_fd).st_ino]
            os.close(fds[0])
            sock.send(b"\x0a\x00")
            assert await receive(sock) == b"\x1a\x00"
            sock.send(b"\x0a\x00")
            await eventually_async(lambda: agent.ready, "the snapshot's answer")
        await agent.server.close()

    asyncio.run(main())


@pytest.mark.parametrize("greeting", [b"\x08\x02", b"\xff", b"x" * 1025, b"\x12\x00"])
def test_a_bad_greeting_ends_the_connection(tmp_path: Path, file_fd: int, greeting: bytes) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(greeting)
            assert await receive(sock) == b""
        assert agent.server.refused == 1
        assert agent.peers == []
        await agent.server.close()

    asyncio.run(main())


def test_silence_ends_the_connection(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd, hello_timeout_s=0.05)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            assert await receive(sock) == b""
        assert agent.server.refused == 1
        await agent.server.close()

    asyncio.run(main())


@pytest.mark.parametrize("where", ["greeting", "answer"])
def test_descriptors_that_are_sent_to_the_server_are_closed(tmp_path: Path, file_fd: int, where: str) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        before = open_fds()
        async with raw_client(tmp_path / "s") as sock:
            if where == "greeting":
                send_with(sock, b"\x08\x01", file_fd, file_fd, file_fd)
            else:
                sock.send(b"\x08\x01")
                assert await receive(sock) == b"\x1a\x00"
                send_with(sock, b"\x0a\x00", file_fd)
            assert await receive(sock) == b""
        await eventually_async(lambda: open_fds() == before, "every descriptor to be closed")
        await agent.server.close()

    asyncio.run(main())


@pytest.mark.parametrize("answer", [b"\xff", b"\x12\x00", b"x" * 2000])
def test_a_bad_answer_ends_the_connection(tmp_path: Path, file_fd: int, answer: bytes) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await receive(sock)
            sock.send(answer)
            assert await receive(sock) == b""
        await eventually_async(lambda: len(agent.closed) == 1, "the end to be told")
        await agent.server.close()

    asyncio.run(main())


def test_an_answer_that_nobody_asked_for_ends_the_connection(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await receive(sock)
            sock.send(b"\x0a\x00")
            sock.send(b"\x0a\x00")
            assert await receive(sock) == b""
        await eventually_async(lambda: agent.closed == ["an answer that nobody asked for"], "the reason")
        await agent.server.close()

    asyncio.run(main())


def test_no_answer_in_time_ends_the_connection(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd, ack_timeout_s=0.05)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            assert await receive(sock) == b"\x1a\x00"
            assert await receive(sock) == b""
        await eventually_async(
            lambda: agent.closed == ["no answer to SnapshotSent within 0.05 s"], "the reason"
        )
        with pytest.raises(ZdsClosedError, match="no answer"):
            await agent.peers[0].delete("a")
        await agent.server.close()

    asyncio.run(main())


def test_an_end_is_noticed_while_nobody_asks(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await receive(sock)
            sock.send(b"\x0a\x00")
            await eventually_async(lambda: agent.ready, "the snapshot's answer")
        await eventually_async(lambda: agent.closed == ["the peer closed the connection"], "the end")
        await agent.server.close()

    asyncio.run(main())


def test_a_descriptor_that_is_not_open_is_the_callers_fault(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd) as (agent, _, states, _client):
            await eventually_async(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            with pytest.raises(OSError, match="Bad file descriptor"):
                await peer.add(add("a"), 999_999)
            assert await peer.add(add("a"), file_fd) == ""

    asyncio.run(main())


def test_a_request_that_is_given_up_ends_the_connection(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await receive(sock)
            sock.send(b"\x0a\x00")
            await eventually_async(lambda: agent.ready, "the snapshot's answer")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await agent.ready[0].delete("a")
            assert await receive(sock) == b"\x12\x03\x12\x01a"
            assert await receive(sock) == b""
        await agent.server.close()

    asyncio.run(main())


def test_out_of_descriptors_the_server_waits_and_serves_later(
    tmp_path: Path, file_fd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        monkeypatch.setattr("mesh.zds.connection.ACCEPT_PAUSE_S", 0.2)
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        async with raw_client(tmp_path / "s") as sock:
            # The lowest free number is beyond the limit, so the next descriptor cannot be had.
            resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, hard))
            try:
                await eventually_async(lambda: caplog.records, "the failure to be logged")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert len(caplog.records) == 1, "it must pause, not spin"
            sock.send(b"\x08\x01")
            assert await receive(sock) == b"\x1a\x00"
        assert "Too many open files" in caplog.text
        await agent.server.close()

    asyncio.run(main())


# --- the client against raw bytes


@asynccontextmanager
async def scripted(path: Path, pods: Pods) -> AsyncIterator[tuple[socket.socket, ZdsClient]]:
    """Run our client against a server that the test plays by hand; yields the accepted connection."""
    listener = socket.socket(socket.AF_UNIX, SEQPACKET)
    listener.setblocking(False)
    listener.bind(str(path))
    listener.listen()
    client = ZdsClient(path, pods, trust=ME)
    owner = TaskOwner("test")
    create_task(client.run(), name="zds", owner=owner)
    sock, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
    sock.setblocking(False)
    try:
        assert await receive(sock) == b"\x08\x01"
        yield sock, client
    finally:
        await owner.close()
        sock.close()
        listener.close()


ADD = b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01n\x12\x01s\x1a\x01a"


def test_the_client_answers_istios_bytes(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        pods = Pods()
        async with scripted(tmp_path / "s", pods) as (sock, _):
            for request, fds in (
                (ADD, [file_fd]),
                (b"\x2a\x03\x0a\x01k", []),
                (b"\x1a\x00", []),
                (b"\x12\x03\x12\x01u", []),
            ):
                send_with(sock, request, *fds) if fds else sock.send(request)
                assert await receive(sock) == b"\x0a\x00"
        assert pods.calls == [("add", "u"), ("keep", "k"), ("snapshot", frozenset("uk")), ("delete", "u")]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "descriptors", "why"),
    [
        (ADD, 0, "with 0 descriptors"),
        (ADD, 2, "with 2 descriptors"),
        (b"\x1a\x00", 1, "with 1 descriptors"),
        (b"\x0a\x03\x0a\x01u", 1, "does not say whose"),
        (b"\xff", 1, "no WorkloadRequest"),
    ],
)
def test_a_broken_request_is_answered_and_ends_the_connection(
    tmp_path: Path, file_fd: int, data: bytes, descriptors: int, why: str
) -> None:
    async def main() -> None:
        pods = Pods()
        async with scripted(tmp_path / "s", pods) as (sock, client):
            before = open_fds()
            if descriptors:
                send_with(sock, data, *[file_fd] * descriptors)
            else:
                sock.send(data)
            assert why.encode() in await receive(sock)
            assert await receive(sock) == b""
            await eventually_async(lambda: why in client.last_error, "the reason")
            await eventually_async(lambda: len(open_fds()) <= len(before), "descriptors to be closed")
        assert pods.calls == []

    asyncio.run(main())


@pytest.mark.parametrize(("size", "descriptors"), [(1025, 1), (10, 9)])
def test_a_datagram_that_does_not_fit_leaks_nothing(
    tmp_path: Path, file_fd: int, size: int, descriptors: int
) -> None:
    async def main() -> None:
        async with scripted(tmp_path / "s", Pods()) as (sock, client):
            before = open_fds()
            send_with(sock, b"x" * size, *[file_fd] * descriptors)
            assert await receive(sock) == b""
            await eventually_async(lambda: "a datagram of more than" in client.last_error, "the reason")
            await eventually_async(lambda: len(open_fds()) <= len(before), "descriptors to be closed")

    asyncio.run(main())


def test_a_late_snapshot_message_ends_the_connection(tmp_path: Path) -> None:
    async def main() -> None:
        async with scripted(tmp_path / "s", Pods()) as (sock, _):
            sock.send(b"\x1a\x00")
            assert await receive(sock) == b"\x0a\x00"
            sock.send(b"\x1a\x00")
            assert b"after the snapshot" in await receive(sock)
            assert await receive(sock) == b""

    asyncio.run(main())


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_noise_on_both_ends_leaks_nothing_and_ends_nothing_else(
    tmp_path: Path, file_fd: int, loop: str
) -> None:
    """500 connections of random datagrams with random descriptors; then the server still serves."""

    async def main() -> None:
        noise = random.Random(7)
        agent = Agent(tmp_path / "s", file_fd, ("u",))
        await agent.server.start()
        before = open_fds()
        for _ in range(500):
            # The listener's queue is short: let the server take what has come.
            await asyncio.sleep(0)
            async with raw_client(tmp_path / "s") as sock:
                with contextlib.suppress(OSError):
                    if noise.random() < 0.7:
                        sock.send(b"\x08\x01")
                    for _ in range(noise.randrange(3)):
                        data = noise.randbytes(noise.choice((1, 2, 20, 1024, 1500)))
                        send_with(sock, data, *[file_fd] * noise.randrange(10))
                        await asyncio.sleep(0)
        await eventually_async(lambda: open_fds() == before, "every descriptor to be closed")
        pods, states = Pods(), list[bool]()
        client = ZdsClient(tmp_path / "s", pods, on_state=states.append, trust=ME)
        owner = TaskOwner("test")
        create_task(client.run(), name="zds", owner=owner)
        await eventually_async(lambda: states == [True], "the snapshot")
        await owner.close()
        await agent.server.close()

    LOOPS[loop](main())
