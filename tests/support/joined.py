# SPDX-License-Identifier: Apache-2.0
"""A client and a server HBONE connection over transports in memory, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from mesh.hbone.driver import ClientTunnel, HboneConnection, Limits, Role, ServerTunnel
from mesh.net.relay import End, RelayOwner
from mesh.telemetry.reasons import Reason
from tests.support.transports import FakeTransport, pump
from tests.support.virtual import LoopClock, run_virtual

LIMITS = replace(Limits(), initial_window_bytes=65535, max_window_bytes=65535, send_queue_bytes=50_000)


@dataclass
class Recorder:
    """An end of a relay and its owner in one."""

    data: bytearray = field(default_factory=bytearray)
    log: list[object] = field(default_factory=list)
    peer: End | None = None

    def start(self, peer: End, owner: RelayOwner) -> None:
        self.peer = peer

    def write(self, data: bytes) -> None:
        self.data += data

    def write_eof(self) -> None:
        self.log.append("eof")

    def abort(self, reason: Reason) -> None:
        self.log.append(("abort", reason))

    def pause_reading(self) -> None:
        self.log.append("pause")

    def resume_reading(self) -> None:
        self.log.append("resume")

    def end_closed(self, end: End, reason: Reason) -> None:
        self.log.append(("closed", reason))


class Joined:
    """A client and a server connection over two transports in memory."""

    def __init__(self, client_limits: Limits = LIMITS, server_limits: Limits = LIMITS) -> None:
        self.closed: list[tuple[Role, Reason]] = []
        self.requests: list[ServerTunnel] = []
        self.client = self._make(Role.CLIENT, client_limits)
        self.server = self._make(Role.SERVER, server_limits)
        self.a, self.b = FakeTransport(self.client), FakeTransport(self.server)

    def _make(self, role: Role, limits: Limits) -> HboneConnection:
        return HboneConnection(
            role=role,
            limits=limits,
            on_request=self.requests.append if role is Role.SERVER else None,
            on_close=lambda c, reason: self.closed.append((c.role, reason)),
            clock=LoopClock(),
        )

    async def pump(self) -> None:
        await pump(self.a, self.b)

    async def tunnel(self) -> tuple[ClientTunnel, Recorder, ServerTunnel, Recorder]:
        """Open a tunnel whose two ends are recorders."""
        client = self.client.open_tunnel("10.0.0.1:80", [(b"x", b"y")])
        await self.pump()
        server = self.requests[-1]
        server.accept([(b"baggage", b"z")])
        await self.pump()
        near, far = Recorder(), Recorder()
        client.start(near, near)
        server.start(far, far)
        return client, near, server, far


def virtual(test: Callable[[Joined], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        async def body() -> None:
            joined = Joined()
            await joined.pump()
            await test(joined)

        run_virtual(body)

    run.__name__ = test.__name__
    return run
