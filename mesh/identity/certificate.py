# SPDX-License-Identifier: Apache-2.0
"""A workload's certificate with its key and the roots that verify its peers.

Built from what a certificate authority answered, and checked then: a certificate that
names another workload, carries another key or does not lead to the roots is refused
here and not first noticed as a handshake that fails somewhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.verify import peer_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadCertificate:
    """An X.509 SVID, its key and trust bundle; `repr` never shows the key."""

    identity: SpiffeId
    chain_pem: tuple[bytes, ...]
    """Leaf first, then intermediates; no root."""
    key_pem: bytes = field(repr=False)
    """PKCS#8, unencrypted."""
    roots_pem: bytes = field(repr=False)
    """Trust bundle: one or several certificates one after the other."""
    not_before_s: float
    """Seconds since the epoch."""
    not_after_s: float
    """Seconds since the epoch; never served from here on."""
    serial: str
    """Lower-case hexadecimal."""

    def expired(self, now_s: float) -> bool:
        """Whether it must no longer be used at `now_s` (seconds since the epoch)."""
        return now_s >= self.not_after_s


def from_response(
    identity: SpiffeId, key_pem: bytes, cert_chain: Sequence[str], now_s: float
) -> WorkloadCertificate:
    """Build from the answer to CreateCertificate: leaf, intermediates, and last the root bundle.

    Shape: one PEM certificate an element, except the last, which holds one or several roots.

    Raises:
        IdentityError: fewer than two elements, no PEM, another identity or key, not valid at
            `now_s`, or a chain that the roots do not verify (authority's fault).
    """
    if len(cert_chain) < 2:
        raise IdentityError(
            f"the authority answered {len(cert_chain)} certificates for {identity}: "
            "a leaf and a root are needed"
        )
    try:
        chain = [x509.load_pem_x509_certificate(pem.encode()) for pem in cert_chain[:-1]]
        roots = x509.load_pem_x509_certificates(cert_chain[-1].encode())
    except ValueError as error:
        raise IdentityError(f"the authority's answer for {identity} is no PEM chain: {error}") from error
    leaf = chain[0]
    named = peer_identity(leaf.public_bytes(Encoding.DER))
    if named != identity:
        raise IdentityError(f"the authority certified {named}, asked for was {identity}")
    if not _is_key_of(key_pem, leaf):
        raise IdentityError(f"the authority's certificate for {identity} holds another key")
    _check_chain(identity, chain, roots)
    not_after_s = leaf.not_valid_after_utc.timestamp()
    if not_after_s <= now_s:
        raise IdentityError(
            f"the authority's certificate for {identity} expired {now_s - not_after_s:.0f} s ago"
        )
    not_before_s = leaf.not_valid_before_utc.timestamp()
    if not_before_s > now_s:
        raise IdentityError(
            f"the authority's certificate for {identity} is valid only in {not_before_s - now_s:.0f} s: "
            "compare this machine's clock with the authority's"
        )
    return WorkloadCertificate(
        identity=identity,
        chain_pem=tuple(certificate.public_bytes(Encoding.PEM) for certificate in chain),
        key_pem=key_pem,
        roots_pem=b"".join(root.public_bytes(Encoding.PEM) for root in roots),
        not_before_s=not_before_s,
        not_after_s=not_after_s,
        serial=f"{leaf.serial_number:x}",
    )


def _is_key_of(key_pem: bytes, leaf: x509.Certificate) -> bool:
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = load_pem_private_key(key_pem, None)
    return key.public_key().public_bytes(*form) == leaf.public_key().public_bytes(*form)


def _check_chain(
    identity: SpiffeId, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> None:
    """Check that each element signed the one before it and one of the roots the last."""
    for issued, issuer in pairwise(chain):
        if not _issued_by(issued, issuer):
            raise IdentityError(f"the authority's chain for {identity} is out of order or broken")
    if not any(_issued_by(chain[-1], root) for root in roots):
        raise IdentityError(f"the authority's chain for {identity} leads to none of its {len(roots)} roots")


def _issued_by(issued: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
