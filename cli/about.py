# SPDX-License-Identifier: Apache-2.0
"""`ambit explain` and `ambit version`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import NamedTuple

from lab.errors import Code
from mesh.runtime.version import VERSION

REPOSITORY = Path(__file__).resolve().parents[1]
EXIT_NO_DATA = 4


class Entry(NamedTuple):
    """What is known of a code."""

    name: str
    meaning: str
    """Empty: the name says it."""
    remedy: str


def catalogue() -> dict[str, Entry]:
    """Return every code of every process, read from their tables without importing them."""
    found = {code.code: Entry(code.name, "", code.remedy) for code in Code}
    for path in sorted(REPOSITORY.glob("*/codes.py")):
        found |= _read(path.read_text())
    return found


def _read(source: str) -> dict[str, Entry]:
    """Read `NAME = ("AMBnnnn", ["meaning",] "remedy")` members of an enum's source."""
    found: dict[str, Entry] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        words = [e.value for e in node.value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        target = node.targets[0]
        if len(words) >= 2 and words[0].startswith("AMB") and isinstance(target, ast.Name):
            found[words[0]] = Entry(target.id, words[1] if len(words) > 2 else "", words[-1])
    return found


def _title(name: str) -> str:
    return name.replace("_", " ").lower()


def explain(code: str | None) -> int:
    """Print what a code means and what to do; all of them without one."""
    known = catalogue()
    if code is None:
        for key in sorted(known):
            print(f"{key}  {_title(known[key].name)}")
        return 0
    found = known.get(code.upper())
    if found is None:
        print(f"no message has the code {code}; `ambit explain` lists all", file=sys.stderr)
        return EXIT_NO_DATA
    print(f"{code.upper()}: {_title(found.name)}")
    if found.meaning:
        print(f"  what it means: {found.meaning}")
    print(f"  what to do: {found.remedy}")
    return 0


def version(*, short: bool) -> int:
    """Print the version of the command."""
    print(VERSION if short else f"ambit {VERSION}")
    return 0
