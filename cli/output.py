# SPDX-License-Identifier: Apache-2.0
"""How answers look: aligned columns, colour only for people, one shape for JSON and YAML.

Data goes to standard output and prose to standard error; nothing here knows the mesh.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

API_VERSION = "ambit.io/v1alpha1"
FORMATS = ("table", "wide", "json", "yaml")
GAP = "  "
NARROWEST = 60
"""Columns below which prose is no longer folded."""

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A table cell with a colour; without one it is plain."""

    text: str
    colour: str = ""


Row = Sequence[str | Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What the stream can show."""

    colour: bool
    unicode: bool
    width: int

    @classmethod
    def of(cls, stream: TextIO, when: str = "auto") -> Screen:
        """Look at a stream, NO_COLOR, CLICOLOR_FORCE and TERM; `when` is auto, always or never."""
        tty = stream.isatty()
        colour = when == "always" or (
            when == "auto"
            and not os.environ.get("NO_COLOR")
            and (
                os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0")
                or (tty and os.environ.get("TERM", "dumb") != "dumb")
            )
        )
        encoding = (getattr(stream, "encoding", "") or "").lower().replace("-", "")
        width = shutil.get_terminal_size((100, 24)).columns if tty else 100
        return cls(colour=colour, unicode=encoding.startswith("utf"), width=max(width, NARROWEST))

    def paint(self, text: str, colour: str) -> str:
        """Colour a text if the stream shows colours."""
        if not self.colour or not colour or not text:
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    def glyph(self, name: str) -> str:
        """Return a sign: ok, warning, error, skipped, arrow, line, branch, last, down."""
        good, plain = _GLYPHS[name]
        return good if self.unicode else plain


_GLYPHS = {
    "ok": ("✓", "ok"),
    "warning": ("!", "!!"),
    "error": ("✗", "xx"),
    "skipped": ("-", "--"),
    "arrow": ("→", "->"),
    "line": ("─", "-"),
    "branch": ("├─", "|-"),
    "last": ("└─", "`-"),
    "down": ("│", "|"),
    "dot": ("·", "*"),
}


def table(headers: Sequence[str], rows: Iterable[Row], screen: Screen, *, right: Iterable[int] = ()) -> str:
    """Return aligned columns, two spaces apart; `right` are the numbers of right-aligned columns.

    Empty headers leave the header line out.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in rows]
    count = len(headers) or (len(cells[0]) if cells else 0)
    titles = [Cell(title, "dim") for title in headers]
    every = [titles, *cells] if headers else cells
    widths = [max(len(row[i].text) for row in every) for i in range(count)] if every else []
    numeric = frozenset(right)
    lines = []
    for row in every:
        parts = []
        for i, cell in enumerate(row):
            pad = " " * (widths[i] - len(cell.text))
            text = screen.paint(cell.text, cell.colour)
            last = i == count - 1
            parts.append(pad + text if i in numeric else text if last else text + pad)
        lines.append(GAP.join(parts).rstrip())
    return "\n".join(lines)


def fold(text: str, *, width: int, indent: str = "") -> str:
    """Break prose at spaces so that it fits; every line is indented."""
    import textwrap

    lines = []
    for part in text.split("\n"):
        lines.append(
            textwrap.fill(
                part,
                width=max(width, NARROWEST),
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def document(kind: str, **content: Any) -> dict[str, Any]:
    """Return a versioned document for JSON and YAML."""
    return {"apiVersion": API_VERSION, "kind": kind, **content}


def dump(value: Mapping[str, Any], output: str) -> str:
    """Return a document as `json` or `yaml`."""
    if output == "json":
        return json.dumps(value, indent=2, default=str)
    import yaml

    return str(yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False)).rstrip()


def emit(
    options: argparse.Namespace,
    kind: str,
    items: Sequence[Mapping[str, Any]],
    headers: Sequence[str],
    rows: Iterable[Row],
    *,
    right: Iterable[int] = (),
) -> None:
    """Print a list in the format that was asked for."""
    if options.output in ("json", "yaml"):
        print(dump(document(kind, items=list(items)), options.output))
        return
    screen = Screen.of(sys.stdout, options.color)
    print(table(() if options.no_headers else headers, rows, screen, right=right))


def say(text: str) -> None:
    """Tell a person something that is no data."""
    print(text, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """Write a duration as a person says it: 12s, 5m, 3h, 2d."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def size(count: float) -> str:
    """Write a number of bytes with a unit of 1024: 512B, 1.5KB, 20MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f}{unit}" if unit == "B" or count >= 10 else f"{count:.1f}{unit}"
        count /= 1024
    raise AssertionError


def plural(count: int, word: str, several: str = "") -> str:
    """Write `1 pod`, `3 pods`."""
    return f"{count} {word if count == 1 else several or word + 's'}"
