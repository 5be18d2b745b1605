# SPDX-License-Identifier: Apache-2.0
"""The lab's cgroup v2 directories: found, made, emptied and removed."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from lab.errors import Code, LabError

EMPTY_TIMEOUT_S = 10.0
"""For killed processes to be gone."""


def find_v2(mounts: str) -> Path:
    """Return the v2 mount from the text of /proc/self/mounts.

    Raises:
        LabError: there is none.
    """
    for line in mounts.splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == "cgroup2":
            return Path(words[1])
    raise LabError(Code.NO_CGROUP, "no cgroup v2 is mounted on this machine")


def make(path: Path) -> None:
    """Make a directory and those above it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(Code.NO_CGROUP, f"{path} cannot be made: {error.strerror}") from error


def members(path: Path) -> list[int]:
    """List the processes in a directory and below."""
    found: list[int] = []
    for root, _, _ in os.walk(path):
        with contextlib.suppress(OSError, ValueError):
            found += [int(word) for word in (Path(root) / "cgroup.procs").read_text().split()]
    return found


def kill(path: Path) -> None:
    """Kill every process in a directory and below, and wait until they are gone.

    Raises:
        LabError: some are still there at the deadline; names them.
    """
    if not path.exists():
        return
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while members(path):
        try:
            (path / "cgroup.kill").write_text("1")
        except OSError:  # Before 5.14 there is no cgroup.kill.
            for pid in members(path):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
        if time.monotonic() > deadline:
            raise LabError(Code.LEFTOVERS, f"processes {members(path)} in {path} do not end")
        time.sleep(0.02)


def remove(path: Path) -> None:
    """Remove a directory and those below it; they must be empty of processes.

    Raises:
        LabError: one cannot be removed.
    """
    for root, _, _ in os.walk(path, topdown=False):
        _rmdir(Path(root))


def _rmdir(path: Path) -> None:
    deadline = time.monotonic() + EMPTY_TIMEOUT_S
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # A process that was just killed is gone from cgroup.procs before it is gone.
            if time.monotonic() > deadline:
                raise LabError(Code.LEFTOVERS, f"{path} cannot be removed: {error.strerror}") from error
            time.sleep(0.02)
        else:
            return
