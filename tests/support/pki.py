# SPDX-License-Identifier: Apache-2.0
"""A small certificate authority for tests: good workload certificates, and every kind of bad one.

Independent of `mesh.identity` and `controller.ca` on purpose: it is what they are checked with.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR_S = 3600.0
BOTH_USAGES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def spiffe(
    namespace: str = "default", service_account: str = "default", trust_domain: str = "cluster.local"
) -> str:
    """Return a workload identity as text."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A leaf certificate with its key and chain, all PEM."""

    certificate: x509.Certificate
    chain_pem: tuple[bytes, ...]
    """Leaf first, one certificate an element, without the root."""
    key_pem: bytes = field(repr=False)
    roots_pem: bytes

    @property
    def der(self) -> bytes:
        """The leaf, DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def write(self, directory: Path, name: str = "leaf") -> tuple[Path, Path, Path]:
        """Write NAME.crt (chain), NAME.key and NAME-ca.crt; return their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        paths = (directory / f"{name}.crt", directory / f"{name}.key", directory / f"{name}-ca.crt")
        for path, content in zip(
            paths, (b"".join(self.chain_pem), self.key_pem, self.roots_pem), strict=True
        ):
            path.write_bytes(content)
        paths[1].chmod(0o600)
        return paths

    def context(self, directory: Path, *, server: bool, alpn: Sequence[str] = ("h2",)) -> ssl.SSLContext:
        """Return a mutual TLS 1.3 context made with the standard library only."""
        name = f"{self.certificate.serial_number:x}"
        certificate, key, roots = self.write(directory, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(roots)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


class Authority:
    """A root (and, when asked, an intermediate) that signs whatever it is told to."""

    def __init__(
        self, *, name: str = "test root", intermediate: bool = False, now: datetime.datetime | None = None
    ) -> None:
        self.now = now or datetime.datetime.now(datetime.UTC)
        self.root_key = ec.generate_private_key(ec.SECP256R1())
        self.root = self._authority(name, self.root_key, None, self.root_key)
        self._key, self._issuer = self.root_key, self.root
        self._between: tuple[bytes, ...] = ()
        if intermediate:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._issuer = self._authority(f"{name} intermediate", self._key, self.root, self.root_key)
            self._between = (self._issuer.public_bytes(serialization.Encoding.PEM),)

    @property
    def roots_pem(self) -> bytes:
        """The root certificate, PEM."""
        return self.root.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The signing key, PEM PKCS8."""
        return _pem(self._key)

    def _authority(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        issuer: x509.Certificate | None,
        issuer_key: ec.EllipticCurvePrivateKey,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - datetime.timedelta(hours=1))
            .not_valid_after(self.now + datetime.timedelta(days=365))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )

    def leaf(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        common_name: str = "",
        not_before_s: float = -HOUR_S,
        not_after_s: float = HOUR_S,
        ca: bool | None = False,
        usages: Sequence[x509.ObjectIdentifier] = BOTH_USAGES,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> Leaf:
        """Sign a leaf with exactly these names.

        Args:
            uris: URI SANs, unchecked: none, several and malformed ones are all possible.
            dns: DNS SANs.
            ips: IP SANs.
            common_name: subject CN; empty for an empty subject.
            not_before_s: begin of validity, seconds from now.
            not_after_s: end of validity, seconds from now; negative for an expired one.
            ca: basicConstraints CA flag; None leaves the extension out.
            usages: extended key usages; empty leaves the extension out.
            key: the subject's key; a new P-256 one when None.
        """
        key = key or ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
        names += [x509.DNSName(name) for name in dns]
        names += [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ips]
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self._issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now + datetime.timedelta(seconds=not_before_s))
            .not_valid_after(self.now + datetime.timedelta(seconds=not_after_s))
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not common_name)
        if ca is not None:
            builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        return Leaf(
            certificate=certificate,
            chain_pem=(pem, *self._between),
            key_pem=_pem(key),
            roots_pem=self.roots_pem,
        )

    def workload(self, namespace: str = "default", service_account: str = "default") -> Leaf:
        """Sign a correct workload certificate."""
        return self.leaf(spiffe(namespace, service_account))

    def expired(self, *uris: str) -> Leaf:
        """Sign a leaf whose validity ended a minute ago."""
        return self.leaf(*(uris or (spiffe(),)), not_before_s=-HOUR_S, not_after_s=-60)

    def not_yet_valid(self, *uris: str) -> Leaf:
        """Sign a leaf whose validity begins in an hour."""
        return self.leaf(*(uris or (spiffe(),)), not_before_s=HOUR_S, not_after_s=2 * HOUR_S)
