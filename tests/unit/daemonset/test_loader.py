# SPDX-License-Identifier: Apache-2.0
"""What the loader process says, as an object or as an error with a name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from daemonset import loader
from daemonset.codes import Code


def result(exit_code: int = 0, stdout: str = "", stderr: str = "") -> loader.Result:
    return loader.Result(exit_code=exit_code, stdout=stdout, stderr=stderr)


def test_the_last_line_is_the_answer() -> None:
    assert loader.interpret(result(stdout='note\n{"pinned": 3}\n'), "load") == {"pinned": 3}
    assert loader.interpret(result(), "load") == {}


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (
            result(1, stderr="ModuleNotFoundError: No module named 'bcc'"),
            Code.LOADER_MISSING,
            "no module bcc",
        ),
        (result(65, stderr="no such cgroup"), Code.LOADER_FAILED, "bad input: no such cgroup"),
        (result(69, stderr="a\nb"), Code.LOADER_FAILED, "unreachable: a b"),
        (result(-9), Code.LOADER_FAILED, "exit code -9"),
        (result(stdout="done"), Code.LOADER_FAILED, "JSON"),
        (result(stdout="[1]"), Code.LOADER_FAILED, "no JSON object"),
    ],
)
def test_failures_have_a_code_and_the_loaders_words(given: loader.Result, code: Code, words: str) -> None:
    with pytest.raises(loader.LoaderError, match=words) as failure:
        loader.interpret(given, "load")
    assert failure.value.code is code
    assert failure.value.code.remedy


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_interpreter_runs_the_module_with_a_clean_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    python = script(
        tmp_path / "python", 'echo "{\\"args\\": \\"$*\\", \\"path\\": \\"$PYTHONPATH$VIRTUAL_ENV\\"}"'
    )
    answer = asyncio.run(loader.run(python, ["load", "--bpffs", "/x"], timeout_s=10))
    assert answer == {"args": "-m bpf load --bpffs /x", "path": str(loader.REPOSITORY)}


def test_a_loader_that_hangs_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    python = script(tmp_path / "python", f"echo $$ > {pid_file}; exec sleep 60")

    async def scenario() -> None:
        running = asyncio.get_running_loop().create_task(loader.run(python, ["load"], timeout_s=1.0))
        with pytest.raises(loader.LoaderError, match="1 s") as failure:
            await running
        assert failure.value.code is Code.LOADER_TIMEOUT
        assert failure.value.exit_code == 124

    asyncio.run(scenario())
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


def test_an_absent_interpreter_is_named(tmp_path: Path) -> None:
    with pytest.raises(loader.LoaderError, match="no-python") as failure:
        asyncio.run(loader.run(tmp_path / "no-python", ["load"], timeout_s=1.0))
    assert failure.value.code is Code.LOADER_MISSING
