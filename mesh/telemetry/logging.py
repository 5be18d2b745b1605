# SPDX-License-Identifier: Apache-2.0
"""Log lines of every process: text as Istio's ztunnel writes it, or JSON, one line an event.

Whatever a peer sent (names, addresses, error texts) is escaped here, once, so that
no value can end a line or forge a field. Fields travel as `extra={"fields": {...}}`.
"""

from __future__ import annotations

import enum
import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

FieldValue = str | int | float | bool | None


class LogFormat(enum.Enum):
    """How lines are written."""

    TEXT = "text"
    JSON = "json"


class Bare(str):
    """Text that is written without quotes in text format when it holds no special character (addresses)."""

    __slots__ = ()


def fields(values: Mapping[str, FieldValue]) -> dict[str, Mapping[str, FieldValue]]:
    """Wrap structured fields for the `extra` argument of a logging call."""
    return {"fields": values}


def format_value(value: FieldValue) -> str:
    """Format one field value of a text line; control characters, quotes and non-ASCII are escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if value is None:
        return '""'
    if isinstance(value, Bare) and value and all("!" <= c <= "~" and c not in '"\\' for c in value):
        return str(value)
    return json.dumps(str(value))


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    text = record.getMessage()
    if record.exc_info:
        text = f"{text}: {formatter.formatException(record.exc_info)}"
    return text


def _plain(text: str) -> str:
    """Escape what would end or disguise a text line; printable ASCII stays as it is."""
    if text.isascii() and text.isprintable():
        return text
    return json.dumps(text)[1:-1].replace('\\"', '"')


class TextFormatter(logging.Formatter):
    r"""`time\tlevel\ttarget\tmessage\tkey=value key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as one line."""
        head = f"{_timestamp(record)}\t{record.levelname.lower()}\t{record.name}"
        line = f"{head}\t{_plain(_message(record, self))}"
        values: Mapping[str, FieldValue] | None = getattr(record, "fields", None)
        if values:
            line += "\t" + " ".join(f"{key}={format_value(value)}" for key, value in values.items())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line with `time`, `level`, `scope`, `message` and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as one line."""
        entry: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "scope": record.name,
            "message": _message(record, self),
        }
        entry.update(getattr(record, "fields", None) or {})
        return json.dumps(entry)


def formatter(log_format: LogFormat) -> logging.Formatter:
    """Build the formatter of a format."""
    return JsonFormatter() if log_format is LogFormat.JSON else TextFormatter()


def configure(
    *, level: str, log_format: LogFormat, stream: TextIO | None = None, handler: logging.Handler | None = None
) -> None:
    """Send all of the process's log lines to `handler`, or to `stream` (standard error).

    Raises:
        ValueError: the level is none of debug, info, warning, error.
    """
    target = handler if handler is not None else logging.StreamHandler(stream or sys.stderr)
    target.setFormatter(formatter(log_format))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(target)
    set_level(level)


def set_level(level: str, target: str = "") -> None:
    """Set the level of the process, or of one logger.

    Raises:
        ValueError: the level is none of debug, info, warning, error; names it.
    """
    wanted = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}.get(level.lower())
    if wanted is None:
        raise ValueError(f"log level {level!r} is none of debug, info, warning, error")
    logging.getLogger(target or None).setLevel(wanted)


def level_name(target: str = "") -> str:
    """Return the level in force for a logger."""
    return logging.getLevelName(logging.getLogger(target or None).getEffectiveLevel()).lower()
