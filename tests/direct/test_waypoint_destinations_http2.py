# SPDX-License-Identifier: Apache-2.0
"""Destination policies towards HTTP/2 servers: nginx behind, curl and nghttp2's clients before."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.model.destination import ConnectionPool, DestinationPolicy, HttpUpgrade, TrafficPolicy
from mesh.model.service import AppProtocol
from tests.support.waypoint import WEB, Waypoint, waypoint

pytestmark = pytest.mark.timeout(60)
NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format one "$connection $server_protocol"; access_log {dir}/access.log one;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  default_type text/plain;
  server {{ listen 127.0.0.1:{http2} http2; location / {{ return 200 "$server_protocol"; }} }}
  server {{ listen 127.0.0.1:{http1}; location / {{ return 200 "$server_protocol"; }} }}
}}
"""


class Site:
    """Two servers, and what they logged."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.http1, self.http2 = free_port(), free_port()

    def served(self) -> Counter[str]:
        """Requests by connection."""
        lines = (self.directory / "access.log").read_text().splitlines()
        return Counter(line.split()[0] for line in lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Site]:
    site = Site(directory)
    text = NGINX.format(dir=directory, http1=site.http1, http2=site.http2)
    (directory / "nginx.conf").write_text(text)
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(directory), "-c", "nginx.conf", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", site.http1)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield site
    finally:
        process.terminate()
        await process.wait()


def run(
    directory: Path, declared: AppProtocol, test: Callable[[Site, Waypoint], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        async with running(directory) as site, waypoint(declared) as wp:
            await test(site, wp)

    asyncio.run(main())


def policy(**values: Any) -> DestinationPolicy:
    pool = ConnectionPool(**values)
    return DestinationPolicy(
        service=WEB, sources=("DestinationRule/shop/web",), policy=TrafficPolicy(pool=pool)
    )


async def output(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    found, _ = await process.communicate()
    return found.decode()


async def curl(port: int, *options: str) -> str:
    return await output("curl", "-sS", "-m", "10", *options, f"http://127.0.0.1:{port}/")


async def h2load(port: int, requests: int, streams: int) -> Counter[str]:
    """Send requests over one connection; return how many had which class of status."""
    words = ("-n", str(requests), "-c", "1", "-m", str(streams))
    text = await output("h2load", *words, f"http://127.0.0.1:{port}/")
    line = next(line for line in text.splitlines() if line.startswith("status codes:"))
    return Counter({name: int(count) for count, name in re.findall(r"(\d+) (\dxx)", line)})


PRIOR = "--http2-prior-knowledge"


@pytest.mark.parametrize(
    ("declared", "values", "to_http1", "to_http2"),
    [
        (AppProtocol.UNKNOWN, {}, "HTTP/1.1", "HTTP/2.0"),
        (AppProtocol.HTTP11, {}, "HTTP/1.1", "HTTP/1.1"),
        (AppProtocol.HTTP2, {}, "HTTP/2.0", "HTTP/2.0"),
        (AppProtocol.UNKNOWN, {"http_upgrade": HttpUpgrade.ALWAYS}, "HTTP/2.0", "HTTP/2.0"),
        (AppProtocol.UNKNOWN, {"http_upgrade": HttpUpgrade.NEVER}, "HTTP/1.1", "HTTP/1.1"),
        (AppProtocol.HTTP2, {"use_client_protocol": True}, "HTTP/1.1", "HTTP/2.0"),
    ],
)
def test_the_policy_decides_what_is_spoken(
    tmp_path: Path, declared: AppProtocol, values: dict[str, object], to_http1: str, to_http2: str
) -> None:
    async def test(site: Site, wp: Waypoint) -> None:
        wp.policy(policy(**values))
        for port, options, expected in ((wp.port, (), to_http1), (wp.port2, (PRIOR,), to_http2)):
            wp.endpoints(site.http2 if expected == "HTTP/2.0" else site.http1)
            assert await curl(port, *options) == expected

    run(tmp_path, declared, test)


def test_streams_and_connections_are_bounded_and_all_requests_served(tmp_path: Path) -> None:
    async def test(site: Site, wp: Waypoint) -> None:
        wp.endpoints(site.http2)
        wp.policy(policy(max_connections=1, max_concurrent_streams=2))
        assert await h2load(wp.port2, 200, 20) == {"2xx": 200, "3xx": 0, "4xx": 0, "5xx": 0}
        assert list(site.served().values()) == [200]

    run(tmp_path, AppProtocol.HTTP2, test)


def test_without_a_bound_full_connections_get_company(tmp_path: Path) -> None:
    async def test(site: Site, wp: Waypoint) -> None:
        wp.endpoints(site.http2)
        wp.policy(policy(max_concurrent_streams=2))
        assert (await h2load(wp.port2, 200, 20))["2xx"] == 200
        assert 1 < len(site.served()) <= 10

    run(tmp_path, AppProtocol.HTTP2, test)


def test_a_connection_serves_as_many_requests_as_allowed(tmp_path: Path) -> None:
    async def test(site: Site, wp: Waypoint) -> None:
        wp.endpoints(site.http2)
        wp.policy(policy(max_requests_per_connection=5))
        assert (await h2load(wp.port2, 100, 10))["2xx"] == 100
        assert max(site.served().values()) == 5
        assert wp.app.proxy.pool2.connections == 0, "spent connections are closed"

    run(tmp_path, AppProtocol.HTTP2, test)


def test_requests_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    async def test(site: Site, wp: Waypoint) -> None:
        wp.endpoints(site.http2)
        wp.policy(policy(max_requests=3))
        found = await h2load(wp.port2, 100, 10)
        assert found["2xx"] + found["5xx"] == 100
        assert found["2xx"] >= 3
        assert found["5xx"] > 10
        assert sum(site.served().values()) == found["2xx"]

    run(tmp_path, AppProtocol.HTTP2, test)
