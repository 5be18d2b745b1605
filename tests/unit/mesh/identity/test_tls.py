# SPDX-License-Identifier: Apache-2.0
"""Handshakes between memory BIOs: what the contexts accept, and what they refuse."""

from __future__ import annotations

import os
import ssl
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from mesh.identity.certificate import WorkloadCertificate, from_response
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.tls import client_context, server_context
from mesh.identity.verify import peer_identity
from mesh.testing.fake_ca import FakeCa

WEB = "spiffe://cluster.local/ns/shop/sa/web"
CART = "spiffe://cluster.local/ns/shop/sa/cart"
CA = FakeCa()


class Side:
    """One end of a handshake in memory."""

    def __init__(self, context: ssl.SSLContext, *, server: bool) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=server)
        self.done = False

    def step(self) -> None:
        if not self.done:
            try:
                self.tls.do_handshake()
                self.done = True
            except ssl.SSLWantReadError:
                pass


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[Side, Side]:
    left, right = Side(client, server=False), Side(server, server=True)
    for _ in range(6):
        left.step()
        right.incoming.write(left.outgoing.read())
        right.step()
        left.incoming.write(right.outgoing.read())
    assert left.done
    assert right.done
    return left, right


@pytest.fixture(scope="module")
def web() -> WorkloadCertificate:
    return CA.issue(WEB)


@pytest.fixture(scope="module")
def cart() -> WorkloadCertificate:
    return CA.issue(CART)


def test_both_sides_learn_the_others_identity(web: WorkloadCertificate, cart: WorkloadCertificate) -> None:
    client, server = handshake(client_context(web), server_context(cart))
    assert str(peer_identity(client.tls.getpeercert(binary_form=True) or b"")) == CART
    assert str(peer_identity(server.tls.getpeercert(binary_form=True) or b"")) == WEB
    for side in (client, server):
        assert side.tls.version() == "TLSv1.3"
        assert side.tls.selected_alpn_protocol() == "h2"


def test_an_intermediate_travels_with_the_leaf(web: WorkloadCertificate) -> None:
    ca = FakeCa(intermediate=True)
    handshake(client_context(ca.issue(WEB)), server_context(ca.issue(CART)))


def test_during_a_root_rotation_old_and_new_certificates_meet() -> None:
    old, new = FakeCa("old"), FakeCa("new")
    old.extra_roots_pem, new.extra_roots_pem = new.root.pem, old.root.pem
    handshake(client_context(old.issue(WEB)), server_context(new.issue(CART)))
    handshake(client_context(new.issue(WEB)), server_context(old.issue(CART)))


def test_a_client_without_a_certificate_is_refused(web: WorkloadCertificate) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=CA.roots_pem.decode())
    with pytest.raises(ssl.SSLError, match=r"PEER_DID_NOT_RETURN_A_CERTIFICATE|peer did not return"):
        handshake(bare, server_context(web))


def test_strangers_are_refused_by_either_side(web: WorkloadCertificate) -> None:
    stranger = FakeCa("stranger")
    foreign = stranger.issue(WEB)
    trusting = replace(foreign, roots_pem=CA.roots_pem + stranger.roots_pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(web), server_context(foreign))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client_context(trusting), server_context(web))


def test_an_expired_peer_is_refused(web: WorkloadCertificate) -> None:
    expired = FakeCa()
    expired.root = CA.root
    expired.set_time(CA.now.timestamp() - 86_400)
    old = expired.issue(CART, ttl_s=3600)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(client_context(web), server_context(old))


def test_tls_1_2_is_refused(web: WorkloadCertificate) -> None:
    older = client_context(web)
    older.minimum_version = ssl.TLSVersion.TLSv1_2
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)unsupported.protocol|protocol.version"):
        handshake(older, server_context(web))


def test_no_session_ticket_is_issued(web: WorkloadCertificate, cart: WorkloadCertificate) -> None:
    client, server = handshake(client_context(web), server_context(cart))
    server.tls.write(b"x")
    client.incoming.write(server.outgoing.read())
    assert client.tls.read(1) == b"x"
    assert client.tls.session is None or not client.tls.session.has_ticket


def test_a_key_of_another_certificate_is_refused(web: WorkloadCertificate, cart: WorkloadCertificate) -> None:
    with pytest.raises(IdentityError, match=f"OpenSSL refuses the certificate of {WEB}"):
        server_context(replace(web, key_pem=cart.key_pem))
    with pytest.raises(IdentityError, match="OpenSSL refuses"):
        client_context(replace(web, roots_pem=b"nothing"))


def test_no_file_descriptor_stays_open(web: WorkloadCertificate, cart: WorkloadCertificate) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    server_context(web)
    with pytest.raises(IdentityError):
        server_context(replace(web, key_pem=cart.key_pem))
    assert sorted(os.listdir("/proc/self/fd")) == before


def with_usages(*usages: x509.ObjectIdentifier) -> WorkloadCertificate:
    """A certificate of the cart for these uses only."""
    key = ec.generate_private_key(ec.SECP256R1())
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    leaf = CA.leaf(key.public_key(), uris=[CART], usages=usages)
    return from_response(SpiffeId.parse(CART), key_pem, CA.chain(leaf), CA.now.timestamp())


def test_a_certificate_is_used_only_for_what_it_says(web: WorkloadCertificate) -> None:
    only_server = with_usages(ExtendedKeyUsageOID.SERVER_AUTH)
    only_client = with_usages(ExtendedKeyUsageOID.CLIENT_AUTH)
    handshake(client_context(web), server_context(only_server))
    handshake(client_context(only_client), server_context(web))
    handshake(client_context(with_usages()), server_context(with_usages()))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)purpose"):
        handshake(client_context(only_server), server_context(web))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)purpose"):
        handshake(client_context(web), server_context(only_client))
