# SPDX-License-Identifier: Apache-2.0
"""Certificates as strict verifiers want them, and requests that are not answered."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.verification import PolicyBuilder, Store

from controller.ca.issue import (
    CsrError,
    key_pem,
    load_authority,
    new_authority,
    server_pair,
    sign_workload,
)
from mesh.identity.certificate import from_response
from mesh.identity.csr import new_key_and_csr
from mesh.identity.spiffe import SpiffeId
from mesh.identity.verify import peer_identity

NOW_S = time.time()
WEB = SpiffeId("cluster.local", "shop", "web")
AUTHORITY = new_authority("cluster.local", NOW_S)


def request(key: object, *names: x509.GeneralName) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]


def test_the_clients_own_check_accepts_the_answer() -> None:
    key, csr = new_key_and_csr(WEB)
    chain = sign_workload(AUTHORITY, csr.decode(), WEB, ttl_s=3600, now_s=NOW_S)
    certificate = from_response(WEB, key, chain, NOW_S)
    assert certificate.not_after_s == pytest.approx(NOW_S + 3600, abs=2)
    assert certificate.roots_pem.decode() == AUTHORITY.bundle_pem.decode()


def test_names_within_the_request_count_for_nothing() -> None:
    other = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/kube-system/sa/admin")
    csr = request(ec.generate_private_key(ec.SECP256R1()), other, x509.DNSName("shop.example"))
    leaf = x509.load_pem_x509_certificate(
        sign_workload(AUTHORITY, csr, WEB, ttl_s=3600, now_s=NOW_S)[0].encode()
    )
    assert peer_identity(leaf.public_bytes(Encoding.DER)) == WEB
    constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_a_leaf_never_outlives_its_root() -> None:
    _, csr = new_key_and_csr(WEB)
    chain = sign_workload(AUTHORITY, csr.decode(), WEB, ttl_s=1e9, now_s=NOW_S)
    leaf = x509.load_pem_x509_certificate(chain[0].encode())
    assert leaf.not_valid_after_utc == AUTHORITY.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("csr", "reason"),
    [
        ("", "malformed"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "malformed"),
        ("x" * 20_000, "exceeds"),
        ("\udcff", "malformed"),
        (request(rsa.generate_private_key(65537, 1024)), "must be"),
        (request(ed25519.Ed25519PrivateKey.generate()), "must be"),
    ],
)
def test_requests_that_are_not_answered(csr: str, reason: str) -> None:
    with pytest.raises(CsrError, match=reason):
        sign_workload(AUTHORITY, csr, WEB, ttl_s=60, now_s=NOW_S)


def test_a_request_signed_by_another_key_is_refused() -> None:
    good = x509.load_pem_x509_csr(new_key_and_csr(WEB)[1])
    data = bytearray(good.public_bytes(Encoding.DER))
    data[-1] ^= 1
    broken = x509.load_der_x509_csr(bytes(data)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(CsrError, match="own key"):
        sign_workload(AUTHORITY, broken, WEB, ttl_s=60, now_s=NOW_S)


def test_a_server_certificate_names_addresses_and_hosts() -> None:
    _, chain = server_pair(AUTHORITY, ["198.18.0.1", "istiod.istio-system.svc"], ttl_s=3600, now_s=NOW_S)
    leaf = x509.load_pem_x509_certificate(chain)
    verifier = (
        PolicyBuilder()
        .store(Store([AUTHORITY.certificate]))
        .time(datetime.fromtimestamp(NOW_S, UTC))
        .build_server_verifier(x509.DNSName("istiod.istio-system.svc"))
    )
    assert verifier.verify(leaf, [])[0] == leaf


def test_an_authority_survives_its_files_and_refuses_a_foreign_key() -> None:
    loaded = load_authority(AUTHORITY.root_pem, key_pem(AUTHORITY))
    assert loaded.certificate == AUTHORITY.certificate
    with pytest.raises(ValueError, match="does not belong"):
        load_authority(AUTHORITY.root_pem, key_pem(new_authority("cluster.local", NOW_S)))
