# SPDX-License-Identifier: Apache-2.0
"""Which identity a peer's certificate proves, after TLS has verified its chain.

A leaf names exactly one workload: SPIFFE allows one URI SAN, and a second one would
let a peer pass one check by the first name and the next check by the other.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from cryptography import x509

from mesh.identity.spiffe import IdentityError, SpiffeId

E = TypeVar("E", bound=x509.ExtensionType)
MAX_CERTIFICATE_BYTES = 64 * 1024
"""A leaf is about 600 bytes; more than this is not parsed."""

_UNREADABLE = (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


def peer_identity(der: bytes) -> SpiffeId:
    """Return the SPIFFE id of a peer's leaf certificate.

    The chain and validity are not looked at: TLS did that. DNS names are allowed and ignored.

    Raises:
        IdentityError: no certificate, not exactly one URI SAN, another form of id, or a
            certificate that may sign others (peer's fault). Source: X509-SVID.md sections 2, 4, 5.
    """
    if not der:
        raise IdentityError("the peer presented no certificate")
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise IdentityError(f"the peer's certificate has {len(der)} bytes, more than {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
        sans = _find(extensions, x509.SubjectAlternativeName)
        constraints = _find(extensions, x509.BasicConstraints)
        usage = _find(extensions, x509.KeyUsage)
        uris = [] if sans is None else sans.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNREADABLE as error:
        raise IdentityError(f"the peer's certificate cannot be read: {error}") from error
    if constraints is not None and constraints.ca:
        raise IdentityError("the peer's certificate is an authority's, not a workload's")
    if usage is not None and (usage.key_cert_sign or usage.crl_sign):
        raise IdentityError("the peer's certificate may sign others, so it is not a workload's")
    if len(uris) != 1:
        shown = ", ".join(uri[:200] for uri in uris[:4]) or "none"
        raise IdentityError(
            f"the peer's certificate must name exactly one URI, it names {len(uris)}: {shown}"
        )
    return SpiffeId.parse(uris[0])


def require_identity(der: bytes, expected: Collection[SpiffeId]) -> SpiffeId:
    """Return the peer's identity if it is one of `expected` (the client's check of a server).

    Raises:
        IdentityError: as `peer_identity`, or it is another one; names both.
    """
    identity = peer_identity(der)
    if identity not in expected:
        wanted = ", ".join(sorted(map(str, expected))) or "nobody"
        raise IdentityError(f"peer did not present the expected SAN ({wanted}), got {identity}")
    return identity


def require_trust_domain(der: bytes, trust_domain: str) -> SpiffeId:
    """Return the peer's identity if it is of `trust_domain` (the server's check of a client).

    Raises:
        IdentityError: as `peer_identity`, or of another trust domain; names both.
    """
    identity = peer_identity(der)
    if identity.trust_domain != trust_domain:
        raise IdentityError(f"{identity} is not of the trust domain {trust_domain}")
    return identity


def _find(extensions: x509.Extensions, kind: type[E]) -> E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
