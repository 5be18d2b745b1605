# SPDX-License-Identifier: Apache-2.0
"""ZDS on asyncio: the agent's server and ztunnel's client.

Both look at who is at the other end before they say or believe anything. Requests are
answered strictly one by one, so an answer that is late or lost ends the connection: on
the next one the snapshot says again what there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from mesh.runtime.tasks import TaskOwner, create_task
from mesh.zds.messages import (
    Ack,
    AddWorkload,
    DelWorkload,
    Hello,
    KeepWorkload,
    SnapshotSent,
    ZdsProtocolError,
    ZdsRequest,
    decode_ack,
    decode_hello,
    decode_request,
    encode_ack,
    encode_hello,
    encode_request,
)
from mesh.zds.packet import Credentials, PacketSocket, ZdsClosedError, close_fds
from mesh.zds.session import ClientSession

ACK_TIMEOUT_S = 5.0
HELLO_TIMEOUT_S = 5.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 15.0
BACKLOG = 16
ACCEPT_PAUSE_S = 1.0
"""How long nothing is accepted after the system could not give a descriptor."""

_log = logging.getLogger("ambit.zds")


class ForeignPeerError(Exception):
    """The process at the other end is not who may be there; says who it is."""


class ZdsRejectedError(Exception):
    """Raised by a handler that cannot do what a request asks; its text becomes the answer's error."""


def require_uid(expected_uid: int = 0) -> Callable[[Credentials], None]:
    """Return a check that admits processes of one user that this pid namespace can see."""

    def check(peer: Credentials) -> None:
        if peer.uid != expected_uid:
            raise ForeignPeerError(f"{peer} is not of uid {expected_uid}")
        if peer.pid == 0:
            raise ForeignPeerError(f"{peer} is in another pid namespace, so it cannot be told who it is")

    return check


class ZdsPeer:
    """One ztunnel, as the agent's server sees it; requests wait for each other in turn.

    Every request returns the answer's error, empty for success, and raises `ZdsClosedError`
    when the connection ended or no answer came in time.
    """

    def __init__(self, packets: PacketSocket, ack_timeout_s: float) -> None:
        self._packets = packets
        self._ack_timeout_s = ack_timeout_s
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[str] | None = None
        self._ended = asyncio.Event()
        self._why = ""

    @property
    def credentials(self) -> Credentials:
        """Who it is, as the kernel recorded when it connected."""
        return self._packets.peer

    async def add(self, workload: AddWorkload, netns_fd: int) -> str:
        """Hand over a pod; the descriptor stays the caller's."""
        return await self._request(workload, netns_fd)

    async def keep(self, uid: str) -> str:
        """Say that a pod is still there; before the snapshot's end only."""
        return await self._request(KeepWorkload(uid=uid))

    async def delete(self, uid: str) -> str:
        """Take a pod back."""
        return await self._request(DelWorkload(uid=uid))

    async def snapshot_sent(self) -> str:
        """Say that every pod was named."""
        return await self._request(SnapshotSent())

    def close(self, why: str = "closed here") -> None:
        """End the connection; safe to call again."""
        if self._ended.is_set():
            return
        self._why = why
        self._ended.set()
        self._packets.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ZdsClosedError(why))

    async def wait_closed(self) -> str:
        """Wait until the connection ended and return why."""
        await self._ended.wait()
        return self._why

    async def _request(self, request: ZdsRequest, fd: int | None = None) -> str:
        data = encode_request(request)
        async with self._turn:
            if self._ended.is_set():
                raise ZdsClosedError(self._why)
            answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
            self._answer = answer
            try:
                async with asyncio.timeout(self._ack_timeout_s):
                    await self._packets.send(data, fd)
                    return await answer
            except TimeoutError:
                self.close(f"no answer to {type(request).__name__} within {self._ack_timeout_s:g} s")
                raise ZdsClosedError(self._why) from None
            except (ZdsClosedError, asyncio.CancelledError) as error:
                # A late answer would be taken for that of the next request.
                self.close(str(error) or f"{type(request).__name__} was given up")
                raise
            finally:
                self._answer = None

    async def _read(self) -> None:
        """Take answers until the connection ends; also notices an end while nobody asks."""
        try:
            while True:
                self._take(*await self._packets.receive())
        except (ZdsClosedError, ZdsProtocolError) as error:
            self.close(str(error))

    def _take(self, data: bytes, fds: list[int]) -> None:
        if fds:
            close_fds(fds)
            raise ZdsProtocolError("descriptors with an answer")
        ack = decode_ack(data)
        if self._answer is None or self._answer.done():
            raise ZdsProtocolError("an answer that nobody asked for")
        self._answer.set_result(ack.error)


class ZdsServer:
    """The agent's side: a listening socket, and one `ZdsPeer` per admitted ztunnel."""

    def __init__(
        self,
        path: Path,
        *,
        on_open: Callable[[ZdsPeer], Awaitable[None]],
        on_close: Callable[[ZdsPeer, str], None] = lambda _peer, _why: None,
        admit: Callable[[Credentials], object] | None = None,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        """Create it; nothing listens before `start`.

        `admit` raises to refuse a process before a byte of it is read (default: uid 0 only).
        `on_open` runs as a task of the connection (send the snapshot there) and is cancelled when
        it ends; `on_close` is called once for each peer that `on_open` was called for.
        """
        self.path = path
        self.refused = 0
        """Connections that were no ztunnel's, or no ZDS."""
        self._on_open = on_open
        self._on_close = on_close
        self._admit = admit or require_uid()
        self._ack_timeout_s = ack_timeout_s
        self._hello_timeout_s = hello_timeout_s
        self._owner = TaskOwner(f"zds server {path}")
        self._listener: socket.socket | None = None
        self._inode = 0

    async def start(self) -> None:
        """Listen at `path`, in place of whatever socket is there, readable and writable by its owner only.

        A new agent takes the path over in one step: there is no moment without a socket.

        Raises:
            OSError: the directory is missing, the path too long (107 bytes), or not a socket's.
        """
        if self.path.exists() and not self.path.is_socket():
            raise FileExistsError(f"{self.path} is there and is no socket; remove it")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        beside = self.path.with_name(f".{os.getpid()}")
        try:
            listener.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                beside.unlink()
            listener.bind(str(beside))
            # Nobody can connect before listen(), so nobody does with wider permissions.
            beside.chmod(0o600)
            listener.listen(BACKLOG)
            self._inode = beside.stat().st_ino
            beside.rename(self.path)
        except BaseException:
            listener.close()
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        self._listener = listener
        self._listen()

    async def close(self) -> None:
        """Stop listening, end every connection and remove the socket, unless a newer agent's is there."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            with contextlib.suppress(FileNotFoundError):
                if self.path.stat().st_ino == self._inode:
                    self.path.unlink()
        await self._owner.close()

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors or memory: the connection stays queued, so without a pause this would spin.
            _log.error("cannot accept on %s: %s; trying again in %g s", self.path, error, ACCEPT_PAUSE_S)
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener)
            loop.call_later(ACCEPT_PAUSE_S, self._listen)
            return
        packets = PacketSocket(sock)
        try:
            self._admit(packets.peer)
        except Exception as error:  # noqa: BLE001  # whatever it raises, the process is not admitted
            self._refuse(packets, str(error))
            return
        create_task(self._serve(packets), name=f"zds {packets.peer}", owner=self._owner)

    def _refuse(self, packets: PacketSocket, why: str) -> None:
        self.refused += 1
        packets.close()
        _log.warning("refused a connection to %s: %s", self.path, why)

    async def _serve(self, packets: PacketSocket) -> None:
        try:
            await self._greet(packets)
        except (ZdsProtocolError, ZdsClosedError, TimeoutError) as error:
            self._refuse(packets, f"{packets.peer} sent no ZdsHello: {error or 'in time'}")
            return
        except asyncio.CancelledError:
            packets.close()
            raise
        peer = ZdsPeer(packets, self._ack_timeout_s)
        owner = TaskOwner(f"zds peer {packets.peer}")
        try:
            create_task(peer._read(), name="read answers", owner=owner)
            create_task(self._open(peer), name="send snapshot", owner=owner)
            await peer.wait_closed()
        finally:
            peer.close("the server closed")
            await owner.close()
            self._on_close(peer, peer._why)

    async def _greet(self, packets: PacketSocket) -> None:
        async with asyncio.timeout(self._hello_timeout_s):
            data, fds = await packets.receive()
        if fds:
            close_fds(fds)
            raise ZdsProtocolError("descriptors with a greeting")
        decode_hello(data)

    async def _open(self, peer: ZdsPeer) -> None:
        try:
            await self._on_open(peer)
        except ZdsClosedError as error:
            peer.close(str(error))
        except Exception:
            peer.close("sending the snapshot failed")
            raise


class ZdsHandler(Protocol):
    """What ztunnel does with pods; each call is answered when it returns.

    `ZdsRejectedError` becomes the answer's error and the connection goes on.
    """

    async def add(self, workload: AddWorkload, netns_fd: int) -> None:
        """Take a pod; the descriptor is closed when this returns, so duplicate it to keep it."""
        ...

    async def keep(self, uid: str) -> None:
        """Check that this pod is there already."""
        ...

    async def delete(self, uid: str) -> None:
        """Let go of a pod; an unknown one is no error."""
        ...

    async def snapshot(self, uids: frozenset[str]) -> None:
        """Let go of every pod that is not among these."""
        ...


class ZdsClient:
    """ztunnel's side: connects for ever, and answers each request once the handler is done with it.

    Losing the connection changes nothing about the pods in hand. `on_state(True)` follows a
    complete snapshot, `on_state(False)` its connection's end. `run` belongs to a task of the caller's.
    """

    def __init__(
        self,
        path: Path,
        handler: ZdsHandler,
        *,
        on_state: Callable[[bool], None] = lambda _ready: None,
        trust: Callable[[Credentials], object] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Create it; `trust` raises to refuse the process that listens (default: uid 0 only)."""
        self.path = path
        self.last_error = ""
        """Why the last connection ended or could not be made."""
        self._handler = handler
        self._on_state = on_state
        self._trust = trust or require_uid()
        self._sleep = sleep
        self._draw = draw
        self._failures = 0

    async def run(self) -> None:
        """Serve connections until cancelled; whatever the agent does, the next one is tried."""
        while True:
            session = ClientSession()
            try:
                await self._connection(session)
            except (ZdsClosedError, ZdsProtocolError, ForeignPeerError, OSError) as error:
                self.last_error = str(error)
            finally:
                if session.complete:
                    self._on_state(False)
            self._failures = 0 if session.complete else self._failures
            delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(self._failures, 20))
            delay_s *= 0.5 + self._draw() / 2
            self._failures += 1
            _log.warning(
                "no node agent at %s: %s; trying again in %.2f s, pods in hand stay",
                self.path,
                self.last_error,
                delay_s,
            )
            await self._sleep(delay_s)

    async def _connection(self, session: ClientSession) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.connect(str(self.path))
            packets = PacketSocket(sock)
        except BaseException:
            sock.close()
            raise
        try:
            self._trust(packets.peer)
            await packets.send(encode_hello(Hello()))
            while True:
                await self._exchange(packets, session)
        finally:
            packets.close()

    async def _exchange(self, packets: PacketSocket, session: ClientSession) -> None:
        """Take one request, with its descriptors, and answer it."""
        data, fds = await packets.receive()
        try:
            request = decode_request(data)
            session.take(request, len(fds))
            error = await self._handle(request, fds, session)
        except ZdsProtocolError as wrong:
            await packets.send(encode_ack(Ack(error=f"protocol error: {wrong}")))
            raise
        finally:
            close_fds(fds)
        await packets.send(encode_ack(Ack(error=error)))
        if isinstance(request, SnapshotSent):
            self.last_error = ""
            self._on_state(True)

    async def _handle(self, request: ZdsRequest, fds: list[int], session: ClientSession) -> str:
        try:
            match request:
                case AddWorkload():
                    await self._handler.add(request, fds[0])
                case KeepWorkload():
                    await self._handler.keep(request.uid)
                case DelWorkload():
                    await self._handler.delete(request.uid)
                case SnapshotSent():
                    await self._handler.snapshot(session.named)
        except ZdsRejectedError as error:
            return str(error) or "rejected"
        except Exception as error:  # noqa: BLE001  # a defect met with one pod must not cost the others
            _log.exception("%s failed", type(request).__name__)
            return f"internal error: {error!r}"
        return ""
