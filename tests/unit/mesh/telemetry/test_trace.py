# SPDX-License-Identifier: Apache-2.0
"""Trace contexts: what is read from fields, what is refused, what is written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.telemetry.trace import (
    FIELDS,
    MAX_STATE_MEMBERS,
    TraceContext,
    extract,
    inject,
    new_span_id,
    new_trace_id,
)

TRACE, SPAN, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "b7ad6b7169203331"


def parent(text: str) -> TraceContext | None:
    return extract([("traceparent", text)])


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("03", True), ("fe", False)])
def test_a_traceparent_is_read(flags: str, sampled: bool) -> None:
    found = parent(f"00-{TRACE}-{SPAN}-{flags}")
    assert found == TraceContext(trace_id=TRACE, span_id=SPAN, sampled=sampled)


def test_a_later_version_may_hold_more() -> None:
    found = parent(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds")
    assert found is not None
    assert (found.trace_id, found.sampled) == (TRACE, True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"cc-{TRACE}-{SPAN}-01more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
    ],
)
def test_a_wrong_traceparent_is_none(text: str) -> None:
    assert parent(text) is None


def test_two_traceparents_are_none() -> None:
    field = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    assert extract([field, field]) is None


def state(*values: str) -> str:
    headers = [("traceparent", f"00-{TRACE}-{SPAN}-01"), *(("tracestate", value) for value in values)]
    found = extract(headers)
    assert found is not None
    return found.state


def test_tracestate_is_joined_and_bounded() -> None:
    assert state("a=1, b=2", "c=3") == "a=1,b=2,c=3"
    assert state("a=1,a=2") == state("A=1") == state("a") == state("a=\x01") == ""
    assert state(",".join(f"k{n}=1" for n in range(MAX_STATE_MEMBERS))) != ""
    assert state(",".join(f"k{n}=1" for n in range(MAX_STATE_MEMBERS + 1))) == ""
    kept = state(",".join(f"k{n}={'x' * 200}" for n in range(3)))
    assert [member.partition("=")[0] for member in kept.split(",")] == ["k0", "k1"]


@pytest.mark.parametrize(
    ("text", "sampled", "before"),
    [
        (f"{TRACE}-{SPAN}-1-{PARENT}", True, PARENT),
        (f"{TRACE}-{SPAN}-0", False, ""),
        (f"{TRACE}-{SPAN}-d", True, ""),
        (f"{TRACE}-{SPAN}", None, ""),
    ],
)
def test_a_single_b3_field_is_read(text: str, sampled: bool | None, before: str) -> None:
    found = extract([("b3", text)])
    assert found == TraceContext(
        trace_id=TRACE, span_id=SPAN, parent_id=before, sampled=sampled, b3_single=True
    )


@pytest.mark.parametrize("text", ["", "x", f"{TRACE}", f"{TRACE}-{SPAN}-7", f"{TRACE}-{SPAN}-1-{PARENT}-x"])
def test_a_wrong_b3_field_is_none(text: str) -> None:
    assert extract([("b3", text)]) is None


def test_a_decision_may_come_alone() -> None:
    assert extract([("b3", "0")]) == TraceContext(sampled=False, b3_single=True)
    assert extract([("x-b3-sampled", "1")]) == TraceContext(sampled=True, b3_multiple=True)
    assert extract([("x-b3-flags", "1")]) == TraceContext(sampled=True, b3_multiple=True)


def test_many_b3_fields_are_read_and_short_ids_filled() -> None:
    found = extract([("x-b3-traceid", TRACE[16:].upper()), ("x-b3-spanid", SPAN), ("x-b3-sampled", "0")])
    assert found == TraceContext(
        trace_id="0" * 16 + TRACE[16:], span_id=SPAN, sampled=False, b3_multiple=True
    )


def test_w3c_comes_first_and_other_forms_go_on() -> None:
    found = extract([("b3", f"{PARENT}-{PARENT}-0"), ("traceparent", f"00-{TRACE}-{SPAN}-01")])
    assert found == TraceContext(trace_id=TRACE, span_id=SPAN, sampled=True, b3_single=True)


def test_injection_replaces_what_came_and_nothing_else() -> None:
    came = [("traceparent", "old"), ("x-a", "1"), ("x-b3-flags", "1"), ("b3", "0"), ("tracestate", "x=y")]
    context = TraceContext(
        trace_id=TRACE,
        span_id=SPAN,
        parent_id=PARENT,
        sampled=True,
        state="a=1",
        b3_single=True,
        b3_multiple=True,
    )
    assert inject(came, context) == [
        ("x-a", "1"),
        ("traceparent", f"00-{TRACE}-{SPAN}-01"),
        ("tracestate", "a=1"),
        ("b3", f"{TRACE}-{SPAN}-1-{PARENT}"),
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-parentspanid", PARENT),
        ("x-b3-sampled", "1"),
    ]


def test_ids_are_never_zero() -> None:
    assert new_trace_id(lambda bits: 0) == "0" * 31 + "1"
    assert new_span_id(lambda bits: 2**bits - 1) == "f" * 16


@given(st.lists(st.tuples(st.sampled_from(sorted(FIELDS)), st.text(max_size=80)), max_size=6))
def test_whatever_comes_what_goes_on_is_readable(headers: list[tuple[str, str]]) -> None:
    found = extract(headers)
    if found is None or not found.trace_id:
        return
    again = extract(inject(headers, TraceContext(trace_id=found.trace_id, span_id=SPAN, sampled=True)))
    assert again is not None
    assert (again.trace_id, again.span_id, again.sampled) == (found.trace_id, SPAN, True)
