# SPDX-License-Identifier: Apache-2.0
"""X.509 of the mesh: the root, workload leaves and the controller's own server certificate.

Pure but for key generation: files and clocks are the caller's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.identity.spiffe import SpiffeId

ROOT_TTL = timedelta(days=3650)
SKEW = timedelta(minutes=2)
"""Certificates are valid from this long ago, so that a slow clock does not refuse a new one."""
MIN_RSA_BITS = 2048
MAX_CSR_BYTES = 16 * 1024


class CsrError(Exception):
    """A signing request cannot be answered; says why. Whoever asks is at fault."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A root and its key; `bundle_pem` is what proxies trust (more than one root during a rotation)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    other_roots_pem: bytes = b""

    @property
    def root_pem(self) -> bytes:
        """The signing root, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def bundle_pem(self) -> bytes:
        """Every root to be trusted, the signing one first."""
        return self.root_pem + self.other_roots_pem


def new_authority(trust_domain: str, now_s: float) -> Authority:
    """Make a root for a trust domain."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.fromtimestamp(now_s, UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + ROOT_TTL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return Authority(certificate, key)


def load_authority(certificate_pem: bytes, key_pem: bytes, other_roots_pem: bytes = b"") -> Authority:
    """Load a root.

    Raises:
        ValueError: the PEM is not valid, the key is no P-256 key or not the certificate's.
    """
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    key = load_pem_private_key(key_pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the root's key is no elliptic-curve key")  # noqa: TRY004 - a bad file, not a bad type
    if certificate.public_key() != key.public_key():
        raise ValueError("the root's key does not belong to its certificate")
    if other_roots_pem:
        x509.load_pem_x509_certificates(other_roots_pem)
    return Authority(certificate, key, other_roots_pem)


def key_pem(authority: Authority) -> bytes:
    """Return the root's key as PKCS#8 PEM."""
    return authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def sign_workload(
    authority: Authority, csr_pem: str, identity: SpiffeId, *, ttl_s: float, now_s: float
) -> list[str]:
    """Certify the key of a request for `identity`; names within the request count for nothing.

    Returns:
        PEM texts as CreateCertificate answers: leaf first, trust bundle last.

    Raises:
        CsrError: the request is malformed, not signed by its key, or its key is too weak.
    """
    key = _request_key(csr_pem)
    leaf = _leaf(
        authority,
        key,
        [x509.UniformResourceIdentifier(str(identity))],
        ttl=timedelta(seconds=ttl_s),
        now=datetime.fromtimestamp(now_s, UTC),
    )
    return [leaf.public_bytes(Encoding.PEM).decode(), authority.bundle_pem.decode()]


def server_pair(
    authority: Authority, names: Sequence[str], *, ttl_s: float, now_s: float
) -> tuple[bytes, bytes]:
    """Return (key, chain) as PEM for a TLS server of these DNS names and IP addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _leaf(
        authority,
        key.public_key(),
        [_server_name(name) for name in names],
        ttl=timedelta(seconds=ttl_s),
        now=datetime.fromtimestamp(now_s, UTC),
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, leaf.public_bytes(Encoding.PEM)


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _request_key(csr_pem: str) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise CsrError(f"the signing request exceeds {MAX_CSR_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        valid = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature, UnicodeEncodeError) as error:
        raise CsrError(f"the signing request is malformed: {error}") from error
    if not valid:
        raise CsrError("the signing request is not signed by its own key")
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in ("secp256r1", "secp384r1"):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= MIN_RSA_BITS:
        return key
    raise CsrError(f"the key must be P-256, P-384 or RSA of at least {MIN_RSA_BITS} bits")


def _leaf(
    authority: Authority,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    names: Sequence[x509.GeneralName],
    *,
    ttl: timedelta,
    now: datetime,
) -> x509.Certificate:
    issuer = authority.certificate
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    until = min(now + ttl, issuer.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(authority.key, SHA256())
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
