# SPDX-License-Identifier: Apache-2.0
"""Figures of the tunnel alone: direct, through our pair, through an Envoy pair; one run, one machine.

`python -m tests.perf.hbone_pair [SECONDS]`: wrk -> out -> in -> nginx on loopback, one process an
end, mutual TLS 1.3. CPU is user and system time of both ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.envoy import connect_client, connect_terminator, envoy
from tests.support.pki import Authority

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_temp_path {dir}; proxy_temp_path {dir};
  fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{body}"; }}
    location /large {{ alias {dir}/large; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of wrk gave."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """Of both ends, per request."""
    mib_s: float


def cpu_s(pids: list[int]) -> float:
    """Return user and system seconds of processes."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def rss_mib(pids: list[int]) -> float:
    """Return resident memory of processes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * _PAGE / 2**20


def wrk(
    port: int, pids: list[int], seconds: int, *, connections: int, path: str = "/", close: bool = False
) -> Figures:
    """Run wrk with one thread."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--latency",
        f"http://127.0.0.1:{port}{path}",
    ]
    if close:
        command[1:1] = ["-H", "Connection: close"]
    before = cpu_s(pids)
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = cpu_s(pids) - before
    requests = int(re.search(r"(\d+) requests in", text)[1])  # type: ignore[index]
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    size, unit = re.search(r"Transfer/sec:\s+([\d.]+)([KMG]?)B", text).groups()  # type: ignore[union-attr]
    return Figures(
        rate=rate,
        p50_ms=_latency(text, "50%"),
        p99_ms=_latency(text, "99%"),
        cpu_us=used / max(requests, 1) * 1e6,
        mib_s=float(size) * {"": 2**-20, "K": 2**-10, "M": 1, "G": 1024}[unit],
    )


def _latency(text: str, percentile: str) -> float:
    value, unit = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a process until the block ends."""
    running = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    try:
        yield running
    finally:
        running.terminate()
        running.wait(10)
        assert running.stdout is not None
        running.stdout.close()


def first_line(running: subprocess.Popen[str]) -> int:
    """Return the port that a node prints."""
    assert running.stdout is not None
    return int(running.stdout.readline())


def measure(name: str, port: int, pids: list[int], seconds: int) -> None:
    """Print one row of figures for each load."""
    idle = rss_mib(pids)
    wrk(port, pids, 1, connections=16)
    one = wrk(port, pids, seconds, connections=1)
    sixteen = wrk(port, pids, seconds, connections=16)
    bulk = wrk(port, pids, seconds, connections=1, path="/large")
    bulk4 = wrk(port, pids, seconds, connections=4, path="/large")
    new = wrk(port, pids, seconds, connections=16, close=True)
    print(
        f"{name:8} {_row('c1', one)} | {_row('c16', sixteen)}"
        f" | bulk {bulk.mib_s:.0f}, x4 {bulk4.mib_s:.0f} MiB/s | {_row('new', new)}"
        f" | RSS {idle:.0f} -> {rss_mib(pids):.0f} MiB",
        flush=True,
    )


def _row(load: str, figures: Figures) -> str:
    latency = f"p50 {figures.p50_ms:.3f} p99 {figures.p99_ms:.3f} ms"
    return f"{load} {figures.rate:.0f}/s {latency} {figures.cpu_us:.1f} us"


def main(seconds: int, which: str) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "large").write_bytes(os.urandom(1 << 20) * 16)
        app = 18999
        (directory / "nginx.conf").write_text(_NGINX.format(dir=directory, port=app, body="x" * 100))
        authority = Authority()
        leaf = authority.workload("bench")
        leaf.write(directory)
        with process("nginx", "-p", name, "-c", str(directory / "nginx.conf")):
            time.sleep(0.5)
            if "direct" in which:
                measure("direct", app, [], seconds)
            if "ambit" in which:
                node = (sys.executable, "-m", "tests.perf.hbone_node")
                with process(*node, "in", name, str(app)) as inbound:
                    port = first_line(inbound)
                    with process(*node, "out", name, str(port)) as outbound:
                        measure("ambit", first_line(outbound), [inbound.pid, outbound.pid], seconds)
            if "envoy" in which:
                listener, cluster = connect_terminator(leaf, directory, port=app)
                with envoy(directory / "in", listeners=[listener], clusters=[cluster]) as inbound_envoy:
                    listener, cluster = connect_client(
                        leaf, directory, authority="10.0.0.1:80", port=inbound_envoy.port("in")
                    )
                    with envoy(directory / "out", listeners=[listener], clusters=[cluster]) as outbound_envoy:
                        pids = [inbound_envoy.process.pid, outbound_envoy.process.pid]
                        measure("envoy", outbound_envoy.port("out"), pids, seconds)


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 3,
        sys.argv[2] if len(sys.argv) > 2 else "direct ambit envoy",
    )
