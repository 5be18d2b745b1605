# SPDX-License-Identifier: Apache-2.0
"""TLS that a waypoint originates and PROXY headers, with nginx as the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mesh.model.destination import ClientTls, DestinationPolicy, HttpUpgrade, TlsMode, TrafficPolicy
from mesh.model.destination import ConnectionPool as PoolPolicy
from mesh.model.service import AppProtocol
from tests.support.pki import Authority
from tests.support.waypoint import WEB, Waypoint, waypoint

pytestmark = pytest.mark.timeout(60)
NAME = "web.example.com"
NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  ssl_certificate {dir}/leaf.crt; ssl_certificate_key {dir}/leaf.key;
  ssl_protocols TLSv1.2 TLSv1.3; default_type text/plain; large_client_header_buffers 4 64k;
  server {{
    listen 127.0.0.1:{simple} ssl http2;
    location = /big {{ root {dir}/www; }}
    location / {{ return 200 "$ssl_server_name $ssl_protocol $server_protocol"; }}
  }}
  server {{
    listen 127.0.0.1:{mutual} ssl;
    ssl_verify_client on; ssl_client_certificate {dir}/leaf-ca.crt;
    location / {{ return 200 "verified $ssl_client_verify"; }}
  }}
  server {{
    listen 127.0.0.1:{proxied} proxy_protocol;
    location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr"; }}
  }}
  server {{
    listen 127.0.0.1:{both} ssl proxy_protocol;
    location / {{ return 200 "$proxy_protocol_addr $ssl_server_name"; }}
  }}
}}
"""


@dataclass(slots=True)
class Site:
    directory: Path
    simple: int = 0
    mutual: int = 0
    proxied: int = 0
    both: int = 0

    @property
    def roots(self) -> str:
        return str(self.directory / "leaf-ca.crt")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    authority = Authority()
    authority.leaf(dns=[NAME, "*.wild.example.com"]).write(tmp_path)
    authority.leaf("spiffe://x/ns/a/sa/b").write(tmp_path, "client")
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "big").write_bytes(b"x" * 3_000_000)
    for name in ("simple", "mutual", "proxied", "both"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            setattr(made, name, probe.getsockname()[1])
    ports = {name: getattr(made, name) for name in ("simple", "mutual", "proxied", "both")}
    (tmp_path / "nginx.conf").write_text(NGINX.format(dir=tmp_path, **ports))
    return made


@asynccontextmanager
async def running(site: Site, port: int, **policy: object) -> AsyncIterator[Waypoint]:
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(site.directory), "-c", "nginx.conf", stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", site.mutual)
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    break
        async with waypoint(AppProtocol.UNKNOWN) as made:
            made.endpoints(port)
            made.policy(
                DestinationPolicy(
                    service=WEB,
                    sources=("DestinationRule/shop/web",),
                    policy=TrafficPolicy(**policy),  # type: ignore[arg-type]
                )
            )
            yield made
    finally:
        process.terminate()
        await process.wait()


async def curl(port: int, *options: str, path: str = "/", host: str = NAME) -> str:
    command = ["curl", "-sS", "-m", "10", "-H", f"host: {host}", *options, f"http://127.0.0.1:{port}{path}"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return output.decode()


def tls(site: Site, mode: TlsMode = TlsMode.SIMPLE, **values: object) -> ClientTls:
    return ClientTls(mode=mode, ca_file=str(site.roots), **values)  # type: ignore[arg-type]


async def said(site: Site, port: int, *options: str, path: str = "/", **policy: object) -> str:
    async with running(site, port, **policy) as made:
        return await curl(made.port, *options, path=path)


def test_simple_tls_names_the_authority_and_verifies_it(site: Site) -> None:
    assert asyncio.run(said(site, site.simple, tls=tls(site))) == f"{NAME} TLSv1.3 HTTP/1.1"


def test_connections_are_shared_by_name_only(site: Site) -> None:
    async def main() -> None:
        async with running(site, site.simple, tls=tls(site)) as made:
            for _ in range(2):
                assert (await curl(made.port)).startswith(NAME)
                assert (await curl(made.port, host="a.wild.example.com")).startswith("a.wild.example.com ")
            assert made.app.proxy.pool.connections == 2
            assert "Hostname mismatch" in await curl(made.port, host="other.example.com")

    asyncio.run(main())


def test_a_configured_sni_holds_for_every_authority(site: Site) -> None:
    async def main() -> None:
        async with running(site, site.simple, tls=tls(site, sni=NAME)) as made:
            assert (await curl(made.port, host="anything")).startswith(NAME)

    asyncio.run(main())


def test_http2_is_negotiated(site: Site) -> None:
    upgraded = PoolPolicy(http_upgrade=HttpUpgrade.ALWAYS)
    found = asyncio.run(said(site, site.simple, tls=tls(site), pool=upgraded))
    assert found == f"{NAME} TLSv1.3 HTTP/2.0"


@pytest.mark.parametrize("upgrade", [HttpUpgrade.NEVER, HttpUpgrade.ALWAYS])
def test_a_large_body_comes_whole(site: Site, upgrade: HttpUpgrade) -> None:
    pool = PoolPolicy(http_upgrade=upgrade)
    found = asyncio.run(said(site, site.simple, "--limit-rate", "20M", path="/big", tls=tls(site), pool=pool))
    assert found == "x" * 3_000_000


def test_an_unknown_root_is_refused_by_name(site: Site) -> None:
    found = asyncio.run(said(site, site.simple, tls=ClientTls(mode=TlsMode.SIMPLE)))
    assert "TLS with 127.0.0.1" in found
    assert "certificate" in found


def test_any_certificate_is_taken_where_the_policy_says_so(site: Site) -> None:
    insecure = ClientTls(mode=TlsMode.SIMPLE, insecure=True, sni="other.example.com")
    assert asyncio.run(said(site, site.simple, tls=insecure)).startswith("other.example.com ")


def test_names_of_the_policy_take_the_place_of_the_hosts(site: Site) -> None:
    named = tls(site, sni="other.example.com", subject_alt_names=(NAME,))
    assert asyncio.run(said(site, site.simple, tls=named)).startswith("other.example.com ")
    wrong = tls(site, subject_alt_names=("other.example.com",))
    found = asyncio.run(said(site, site.simple, tls=wrong))
    assert f"has a certificate for {NAME}" in found
    assert "the policy wants other.example.com" in found


def test_mutual_tls_shows_the_clients_certificate(site: Site) -> None:
    files = {name: str(site.directory / f"client.{end}") for name, end in FILES}
    shown = tls(site, TlsMode.MUTUAL, **files)
    assert asyncio.run(said(site, site.mutual, tls=shown)) == "verified SUCCESS"
    assert "400 No required SSL certificate" in asyncio.run(said(site, site.mutual, tls=tls(site)))


FILES = (("certificate_file", "crt"), ("key_file", "key"))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (ClientTls(mode=TlsMode.INVALID, problem="mode: is missing"), "cannot be read: mode: is missing"),
        (ClientTls(mode=TlsMode.SIMPLE, credential="web"), "credentialName web is not served to waypoints"),
        (ClientTls(mode=TlsMode.SIMPLE, ca_file="/nonexistent"), "/nonexistent: No such file"),
        (ClientTls(mode=TlsMode.ISTIO_MUTUAL), "HBONE"),
    ],
)
def test_what_cannot_be_protected_is_not_sent(site: Site, policy: ClientTls, words: str) -> None:
    assert words in asyncio.run(said(site, site.simple, tls=policy))


def test_a_plain_server_is_no_tls_server(site: Site) -> None:
    found = asyncio.run(said(site, site.proxied, tls=tls(site)))
    assert f"TLS with 127.0.0.1:{site.proxied} (SNI {NAME})" in found


@pytest.mark.parametrize("version", [1, 2])
def test_a_proxy_header_says_who_asks(site: Site, version: int) -> None:
    async def main() -> None:
        async with running(site, site.proxied, proxy_protocol=version) as made:
            first = await curl(made.port, "--local-port", "20000-60000")
            address, port, target = first.split()
            assert (address, target) == ("127.0.0.1", "10.96.0.20")
            second = await curl(made.port)
            # Another connection of a client: another one to the server.
            assert second.split()[1] != port

    asyncio.run(main())


def test_a_proxy_header_comes_before_tls(site: Site) -> None:
    found = asyncio.run(said(site, site.both, proxy_protocol=2, tls=tls(site)))
    assert found == f"127.0.0.1 {NAME}"
