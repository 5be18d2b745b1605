# SPDX-License-Identifier: Apache-2.0
"""Tables, colours, numbers and documents."""

from __future__ import annotations

import io
import json

import pytest

from cli.output import Cell, Screen, document, dump, fold, plural, size, span, table

PLAIN = Screen(colour=False, unicode=False, width=80)
COLOURED = Screen(colour=True, unicode=True, width=80)


def test_columns_are_aligned_and_lines_have_no_trailing_blanks() -> None:
    text = table(("A", "LONGER"), [("xyz", "1"), ("x", "12")], PLAIN)
    assert text == "A    LONGER\nxyz  1\nx    12"


def test_colour_does_not_move_columns() -> None:
    rows = [(Cell("a", "red"), "b"), ("long", "c")]
    plain = table((), rows, PLAIN).splitlines()
    coloured = table((), rows, COLOURED).splitlines()
    assert plain == ["a     b", "long  c"]
    assert coloured[0] == "\x1b[31ma\x1b[0m     b"


def test_numbers_stand_right() -> None:
    assert table(("N",), [("1",), ("20",)], PLAIN, right=(0,)) == " N\n 1\n20"


@pytest.mark.parametrize(
    ("environment", "when", "colour"),
    [
        ({}, "auto", False),
        ({}, "always", True),
        ({"CLICOLOR_FORCE": "1"}, "auto", True),
        ({"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, "auto", False),
        ({"CLICOLOR_FORCE": "1"}, "never", False),
    ],
)
def test_colour_is_for_terminals_and_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], when: str, colour: bool
) -> None:
    for name in ("NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Screen.of(io.StringIO(), when).colour is colour


def test_a_stream_that_is_not_utf8_gets_ascii() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert Screen.of(stream).glyph("ok") == "ok"
    stream.close()
    assert COLOURED.glyph("ok") == "✓"


def test_documents_have_a_version() -> None:
    value = document("List", items=[{"a": 1}])
    assert json.loads(dump(value, "json")) == {
        "apiVersion": "ambit.io/v1alpha1",
        "kind": "List",
        "items": [{"a": 1}],
    }
    assert dump(value, "yaml").splitlines()[0] == "apiVersion: ambit.io/v1alpha1"


def test_words_for_numbers() -> None:
    assert [span(s) for s in (0.4, 90, 600, 7200 * 3, 86400 * 9, -300)] == [
        "0s",
        "90s",
        "10m",
        "6h",
        "9d",
        "-5m",
    ]
    assert [size(n) for n in (0, 999, 1500, 20 * 1024, 3 * 1024**3)] == [
        "0B",
        "999B",
        "1.5KB",
        "20KB",
        "3.0GB",
    ]
    assert [plural(1, "pod"), plural(2, "pod"), plural(0, "policy", "policies")] == [
        "1 pod",
        "2 pods",
        "0 policies",
    ]


def test_prose_is_folded_at_words() -> None:
    text = fold("word " * 30, width=60, indent="  ")
    assert all(len(line) <= 60 and line.startswith("  word") for line in text.splitlines())
