# SPDX-License-Identifier: Apache-2.0
"""ZDS over real sockets: ours with ours, and each side against raw bytes written by hand."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import random
import resource
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.zds.connection import (
    ForeignPeerError,
    ZdsClient,
    ZdsPeer,
    ZdsRejectedError,
    ZdsServer,
    require_uid,
)
from mesh.zds.messages import AddWorkload
from mesh.zds.packet import Credentials, ZdsClosedError

SEQPACKET = socket.SOCK_SEQPACKET
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
ME = require_uid(os.geteuid())


async def eventually(predicate: Callable[[], object], what: str, deadline_s: float = 10.0) -> None:
    end = asyncio.get_running_loop().time() + deadline_s
    while not predicate():
        assert asyncio.get_running_loop().time() < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.005)


def open_fds() -> list[str]:
    """What the process has open; epoll and wake-up descriptors of the loop are the same before and after."""
    return sorted(os.listdir("/proc/self/fd"))


def add(uid: str) -> AddWorkload:
    return AddWorkload(uid=uid, name=f"pod-{uid}", namespace="shop", service_account="web")


@pytest.fixture
def file_fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor that can be told from others by its inode."""
    fd = os.open(tmp_path / "netns", os.O_CREAT | os.O_RDWR)
    yield fd
    os.close(fd)


class Pods:
    """A handler that notes what it was told, and keeps duplicates of what it took."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, object]] = []
        self.inodes: dict[str, int] = {}
        self.refuse: dict[str, Exception] = {}

    async def add(self, workload: AddWorkload, netns_fd: int) -> None:
        self.calls.append(("add", workload.uid))
        if workload.uid in self.refuse:
            raise self.refuse[workload.uid]
        self.inodes[workload.uid] = os.fstat(netns_fd).st_ino
        assert not os.get_inheritable(netns_fd)

    async def keep(self, uid: str) -> None:
        self.calls.append(("keep", uid))
        if uid in self.refuse:
            raise self.refuse[uid]

    async def delete(self, uid: str) -> None:
        self.calls.append(("delete", uid))

    async def snapshot(self, uids: frozenset[str]) -> None:
        self.calls.append(("snapshot", uids))


class Agent:
    """A server whose peers are kept for the test to talk to."""

    def __init__(self, path: Path, fd: int, snapshot: tuple[str, ...] = (), **options: Any) -> None:
        self.peers: list[ZdsPeer] = []
        self.ready: list[ZdsPeer] = []
        self.closed: list[str] = []
        self._fd, self._snapshot = fd, snapshot
        options = {"admit": ME, **options}
        self.server = ZdsServer(path, on_open=self.opened, on_close=self.ended, **options)

    async def opened(self, peer: ZdsPeer) -> None:
        self.peers.append(peer)
        for uid in self._snapshot:
            await peer.add(add(uid), self._fd)
        if await peer.snapshot_sent() == "":
            self.ready.append(peer)

    def ended(self, peer: ZdsPeer, why: str) -> None:
        self.closed.append(why)


@asynccontextmanager
async def both(
    path: Path, fd: int, snapshot: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[tuple[Agent, Pods, list[bool], ZdsClient]]:
    agent, pods, states = Agent(path, fd, snapshot, **options), Pods(), list[bool]()
    await agent.server.start()
    client = ZdsClient(path, pods, on_state=states.append, trust=ME)
    owner = TaskOwner("test")
    create_task(client.run(), name="zds", owner=owner)
    try:
        yield agent, pods, states, client
    finally:
        await owner.close()
        await agent.server.close()


@asynccontextmanager
async def raw_client(path: Path) -> AsyncIterator[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, SEQPACKET)
    sock.setblocking(False)
    sock.connect(str(path))
    try:
        yield sock
    finally:
        sock.close()


async def receive(sock: socket.socket) -> bytes:
    """Return one datagram; b'' at the end of the connection."""
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 2048), 10)


# --- both ends


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_snapshot_then_deltas(tmp_path: Path, file_fd: int, loop: str) -> None:
    async def main() -> None:
        before = open_fds()
        async with both(tmp_path / "s", file_fd, ("a", "b")) as (agent, pods, states, client):
            await eventually(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            assert peer.credentials == Credentials(pid=os.getpid(), uid=os.geteuid(), gid=os.getegid())
            assert await peer.add(add("c"), file_fd) == ""
            assert await peer.delete("a") == ""
            assert pods.calls == [
                ("add", "a"),
                ("add", "b"),
                ("snapshot", frozenset({"a", "b"})),
                ("add", "c"),
                ("delete", "a"),
            ]
            assert set(pods.inodes.values()) == {os.fstat(file_fd).st_ino}
            assert client.last_error == ""
        assert states == [True, False]
        assert open_fds() == before
        assert not (tmp_path / "s").exists()

    LOOPS[loop](main())


def test_requests_made_at_once_wait_their_turn(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd) as (agent, pods, states, _):
            await eventually(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            answers = await asyncio.gather(*(peer.add(add(str(index)), file_fd) for index in range(50)))
            assert set(answers) == {""}
            assert sorted(pods.inodes) == sorted(map(str, range(50)))

    asyncio.run(main())


def test_a_refusal_reaches_the_agent_and_the_connection_goes_on(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd) as (agent, pods, states, _):
            pods.refuse = {"x": ZdsRejectedError("port 15008 is taken"), "y": KeyError("bug")}
            await eventually(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            assert await peer.add(add("x"), file_fd) == "port 15008 is taken"
            assert await peer.add(add("y"), file_fd) == "internal error: KeyError('bug')"
            assert await peer.add(add("z"), file_fd) == ""
            assert agent.closed == []

    asyncio.run(main())


def test_after_a_restart_of_the_agent_a_new_snapshot_comes(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd, ("a", "b")) as (agent, pods, states, _):
            await eventually(lambda: states == [True], "the first snapshot")
            await agent.server.close()
            await eventually(lambda: states == [True, False], "the loss")
            again = Agent(tmp_path / "s", file_fd, ("b",))
            await again.server.start()
            await eventually(lambda: states == [True, False, True], "the second snapshot")
            assert pods.calls[-2:] == [("add", "b"), ("snapshot", frozenset({"b"}))]
            await again.server.close()

    asyncio.run(main())


def test_a_newer_agent_takes_the_path_over_and_the_older_leaves_it_alone(
    tmp_path: Path, file_fd: int
) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        older, newer = Agent(path, file_fd), Agent(path, file_fd)
        await older.server.start()
        await newer.server.start()
        await older.server.close()
        async with raw_client(path) as sock:
            sock.send(b"\x08\x01")
            await eventually(lambda: newer.peers, "the newer one to answer")
        await newer.server.close()
        assert not path.exists()
        assert list(tmp_path.iterdir()) == [tmp_path / "netns"]

    asyncio.run(main())


def test_a_client_that_comes_first_waits_for_the_agent(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        path, states = tmp_path / "s", list[bool]()
        client = ZdsClient(path, Pods(), on_state=states.append, trust=ME)
        owner = TaskOwner("test")
        create_task(client.run(), name="zds", owner=owner)
        await eventually(lambda: "No such file" in client.last_error, "the first failure")
        agent = Agent(path, file_fd)
        await agent.server.start()
        await eventually(lambda: states == [True], "the snapshot")
        await owner.close()
        await agent.server.close()

    asyncio.run(main())


# --- who may be there


def test_a_process_that_is_not_admitted_is_cut_before_it_is_read(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd, admit=require_uid(os.geteuid() + 1))
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            assert await receive(sock) == b""
        assert agent.server.refused == 1
        assert agent.peers == []
        await agent.server.close()

    asyncio.run(main())


def test_a_process_that_only_poses_as_the_agent_is_not_believed(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent, pods = Agent(tmp_path / "s", file_fd, ("a",)), Pods()
        await agent.server.start()
        client = ZdsClient(tmp_path / "s", pods, trust=require_uid(os.geteuid() + 1))
        owner = TaskOwner("test")
        create_task(client.run(), name="zds", owner=owner)
        await eventually(lambda: f"is not of uid {os.geteuid() + 1}" in client.last_error, "the refusal")
        assert pods.calls == []
        await owner.close()
        await agent.server.close()

    asyncio.run(main())


def test_the_default_admits_root_that_it_can_see() -> None:
    require_uid()(Credentials(pid=1, uid=0, gid=0))
    with pytest.raises(ForeignPeerError, match="is not of uid 0"):
        require_uid()(Credentials(pid=1, uid=1000, gid=0))
    with pytest.raises(ForeignPeerError, match="another pid namespace"):
        require_uid()(Credentials(pid=0, uid=0, gid=0))


def test_only_the_owner_may_open_the_socket(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd)
        await agent.server.start()
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
        await agent.server.close()

    asyncio.run(main())


def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        (tmp_path / "s").write_text("precious")
        with pytest.raises(FileExistsError, match="is no socket"):
            await Agent(tmp_path / "s", file_fd).server.start()
        assert (tmp_path / "s").read_text() == "precious"
        with pytest.raises(FileNotFoundError):
            await Agent(tmp_path / "missing" / "s", file_fd).server.start()

    asyncio.run(main())


INTRUDER = """
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sock.connect(sys.argv[1])
try:
    sock.send(bytes([8, 1]))
    print(sock.recv(100))
except OSError:
    print(b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to start a process of another user")
def test_a_process_of_another_user_gets_nothing_even_through_an_open_socket(file_fd: int) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "s"
            agent = Agent(path, file_fd, ("a",), admit=require_uid())
            await agent.server.start()
            Path(directory).chmod(0o755)
            command = ["/usr/bin/python3", "-c", INTRUDER, str(path)]
            closed = await asyncio.to_thread(
                subprocess.run, command, user=65534, capture_output=True, timeout=20, check=False
            )
            assert b"PermissionError" in closed.stderr
            path.chmod(0o666)
            opened = await asyncio.to_thread(
                subprocess.run, command, user=65534, capture_output=True, timeout=20, check=False
            )
            assert opened.stdout == b"b''\n"
            assert agent.server.refused == 1
            assert agent.peers == []
            await agent.server.close()

    asyncio.run(main())


# --- the server against raw bytes


def send_with(sock: socket.socket, data: bytes, *fds: int) -> None:
    sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def test_the_server_sends_istios_bytes_and_one_descriptor(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        agent = Agent(tmp_path / "s", file_fd, ("u",))
        await agent.server.start()
        async with raw_client(tmp_path / "s") as sock:
            sock.send(b"\x08\x01")
            await eventually(lambda: agent.peers, "the greeting to be read")
            data = b""
            fds: list[int] = []

            def arrived() -> bool:
                nonlocal data, fds
                with contextlib.suppress(BlockingIOError):
                    data, fds, _, _ = socket.recv_fds(sock, 2048, 4)
                return bool(data)

            await eventually(arrived, "the first request")
            assert data == b"\x0a\x17\x0a\x01u\x12\x12\x0a\x05pod-u\x12\x04shop\x1a\x03web"
            assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(file_fd).st_ino]
            os.close(fds[0])
            sock.send(b"\x0a\x00")
            assert await receive(sock) == b"\x1a\x00"
            sock.send(b"\x0a\x00")
            await eventually(lambda: agent.ready, "the snapshot's answer")
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
        await eventually(lambda: open_fds() == before, "every descriptor to be closed")
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
        await eventually(lambda: len(agent.closed) == 1, "the end to be told")
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
        await eventually(lambda: agent.closed == ["an answer that nobody asked for"], "the reason")
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
        await eventually(lambda: agent.closed == ["no answer to SnapshotSent within 0.05 s"], "the reason")
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
            await eventually(lambda: agent.ready, "the snapshot's answer")
        await eventually(lambda: agent.closed == ["the peer closed the connection"], "the end")
        await agent.server.close()

    asyncio.run(main())


def test_a_descriptor_that_is_not_open_is_the_callers_fault(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd) as (agent, _, states, _client):
            await eventually(lambda: states == [True], "the snapshot")
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
            await eventually(lambda: agent.ready, "the snapshot's answer")
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
                await eventually(lambda: caplog.records, "the failure to be logged")
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
            await eventually(lambda: why in client.last_error, "the reason")
            await eventually(lambda: len(open_fds()) <= len(before), "descriptors to be closed")
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
            await eventually(lambda: "a datagram of more than" in client.last_error, "the reason")
            await eventually(lambda: len(open_fds()) <= len(before), "descriptors to be closed")

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
        await eventually(lambda: open_fds() == before, "every descriptor to be closed")
        pods, states = Pods(), list[bool]()
        client = ZdsClient(tmp_path / "s", pods, on_state=states.append, trust=ME)
        owner = TaskOwner("test")
        create_task(client.run(), name="zds", owner=owner)
        await eventually(lambda: states == [True], "the snapshot")
        await owner.close()
        await agent.server.close()

    LOOPS[loop](main())
