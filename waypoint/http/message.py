# SPDX-License-Identifier: Apache-2.0
"""The parts of an HTTP message between parser, filters and writer.

Header names are lower case, values text of the octets (latin-1), so that any byte
a peer sent is written again unchanged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

Headers = list[tuple[str, str]]

HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""Fields for one connection only, never forwarded (RFC 9110 §7.6.1)."""


class Framing(enum.Enum):
    """How the end of a body is found."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"
    """Until the connection ends; responses only."""


class BadMessageError(Exception):
    """The peer sent what HTTP/1.1 forbids or what could be read in two ways (remote fault).

    `status` is the answer to a request; a response of this kind becomes a 502.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


@dataclass(slots=True, kw_only=True)
class RequestHead:
    """A request without its body; `target` is origin-form except for CONNECT and `OPTIONS *`."""

    method: str
    target: str
    authority: str
    """Host as sent; empty only in HTTP/1.0."""
    headers: Headers
    """Without Host."""
    framing: Framing
    length: int = 0
    """Body bytes where framing is LENGTH."""
    keep_alive: bool = True
    upgrade: str = ""
    """Protocol that the client asks to switch to, lower case; empty: none."""
    expects_continue: bool = False
    version_minor: int = 1
    hop_by_hop: bool = True
    """Whether `headers` may hold fields for one connection only."""


@dataclass(slots=True, kw_only=True)
class ResponseHead:
    """A response without its body; `interim` ones (1xx, not 101) precede the real one."""

    status: int
    reason: str
    headers: Headers
    framing: Framing
    length: int = 0
    keep_alive: bool = True
    hop_by_hop: bool = True
    """Whether `headers` may hold fields for one connection only."""

    @property
    def interim(self) -> bool:
        """Whether another response head follows."""
        return 100 <= self.status < 200 and self.status != 101


@dataclass(slots=True, kw_only=True)
class MessageEnd:
    """The message is complete."""

    trailers: Headers = field(default_factory=list)


Event = RequestHead | ResponseHead | bytes | MessageEnd
"""What a reader yields: one head, body pieces, one end."""
