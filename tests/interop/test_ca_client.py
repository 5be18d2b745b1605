# SPDX-License-Identifier: Apache-2.0
"""The certificate client against a gRPC authority over TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from cryptography import x509

from mesh.identity.ca_client import CaClient, CaError, CaSettings
from mesh.identity.manager import CertificateManager
from mesh.identity.spiffe import SpiffeId
from mesh.identity.tls import client_context, server_context
from mesh.runtime.clock import SystemClock
from mesh.testing.fake_ca import FakeCa, FakeCaServer

WEB = SpiffeId("cluster.local", "shop", "web")
CART = SpiffeId("cluster.local", "shop", "cart")
LOOPS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@asynccontextmanager
async def authority(tmp_path: Path, **changes: Any) -> AsyncIterator[tuple[FakeCaServer, CaClient]]:
    server = FakeCaServer(FakeCa(intermediate=True))
    await server.start()
    (tmp_path / "root.pem").write_bytes(server.ca.roots_pem)
    (tmp_path / "token").write_text("t-1\n")
    settings = CaSettings(
        address=f"https://{server.address}",
        roots=tmp_path / "root.pem",
        token=tmp_path / "token",
        cluster_id="c1",
    )
    try:
        yield server, CaClient(replace(settings, **changes), SystemClock())
    finally:
        await server.stop()


@pytest.mark.parametrize("loop", sorted(LOOPS))
def test_a_certificate_is_had_and_works(tmp_path: Path, loop: str) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (_, client):
            certificate = await client.fetch(WEB)
            assert certificate.identity == WEB
            assert len(certificate.chain_pem) == 2
            client_context(certificate)
            server_context(await client.fetch(CART))

    LOOPS[loop](main())


def test_the_request_is_istios(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            await client.fetch(WEB, 3600)
            (request,) = server.requests
            assert request.validity_duration == 3600
            assert dict(request.metadata) == {"ImpersonatedIdentity": str(WEB)}
            csr = x509.load_pem_x509_csr(request.csr.encode())
            assert csr.is_signature_valid
            assert server.metadata[0]["authorization"] == "Bearer t-1"
            assert server.metadata[0]["clusterid"] == "c1"

    asyncio.run(main())


def test_a_workload_that_asks_for_itself_impersonates_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path, impersonate=False, token=None) as (server, client):
            await client.fetch(WEB)
            assert not server.requests[0].HasField("metadata")
            assert "authorization" not in server.metadata[0]

    asyncio.run(main())


def test_token_and_roots_are_read_on_each_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            await client.fetch(WEB)
            (tmp_path / "token").write_text("t-2")
            await client.fetch(WEB)
            assert [call["authorization"] for call in server.metadata] == ["Bearer t-1", "Bearer t-2"]
            (tmp_path / "root.pem").write_bytes(FakeCa("other").roots_pem)
            with pytest.raises(CaError, match="UNAVAILABLE"):
                await client.fetch(WEB)
            (tmp_path / "root.pem").write_bytes(FakeCa("other").roots_pem + server.ca.roots_pem)
            await client.fetch(WEB)

    asyncio.run(main())


def test_a_refusal_says_who_what_and_why(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            server.refusal = (grpc.StatusCode.PERMISSION_DENIED, "no pod of node n1 has that account")
            with pytest.raises(CaError) as caught:
                await client.fetch(WEB)
            text = str(caught.value)
            for part in (server.address, str(WEB), "PERMISSION_DENIED", "no pod of node n1"):
                assert part in text

    asyncio.run(main())


def test_an_answer_that_was_not_asked_for_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            leaf = server.ca.chain(server.ca.leaf(uris=[str(CART)]))
            for answer, why in ((leaf, "certified spiffe"), ([], "answered 0"), (["x", "y"], "no PEM chain")):
                server.answer = lambda _, chain=answer: chain  # type: ignore[misc]
                with pytest.raises(CaError, match=why):
                    await client.fetch(WEB)

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["roots", "token"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    async def main() -> None:
        async with authority(tmp_path, **{missing: tmp_path / "missing"}) as (_, client):
            with pytest.raises(CaError, match=f"cannot ask .*{tmp_path}/missing"):
                await client.fetch(WEB)

    asyncio.run(main())


def test_an_authority_that_is_not_there_or_silent_is_an_error_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path, timeout_s=0.3) as (server, client):
            await server.stop()
            with pytest.raises(CaError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
                await client.fetch(WEB)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            async with authority(tmp_path, timeout_s=0.3, address=f"localhost:{port}") as (_, client):
                with pytest.raises(CaError, match=r"DEADLINE_EXCEEDED|UNAVAILABLE"):
                    await client.fetch(WEB)

    asyncio.run(main())


def test_the_manager_fetches_through_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            manager = CertificateManager(client.fetch, SystemClock())
            identities = [SpiffeId("cluster.local", "shop", f"a{index}") for index in range(20)]
            got = await asyncio.gather(*(manager.get(identity) for identity in identities))
            assert [certificate.identity for certificate in got] == identities
            assert len(server.requests) == 20
            await manager.close()

    asyncio.run(main())


def test_short_lived_certificates_follow_each_other_without_a_gap(tmp_path: Path) -> None:
    async def main() -> None:
        async with authority(tmp_path) as (server, client):
            clock, serials = SystemClock(), list[str]()
            manager = CertificateManager(lambda identity: client.fetch(identity, 2), clock)
            manager.on_update(lambda certificate: serials.append(certificate.serial))
            end = clock.monotonic() + 15
            while len(serials) < 4:
                assert clock.monotonic() < end, f"only {len(serials)} certificates within 15 s"
                assert not (await manager.get(WEB)).expired(clock.wall())
                await asyncio.sleep(0.01)
            assert len(set(serials)) == len(serials) == len(server.requests)
            # Roots change under way: the next certificate is the new root's.
            server.ca.root = FakeCa("next").root
            server.ca.intermediates = ()
            while (await manager.get(WEB)).roots_pem != server.ca.root.pem:
                assert clock.monotonic() < end, "the new root did not arrive within 15 s"
                await asyncio.sleep(0.01)
            await manager.close()

    asyncio.run(main())
