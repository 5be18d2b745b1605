# SPDX-License-Identifier: Apache-2.0
"""One end of our HBONE pair as a process: `python -m bench.hbone_node in|out DIR PORT [IP:PORT]`.

`out` takes plain TCP and tunnels it to the HBONE port PORT; `in` takes HBONE and dials the
application at PORT. It listens on IP:PORT, else on a free port of loopback. The last line
before serving is the port that it listens on.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import uvloop

from mesh.hbone.driver import HboneConnection, Limits, Role, ServerTunnel
from mesh.net.allocator import keep_buffers
from mesh.net.relay import TcpEnd, join
from mesh.runtime.clock import SystemClock

LOOPBACK = "127.0.0.1"


def context(directory: Path, *, server: bool) -> ssl.SSLContext:
    """Return mutual TLS 1.3 with the files that `tests.support.pki` wrote."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(directory / "leaf.crt", directory / "leaf.key")
    made.load_verify_locations(directory / "leaf-ca.crt")
    made.set_alpn_protocols(["h2"])
    return made


def connection(role: Role, on_request: object = None) -> HboneConnection:
    """Make a connection with default limits."""
    return HboneConnection(
        role=role,
        limits=Limits(),
        on_request=on_request,  # type: ignore[arg-type]
        on_close=lambda *_: None,
        clock=SystemClock(),
    )


async def inbound(directory: Path, app: int, listen: tuple[str, int]) -> None:
    """Serve HBONE."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def dial(tunnel: ServerTunnel) -> None:
        _, end = await loop.create_connection(TcpEnd, LOOPBACK, app)
        tunnel.accept()
        join(tunnel, end, lambda _: None)

    def request(tunnel: ServerTunnel) -> None:
        task = loop.create_task(dial(tunnel))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await loop.create_server(
        lambda: connection(Role.SERVER, request),
        *listen,
        ssl=context(directory, server=True),
        backlog=4096,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def outbound(directory: Path, hbone: int, listen: tuple[str, int]) -> None:
    """Serve plain TCP; one HBONE connection for every 100 tunnels."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    tls = context(directory, server=False)
    pool: list[HboneConnection] = []

    async def open_connection() -> HboneConnection:
        _, made = await loop.create_connection(
            lambda: connection(Role.CLIENT), LOOPBACK, hbone, ssl=tls, server_hostname=""
        )
        pool.append(made)
        return made

    async def tunnel(end: TcpEnd) -> None:
        usable = next((c for c in pool if c.tunnels < 100 and c.usable), None) or await open_connection()
        opened = usable.open_tunnel(
            "10.0.0.1:80", [(b"baggage", b"k8s.cluster.name=Kubernetes,k8s.pod.name=a")]
        )
        await opened.opened
        join(end, opened, lambda _: None)

    def accepted(end: TcpEnd) -> None:
        task = loop.create_task(tunnel(end))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    await open_connection()
    server = await loop.create_server(lambda: TcpEnd(accepted), *listen, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    keep_buffers()
    host, _, number = (sys.argv[4] if len(sys.argv) > 4 else f"{LOOPBACK}:0").rpartition(":")
    serve = inbound if sys.argv[1] == "in" else outbound
    uvloop.run(serve(Path(sys.argv[2]), int(sys.argv[3]), (host, int(number))))
