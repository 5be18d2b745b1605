# SPDX-License-Identifier: Apache-2.0
"""SPIFFE ids of the one form that the mesh knows: `spiffe://TD/ns/NAMESPACE/sa/ACCOUNT`.

An id is compared as a whole and never by prefix, so that `…/sa/web` and `…/sa/web2`
or two spellings of one trust domain cannot be taken for each other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048
"""Source: SPIFFE-ID.md section 2.3."""
MAX_TRUST_DOMAIN_BYTES = 255
"""Source: SPIFFE-ID.md section 2.1."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


class IdentityError(Exception):
    """A certificate or name does not prove the identity that is needed; says whose and why."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One workload identity; every instance is valid, so `str` of it is too.

    Raises:
        IdentityError: a part is empty, too long or holds a character that SPIFFE does not allow.
    """

    trust_domain: str
    namespace: str
    service_account: str

    def __post_init__(self) -> None:
        """Refuse parts that could be read as something else once joined."""
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain) or len(self.trust_domain) > MAX_TRUST_DOMAIN_BYTES:
            raise IdentityError(f"{self.trust_domain!r} is no SPIFFE trust domain")
        for what, part in (("namespace", self.namespace), ("service account", self.service_account)):
            if not _SEGMENT.fullmatch(part) or part in (".", ".."):
                raise IdentityError(f"{part!r} is no {what} of a SPIFFE id")
        if len(str(self)) > MAX_ID_BYTES:
            raise IdentityError(f"a SPIFFE id has at most {MAX_ID_BYTES} bytes, this one {len(str(self))}")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parse the exact form; scheme and keywords in lower case, nothing before or after.

        Raises:
            IdentityError: any other text; names it.
        """
        parts = text.removeprefix(SCHEME).split("/")
        if not text.startswith(SCHEME) or len(parts) != 5 or parts[1] != "ns" or parts[3] != "sa":
            raise IdentityError(f"{text[:200]!r} is not spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
        return cls(parts[0], parts[2], parts[4])

    def __str__(self) -> str:
        return f"{SCHEME}{self.principal}"

    @property
    def principal(self) -> str:
        """The id without its scheme, as authorisation policies compare it."""
        return f"{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
