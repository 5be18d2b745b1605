# SPDX-License-Identifier: Apache-2.0
"""The system's tools, run to their end: ip in batches, nft from text."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from lab.errors import Code, LabError

TIMEOUT_S = 60.0
"""For one command; they take milliseconds."""


def run(*command: str, text: str | None = None, check: bool = True) -> str:
    """Run a command and return its output.

    Raises:
        LabError: it failed (only with `check`), is not installed, or hangs.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise LabError(Code.NO_TOOL, f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(
            Code.COMMAND_FAILED, f"{' '.join(command)} did not end within {TIMEOUT_S:.0f} s"
        ) from error
    if check and done.returncode:
        raise LabError(Code.COMMAND_FAILED, f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def ip_batch(lines: Iterable[str], *, netns: str = "") -> None:
    """Run `ip` commands in order in one process.

    Raises:
        LabError: one failed; the ones before it were done.
    """
    text = "\n".join(lines) + "\n"
    run("ip", *(("-n", netns) if netns else ()), "-batch", "-", text=text)


def sysctl(netns: str, settings: Sequence[tuple[str, str]]) -> None:
    """Set kernel parameters of a network namespace."""
    pairs = [f"{name}={value}" for name, value in settings]
    run("ip", "netns", "exec", netns, "sysctl", "-qw", *pairs)


def nft(netns: str, ruleset: str) -> None:
    """Replace rules in one transaction."""
    run("ip", "netns", "exec", netns, "nft", "-f", "-", text=ruleset)


def require_tools() -> None:
    """Check the tools that a lab needs.

    Raises:
        LabError: names the first that is missing.
    """
    for tool in ("ip", "nft", "sysctl"):
        if shutil.which(tool) is None:
            raise LabError(Code.NO_TOOL, f"{tool} is not installed")


def require_root() -> None:
    """Check that this process may make namespaces.

    Raises:
        LabError: it is not root.
    """
    if os.geteuid() != 0:
        raise LabError(Code.NOT_ROOT, "a lab needs root")


def write_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write beside and rename, so that a reader sees the old or the new whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(beside, path)
