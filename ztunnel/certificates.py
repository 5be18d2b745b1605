# SPDX-License-Identifier: Apache-2.0
"""A worker's certificates: what the supervisor has given, asked for when missing.

Keys stay in memory; nothing here talks to the authority.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.manager import CertificateUnavailableError
from mesh.identity.spiffe import SpiffeId
from mesh.runtime.clock import Clock
from ztunnel.control import Message


class WorkerCertificates:
    """Certificates by identity; loop thread only."""

    def __init__(self, want: Callable[[SpiffeId], None], clock: Clock) -> None:
        """Ask for a missing identity through `want`; the answer comes by `put` or `refuse`."""
        self._want = want
        self._clock = clock
        self._known: dict[SpiffeId, WorkloadCertificate] = {}
        self._waiting: dict[SpiffeId, asyncio.Future[WorkloadCertificate]] = {}

    async def get(self, identity: SpiffeId) -> WorkloadCertificate:
        """Return a certificate that has not expired, waiting for its first issue.

        Raises:
            CertificateUnavailableError: the supervisor could not get one; says why.
        """
        known = self._known.get(identity)
        if known is not None and not known.expired(self._clock.wall()):
            return known
        future = self._waiting.get(identity)
        if future is None:
            future = self._waiting[identity] = asyncio.get_running_loop().create_future()
            self._want(identity)
        # One waiter that gives up must not take the answer from the others.
        return await asyncio.shield(future)

    def put(self, certificate: WorkloadCertificate) -> None:
        """Take a new or rotated certificate."""
        self._known[certificate.identity] = certificate
        future = self._waiting.pop(certificate.identity, None)
        if future is not None and not future.done():
            future.set_result(certificate)

    def refuse(self, identity: SpiffeId, why: str) -> None:
        """Tell who waits that there is none; the next `get` asks again."""
        future = self._waiting.pop(identity, None)
        if future is not None and not future.done():
            future.set_exception(CertificateUnavailableError(why))
            # Everyone may have given up waiting by now; the words are for those who have not.
            future.exception()

    def forget(self, identity: SpiffeId) -> None:
        """Drop an identity that no pod of this node has any more."""
        self._known.pop(identity, None)


def certificate_message(certificate: WorkloadCertificate) -> Message:
    """Encode a certificate for the control channel (which no other process can read)."""
    return Message(
        "certificate",
        {
            "identity": str(certificate.identity),
            "not_before_s": certificate.not_before_s,
            "not_after_s": certificate.not_after_s,
            "serial": certificate.serial,
        },
        (certificate.key_pem, certificate.roots_pem, *certificate.chain_pem),
    )


def certificate_from_message(message: Message) -> WorkloadCertificate:
    """Decode what `certificate_message` encoded."""
    body: Mapping[str, object] = message.body
    key_pem, roots_pem, *chain = message.blobs
    return WorkloadCertificate(
        identity=SpiffeId.parse(str(body["identity"])),
        chain_pem=tuple(chain),
        key_pem=key_pem,
        roots_pem=roots_pem,
        not_before_s=float(str(body["not_before_s"])),
        not_after_s=float(str(body["not_after_s"])),
        serial=str(body["serial"]),
    )
