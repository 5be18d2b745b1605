# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 through the waypoint's two sides on loopback: nginx behind; curl, nghttp and h2load before it."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest

from mesh.runtime.tasks import create_task
from tests.support.http_proxy import free_port, proxy

NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {dir}/body; client_max_body_size 64m;
  proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  keepalive_requests {requests};
  server {{
    listen 127.0.0.1:{port}{http2};
    location = /hello {{ return 200 "hello\\n"; }}
    location = /missing {{ return 404; }}
    location / {{ root {dir}/www; }}
  }}
}}
"""


@asynccontextmanager
async def nginx(directory: Path, *, http2: bool = True, requests: int = 1_000_000) -> AsyncIterator[int]:
    port = free_port()
    (directory / "www").mkdir()
    config = NGINX.format(dir=directory, port=port, http2=" http2" if http2 else "", requests=requests)
    (directory / "nginx.conf").write_text(config)
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(directory), "-c", str(directory / "nginx.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        yield port
    finally:
        process.terminate()
        await process.wait()


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        async with asyncio.timeout(20):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode == 0, command
    return out.decode()


async def test_curl_gets_what_nginx_serves(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        body = random.Random(1).randbytes(3_000_000)
        (tmp_path / "www" / "big").write_bytes(body)
        url, h2 = f"http://127.0.0.1:{made.port}", "--http2-prior-knowledge"
        for _ in range(2):
            assert await run("curl", "-sS", h2, f"{url}/hello") == "hello\n"
        await run("curl", "-sS", h2, "-o", str(tmp_path / "got"), f"{url}/big")
        assert (tmp_path / "got").read_bytes() == body
        status = await run("curl", "-sS", h2, "-o", "/dev/null", "-w", "%{http_code}", f"{url}/missing")
        assert status == "404"
        head = await run("curl", "-sS", h2, "-I", f"{url}/big")
        assert f"content-length: {len(body)}" in head
        assert [record.status for record in made.records] == [200, 200, 200, 404, 200]
        assert made.pool.connections == 1


@pytest.mark.parametrize(("http2_in", "http2_out"), [(True, True), (True, False), (False, True)])
async def test_bodies_arrive_whole_whichever_version_either_side_speaks(
    tmp_path: Path, http2_in: bool, http2_out: bool
) -> None:
    body = random.Random(2).randbytes(2_000_000)
    (tmp_path / "up").write_bytes(body)
    async with (
        echo(http2=http2_out) as port,
        proxy(port, http2_in=http2_in, http2_out=http2_out) as made,
    ):
        version = ["--http2-prior-knowledge"] if http2_in else ["--http1.1", "-H", "Expect:"]
        for extra in ([], ["-H", "Transfer-Encoding: chunked"]):
            await run(
                "curl", "-sS", *version, *extra, "-o", str(tmp_path / "got"),
                "--data-binary", f"@{tmp_path / 'up'}", f"http://127.0.0.1:{made.port}/",
            )  # fmt: skip
            assert (tmp_path / "got").read_bytes() == body
        assert [record.request_bytes for record in made.records] == [len(body)] * 2


async def test_an_upload_that_the_server_refuses_early_gets_its_answer(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        (tmp_path / "up").write_bytes(bytes(5_000_000))
        url = f"http://127.0.0.1:{made.port}/missing"
        assert "404 Not Found" in await run("nghttp", "-d", str(tmp_path / "up"), url)
        assert made.records[0].request_bytes < 5_000_000


async def test_nghttp_runs_many_streams_on_one_connection(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        (tmp_path / "www" / "page").write_bytes(bytes(100_000))
        url = f"http://127.0.0.1:{made.port}"
        out = await run("nghttp", "-n", "-s", "-m", "20", f"{url}/page", f"{url}/hello")
        assert len(re.findall(r" 200 +(?:97|6)", out)) == 40
        assert len(made.servers) == 1
        assert made.pool.connections == 1


async def test_no_request_is_lost_under_load(tmp_path: Path) -> None:
    # nginx ends a connection with GOAWAY after 100 requests: tries it did not act on are made again.
    async with nginx(tmp_path, requests=100) as port, proxy(port) as made:
        out = await run("h2load", "-n", "5000", "-c", "4", "-m", "20", f"http://127.0.0.1:{made.port}/hello")
        assert "5000 succeeded, 0 failed" in out
        assert len(made.records) == 5000
        assert {record.status for record in made.records} == {200}


async def test_an_endpoint_that_refuses_connections_is_avoided(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port, free_port()) as made:
        url = f"http://127.0.0.1:{made.port}/hello"
        for _ in range(6):
            assert await run("curl", "-sS", "--http2-prior-knowledge", url) == "hello\n"
        assert [record.tries for record in made.records] == [2] * 6


async def test_an_endpoint_that_speaks_only_http1_is_named(tmp_path: Path) -> None:
    async with nginx(tmp_path, http2=False) as port, proxy(port) as made:
        url = f"http://127.0.0.1:{made.port}/hello"
        out = await run("curl", "-sS", "--http2-prior-knowledge", "-w", "%{http_code}", url)
        assert "the server speaks HTTP/1.1 where HTTP/2 is asked for" in out
        assert out.endswith("502")
        assert made.records[0].flag == "UPE"


async def test_a_client_that_goes_away_ends_its_requests(tmp_path: Path) -> None:
    async with silent() as (port, gone), proxy(port) as made:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "--http2-prior-knowledge", f"http://127.0.0.1:{made.port}/"
        )
        async with asyncio.timeout(10):
            while made.pool.load(port) == 0:
                await asyncio.sleep(0.01)
        process.kill()
        await process.wait()
        async with asyncio.timeout(10):
            while not made.records:
                await asyncio.sleep(0.01)
        assert (made.records[0].flag, made.records[0].status) == ("DC", 0)
        assert made.pool.load(port) == 0
        # Only the stream ends: the connection is other requests' too.
        assert not gone.is_set()


async def test_a_drained_connection_finishes_what_runs(tmp_path: Path) -> None:
    async with nginx(tmp_path) as port, proxy(port) as made:
        (tmp_path / "www" / "big").write_bytes(bytes(30_000_000))
        url = f"http://127.0.0.1:{made.port}/big"
        command = ["curl", "-sS", "--http2-prior-knowledge", "--limit-rate", "60M", "-o", "/dev/null"]
        transfer = create_task(run(*command, "-w", "%{size_download}", url), name="curl", owner=made.owner)
        async with asyncio.timeout(10):
            while not made.servers or made.servers[0].idle:
                await asyncio.sleep(0.005)
        made.servers[0].shut_down()
        assert await transfer == "30000000"
        async with asyncio.timeout(10):
            while not made.servers[0].closed:
                await asyncio.sleep(0.005)


Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listener(handle: Handle) -> AsyncIterator[int]:
    """Serve connections by `handle`; ends when all of them have."""
    running = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal running
        running += 1
        try:
            await handle(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            running -= 1
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        async with asyncio.timeout(10):
            while running:
                await asyncio.sleep(0)
        await asyncio.sleep(0)


def echo(*, http2: bool) -> AbstractAsyncContextManager[int]:
    """A server that sends a body back: hyper-h2 or bare HTTP/1.1."""
    return listener(echo_http2 if http2 else echo_http1)


async def echo_http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = re.search(rb"content-length: (\d+)", head)
        if length is not None:
            body = await reader.readexactly(int(length[1]))
        else:
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def echo_http2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    peer.initiate_connection()
    waiting: dict[int, bytearray] = {}
    ended: set[int] = set()
    while True:
        writer.write(peer.data_to_send())
        await writer.drain()
        data = await reader.read(65536)
        if not data:
            return
        for event in peer.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                peer.send_headers(event.stream_id, [(":status", "200")])
                waiting[event.stream_id] = bytearray()
            elif isinstance(event, h2.events.DataReceived):
                waiting[event.stream_id] += event.data
                peer.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                ended.add(event.stream_id)
        for stream_id, body in list(waiting.items()):
            while body and (size := min(peer.local_flow_control_window(stream_id), 16384, len(body))):
                peer.send_data(stream_id, bytes(body[:size]))
                del body[:size]
            if not body and stream_id in ended:
                peer.end_stream(stream_id)
                del waiting[stream_id]


@asynccontextmanager
async def silent() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """An HTTP/2 server that takes requests and never answers; the event: its connection ended."""
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        peer.initiate_connection()
        try:
            while data := await reader.read(65536):
                peer.receive_data(data)
                writer.write(peer.data_to_send())
        finally:
            gone.set()

    async with listener(handle) as port:
        yield port, gone
