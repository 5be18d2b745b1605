# SPDX-License-Identifier: Apache-2.0
"""A program that outlives whoever started it: found again by pid and start time, watched by pidfd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.shell import write_file


def start_ticks(pid: int) -> int:
    """Return a process's start time in clock ticks since boot; 0: it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in "ZX" else int(fields[19])


class Process:
    """A running program, of this process or of an earlier one; `record` names it on disk."""

    def __init__(self, pid: int, record: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.record = record
        self._child = child
        self._ticks = start_ticks(pid)

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        *,
        record: Path,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        cgroup: Path | None = None,
    ) -> Process:
        """Start a program whose output is appended to `log`, in a cgroup before its first line runs.

        Raises:
            OSError: it cannot be started.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        if cgroup is not None:
            argv = ["/bin/sh", "-c", f'echo 0 > {cgroup}/cgroup.procs && exec "$@"', "sh", *argv]
        with log.open("ab") as out:
            child = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        write_file(record, json.dumps({"pid": child.pid, "ticks": start_ticks(child.pid)}))
        return cls(child.pid, record, child)

    @classmethod
    def find(cls, record: Path) -> Process | None:
        """Return the program that a record names, if it still runs."""
        try:
            value = json.loads(record.read_text())
            pid, ticks = int(value["pid"]), int(value["ticks"])
        except (OSError, ValueError, KeyError):
            return None
        return cls(pid, record) if ticks and start_ticks(pid) == ticks else None

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        if self._child is not None:
            return self._child.poll() is None
        return self._ticks != 0 and start_ticks(self.pid) == self._ticks

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal; one that has ended is no error."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def wait(self) -> int | None:
        """Wait for the end; return the exit code (negative: signal), None if it is not known."""
        loop = asyncio.get_running_loop()
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return self._code()
        ended = asyncio.Event()
        loop.add_reader(descriptor, ended.set)
        try:
            if self.alive:
                await ended.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        return self._code()

    def _code(self) -> int | None:
        return None if self._child is None else self._child.wait()

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and SIGKILL after the grace period."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.wait()
