# SPDX-License-Identifier: Apache-2.0
"""An ingress gateway's listeners on loopback; the clients are curl and a bare socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.model.gateway import GatewayListener, HostRules, IngressGateway, ListenerProtocol
from mesh.model.http_policy import HttpAction, HttpAuthorization
from mesh.model.route import Backend, RouteRule
from mesh.xds.gateways import GATEWAY_TYPE, encode_gateway
from mesh.xds.http_policy import HTTP_AUTHORIZATION_TYPE, encode_http_authorization
from tests.support.eventually import eventually_async
from tests.support.pki import Authority
from tests.support.waypoint import WEB, Waypoint, waypoint
from waypoint.ingress import Ingress

pytestmark = pytest.mark.timeout(30)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"
GOAWAY = 7
RULE = RouteRule(source="HTTPRoute/shop/web#0", backends=(Backend(service=WEB, port=80),))


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every request with its own head."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(head), head))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Bed:
    """A gateway `shop/wp` with an HTTP port, and an HTTPS port that two listeners share."""

    def __init__(self, made: Waypoint, directory: Path) -> None:
        self.waypoint = made
        self.directory = directory
        self.http, self.https = free_port(), free_port()
        self.authority = Authority()
        for name in ("a", "b"):
            self.certify(name)
        (directory / "ca.crt").write_bytes(self.authority.roots_pem)

    @property
    def ingress(self) -> Ingress:
        found = self.waypoint.app.ingress
        assert found is not None
        return found

    def certify(self, name: str) -> None:
        """Write a new certificate for NAME.example.com."""
        leaf = self.authority.leaf(dns=[f"{name}.example.com"])
        target = self.directory / name
        target.mkdir(exist_ok=True)
        (target / "tls.crt").write_bytes(b"".join(leaf.chain_pem))
        (target / "tls.key").write_bytes(leaf.key_pem)

    def gateway(self) -> IngressGateway:
        def host(name: str) -> HostRules:
            return HostRules(hostname=f"{name}.example.com", rules=(RULE,))

        secure = [
            GatewayListener(
                name=name,
                port=self.https,
                protocol=ListenerProtocol.HTTPS,
                hostname=f"{name}.example.com",
                certificates=(str(self.directory / name),),
                hosts=(host(name),),
            )
            for name in ("a", "b")
        ]
        plain = GatewayListener(
            name="http", port=self.http, protocol=ListenerProtocol.HTTP, hosts=(host("a"),)
        )
        return IngressGateway(namespace="shop", name="wp", listeners=(plain, *secure))

    def put(self, gateway: IngressGateway) -> None:
        self.waypoint.take(GATEWAY_TYPE, {gateway.key: encode_gateway(gateway)})

    async def curl(self, url: str, *words: str) -> str:
        """What curl prints: the head and body of the answer, or its error."""
        resolve = [
            word
            for name in ("a", "b", "c")
            for port in (self.http, self.https)
            for word in ("--resolve", f"{name}.example.com:{port}:127.0.0.1")
        ]
        roots = ("--cacert", str(self.directory / "ca.crt"))
        process = await asyncio.create_subprocess_exec(
            "curl",
            *("-sS", "-i", "-m", "5", *resolve, *roots, *words, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return out.decode()


@asynccontextmanager
async def bed(directory: Path) -> AsyncIterator[Bed]:
    async with waypoint(ingress=True) as made:
        upstream = await asyncio.start_server(serve, "127.0.0.1", 0)
        made.endpoints(upstream.sockets[0].getsockname()[1])
        found = Bed(made, directory)
        found.put(found.gateway())
        assert found.ingress.complete
        try:
            yield found
        finally:
            found.ingress.close()
            await asyncio.wait_for(found.ingress.wait_empty(), 5)
            made.app.proxy.pool.close_idle()
            upstream.close()


async def test_a_request_goes_to_its_hosts_backend(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        url = f"http://a.example.com:{made.http}/x"
        out = await made.curl(url, "-H", "x-forwarded-for: 192.0.2.1", "-H", "x-forwarded-proto: https")
        assert out.startswith("HTTP/1.1 200")
        assert "x-forwarded-for: 192.0.2.1, 127.0.0.1" in out
        assert "x-forwarded-proto: http\r" in out
        assert "GET /x HTTP/1.1" in out
        assert (await made.curl(url, "--http2-prior-knowledge")).startswith("HTTP/2 200")
        nobody = await made.curl(f"http://c.example.com:{made.http}/")
        assert nobody.startswith("HTTP/1.1 404")
        assert "no route of shop/wp/http is for c.example.com" in nobody


async def test_sni_chooses_certificate_and_listener(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        for name in ("a", "b"):
            url = f"https://{name}.example.com:{made.https}/"
            out = await made.curl(url)
            assert out.startswith("HTTP/2 200"), out
            assert "x-forwarded-proto: https" in out
            assert (await made.curl(url, "--http1.1")).startswith("HTTP/1.1 200")
        assert "unrecognized name" in await made.curl(f"https://c.example.com:{made.https}/", "-k")


async def test_a_request_for_another_listeners_name_is_misdirected(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        out = await made.curl(f"https://a.example.com:{made.https}/", "-H", "Host: b.example.com")
        assert out.startswith("HTTP/2 421"), out
        unknown = await made.curl(f"https://a.example.com:{made.https}/", "-H", "Host: c.example.com")
        assert unknown.startswith("HTTP/2 404"), unknown


async def test_a_renewed_certificate_is_used_at_once(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        url = f"https://a.example.com:{made.https}/"
        assert (await made.curl(url)).startswith("HTTP/2 200")
        made.authority = Authority(name="another root")
        made.certify("a")
        assert "certificate" in await made.curl(url)
        (tmp_path / "ca.crt").write_bytes(made.authority.roots_pem)
        assert (await made.curl(url)).startswith("HTTP/2 200")


async def test_a_broken_certificate_leaves_the_last_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed(tmp_path) as made:
        url = f"https://a.example.com:{made.https}/"
        assert (await made.curl(url)).startswith("HTTP/2 200")
        (tmp_path / "a" / "tls.key").write_text("no key")
        (tmp_path / "b" / "tls.crt").unlink()
        with caplog.at_level(logging.ERROR, "waypoint.ingress"):
            assert (await made.curl(url)).startswith("HTTP/2 200")
            assert "internal error" in await made.curl(f"https://b.example.com:{made.https}/")
        assert "the last good one stays in use" in caplog.text
        assert "tls.crt" in caplog.text
        assert "handshakes fail" in caplog.text


async def test_listeners_come_and_go(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        gateway = made.gateway()
        made.put(replace(gateway, listeners=gateway.listeners[:1]))
        assert made.ingress.ports == [made.http]
        assert "onnect" in await made.curl(f"https://a.example.com:{made.https}/")
        made.waypoint.take(GATEWAY_TYPE, {}, ["shop/wp"])
        assert made.ingress.ports == []


async def test_a_port_that_is_taken_is_named_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bed(tmp_path) as made:
        gateway = made.gateway()
        with socket.socket() as holder:
            holder.bind(("0.0.0.0", 0))
            holder.listen()
            port = int(holder.getsockname()[1])
            moved = replace(gateway.listeners[0], port=port)
            made.put(replace(gateway, listeners=(moved,)))
            assert not made.ingress.complete
            assert f"port {port} cannot be had" in caplog.text
        made.ingress.update()
        assert made.ingress.ports == [port]
        assert not made.ingress.problems


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Send a request on an open connection; return the head of the answer."""
    writer.write(b"GET / HTTP/1.1\r\nhost: a.example.com\r\n\r\n")
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = next(line for line in head.splitlines() if line.startswith("content-length"))
    await reader.readexactly(int(length.partition(":")[2]))
    return head


async def test_a_drain_tells_clients_with_the_next_answer(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.http)
        assert "connection: close" not in await exchange(reader, writer)
        made.ingress.wind_down()
        assert made.ingress.ports == []
        assert len(made.ingress) == 1, "an idle client is not cut off"
        assert "connection: close" in await exchange(reader, writer)
        assert await reader.read() == b""
        writer.close()
        await asyncio.wait_for(made.ingress.wait_empty(), 5)


async def test_a_drain_tells_clients_of_http2_by_goaway(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        context.set_alpn_protocols(["h2"])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", made.https, ssl=context, server_hostname="a.example.com"
        )
        writer.write(PREFACE + SETTINGS)
        kinds: list[int] = []
        while GOAWAY not in kinds:
            head = await reader.readexactly(9)
            await reader.readexactly(int.from_bytes(head[:3]))
            if not kinds:
                made.ingress.wind_down()
            kinds.append(head[3])
        writer.close()


async def test_an_idle_client_is_ended_at_last(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        reader, writer = await asyncio.open_connection("127.0.0.1", made.http)
        await exchange(reader, writer)
        made.ingress.wind_down()
        made.ingress.end_idle()
        assert await reader.read() == b""
        writer.close()


def authorization(gateway: str) -> HttpAuthorization:
    """A policy without rules that allows: nobody may do anything."""
    return HttpAuthorization(
        name="none", namespace="shop", action=HttpAction.ALLOW, rules=(), waypoints=(gateway,)
    )


async def test_policies_for_the_gateway_hold(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        url = f"http://a.example.com:{made.http}/"

        def put(policy: HttpAuthorization) -> None:
            made.waypoint.take(HTTP_AUTHORIZATION_TYPE, {policy.key: encode_http_authorization(policy)})

        put(authorization("*"))
        assert (await made.curl(url)).startswith("HTTP/1.1 200"), "it is for waypoints"
        put(authorization("shop/wp"))
        assert (await made.curl(url)).startswith("HTTP/1.1 403")


async def test_requests_are_counted_for_the_backends_service(tmp_path: Path) -> None:
    async with bed(tmp_path) as made:
        await made.curl(f"http://a.example.com:{made.http}/")

        def counted() -> list[tuple[str, ...]]:
            return [
                labels
                for labels in made.waypoint.series("istio_requests")
                if labels[0] == "source" and WEB.hostname in labels and labels[-1] == "unknown"
            ]

        await eventually_async(lambda: bool(counted()), "the request is counted as the source sees it")
