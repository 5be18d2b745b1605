# SPDX-License-Identifier: Apache-2.0
"""What is done to a subject, and what is read off the machine meanwhile."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.stats import Results, WrkResult, parse_wrk
from bench.subjects import UPLOAD_BYTES, Subject, SubjectError

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_UPLOAD = f'wrk.method = "POST"\nwrk.body = string.rep("x", {UPLOAD_BYTES})\n'
IDLE_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds at a moment."""

    processes: float
    """User and system time of the subject's processes."""
    machine: float
    """All that was not idle on the machine: softirq, wrk and nginx too."""
    softirq: float
    """Interrupt work of the machine, which no process is charged for."""

    @classmethod
    def read(cls, pids: tuple[int, ...]) -> Cpu:
        """Read it now."""
        mine = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            mine += int(fields[11]) + int(fields[12])
        user, nice, system, _idle, _iowait, irq, softirq = (
            int(field) for field in Path("/proc/stat").read_text().split(maxsplit=8)[1:8]
        )
        busy = user + nice + system + irq + softirq
        return cls(mine / _TICKS, busy / _TICKS, (irq + softirq) / _TICKS)


def rss_bytes(pids: tuple[int, ...]) -> int:
    """Return resident memory of processes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE


def _wrk(
    subject: Subject,
    seconds: int,
    *,
    connections: int,
    path: str = "/",
    script: str = "",
    close: bool = False,
) -> tuple[WrkResult, Cpu]:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s"]
    if close:
        command += ["-H", "Connection: close"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        # A file, not a pipe: wrk reads the script once for each of its threads.
        if script:
            file.write(script)
            file.flush()
            command += ["-s", file.name]
        before = Cpu.read(subject.pids)
        url = f"http://127.0.0.1:{subject.port}{path}"
        done = subprocess.run([*command, url], capture_output=True, text=True, check=False)
        after = Cpu.read(subject.pids)
    if done.returncode:
        raise SubjectError(f"wrk against {subject.name} failed: {done.stderr.strip() or done.stdout.strip()}")
    used = Cpu(
        after.processes - before.processes, after.machine - before.machine, after.softirq - before.softirq
    )
    return parse_wrk(done.stdout), used


def _requests(load: str, **options: object) -> Callable[[Subject, int, Results], None]:
    def run(subject: Subject, seconds: int, results: Results) -> None:
        result, used = _wrk(subject, seconds, **options)  # type: ignore[arg-type]
        add = results.add
        add(load, subject.name, "requests", "1/s", result.requests_s)
        add(load, subject.name, "p50", "ms", result.p50_ms)
        add(load, subject.name, "p99", "ms", result.p99_ms)
        per_request = 1e6 / max(result.requests, 1)
        if subject.pids:
            cost = (used.processes + used.softirq) * per_request
            add(load, subject.name, "CPU of the ends and softirq", "µs/request", cost)
        add(load, subject.name, "CPU of the machine", "µs/request", used.machine * per_request)
        add(load, subject.name, "errors", "requests", float(result.errors))

    return run


def _bulk(load: str, **options: object) -> Callable[[Subject, int, Results], None]:
    def run(subject: Subject, seconds: int, results: Results) -> None:
        result, used = _wrk(subject, seconds, **options)  # type: ignore[arg-type]
        if result.errors:
            raise SubjectError(f"{subject.name} failed {result.errors} requests of {load}")
        upload = bool(options.get("script"))
        rate = result.requests_s * UPLOAD_BYTES if upload else result.bytes_s
        results.add(load, subject.name, "bytes", "MiB/s", rate / 2**20)
        results.add(
            load, subject.name, "CPU of the machine", "ms/MiB", used.machine * 1e3 / (rate * seconds / 2**20)
        )

    return run


def _idle(subject: Subject, _seconds: int, results: Results) -> None:
    """Open connections that have served one request each and stay; memory before and after."""
    if not subject.pids:
        return
    before = rss_bytes(subject.pids)
    sockets: list[socket.socket] = []
    try:
        for _ in range(IDLE_CONNECTIONS):
            made = socket.create_connection(("127.0.0.1", subject.port), timeout=10)
            sockets.append(made)
            made.sendall(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
            if not made.recv(4096).startswith(b"HTTP/1.1 200"):
                raise SubjectError(f"{subject.name} did not answer an idle connection's request")
        grown = rss_bytes(subject.pids) - before
    finally:
        for made in sockets:
            made.close()
    results.add("idle", subject.name, "memory at rest, both ends", "MiB", before / 2**20)
    results.add("idle", subject.name, "memory a connection", "KiB", grown / IDLE_CONNECTIONS / 1024)


LOADS: Mapping[str, Callable[[Subject, int, Results], None]] = {
    "idle": _idle,
    "c1": _requests("c1", connections=1),
    "c16": _requests("c16", connections=16),
    "c256": _requests("c256", connections=256),
    "new": _requests("new", connections=16, close=True),
    "download": _bulk("download", connections=4, path="/large"),
    "upload": _bulk("upload", connections=4, path="/upload", script=_UPLOAD),
}


def raise_file_limit() -> None:
    """Allow as many sockets as the hard limit does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
