# SPDX-License-Identifier: Apache-2.0
"""The CNI socket: one JSON object a line in, one out; ADD answers when the pod is captured.

Whatever comes over this socket is re-verified: the pod must be known by its objects, and
the namespace must prove to own the addresses. Only root may connect (peer credentials
and mode 0600). What to do is behind `Enroller`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from daemonset.codes import Code
from mesh.model.address import IPAddress, parse_ip
from mesh.runtime.tasks import TaskOwner, create_task

_log = logging.getLogger("ambit.agent.cni")

MAX_LINE_BYTES = 16384
MAX_CONNECTIONS = 64
IDLE_TIMEOUT_S = 60.0
COMMANDS = ("ADD", "DEL", "CHECK")


@dataclass(frozen=True, slots=True, kw_only=True)
class CniRequest:
    """One request, as it came; nothing in it is trusted."""

    command: str
    uid: str
    namespace: str
    name: str
    netns: str = ""
    addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CniAnswer:
    """One answer; `code` is None when there is nothing to explain."""

    result: str
    """enrolled, ignored, removed or error."""
    reason: str = ""
    code: Code | None = None

    def encode(self) -> bytes:
        """Return the line."""
        value = {"result": self.result, "reason": self.reason, "code": str(self.code) if self.code else ""}
        if self.result == "error" and self.code is not None:
            value["reason"] = f"{self.reason}; {self.code.remedy}"
        return json.dumps(value).encode() + b"\n"


class CniRequestError(ValueError):
    """A line is no request; the caller's fault, names the field."""


def parse_request(line: bytes) -> CniRequest:
    """Read one line.

    Raises:
        CniRequestError: it is no JSON object of the contract's fields and types.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise CniRequestError(f"the line is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CniRequestError("the line is no JSON object")
    if value.get("cmd") not in COMMANDS:
        raise CniRequestError(f"cmd is {value.get('cmd')!r}, not one of {', '.join(COMMANDS)}")
    texts: dict[str, str] = {}
    for name in ("uid", "namespace", "name"):
        text = value.get(name)
        if not isinstance(text, str) or not text or "/" in text:
            raise CniRequestError(f"{name} is no name")
        texts[name] = text
    netns = value.get("netns", "")
    if not isinstance(netns, str) or (value["cmd"] == "ADD" and not netns.startswith("/")):
        raise CniRequestError("netns is no absolute path")
    ips = value.get("ips", [])
    if not isinstance(ips, list):
        raise CniRequestError("ips is no list")
    try:
        addresses = tuple(parse_ip(str(ip).partition("/")[0]) for ip in ips)
    except ValueError as error:
        raise CniRequestError(f"ips: {error}") from error
    return CniRequest(
        command=value["cmd"],
        uid=texts["uid"],
        namespace=texts["namespace"],
        name=texts["name"],
        netns=netns,
        addresses=addresses,
    )


class Enroller(Protocol):
    """What the agent does for the CNI."""

    async def add(self, request: CniRequest) -> CniAnswer:
        """Enrol a starting pod, or say why it is left alone or must not start."""
        ...

    async def delete(self, request: CniRequest) -> CniAnswer:
        """Release a pod whose sandbox is being removed."""
        ...

    async def check(self, request: CniRequest) -> CniAnswer:
        """Say whether the pod is as ADD left it."""
        ...


class CniServer:
    """Serves the socket; owned by the agent."""

    def __init__(self, path: Path, enroller: Enroller) -> None:
        self._path = path
        self._enroller = enroller
        self._tasks = TaskOwner("cni")
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self) -> None:
        """Listen, mode 0600; a socket file that nobody serves is replaced.

        Raises:
            OSError: the path cannot be bound.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            listener.bind(str(self._path))
        except OSError as error:
            listener.close()
            raise OSError(error.errno, f"the CNI socket {self._path}: {error.strerror}") from error
        finally:
            os.umask(old)
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Stop listening, cut connections, remove the socket file."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()
        if self._server is not None:
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != 0 or self._open >= MAX_CONNECTIONS or self._tasks.closed:
            _log.warning("connection of pid %d uid %d refused (%d open)", pid, uid, self._open)
            writer.transport.abort()
            return
        self._open += 1
        create_task(self._connection(reader, writer), name="cni connection", owner=self._tasks)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_TIMEOUT_S):
                    line = await reader.readuntil(b"\n")
                writer.write((await self._answer(line)).encode())
                await writer.drain()
        except asyncio.LimitOverrunError:
            too_long = f"a line may have up to {MAX_LINE_BYTES} bytes"
            writer.write(CniAnswer(result="error", reason=too_long, code=Code.CNI_BAD_REQUEST).encode())
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            pass  # The caller went away or says nothing more.
        finally:
            self._open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _answer(self, line: bytes) -> CniAnswer:
        try:
            request = parse_request(line)
        except CniRequestError as error:
            return CniAnswer(result="error", reason=str(error), code=Code.CNI_BAD_REQUEST)
        handler = {"ADD": self._enroller.add, "DEL": self._enroller.delete, "CHECK": self._enroller.check}
        answer = await handler[request.command](request)
        _log.info(
            "%s %s/%s: %s %s", request.command, request.namespace, request.name, answer.result, answer.reason
        )
        return answer
