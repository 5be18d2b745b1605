# SPDX-License-Identifier: Apache-2.0
"""The admin HTTP server over loopback, asked by curl and by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mesh.runtime.http import (
    MAX_BODY_BYTES,
    MAX_CONNECTIONS,
    BadRequestError,
    HttpServer,
    Request,
    Response,
    Route,
    json_response,
    text,
)


async def echo(request: Request) -> Response:
    return json_response({"q": dict(request.query), "body": request.body.decode(), "peer": request.peer})


async def fail(_request: Request) -> Response:
    raise RuntimeError("a defect")


async def reject(_request: Request) -> Response:
    raise BadRequestError(400, "not like this")


async def hang(_request: Request) -> Response:
    await asyncio.get_running_loop().create_future()
    return text("never")


@asynccontextmanager
async def serving(timeout_s: float = 5.0) -> AsyncIterator[HttpServer]:
    server = HttpServer(
        "test",
        {
            "/echo": Route(echo, ("GET", "POST"), "echoes"),
            "/fail": Route(fail),
            "/reject": Route(reject),
            "/hang": Route(hang),
        },
        timeout_s=timeout_s,
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()
    assert server.port == 0


async def raw(server: HttpServer, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


async def curl(server: HttpServer, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "-w", " %{http_code}", *arguments, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    return out.decode()


def test_curl_gets_answers_and_named_errors(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as server:
            base = f"http://127.0.0.1:{server.port}"
            answer = await curl(server, "-d", "data", f"{base}/echo?a=1&b=")
            assert '"q": {\n    "a": "1",\n    "b": ""\n  }' in answer
            assert '"body": "data"' in answer
            assert '"peer": "127.0.0.1"' in answer
            assert answer.endswith(" 200")
            assert await curl(server, "-I", f"{base}/echo") != ""
            assert (await curl(server, "-X", "DELETE", f"{base}/echo")) == "/echo takes GET, POST\n 405"
            missing = await curl(server, f"{base}/nowhere")
            assert missing.startswith("no such path: /nowhere\n/echo  echoes\n")
            assert missing.endswith(" 404")
            assert await curl(server, f"{base}/fail") == "/fail failed; see the log\n 500"
            assert await curl(server, f"{base}/reject") == "not like this\n 400"
            twice = await curl(server, f"{base}/reject", f"{base}/reject")
            assert twice.count("400") == 2

    asyncio.run(scenario())
    assert "a defect" in caplog.text


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /echo\r\n\r\n", 400),
        (b"GET /echo HTTP/2.0\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\nbad header\r\n\r\n", 400),
        (b"GET /echo HTTP/1.1\r\n x: 1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 411),
        (b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 413),
        (b"POST /echo HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
        (b"GET /echo HTTP/1.1\r\nx: " + b"a" * 20000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused_by_name(request_bytes: bytes, status: int) -> None:
    async def scenario() -> None:
        async with serving() as server:
            answer = await raw(server, request_bytes)
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"connection: close" in answer

    asyncio.run(scenario())


def test_a_request_that_takes_too_long_is_dropped() -> None:
    async def scenario() -> None:
        async with serving(timeout_s=0.2) as server:
            assert await raw(server, b"GET /hang HTTP/1.1\r\n\r\n") == b""
            assert await raw(server, b"GET /ec") == b""

    asyncio.run(scenario())


def test_connections_are_bounded_and_room_comes_back() -> None:
    async def scenario() -> None:
        async with serving() as server:
            opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(MAX_CONNECTIONS)]
            # The last of them is served: the server has accepted all.
            opened[-1][1].write(b"GET /reject HTTP/1.1\r\n\r\n")
            assert b"400" in await opened[-1][0].readuntil(b"\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await raw(server, b"GET /reject HTTP/1.1\r\n\r\n") == b""
            for _, writer in opened:
                writer.close()
            async with asyncio.timeout(5):
                answer = b""
                while b"400" not in answer:
                    with contextlib.suppress(ConnectionResetError):
                        answer = await raw(server, b"GET /reject HTTP/1.1\r\nconnection: close\r\n\r\n")

    asyncio.run(scenario())


def test_an_address_in_use_is_named() -> None:
    async def scenario() -> None:
        async with serving() as server:
            other = HttpServer("second", {})
            with pytest.raises(OSError, match=f"second cannot listen on 127.0.0.1:{server.port}"):
                await other.start("127.0.0.1", server.port)

    asyncio.run(scenario())
