# SPDX-License-Identifier: Apache-2.0
"""One event is one line in either format, whatever a peer put into it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.logging import (
    Bare,
    JsonFormatter,
    LogFormat,
    TextFormatter,
    configure,
    fields,
    format_value,
    level_name,
    set_level,
)


def record(message: str, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("access", logging.INFO, "", 0, message, None, None)
    made.created = 1_700_000_000.5
    if values:
        made.fields = values
    return made


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logging.getLogger("some.part").setLevel(logging.NOTSET)


def test_a_text_line_has_istios_shape() -> None:
    line = TextFormatter().format(
        record("connection complete", **{"src.addr": Bare("10.0.0.1:80"), "n": 5, "t": "x y"})
    )
    assert line == (
        '2023-11-14T22:13:20.500000Z\tinfo\taccess\tconnection complete\tsrc.addr=10.0.0.1:80 n=5 t="x y"'
    )


def test_json_has_the_same_fields() -> None:
    entry = json.loads(JsonFormatter().format(record("m", **{"src.addr": Bare("a"), "ok": True})))
    assert entry == {
        "time": "2023-11-14T22:13:20.500000Z",
        "level": "info",
        "scope": "access",
        "message": "m",
        "src.addr": "a",
        "ok": True,
    }


@given(st.text(), st.text())
def test_no_value_ends_a_line_or_forges_a_field(message: str, value: str) -> None:
    for text in (value, Bare(value)):
        line = TextFormatter().format(record(message, k=text, after=1))
        assert line.isascii()
        assert line.isprintable() or "\t" in line
        assert "\n" not in line
        assert "\r" not in line
        assert line.count("\t") == 4
        assert line.endswith(" after=1")
        assert re.fullmatch(
            r'k=("(?:[^"\\]|\\.)*"|[!-~]+)', line.rpartition("\t")[2].removesuffix(" after=1")
        )
    assert "\n" not in JsonFormatter().format(record(message, k=value))


def test_values_of_each_kind() -> None:
    assert [format_value(v) for v in (True, False, 5, 1.5, None, "", Bare(""), Bare("a b"))] == [
        "true",
        "false",
        "5",
        "1.5",
        '""',
        '""',
        '""',
        '"a b"',
    ]


def test_exceptions_stay_on_their_line() -> None:
    try:
        raise ValueError("a\nb")
    except ValueError as error:
        made = record("failed")
        made.exc_info = (type(error), error, error.__traceback__)
    line = TextFormatter().format(made)
    assert "\n" not in line
    assert "ValueError" in line


def test_levels_are_set_for_all_or_one_part_and_named(root: logging.Logger) -> None:
    stream = io.StringIO()
    configure(level="warning", log_format=LogFormat.TEXT, stream=stream)
    logging.getLogger("some.part").info("hidden")
    set_level("debug", "some.part")
    logging.getLogger("some.part").debug("shown", extra=fields({"k": 1}))
    assert stream.getvalue().rstrip().endswith("\tdebug\tsome.part\tshown\tk=1")
    assert stream.getvalue().count("\n") == 1
    assert (level_name(), level_name("some.part")) == ("warning", "debug")
    with pytest.raises(ValueError, match="'loud' is none of debug, info, warning, error"):
        set_level("loud")
