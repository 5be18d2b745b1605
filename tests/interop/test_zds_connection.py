# SPDX-License-Identifier: Apache-2.0
"""ZDS over real sockets, ours with ours: snapshots, restarts, refusals, and who is not let in."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.zds.connection import (
    ForeignPeerError,
    ZdsClient,
    ZdsRejectedError,
    require_uid,
)
from mesh.zds.packet import Credentials
from tests.support.eventually import eventually_async
from tests.support.zds import (
    LOOPS,
    ME,
    Agent,
    Pods,
    add,
    both,
    open_fds,
    raw_client,
    receive,
)


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_snapshot_then_deltas(tmp_path: Path, file_fd: int, loop: str) -> None:
    async def main() -> None:
        before = open_fds()
        async with both(tmp_path / "s", file_fd, ("a", "b")) as (agent, pods, states, client):
            await eventually_async(lambda: states == [True], "the snapshot")
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
            await eventually_async(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            answers = await asyncio.gather(*(peer.add(add(str(index)), file_fd) for index in range(50)))
            assert set(answers) == {""}
            assert sorted(pods.inodes) == sorted(map(str, range(50)))

    asyncio.run(main())


def test_a_refusal_reaches_the_agent_and_the_connection_goes_on(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd) as (agent, pods, states, _):
            pods.refuse = {"x": ZdsRejectedError("port 15008 is taken"), "y": KeyError("bug")}
            await eventually_async(lambda: states == [True], "the snapshot")
            (peer,) = agent.ready
            assert await peer.add(add("x"), file_fd) == "port 15008 is taken"
            assert await peer.add(add("y"), file_fd) == "internal error: KeyError('bug')"
            assert await peer.add(add("z"), file_fd) == ""
            assert agent.closed == []

    asyncio.run(main())


def test_after_a_restart_of_the_agent_a_new_snapshot_comes(tmp_path: Path, file_fd: int) -> None:
    async def main() -> None:
        async with both(tmp_path / "s", file_fd, ("a", "b")) as (agent, pods, states, _):
            await eventually_async(lambda: states == [True], "the first snapshot")
            await agent.server.close()
            await eventually_async(lambda: states == [True, False], "the loss")
            again = Agent(tmp_path / "s", file_fd, ("b",))
            await again.server.start()
            await eventually_async(lambda: states == [True, False, True], "the second snapshot")
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
            await eventually_async(lambda: newer.peers, "the newer one to answer")
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
        await eventually_async(lambda: "No such file" in client.last_error, "the first failure")
        agent = Agent(path, file_fd)
        await agent.server.start()
        await eventually_async(lambda: states == [True], "the snapshot")
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
        await eventually_async(
            lambda: f"is not of uid {os.geteuid() + 1}" in client.last_error, "the refusal"
        )
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
