# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 through the waypoint's two sides on loopback, with nginx behind and curl and wrk before it."""

from __future__ import annotations

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh.model.workload import NamespacedHostname
from mesh.net.relay import End, TcpEnd
from mesh.net.sockets import DialError
from mesh.runtime.tasks import TaskOwner
from mesh.telemetry.reasons import Reason
from waypoint.http.message import BadMessageError, RequestHead
from waypoint.proxy.exchange import Exchange, ExchangeRecord
from waypoint.proxy.pool import Endpoint, Pool
from waypoint.proxy.server1 import Http1Server
from waypoint.proxy.streams import Downstream, Upstream, UpstreamEvents
from waypoint.routing.plan import Forward, plan_request

SERVICE = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}/body; client_max_body_size 64m;
  proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{
    listen 127.0.0.1:{port};
    location = /hello {{ return 200 "hello\\n"; }}
    location = /missing {{ return 404; }}
    location / {{ root {dir}/www; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint on loopback."""

    port: int

    @property
    def key(self) -> int:
        return self.port

    @property
    def label(self) -> str:
        return f"127.0.0.1:{self.port}"


@dataclass
class Proxy:
    """A waypoint in small: every request goes to one of `endpoints`, in turn."""

    endpoints: list[Address]
    owner: TaskOwner
    records: list[ExchangeRecord] = field(default_factory=list)
    refusals: list[BadMessageError] = field(default_factory=list)
    turn: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.pool = Pool(dial=self._dial, call_later=self._later, owner=self.owner)

    def _later(self, seconds: float, callback: object) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, callback)  # type: ignore[arg-type]

    async def _dial(self, endpoint: Endpoint) -> End:
        assert isinstance(endpoint, Address)
        try:
            _, end = await asyncio.get_running_loop().create_connection(TcpEnd, "127.0.0.1", endpoint.port)
        except OSError as error:
            raise DialError(Reason.CONNECT_REFUSED, f"{endpoint.label}: {error.strerror}") from error
        return end

    def accepted(self, end: TcpEnd) -> None:
        server = Http1Server(service=self, call_later=self._later, on_closed=lambda: None)
        server.start(end, server)
        end.start(server, server)

    def begin(self, head: RequestHead, downstream: Downstream) -> Exchange:
        return Exchange(
            request=head,
            plan=plan_request(head, service=SERVICE, port=80, matcher=None, random=random.random),
            downstream=downstream,
            connect=self._connect,
            call_later=self._later,
            random=random.random,
            on_done=self.records.append,
        )

    def _connect(self, plan: Forward, avoid: frozenset[str], events: UpstreamEvents) -> Upstream:
        self.turn += 1
        return self.pool.open(self.endpoints[self.turn % len(self.endpoints)], "", events)

    def refused(self, error: BadMessageError) -> None:
        self.refusals.append(error)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def nginx(directory: Path) -> AsyncIterator[int]:
    port = free_port()
    (directory / "www").mkdir()
    (directory / "nginx.conf").write_text(NGINX.format(dir=directory, port=port))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    await writer.wait_closed()
                    break
        yield port
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def proxy(*ports: int) -> AsyncIterator[Proxy]:
    owner = TaskOwner("test")
    made = Proxy(endpoints=[Address(port) for port in ports], owner=owner)
    server = await asyncio.get_running_loop().create_server(lambda: TcpEnd(made.accepted), "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.pool.close_idle()
        await owner.close()


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0, command
    return out.decode()


async def test_curl_gets_what_nginx_serves(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        body = random.Random(1).randbytes(3_000_000)
        (tmp_path / "www" / "big").write_bytes(body)
        url = f"http://127.0.0.1:{made.port}"
        assert await run("curl", "-sS", f"{url}/hello", f"{url}/hello") == "hello\nhello\n"
        await run("curl", "-sS", "-o", str(tmp_path / "got"), f"{url}/big")
        assert (tmp_path / "got").read_bytes() == body
        assert "404" in await run("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"{url}/missing")
        head = await run("curl", "-sS", "-I", f"{url}/big")
        assert f"content-length: {len(body)}" in head.lower()
        assert [record.status for record in made.records] == [200, 200, 200, 404, 200]
        assert made.pool.connections == 1


async def test_an_upload_that_the_server_refuses_early_gets_its_answer(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        (tmp_path / "up").write_bytes(bytes(500_000))
        for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
            code = await run(
                "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", *extra,
                "--data-binary", f"@{tmp_path / 'up'}", f"http://127.0.0.1:{made.port}/hello",
            )  # fmt: skip
            assert code in ("200", "405")


async def test_an_endpoint_that_refuses_connections_is_avoided(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port, free_port()) as made:
        url = f"http://127.0.0.1:{made.port}/hello"
        assert await run("curl", "-sS", *[url] * 6) == "hello\n" * 6
        # In turn: the first try of each request falls on the dead one, the second on nginx.
        assert [record.tries for record in made.records] == [2] * 6


async def test_no_endpoint_listens(tmp_path: Path) -> None:
    async with proxy(free_port()) as made:
        out = await run("curl", "-sS", "-w", "%{http_code}", f"http://127.0.0.1:{made.port}/")
        assert out.endswith("503")
        assert "127.0.0.1" in out
        assert made.records[0].flag == "UF,URX"


async def test_no_request_is_lost_under_load(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        out = await run("wrk", "-t1", "-c32", "-d2s", f"http://127.0.0.1:{made.port}/hello")
        total = re.search(r"(\d+) requests in", out)
        assert total is not None
        assert int(total[1]) > 100
        assert "Non-2xx" not in out
        assert "Socket errors" not in out
        assert made.pool.connections <= 32


@pytest.mark.parametrize(
    "payload", [b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"]
)
async def test_a_request_that_could_be_read_in_two_ways_never_reaches_the_server(payload: bytes) -> None:
    async with proxy(free_port()) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(payload)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert len(made.refusals) == 1
        assert not made.records
