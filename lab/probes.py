# SPDX-License-Identifier: Apache-2.0
"""Probes as the kubelet makes them: HTTP and TCP from the node's namespace, commands in the container."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

MAX_ANSWER_BYTES = 10240
"""Of an HTTP answer; the kubelet reads no more either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe of a container; times in seconds."""

    kind: str
    """`http`, `tcp` or `exec`."""
    port: int = 0
    path: str = "/"
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    initial_delay_s: float = 0.0
    period_s: float = 10.0
    timeout_s: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3


def parse_probe(container: Mapping[str, Any], name: str) -> Probe | None:
    """Return a container's `readinessProbe`, `livenessProbe` or `startupProbe`; None: it has none.

    Raises:
        ValueError: it cannot be understood; says why.
    """
    value = container.get(name)
    if not isinstance(value, Mapping):
        return None
    shared = Probe(
        kind="",
        initial_delay_s=float(value.get("initialDelaySeconds", 0)),
        period_s=float(value.get("periodSeconds", 10)),
        timeout_s=float(value.get("timeoutSeconds", 1)),
        success_threshold=int(value.get("successThreshold", 1)),
        failure_threshold=int(value.get("failureThreshold", 3)),
    )
    if http := value.get("httpGet"):
        return replace(
            shared,
            kind="http",
            port=_port(container, http.get("port")),
            path=str(http.get("path", "/")),
            host=str(http.get("host", "")),
            headers=tuple((str(h["name"]), str(h["value"])) for h in http.get("httpHeaders") or ()),
        )
    if tcp := value.get("tcpSocket"):
        return replace(shared, kind="tcp", port=_port(container, tcp.get("port")))
    if command := value.get("exec"):
        return replace(shared, kind="exec", command=tuple(command.get("command") or ()))
    raise ValueError(f"{name} has none of httpGet, tcpSocket, exec")


def _port(container: Mapping[str, Any], value: object) -> int:
    if isinstance(value, int):
        return value
    for port in container.get("ports") or ():
        if port.get("name") == value:
            return int(port["containerPort"])
    raise ValueError(f"the container has no port named {value!r}")


async def ask(probe: Probe, address: str, execute: Callable[[tuple[str, ...]], Awaitable[int]]) -> str:
    """Probe once; return why it failed, empty on success."""
    try:
        async with asyncio.timeout(probe.timeout_s):
            if probe.kind == "exec":
                code = await execute(probe.command)
                return f"{probe.command[0]} exited with {code}" if code else ""
            reader, writer = await asyncio.open_connection(probe.host or address, probe.port)
            try:
                return await _http(probe, address, reader, writer) if probe.kind == "http" else ""
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer within {probe.timeout_s:g} s"
    except OSError as error:
        return f"port {probe.port}: {error.strerror or error}"


async def _http(
    probe: Probe, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> str:
    headers = {"Host": f"{address}:{probe.port}", "User-Agent": "kube-probe/ambit", "Connection": "close"}
    headers |= dict(probe.headers)
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    writer.write(f"GET {probe.path} HTTP/1.1\r\n{lines}\r\n".encode())
    await writer.drain()
    words = (await reader.readline()).split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"port {probe.port} does not speak HTTP"
    await reader.read(MAX_ANSWER_BYTES)
    status = int(words[1])
    return "" if 200 <= status < 400 else f"GET {probe.path} answered {status}"


class Verdict:
    """Turns results into a state by the probe's thresholds; pure."""

    def __init__(self, probe: Probe, *, good: bool) -> None:
        self._probe = probe
        self._successes = 0
        self._failures = 0
        self.good = good
        self.reason = "" if good else "not probed yet"

    def take(self, failure: str) -> bool:
        """Count one result; return whether the state changed."""
        before = self.good
        if failure:
            self._successes = 0
            self._failures += 1
            self.reason = failure
            if self._failures >= self._probe.failure_threshold:
                self.good = False
        else:
            self._failures = 0
            self._successes += 1
            if self._successes >= self._probe.success_threshold:
                self.good = True
                self.reason = ""
        return self.good != before
