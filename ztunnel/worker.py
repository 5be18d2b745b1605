# SPDX-License-Identifier: Apache-2.0
"""One data-plane process: `python -m ztunnel.worker FD`, started by the supervisor only.

Translates the control channel's messages into calls of `DataPlane` and back. Ends when
the supervisor's end closes: a worker without supervisor has no state to trust.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping

import uvloop

from mesh.config.environment import ConfigError
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.net.allocator import keep_buffers
from mesh.runtime.clock import SystemClock
from mesh.runtime.tasks import TaskOwner, create_task
from mesh.telemetry.log_queue import BoundedLogHandler
from mesh.telemetry.logging import configure, set_level
from mesh.telemetry.metrics import LOG_LINES_DROPPED
from mesh.xds.resource import Resource, Update
from ztunnel.admin_view import connection_view
from ztunnel.capture import Capture
from ztunnel.certificates import certificate_from_message
from ztunnel.config import DataPlaneConfig, read_data_plane
from ztunnel.control import Channel, Message
from ztunnel.data_plane import DataPlane
from ztunnel.plane import PodInfo

_log = logging.getLogger("ztunnel.worker")

TICK_S = 1.0
"""How often byte counts, metrics and a sign of life go to the supervisor."""
GC_OBJECTS = 20_000
"""New containers after which the youngest are looked through; a connection makes a few dozen."""


class Worker:
    """Runs a data plane on behalf of the supervisor; loop thread only."""

    def __init__(self, config: DataPlaneConfig, sock: socket.socket, log: BoundedLogHandler) -> None:
        self.finished = asyncio.Event()
        self._tasks = TaskOwner("worker")
        self._log_handler = log
        self._channel = Channel(sock, self._received, self.finished.set)
        capture = Capture.open(config.bpffs, SystemClock())
        self._plane = DataPlane(
            config,
            clock=SystemClock(),
            want_certificate=self._want,
            maps=capture,
            resolvers=capture.resolvers if capture is not None else lambda _cookie: (),
        )
        # Pods and drains are taken one after the other, in the order in which they came.
        self._orders: asyncio.Queue[tuple[Message, list[int]]] = asyncio.Queue()

    def start(self) -> None:
        """Begin to work; `finished` is set when the supervisor is gone or the drain is over."""
        create_task(self._tick(), name="tick", owner=self._tasks)
        create_task(self._take_orders(), name="orders", owner=self._tasks)
        self._channel.send(Message("hello", {"pid": os.getpid()}))

    async def close(self) -> None:
        """Stop everything; live connections are cut by the process's end."""
        await self._tasks.close()
        self._channel.close()

    def _want(self, identity: SpiffeId) -> None:
        self._channel.send(Message("want_certificate", {"identity": str(identity)}))

    def _received(self, message: Message, fds: list[int]) -> None:
        body = message.body
        match message.kind:
            case "pod_add" | "pod_remove" | "drain":
                self._orders.put_nowait((message, fds))
            case "resources":
                self._plane.apply(update_from_message(message))
            case "certificate":
                self._plane.certificates.put(certificate_from_message(message))
            case "certificate_error" | "certificate_forget":
                self._certificate_gone(message)
            case "dump":
                self._channel.send(Message("dumped", {"id": body["id"], "value": self._dump()}))
            case "log_level":
                set_level(str(body["level"]), str(body["target"]))
            case _:
                _log.error("message %s of the supervisor is not known", message.kind)

    def _certificate_gone(self, message: Message) -> None:
        try:
            identity = SpiffeId.parse(str(message.body["identity"]))
        except IdentityError:
            return
        if message.kind == "certificate_error":
            self._plane.certificates.refuse(identity, str(message.body["error"]))
        else:
            self._plane.forget_certificate(identity)

    async def _take_orders(self) -> None:
        while True:
            message, fds = await self._orders.get()
            if message.kind == "pod_add":
                await self._add_pod(message.body, fds)
            elif message.kind == "pod_remove":
                await self._plane.remove_pod(str(message.body["uid"]))
                self._answer(str(message.body["uid"]), "")
            else:
                cut = await self._plane.drain(float(str(message.body["deadline_s"])))
                self._report()
                self._channel.send(Message("drained", {"cut": cut}))
                self.finished.set()

    async def _add_pod(self, body: Mapping[str, object], fds: list[int]) -> None:
        info = PodInfo(
            uid=str(body["uid"]),
            name=str(body["name"]),
            namespace=str(body["namespace"]),
            service_account=str(body["service_account"]),
            hbone_only=bool(body["hbone_only"]),
        )
        try:
            await self._plane.add_pod(info, fds[0])
        except OSError as error:
            _log.error("pod %s (%s) cannot be served: %s", info, info.uid, error)
            self._answer(info.uid, error.strerror or str(error))
        else:
            self._answer(info.uid, "")

    def _answer(self, uid: str, error: str) -> None:
        self._channel.send(Message("pod_done", {"uid": uid, "error": error}))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._plane.tick()
            self._report()
            self._channel.send(Message("alive"))

    def _report(self) -> None:
        dropped = self._log_handler.take_dropped()
        if dropped:
            self._plane.recorder.add(LOG_LINES_DROPPED, (), dropped)
        deltas = self._plane.recorder.take()
        if deltas:
            rows = [(delta.metric, delta.labels, delta.values) for delta in deltas]
            self._channel.send(Message("metrics", {"deltas": rows}))

    def _dump(self) -> object:
        return {
            "pid": os.getpid(),
            "pods": [info.uid for info in self._plane.pods],
            "connections": [connection_view(row, self._plane.plane.clock) for row in self._plane.connections],
            "pool": self._plane.dialer.view(),
            "hbone_connections_in": len(self._plane.inbound),
        }


def update_message(update: Update) -> Message:
    """Encode an xDS update for the control channel."""
    return Message(
        "resources",
        {
            "type_url": update.type_url,
            "upserted": [(r.name, r.version) for r in update.upserted],
            "removed": list(update.removed),
        },
        tuple(r.value for r in update.upserted),
    )


def update_from_message(message: Message) -> Update:
    """Decode what `update_message` encoded."""
    named: list[list[str]] = message.body["upserted"]  # type: ignore[assignment]
    removed: list[str] = message.body["removed"]  # type: ignore[assignment]
    return Update(
        type_url=str(message.body["type_url"]),
        upserted=tuple(
            Resource(name, version, value)
            for (name, version), value in zip(named, message.blobs, strict=True)
        ),
        removed=tuple(removed),
    )


def raise_file_limit() -> None:
    """Use all the descriptors that the hard limit allows: each connection takes two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _main(config: DataPlaneConfig, fd: int, log: BoundedLogHandler) -> None:
    worker = Worker(config, socket.socket(fileno=fd), log)
    worker.start()
    await worker.finished.wait()
    await worker.close()


def main() -> int:
    """Run one worker; the descriptor of its control channel is the only argument."""
    # The supervisor decides when a worker ends: a signal to the whole group must not cut its drain.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        config = read_data_plane(os.environ)
        fd = int(sys.argv[1])
    except (ConfigError, IndexError, ValueError) as error:
        print(f"ztunnel worker: {error}", file=sys.stderr)
        return 64
    log = BoundedLogHandler(sys.stderr)
    configure(level=config.log_level, log_format=config.log_format, handler=log)
    raise_file_limit()
    keep_buffers()
    # The cyclic collector walks every live connection: rarely, and never what was there at the start.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 50)
    uvloop.run(_main(config, fd, log))
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
