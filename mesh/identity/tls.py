# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of the tunnel: 1.3 only, both sides present a certificate, ALPN h2.

A context proves that the peer's chain leads to our roots; which workload the peer is,
and whether it may, is `mesh.identity.verify` on the leaf after the handshake. Host
names are not checked because workloads have none: their names are SPIFFE ids.
"""

from __future__ import annotations

import os
import ssl

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import IdentityError

ALPN_H2 = "h2"


def server_context(certificate: WorkloadCertificate) -> ssl.SSLContext:
    """Make the context of an HBONE listener: demands a client certificate, issues no tickets.

    Resumed sessions would skip the certificate check, so that a peer could outlive the
    revocation of its identity; none are offered.

    Raises:
        IdentityError: OpenSSL refuses the certificate, key or roots.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, certificate)
    context.num_tickets = 0
    return context


def client_context(certificate: WorkloadCertificate) -> ssl.SSLContext:
    """Make the context of an HBONE client; call it with `server_hostname=None`: no SNI is sent.

    Raises:
        IdentityError: OpenSSL refuses the certificate, key or roots.
    """
    return _context(ssl.PROTOCOL_TLS_CLIENT, certificate)


def _context(protocol: ssl._SSLMethod, certificate: WorkloadCertificate) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    context.set_alpn_protocols([ALPN_H2])
    try:
        context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
        _load_key(context, certificate)
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"OpenSSL refuses the certificate of {certificate.identity}: {error}") from error
    return context


def _load_key(context: ssl.SSLContext, certificate: WorkloadCertificate) -> None:
    """Hand chain and key to OpenSSL, which takes them only as a file: an anonymous one in memory."""
    data = b"".join(certificate.chain_pem) + certificate.key_pem
    fd = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
