# SPDX-License-Identifier: Apache-2.0
"""A new key and the request to certify it; the key never leaves the process that made it."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mesh.identity.spiffe import SpiffeId


def new_key_and_csr(identity: SpiffeId) -> tuple[bytes, bytes]:
    """Make an ECDSA P-256 key and its PKCS#10 request for `identity`, both PEM (key as PKCS#8).

    The subject is empty and the URI SAN critical, as Istio's ztunnel sends them.
    Source: RFC 2986; RFC 5280 section 4.2.1.6 (an empty subject makes the SAN critical).
    """
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True
        )
        .sign(key, SHA256())
    )
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return key_pem, request.public_bytes(Encoding.PEM)
