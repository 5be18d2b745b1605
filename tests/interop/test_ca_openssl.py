# SPDX-License-Identifier: Apache-2.0
"""What we make is what OpenSSL's own tools take: requests, chains, and whole handshakes."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.csr import new_key_and_csr
from mesh.identity.spiffe import SpiffeId
from mesh.identity.tls import client_context, server_context
from mesh.identity.verify import peer_identity
from mesh.testing.fake_ca import FakeCa

OPENSSL = shutil.which("openssl") or "openssl"
WEB = "spiffe://cluster.local/ns/shop/sa/web"
CART = "spiffe://cluster.local/ns/shop/sa/cart"


def openssl(*arguments: str, data: bytes = b"") -> str:
    done = subprocess.run([OPENSSL, *arguments], input=data, capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return (done.stdout + done.stderr).decode()


def write(directory: Path, certificate: WorkloadCertificate) -> tuple[str, str, str]:
    """Write chain, key and roots for a tool that wants files; returns their paths."""
    files = {
        "chain.pem": b"".join(certificate.chain_pem),
        "key.pem": certificate.key_pem,
        "roots.pem": certificate.roots_pem,
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    chain, key, roots = (str(directory / name) for name in files)
    return chain, key, roots


def test_openssl_reads_our_request() -> None:
    _, csr_pem = new_key_and_csr(SpiffeId.parse(WEB))
    text = openssl("req", "-noout", "-verify", "-text", data=csr_pem)
    assert "verify OK" in text
    assert f"URI:{WEB}" in text
    assert "X509v3 Subject Alternative Name: critical" in text
    assert "NIST CURVE: P-256" in text
    assert "ecdsa-with-SHA256" in text


@pytest.mark.parametrize("intermediate", [False, True])
def test_openssl_verifies_what_the_double_issues(tmp_path: Path, intermediate: bool) -> None:
    certificate = FakeCa(intermediate=intermediate).issue(WEB)
    chain, _, roots = write(tmp_path, certificate)
    for purpose in ("sslclient", "sslserver"):
        assert "OK" in openssl(
            "verify", "-x509_strict", "-purpose", purpose, "-CAfile", roots, "-untrusted", chain, chain
        )


def test_openssl_speaks_with_our_server_context(tmp_path: Path) -> None:
    ca = FakeCa()
    chain, key, roots = write(tmp_path, ca.issue(WEB))
    seen: list[tuple[str, str | None, str | None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tls = writer.get_extra_info("ssl_object")
        identity = peer_identity(tls.getpeercert(binary_form=True))
        seen.append((str(identity), tls.version(), tls.selected_alpn_protocol()))
        writer.write(b"hello\n")
        await writer.drain()
        writer.close()

    async def main() -> tuple[str, int]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(ca.issue(CART)))
        port = server.sockets[0].getsockname()[1]
        common = ("s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", roots, "-alpn", "h2")
        good = await asyncio.to_thread(
            openssl, *common, "-verify_return_error", "-ign_eof", "-cert", chain, "-key", key
        )
        older = await asyncio.to_thread(
            lambda: (
                subprocess.run(
                    [OPENSSL, *common, "-tls1_2", "-cert", chain, "-key", key],
                    input=b"",
                    capture_output=True,
                    timeout=20,
                    check=False,
                ).returncode
            )
        )
        server.close()
        await server.wait_closed()
        return good, older

    good, older = asyncio.run(main())
    assert "hello" in good
    assert "Verify return code: 0 (ok)" in good
    assert "TLSv1.3" in good
    assert older != 0
    assert seen == [(WEB, "TLSv1.3", "h2")]


def test_our_client_context_speaks_with_openssl(tmp_path: Path) -> None:
    ca = FakeCa()
    chain, key, roots = write(tmp_path, ca.issue(CART))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["s_server", "-accept", f"127.0.0.1:{port}", "-cert", chain, "-key", key, "-CAfile", roots]
    with subprocess.Popen(
        [
            OPENSSL,
            *arguments,
            "-Verify",
            "3",
            "-verify_return_error",
            "-alpn",
            "h2",
            "-naccept",
            "1",
            "-quiet",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as server:

        async def main() -> tuple[str, str | None]:
            end = asyncio.get_running_loop().time() + 10
            while True:
                try:
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", port, ssl=client_context(ca.issue(WEB)), server_hostname=""
                    )
                    break
                except ConnectionRefusedError:
                    assert asyncio.get_running_loop().time() < end, "openssl s_server does not listen"
                    await asyncio.sleep(0.02)
            tls = writer.get_extra_info("ssl_object")
            assert server.stdin is not None
            server.stdin.write(b"hello\n")
            server.stdin.flush()
            assert await asyncio.wait_for(reader.readline(), 10) == b"hello\n"
            result = str(peer_identity(tls.getpeercert(binary_form=True))), tls.selected_alpn_protocol()
            writer.close()
            await writer.wait_closed()
            return result

        try:
            assert asyncio.run(main()) == (CART, "h2")
        finally:
            server.kill()
