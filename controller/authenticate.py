# SPDX-License-Identifier: Apache-2.0
"""Who calls: the bearer token of a gRPC call, checked against its issuer's key.

The key file is read anew when it changes, so that an issuer's rotation needs no restart.
On a cluster the API server checks tokens instead (`controller.kubernetes.token_review`).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from mesh.identity.token import TokenClaims, TokenError, verify_token
from mesh.runtime.clock import Clock

Metadata = Iterable[tuple[str, str | bytes]]


class UncheckedError(Exception):
    """A token cannot be checked now: nobody's fault but ours; retry later."""


class Authenticator(Protocol):
    """Tells whom a call is of."""

    async def check(self, metadata: Metadata | None) -> TokenClaims:
        """Return whom the call's token proves.

        Raises:
            TokenError: there is none, or it is not valid (caller's fault).
            UncheckedError: it cannot be checked now (local; retry later).
        """
        ...


def bearer(metadata: Metadata | None) -> str:
    """Return the bearer token of a call.

    Raises:
        TokenError: it has none.
    """
    for name, value in metadata or ():
        if name == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, token = text.partition(" ")
            if scheme.lower() != "bearer":
                raise TokenError("the authorization header is no bearer token")
            return token.strip()
    raise TokenError("the call has no bearer token")


class TokenAuthenticator:
    """Checks tokens with one public key (PEM)."""

    def __init__(self, key_file: Path, clock: Clock) -> None:
        self._file = key_file
        self._clock = clock
        self._stamp: tuple[int, int] | None = None
        self._key = b""

    async def check(self, metadata: Metadata | None) -> TokenClaims:
        """Return whom the call's token proves (see `Authenticator.check`).

        Raises:
            TokenError: there is none, or it is not valid (caller's fault).
            UncheckedError: the issuer's key cannot be read (local).
        """
        return verify_token(bearer(metadata), self._read_key(), now_s=self._clock.wall())

    def _read_key(self) -> bytes:
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._key = self._file.read_bytes()
                self._stamp = stamp
        except OSError as error:
            reason = f"the issuer's key {self._file} cannot be read: {error.strerror}"
            raise UncheckedError(reason) from error
        return self._key
