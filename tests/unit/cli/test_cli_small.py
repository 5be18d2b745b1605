# SPDX-License-Identifier: Apache-2.0
"""Completion, redaction, durations, words, and what a newcomer sees first."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from cli import __main__ as main
from cli.bugreport import REDACTED, redact
from cli.codes import CliError, Code
from cli.completion import SCRIPTS, candidates
from cli.options import duration
from cli.stat_words import kind_and_name

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("before", "begun", "some"),
    [
        ([], "st", {"stat", "status"}),
        (["stat"], "d", {"deploy"}),
        (["stat", "-o"], "j", {"json"}),
        (["stat"], "--pro", {"--prometheus"}),
        (["node"], "", {"config"}),
        (["node", "config"], "wo", {"workload"}),
        (["completion"], "z", {"zsh"}),
        (["nonsense"], "", set()),
        (["lab", "up"], "--no", {"--nodes", "--no-mesh"}),
    ],
)
def test_what_can_follow(before: list[str], begun: str, some: set[str]) -> None:
    found = set(candidates(before, begun))
    assert some <= found
    assert all(word.startswith(begun) for word in found)


def test_the_bash_script_completes() -> None:
    script = (
        f'ambit() {{ {sys.executable} -m cli "$@"; }}\n'
        "source <(ambit completion bash)\nCOMP_WORDS=(ambit chec)\nCOMP_CWORD=1\n_ambit\n"
        'echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30, cwd=ROOT
    )
    assert done.stdout == "check\n"


@pytest.mark.parametrize("shell", SCRIPTS)
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["completion", shell]) == 0
    assert "ambit completion words" in capsys.readouterr().out


def test_what_sounds_secret_is_left_out() -> None:
    secret = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "y"}}
    found = redact(secret)
    assert "eA==" not in str(found)
    assert "'y'" not in str(found)
    assert found["metadata"] == {"name": "s"}
    pod = {
        "spec": {
            "volumes": [{"secret": {"secretName": "s"}}],
            "containers": [
                {
                    "env": [{"name": "DB_PASSWORD", "value": "x1"}, {"name": "N", "value": "8"}],
                    "apiKey": "x2",
                }
            ],
        },
        "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x3"}},
    }
    found = redact(pod)
    assert not any(word in str(found) for word in ("x1", "x2", "x3"))
    container = found["spec"]["containers"][0]
    assert container["env"] == [{"name": "DB_PASSWORD", "value": REDACTED}, {"name": "N", "value": "8"}]
    assert found["spec"]["volumes"] == [{"secret": {"secretName": "s"}}]


@pytest.mark.parametrize(("text", "seconds"), [("30", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600)])
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "5 minutes", "-1s", "1y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)


KINDS = {"deploy": "deploy", "deployment": "deploy", "pod": "pod"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ("deploy", "")),
        (["pod"], ("pod", "")),
        (["deployment", "web"], ("deploy", "web")),
        (["pod/web"], ("pod", "web")),
        (["shop/web"], ("deploy", "shop/web")),
    ],
)
def test_kinds_and_names(words: list[str], expected: tuple[str, str]) -> None:
    assert kind_and_name(words, KINDS) == expected


@pytest.mark.parametrize("words", [["a", "b"], ["pod", "a", "b"], ["pod/a", "b"]])
def test_words_that_are_too_many(words: list[str]) -> None:
    with pytest.raises(CliError) as error:
        kind_and_name(words, KINDS)
    assert error.value.code is Code.USAGE


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in main.modules())


@pytest.mark.parametrize("verb", main.modules())
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([verb, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: ambit {verb} ")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom cli.__main__ import build_parser\nbuild_parser('')\n"
        "heavy = {'yaml', 'grpc', 'kubernetes', 'cryptography', 'asyncio', 'lab.layout', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=ROOT,
    )
    assert done.stdout == "[]\n"


def test_every_code_of_a_finding_can_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for code in Code:
        assert main.main(["explain", code.code]) == 0
        assert code.meaning in capsys.readouterr().out
