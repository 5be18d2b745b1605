# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of local identities, made anew when their certificates are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.manager import CertificateUnavailableError
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.identity.tls import client_context, server_context
from mesh.net.sockets import DialError
from mesh.telemetry.reasons import Reason


class Certificates(Protocol):
    """Where certificates come from: the process's own manager, or the supervisor of a worker."""

    async def get(self, identity: SpiffeId) -> WorkloadCertificate:
        """Return a certificate that has not expired, waiting for its first issue.

        Raises:
            CertificateUnavailableError: there is none; says why.
        """
        ...


class TlsContexts:
    """One pair of contexts per certificate; a rotated certificate gets new ones for new handshakes."""

    def __init__(self, certificates: Certificates, *, wait_s: float) -> None:
        self._certificates = certificates
        self._wait_s = wait_s
        self._client: dict[SpiffeId, tuple[str, ssl.SSLContext]] = {}
        self._server: dict[SpiffeId, tuple[str, ssl.SSLContext]] = {}

    async def client(self, identity: str) -> ssl.SSLContext:
        """Return the context with which a local identity dials.

        Raises:
            DialError: no certificate in time.
        """
        return await self._context(identity, self._client, client_context)

    async def server(self, identity: str) -> ssl.SSLContext:
        """Return the context with which a local identity is served.

        Raises:
            DialError: no certificate in time.
        """
        return await self._context(identity, self._server, server_context)

    async def _context(
        self,
        text: str,
        cache: dict[SpiffeId, tuple[str, ssl.SSLContext]],
        build: Callable[[WorkloadCertificate], ssl.SSLContext],
    ) -> ssl.SSLContext:
        try:
            identity = SpiffeId.parse(text)
            async with asyncio.timeout(self._wait_s):
                certificate = await self._certificates.get(identity)
            # The serial alone does not change when only the roots do.
            version = f"{certificate.serial}/{hash(certificate.roots_pem)}"
            known = cache.get(identity)
            if known is None or known[0] != version:
                known = cache[identity] = (version, build(certificate))
        except TimeoutError as error:
            raise DialError(
                Reason.CERTIFICATE_UNAVAILABLE,
                f"no certificate for {text} within {self._wait_s:g} s; see /certs and the controller's log",
            ) from error
        except (CertificateUnavailableError, IdentityError) as error:
            raise DialError(Reason.CERTIFICATE_UNAVAILABLE, f"no certificate for {text}: {error}") from error
        return known[1]

    def forget(self, identity: SpiffeId) -> None:
        """Drop the contexts of an identity that no pod here has any more."""
        self._client.pop(identity, None)
        self._server.pop(identity, None)
