# SPDX-License-Identifier: Apache-2.0
"""A soak through two nodes: 1,000 connections of random size, chunking and ends, every byte compared."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import struct
from pathlib import Path

import pytest
from test_ztunnel_process import metric, pair
from ztunnel_mesh import needs_root, scenario
from ztunnel_process import MARK, Node, world

from mesh.testing.netns import PodNet
from tests.support.eventually import eventually_async
from ztunnel.netns import PodNamespace

pytestmark = needs_root

CONNECTIONS = 1000
TOGETHER = 24
_HEAD = struct.Struct("!QQ?")
"""What a client asks for: seed, bytes to answer, whether the server ends first."""


def chunks(seed: int, size: int) -> list[bytes]:
    """Cut `size` pseudo-random bytes at random places."""
    draw = random.Random(seed)
    data = draw.randbytes(size)
    cut, found = 0, []
    while cut < size:
        step = draw.choice((1, 7, 100, 1500, 16384, 65536))
        found.append(data[cut : cut + step])
        cut += step
    return found


async def send(writer: asyncio.StreamWriter, seed: int, size: int) -> None:
    """Write the chunks with a turn of the loop between some."""
    draw = random.Random(~seed)
    for chunk in chunks(seed, size):
        writer.write(chunk)
        if draw.random() < 0.3:
            await writer.drain()
    await writer.drain()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection: digest of what came, then what was asked for."""
    try:
        seed, size, first = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if first:
            await send(writer, seed + 1, size)
            writer.write_eof()
            await reader.read()
        else:
            digest = hashlib.sha256(await reader.read()).digest()
            writer.write(digest)
            await send(writer, seed + 1, size)
            writer.write_eof()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # A client of the kind that resets.
    finally:
        writer.close()


async def one(space: PodNamespace, b: PodNet, number: int) -> None:
    """Run one connection and compare both directions."""
    draw = random.Random(number)
    family = draw.choice((socket.AF_INET, socket.AF_INET6))
    host = b.ipv4 if family == socket.AF_INET else b.ipv6
    sock = space.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
    await asyncio.get_running_loop().sock_connect(sock, (str(host), 8090))
    reader, writer = await asyncio.open_connection(sock=sock, limit=draw.choice((64, 4096, 65536)))
    up, down = (int(2 ** draw.uniform(0, 20)) - 1 for _ in range(2))
    first, resets = draw.random() < 0.3, draw.random() < 0.05
    writer.write(_HEAD.pack(number, down, first))
    if resets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.write(b"x" * up)
        writer.transport.abort()
        return
    wanted = b"".join(chunks(number + 1, down))
    if first:
        assert await reader.read() == wanted
        await send(writer, number, up)
        writer.write_eof()
    else:
        reading = asyncio.get_running_loop().create_task(reader.read())
        await send(writer, number, up)
        writer.write_eof()
        data = await reading
        assert data[:32] == hashlib.sha256(b"".join(chunks(number, up))).digest()
        assert data[32:] == wanted
    writer.close()


@pytest.mark.timeout(180)
@scenario
async def test_every_byte_of_a_thousand_connections_arrives_in_order(tmp_path: Path) -> None:
    async with world("zts", tmp_path) as w:
        na, nb, a, b = await pair(w, LOG_LEVEL="warning")
        space = w.space(a)
        server = w.space(b).socket(socket.AF_INET6, socket.SOCK_STREAM)
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", 8090))
        server.listen(256)
        listening = await asyncio.start_server(answer, sock=server)
        try:
            await soak(na, nb, space, b)
        finally:
            listening.close()


async def soak(na: Node, nb: Node, space: PodNamespace, b: PodNet) -> None:
    """Run all connections, then wait until both nodes have accounted for each."""
    numbers = iter(range(CONNECTIONS))

    async def client() -> None:
        for number in numbers:
            async with asyncio.timeout(30):
                await one(space, b, number)

    await asyncio.gather(*(client() for _ in range(TOGETHER)))

    async def settled() -> bool:
        opened = await metric(na, "istio_tcp_connections_opened_total")
        failed = await metric(na, "istio_tcp_connections_failed_total")
        closed = await metric(na, "istio_tcp_connections_closed_total")
        return opened + failed == CONNECTIONS and opened == closed

    await eventually_async(settled, "not every connection was accounted for")
    for node in (na, nb):

        async def idle(node: Node = node) -> bool:
            # Workers report their figures once a second: the page is behind by as much.
            open_now = await metric(node, "istio_tcp_sockets_open")
            return open_now == 0 and (await node.json("/connections"))["count"] == 0

        await eventually_async(idle, "connections are left that nobody has any more")
        assert "Traceback" not in node.log.read_text()
