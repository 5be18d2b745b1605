# SPDX-License-Identifier: Apache-2.0
"""One type's half of a delta ADS stream as a machine without I/O.

It remembers which version of each resource is in force, so that a new stream begins
where the last one ended, and owes the server exactly one answer per response: an ACK,
or a NACK that names what was not taken. What was taken in the same response stays taken.

    open() -> Request    receive(Response) -> Update    settle(rejections) -> Request
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mesh.xds.resource import Rejection, Resource, Update

MAX_ERROR_CHARS = 4096
"""A NACK names as many rejections as fit; the sender's log needs the first ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A `DeltaDiscoveryRequest` without its node; a wildcard subscription has empty name lists."""

    type_url: str
    nonce: str = ""
    error: str = ""
    """Non-empty: a NACK."""
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    """Resource name -> version in force; on a stream's first request only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A `DeltaDiscoveryResponse`."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()


class ProtocolError(Exception):
    """The server broke the protocol, or the caller the order of calls; the stream is to be ended."""


class Phase(enum.Enum):
    """Whose turn it is."""

    CLOSED = "closed"
    WAITING = "waiting"
    SETTLING = "settling"


class DeltaSubscription:
    """A wildcard subscription to one type, across any number of streams.

    `rejected` holds what the server last sent and we did not take: name -> reason. An older
    version of it may still be in force.
    """

    def __init__(self, type_url: str) -> None:
        self.type_url = type_url
        self.synced = False
        """Whether a first response was ever answered, so that what we have is a whole."""
        self.rejected: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._phase = Phase.CLOSED
        self._pending: Response | None = None

    @property
    def phase(self) -> Phase:
        """Whose turn it is."""
        return self._phase

    @property
    def versions(self) -> Mapping[str, str]:
        """Name -> version of every resource in force."""
        return self._versions

    def open(self) -> Request:
        """Begin a stream: ask for everything, and say what is in force so that it need not come again.

        Names that were rejected and have nothing in force are said with an empty version: the
        server then sends them again, or tells that they are gone.
        """
        self._phase, self._pending = Phase.WAITING, None
        return Request(
            type_url=self.type_url, initial_versions={**dict.fromkeys(self.rejected, ""), **self._versions}
        )

    def receive(self, response: Response) -> Update:
        """Take a response; its update is to be applied and then settled.

        Raises:
            ProtocolError: of another type, without nonce, with a nameless resource, naming a resource twice,
                or before the last one was settled.
        """
        if self._phase is not Phase.WAITING:
            raise ProtocolError(f"response for {self.type_url} while {self._phase.value}")
        if response.type_url != self.type_url:
            raise ProtocolError(f"response for {response.type_url}, expected {self.type_url}")
        if not response.nonce:
            raise ProtocolError(f"response for {self.type_url} has no nonce")
        names = [resource.name for resource in response.resources]
        if "" in names or len(set(names)) != len(names):
            raise ProtocolError(f"response for {self.type_url} names a resource twice or not at all")
        self._phase, self._pending = Phase.SETTLING, response
        # A name in both lists was removed and made anew: what the server sent is what is.
        removed = tuple(name for name in response.removed if name not in set(names))
        return Update(type_url=self.type_url, upserted=response.resources, removed=removed)

    def settle(self, rejections: Sequence[Rejection]) -> Request:
        """Answer the response that was received: all of it is in force but the rejected names.

        A removal that could not be carried out may be rejected like a value.

        Raises:
            ProtocolError: nothing was received since the last answer.
        """
        response = self._pending
        if response is None:
            raise ProtocolError(f"nothing to settle for {self.type_url}")
        refused = {rejection.name: rejection.reason for rejection in rejections}
        for name in response.removed:
            self._versions.pop(name, None)
            if name in refused:
                self.rejected[name] = refused[name]
            else:
                self.rejected.pop(name, None)
        for resource in response.resources:
            if resource.name in refused:
                self.rejected[resource.name] = refused[resource.name]
            else:
                self._versions[resource.name] = resource.version
                self.rejected.pop(resource.name, None)
        self._phase, self._pending, self.synced = Phase.WAITING, None, True
        return Request(type_url=self.type_url, nonce=response.nonce, error=_describe(rejections))

    def close(self) -> None:
        """End the stream; what is in force stays, and an unanswered response comes again on the next one."""
        self._phase, self._pending = Phase.CLOSED, None


def _describe(rejections: Sequence[Rejection]) -> str:
    """Say `name: reason; name: reason`, as Istio's ztunnel does."""
    text = "; ".join(f"{rejection.name}: {rejection.reason}" for rejection in rejections)
    if len(text) > MAX_ERROR_CHARS:
        text = f"{text[:MAX_ERROR_CHARS]}... ({len(rejections)} rejected in all)"
    return text
