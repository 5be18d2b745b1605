# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest

from bpf.__main__ import main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["load"],
        ["load", "--bpffs", "/x", "--pods-cgroup", "/y", "--node-cgroup", "/z", "--max-pods", "0"],
    ],
)
def test_wrong_usage_is_64(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 64


def test_error_is_one_json_line_and_prose_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bytecode"
    path.write_text("{}")
    code = main(
        [
            "load",
            "--bpffs",
            str(tmp_path),
            "--pods-cgroup",
            "/x",
            "--node-cgroup",
            "/x",
            "--bytecode",
            str(path),
        ]
    )
    captured = capsys.readouterr()
    assert code == 1
    found = json.loads(captured.out)
    assert (found["ok"], found["error"]) == (False, "BpfError")
    assert captured.err.startswith("bpf: bytecode has a wrong shape")


def test_missing_bytecode_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["load", "--bpffs", str(tmp_path), "--pods-cgroup", "/x", "--node-cgroup", "/x"]
    assert main([*arguments, "--bytecode", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err


def test_unload_of_nothing_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unload", "--bpffs", str(tmp_path / "none")]) == 0
    assert json.loads(capsys.readouterr().out) == {"ok": True, "removed": False}
