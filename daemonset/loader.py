# SPDX-License-Identifier: Apache-2.0
"""Runs the BPF loader as a short-lived process of the system's interpreter.

bcc and LLVM live and die in that process; the agent sees an exit code, one JSON line and
prose, and turns them into an error with a name and a remedy.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from daemonset.codes import Code
from daemonset.config import Settings

MAX_OUTPUT_BYTES = 262144
REPOSITORY = Path(__file__).resolve().parent.parent
"""Where `bpf` is found by an interpreter that has not installed it."""

EXIT_CAUSES: Mapping[int, str] = {
    1: "an error",
    2: "a failed check",
    64: "wrong usage",
    65: "bad input",
    69: "something it needs is unreachable",
    124: "a timeout",
}
"""Exit codes of every command of the project (docs/architecture/contracts.md)."""


class LoaderError(Exception):
    """The loader failed; carries the code, the exit status and what it said."""

    def __init__(self, code: Code, reason: str, exit_code: int = 1) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a loader process left: exit code and both outputs."""

    exit_code: int
    stdout: str
    stderr: str


def load_arguments(settings: Settings) -> list[str]:
    """Return the arguments of `python3 -m bpf` that load, attach and pin."""
    return [
        "load",
        "--bpffs",
        str(settings.bpffs),
        "--pods-cgroup",
        str(settings.pods_cgroup),
        "--node-cgroup",
        str(settings.node_cgroup),
    ]


def interpret(result: Result, command: str) -> Mapping[str, object]:
    """Turn a result into the loader's JSON object; pure.

    Raises:
        LoaderError: LOADER_MISSING without bcc, else LOADER_FAILED with the loader's own words.
    """
    words = " ".join(result.stderr.split())[-600:]
    if result.exit_code != 0:
        if "No module named 'bcc'" in result.stderr:
            raise LoaderError(Code.LOADER_MISSING, "the interpreter has no module bcc", 69)
        cause = EXIT_CAUSES.get(result.exit_code, f"exit code {result.exit_code}")
        raise LoaderError(
            Code.LOADER_FAILED, f"`bpf {command}` ended with {cause}: {words}", result.exit_code
        )
    lines = result.stdout.strip().splitlines()
    try:
        value = json.loads(lines[-1]) if lines else {}
    except ValueError as error:
        raise LoaderError(
            Code.LOADER_FAILED, f"`bpf {command}` did not answer JSON: {lines[-1][:200]}"
        ) from error
    if not isinstance(value, dict):
        raise LoaderError(Code.LOADER_FAILED, f"`bpf {command}` answered no JSON object")
    return value


async def run(python: Path, arguments: list[str], *, timeout_s: float) -> Mapping[str, object]:
    """Run `PYTHON -m bpf ARGUMENTS` and return its JSON object.

    Raises:
        LoaderError: it cannot be started, does not end in time (it is then killed), or fails.
    """
    command = arguments[0]
    try:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-m",
            "bpf",
            *arguments,
            cwd=REPOSITORY,
            env=_environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise LoaderError(Code.LOADER_MISSING, f"{python}: {error.strerror}", 69) from error
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate()
    except TimeoutError as error:
        raise LoaderError(
            Code.LOADER_TIMEOUT, f"`bpf {command}` did not end within {timeout_s:g} s and was killed", 124
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    result = Result(
        exit_code=process.returncode or 0,
        stdout=stdout[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace"),
        stderr=stderr[-MAX_OUTPUT_BYTES:].decode("utf-8", "replace"),
    )
    return interpret(result, command)


def _environment() -> dict[str, str]:
    """Return the environment without what would point the system's interpreter at our packages."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
