# SPDX-License-Identifier: Apache-2.0
"""What is measured: nginx itself, and tunnel pairs in front of it, all on loopback with one authority.

A subject is a port to load and the processes that do its work. A peer from outside is a
command: it gets BENCH_APP_PORT (nginx) and BENCH_PORT (where it must listen), and runs
until it is terminated.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.envoy import connect_client, connect_terminator, envoy
from tests.support.pki import Authority

READY_S = 20.0
UPLOAD_BYTES = 1 << 20
LARGE_BYTES = 16 << 20
_NGINX = """
daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 16384; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 3600s; client_max_body_size 64m;
  client_body_temp_path {dir}; proxy_temp_path {dir};
  fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{body}"; }}
    location /large {{ alias {dir}/large; }}
    # Proxying reads the whole body first; an answer before it would count bytes that were never sent.
    location /upload {{
      client_body_buffer_size 2m; proxy_pass_request_body off; proxy_set_header Content-Length "";
      proxy_pass http://127.0.0.1:{port}/;
    }}
  }}
}}
"""


class SubjectError(Exception):
    """A subject cannot be started; says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing to load."""

    name: str
    port: int
    pids: tuple[int, ...]
    """Processes whose CPU and memory are its cost; the application's are not."""


Starter = Callable[[int, Path], contextlib.AbstractContextManager[Subject]]
"""Starts a subject: nginx's port, a directory of its own."""


@contextlib.contextmanager
def application(directory: Path) -> Iterator[int]:
    """Run nginx; yield its port."""
    directory.chmod(0o755)
    (directory / "large").write_bytes(os.urandom(1 << 20) * (LARGE_BYTES >> 20))
    port = free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(dir=directory, port=port, body="x" * 100))
    with process("nginx", ["nginx", "-p", str(directory), "-c", str(config)]) as running:
        wait_for(port, running, "nginx")
        yield port


@contextlib.contextmanager
def direct(app: int, _directory: Path) -> Iterator[Subject]:
    """Nothing in between."""
    yield Subject(name="direct", port=app, pids=())


@contextlib.contextmanager
def ours(app: int, directory: Path) -> Iterator[Subject]:
    """Both ends of our tunnel, a process each."""
    Authority().workload("bench").write(directory)
    node = [sys.executable, "-m", "bench.hbone_node"]
    with process("our inbound end", [*node, "in", str(directory), str(app)], piped=True) as inbound:
        middle = printed_port(inbound)
        with process("our outbound end", [*node, "out", str(directory), str(middle)], piped=True) as outbound:
            yield Subject(name="ambit", port=printed_port(outbound), pids=(inbound.pid, outbound.pid))


@contextlib.contextmanager
def envoys(app: int, directory: Path) -> Iterator[Subject]:
    """Two Envoys that do the same: CONNECT over mutual TLS 1.3."""
    leaf = Authority().workload("bench")
    listener, cluster = connect_terminator(leaf, directory, port=app)
    with envoy(directory / "in", listeners=[listener], clusters=[cluster]) as inbound:
        listener, cluster = connect_client(leaf, directory, authority="10.0.0.1:80", port=inbound.port("in"))
        with envoy(directory / "out", listeners=[listener], clusters=[cluster]) as outbound:
            yield Subject(
                name="envoy", port=outbound.port("out"), pids=(inbound.process.pid, outbound.process.pid)
            )


def peer(name: str, command: str) -> Starter:
    """Make a subject of a command."""

    @contextlib.contextmanager
    def start(app: int, directory: Path) -> Iterator[Subject]:
        port = free_port()
        environment = {**os.environ, "BENCH_APP_PORT": str(app), "BENCH_PORT": str(port)}
        with process(name, shlex.split(command), env=environment, cwd=directory) as running:
            wait_for(port, running, name)
            yield Subject(name=name, port=port, pids=(running.pid,))

    return start


SUBJECTS: Mapping[str, Starter] = {"direct": direct, "ambit": ours, "envoy": envoys}


def free_port() -> int:
    """Return a loopback port that nobody holds now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def process(
    what: str,
    command: list[str],
    *,
    piped: bool = False,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run a program until the block ends.

    Raises:
        SubjectError: it cannot be started.
    """
    try:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE if piped else subprocess.DEVNULL, text=True, env=env, cwd=cwd
        )
    except OSError as error:
        raise SubjectError(f"{what} cannot be started: {command[0]}: {error.strerror}") from error
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        if running.stdout is not None:
            running.stdout.close()


def printed_port(running: subprocess.Popen[str]) -> int:
    """Read the port that one of our own programs prints."""
    assert running.stdout is not None
    line = running.stdout.readline()
    if not line.strip().isdigit():
        raise SubjectError(f"our end ended before it listened (code {running.poll()})")
    return int(line)


def wait_for(port: int, running: subprocess.Popen[str], what: str) -> None:
    """Wait until a program listens.

    Raises:
        SubjectError: it ended, or did not in time.
    """
    deadline = time.monotonic() + READY_S
    while True:
        if running.poll() is not None:
            raise SubjectError(f"{what} ended with code {running.returncode} before it listened on {port}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise SubjectError(f"{what} does not listen on {port} after {READY_S:g} s")
        time.sleep(0.02)
