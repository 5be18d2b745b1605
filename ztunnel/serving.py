# SPDX-License-Identifier: Apache-2.0
"""What all kinds of connections share: their begin, their failure, their joining.

One exit for each: whatever a handler raises becomes a reason, a refusal that the other
side can see, and the one log line that `Connections.finish` writes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine

from mesh.net.relay import CountedEnd, Relay, RelayResult
from mesh.net.sockets import DialError, Peer, reset
from mesh.runtime.tasks import create_task
from mesh.telemetry.metrics import CONNECTIONS_FAILED, REASONS
from mesh.telemetry.reasons import Reason
from ztunnel.access import Flow, log_failed
from ztunnel.connections import LimitReachedError, LiveConnection
from ztunnel.plane import Plane, Pod

_log = logging.getLogger("ztunnel")

Serve = Callable[[LiveConnection], Coroutine[object, object, None]]
"""Brings a connection up to its joining; raises DialError to refuse it."""
Refuse = Callable[[Reason, str], None]
"""Tells the client's side that nothing comes; must not raise."""


def begin(plane: Plane, pod: Pod, flow: Flow, serve: Serve, refuse: Refuse) -> LiveConnection | None:
    """Enter a connection in the table and start its handler; None when it was refused at once."""
    task: asyncio.Task[None] | None = None

    def cancel() -> None:
        if task is not None:
            task.cancel()

    if pod.tasks.closed:
        refuse(Reason.FORCED_CLOSE, "")
        fail_early(plane, flow, Reason.FORCED_CLOSE, f"pod {pod.info} is gone")
        return None
    try:
        row = plane.connections.open(pod.info.uid, flow, cancel)
    except LimitReachedError as error:
        refuse(Reason.LIMIT_EXCEEDED, str(error))
        fail_early(plane, flow, Reason.LIMIT_EXCEEDED, str(error))
        return None
    task = create_task(_run(plane, row, serve, refuse), name=flow.direction, owner=pod.tasks)
    # A task cancelled before its first step never runs: its row must end all the same.
    task.add_done_callback(lambda _: _end_unserved(plane, row, refuse))
    return row


async def _run(plane: Plane, row: LiveConnection, serve: Serve, refuse: Refuse) -> None:
    try:
        await serve(row)
    except DialError as error:
        refuse(error.reason, error.detail)
        plane.connections.finish(row, error.reason, error.detail)
    except asyncio.CancelledError:
        if row.ending is None:
            row.ending = (Reason.FORCED_CLOSE, Reason.FORCED_CLOSE.text)
        refuse(*row.ending)
        plane.connections.finish(row, *row.ending)
        raise
    except Exception as error:  # noqa: BLE001 - one connection's fault must not leave its client waiting
        _log.exception("serving a connection of pod %s failed", row.pod)
        refuse(Reason.INTERNAL_ERROR, "")
        plane.connections.finish(row, Reason.INTERNAL_ERROR, repr(error))


def _end_unserved(plane: Plane, row: LiveConnection, refuse: Refuse) -> None:
    if row.relay is None and not row.done:
        reason, detail = row.ending or (Reason.FORCED_CLOSE, "")
        refuse(reason, detail)
        plane.connections.finish(row, reason, detail)


def fail_early(plane: Plane, flow: Flow, reason: Reason, detail: str) -> None:
    """Count and log a connection that never came into the table."""
    plane.recorder.add(REASONS, (flow.reporter, reason.value))
    plane.recorder.add(CONNECTIONS_FAILED, flow.labels(reason.response_flag))
    log_failed(flow, reason, detail, duration_s=0)


def refuse_uncaptured(plane: Plane, sock: socket.socket, peer: Peer, direction: str, detail: str) -> None:
    """Reset a connection that has no business on an in-pod listener, with a log line and a count."""
    flow = Flow(direction=direction, source=peer, destination=peer)
    fail_early(plane, flow, Reason.NO_CAPTURE_RECORD, detail)
    reset(sock)


def relay_pair(plane: Plane, row: LiveConnection, client: CountedEnd, server: CountedEnd) -> None:
    """Join both sides; the row ends with them."""

    def done(result: RelayResult) -> None:
        plane.connections.finish(row, result.reason)

    relay = Relay(client, server, done)
    plane.connections.joined(row, relay)
    relay.start()
    if row.ending is not None:
        # Closed by a policy change or a drain while the last step ran.
        relay.close(row.ending[0])
