# SPDX-License-Identifier: Apache-2.0
"""Rules of the tree that no linter knows: licences, sizes, module docstrings, no leftovers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mesh", "bpf", "ztunnel", "waypoint", "controller", "daemonset", "lab", "cli", "bench")
GENERATED = ROOT / "mesh" / "proto"
FILE_LINES = 600
FUNCTION_LINES = 80
LICENCES = {
    ".py": ("# SPDX-License-Identifier: Apache-2.0",),
    ".c": ("/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */",),
    ".h": ("/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */",),
}
LEFTOVER = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "HA" + "CK")) + r")\b")


def sources(*directories: str) -> list[Path]:
    """List what people wrote below the directories; generated code is not."""
    return sorted(
        path
        for directory in directories
        for path in (ROOT / directory).rglob("*")
        if path.suffix in LICENCES and GENERATED not in path.parents
    )


SHIPPED = sources(*PACKAGES)
WRITTEN = SHIPPED + sources("tests", "tools", "examples")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_package_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in SHIPPED} == set(PACKAGES)


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_the_first_lines_name_the_licence(path: Path) -> None:
    head = path.read_text().split("\n", 2)[:2]
    assert any(line in LICENCES[path.suffix] for line in head), f"{name(path)}: no SPDX line of its kind"


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_nothing_is_left_for_later(path: Path) -> None:
    found = [n for n, line in enumerate(path.read_text().split("\n"), 1) if LEFTOVER.search(line)]
    assert not found, f"{name(path)}: lines {found}"


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.suffix == ".py"], ids=name)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{name(path)}: no module docstring"


@pytest.mark.parametrize("path", WRITTEN, ids=name)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= FILE_LINES, f"{name(path)}: {lines} lines"
    tree = ast.parse(text if path.suffix == ".py" else "")
    long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long, f"{name(path)}: {long}"
