# SPDX-License-Identifier: Apache-2.0
"""Both ends of ZDS for tests: doubles that remember, and raw sockets beside them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.zds.connection import (
    ZdsClient,
    ZdsPeer,
    ZdsServer,
    require_uid,
)
from mesh.zds.messages import AddWorkload

SEQPACKET = socket.SOCK_SEQPACKET
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}
ME = require_uid(os.geteuid())


def open_fds() -> list[str]:
    """What the process has open; epoll and wake-up descriptors of the loop are the same before and after."""
    return sorted(os.listdir("/proc/self/fd"))


def add(uid: str) -> AddWorkload:
    return AddWorkload(uid=uid, name=f"pod-{uid}", namespace="shop", service_account="web")


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
