# SPDX-License-Identifier: Apache-2.0
"""What ztunnel may be sent, and when, on one connection: a snapshot, then deltas.

Pure: told of each request and of the descriptors that came with it.
"""

from __future__ import annotations

from mesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    SnapshotSent,
    ZdsProtocolError,
    ZdsRequest,
)


class ClientSession:
    """The order of one connection's requests; a new connection needs a new one."""

    def __init__(self) -> None:
        self.complete = False
        """Whether the snapshot has ended."""
        self._named: set[str] = set()

    @property
    def named(self) -> frozenset[str]:
        """Pods that the snapshot named and did not take back: what is not here is gone."""
        return frozenset(self._named)

    def take(self, request: ZdsRequest, descriptors: int) -> None:
        """Note a request.

        Raises:
            ZdsProtocolError: it came at the wrong time or with the wrong number of descriptors; the
                connection is to be ended, since the two sides no longer agree on what there is.
        """
        expected = 1 if isinstance(request, AddWorkload) else 0
        if descriptors != expected:
            raise ZdsProtocolError(
                f"{type(request).__name__} with {descriptors} descriptors, expected {expected}"
            )
        if self.complete:
            if isinstance(request, KeepWorkload | SnapshotSent):
                raise ZdsProtocolError(f"{type(request).__name__} after the snapshot")
            return
        match request:
            case AddWorkload() | KeepWorkload():
                self._named.add(request.uid)
            case DelWorkload():
                self._named.discard(request.uid)
            case SnapshotSent():
                self.complete = True
