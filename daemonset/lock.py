# SPDX-License-Identifier: Apache-2.0
"""One agent per node, and the error of a start that cannot be."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from daemonset.codes import Code


class StartError(Exception):
    """The agent cannot start; carries the code and the exit status."""

    def __init__(self, code: Code, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.exit_code = exit_code


class AgentLock:
    """One agent per node: a lock on a file in RUN_DIR that the kernel releases when the process ends."""

    def __init__(self, run_dir: Path) -> None:
        """Take the lock.

        Raises:
            StartError: another agent holds it; names its pid.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = path = run_dir / "agent.lock"
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            reason = f"another agent (pid {holder}) holds {path}"
            raise StartError(Code.ANOTHER_AGENT, reason, 69) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._fd)

    def remove(self) -> None:
        """Give the lock back and remove its file."""
        self._path.unlink(missing_ok=True)
        self.release()
