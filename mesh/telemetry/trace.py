# SPDX-License-Identifier: Apache-2.0
"""Trace contexts in header fields: W3C (`traceparent`, `tracestate`) and B3, single and multiple.

Pure. Field names are lower case. Which requests are sampled is the caller's question.
Sources: W3C Trace Context (level 1), openzipkin/b3-propagation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

Headers = list[tuple[str, str]]
NewId = Callable[[int], int]
"""Draws that many random bits."""

FIELDS = frozenset(
    {
        "traceparent",
        "tracestate",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
    }
)
"""All header fields that carry contexts."""
MAX_STATE_MEMBERS = 32
MAX_STATE_CHARACTERS = 512
"""Source: W3C Trace Context §3.3.1.1 and §3.3.1.5 (the least that is passed on)."""
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE_MEMBER = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_TRACE_ID = re.compile(r"(?:[0-9a-f]{16}){1,2}")
_SPAN_ID = re.compile(r"[0-9a-f]{16}")
_DECISIONS = {"0": False, "false": False, "1": True, "true": True, "d": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """Where in which trace something happens; ids in lower-case hexadecimal."""

    trace_id: str = ""
    """32 digits; empty: only a decision came."""
    span_id: str = ""
    """16 digits."""
    parent_id: str = ""
    """16 digits; empty: there is none."""
    sampled: bool | None = None
    """None: nobody has decided."""
    state: str = ""
    """`tracestate`, W3C only."""
    b3_single: bool = False
    b3_multiple: bool = False
    """Which forms of B3 came, and so go on."""


def extract(headers: Headers) -> TraceContext | None:
    """Read the context of a request, W3C's first; None: there is none, or none that is valid."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in FIELDS:
            found.setdefault(name, []).append(value)
    if not found:
        return None
    single, multiple = "b3" in found, any(name.startswith("x-b3-") for name in found)
    context = _read_w3c(found) or _read_single(found) or _read_multiple(found)
    if context is None:
        return None
    trace_id, span_id, parent_id, sampled, state = context
    return TraceContext(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        sampled=sampled,
        state=state,
        b3_single=single,
        b3_multiple=multiple,
    )


_Read = tuple[str, str, str, bool | None, str]


def _read_w3c(found: dict[str, list[str]]) -> _Read | None:
    values = found.get("traceparent", ())
    if len(values) != 1:
        return None
    match = _PARENT.fullmatch(values[0].strip())
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not (_real(trace_id) and _real(span_id)):
        return None
    return trace_id, span_id, "", bool(int(flags, 16) & 1), _read_state(found.get("tracestate", ()))


def _read_state(values: Iterable[str]) -> str:
    members = [member.strip() for member in ",".join(values).split(",")]
    members = [member for member in members if member]
    names = [member.partition("=")[0] for member in members]
    if len(members) > MAX_STATE_MEMBERS or len(set(names)) != len(names):
        return ""
    if not all(map(_STATE_MEMBER.fullmatch, members)):
        return ""
    while members and len(",".join(members)) > MAX_STATE_CHARACTERS:
        members.pop()
    return ",".join(members)


def _read_single(found: dict[str, list[str]]) -> _Read | None:
    values = found.get("b3", ())
    if len(values) != 1:
        return None
    parts = values[0].strip().lower().split("-")
    if len(parts) == 1:
        sampled = _DECISIONS.get(parts[0])
        return None if sampled is None else ("", "", "", sampled, "")
    if len(parts) > 4:
        return None
    decision = _DECISIONS.get(parts[2]) if len(parts) > 2 else None
    if len(parts) > 2 and decision is None:
        return None
    return _ids(parts[0], parts[1], parts[3] if len(parts) > 3 else "", decision)


def _read_multiple(found: dict[str, list[str]]) -> _Read | None:
    def first(name: str) -> str:
        return found.get(name, ("",))[0].strip().lower()

    sampled = True if first("x-b3-flags") == "1" else _DECISIONS.get(first("x-b3-sampled"))
    if first("x-b3-traceid"):
        return _ids(first("x-b3-traceid"), first("x-b3-spanid"), first("x-b3-parentspanid"), sampled)
    return None if sampled is None else ("", "", "", sampled, "")


def _ids(trace_id: str, span_id: str, parent_id: str, sampled: bool | None) -> _Read | None:
    if not (_TRACE_ID.fullmatch(trace_id) and _real(trace_id)):
        return None
    if not (_SPAN_ID.fullmatch(span_id) and _real(span_id)):
        return None
    if parent_id and not _SPAN_ID.fullmatch(parent_id):
        return None
    return trace_id.zfill(32), span_id, parent_id, sampled, ""


def _real(text: str) -> bool:
    """Whether an id is not all zeros, which stands for none."""
    return text.strip("0") != ""


def new_trace_id(new_id: NewId) -> str:
    """Draw an id for a trace."""
    return f"{new_id(128) or 1:032x}"


def new_span_id(new_id: NewId) -> str:
    """Draw an id for a span."""
    return f"{new_id(64) or 1:016x}"


def inject(headers: Headers, context: TraceContext) -> Headers:
    """Return the fields with a decided context in place of those that came; W3C always, B3 as asked."""
    made = [field for field in headers if field[0] not in FIELDS]
    sampled = "1" if context.sampled else "0"
    made.append(("traceparent", f"00-{context.trace_id}-{context.span_id}-0{sampled}"))
    if context.state:
        made.append(("tracestate", context.state))
    if context.b3_single:
        parent = f"-{context.parent_id}" if context.parent_id else ""
        made.append(("b3", f"{context.trace_id}-{context.span_id}-{sampled}{parent}"))
    if context.b3_multiple:
        made.append(("x-b3-traceid", context.trace_id))
        made.append(("x-b3-spanid", context.span_id))
        if context.parent_id:
            made.append(("x-b3-parentspanid", context.parent_id))
        made.append(("x-b3-sampled", sampled))
    return made
