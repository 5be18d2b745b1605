# SPDX-License-Identifier: Apache-2.0
"""The request is the one that Istio's authority expects."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mesh.identity.csr import new_key_and_csr
from mesh.identity.spiffe import SpiffeId

WEB = SpiffeId("cluster.local", "shop", "web")


def test_the_request_names_the_identity_and_nothing_else() -> None:
    key_pem, csr_pem = new_key_and_csr(WEB)
    request = x509.load_pem_x509_csr(csr_pem)
    assert request.is_signature_valid
    assert list(request.subject) == []
    assert request.signature_hash_algorithm is not None
    assert request.signature_hash_algorithm.name == "sha256"
    (extension,) = request.extensions
    assert extension.critical
    assert list(extension.value) == [x509.UniformResourceIdentifier(str(WEB))]
    key = load_pem_private_key(key_pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key.public_key().public_bytes(*form) == request.public_key().public_bytes(*form)


def test_each_request_has_a_key_of_its_own() -> None:
    assert new_key_and_csr(WEB)[0] != new_key_and_csr(WEB)[0]
