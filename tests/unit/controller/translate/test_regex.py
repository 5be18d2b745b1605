# SPDX-License-Identifier: Apache-2.0
"""Expressions of routes: what both RE2 and Python read, and no loop that explodes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.translate.regex import MAX_LENGTH, regex_problem, substitution_problem
from controller.translate.regex_cost import TooLargeError, is_exponential


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/api/v[0-9]+(/[^/]+)*/?",
        ".*foo.*",
        "(?i)/a(b|c){2,3}",
        "(?P<name>x)",
        r"\\\d+\+\.[(?=]",
        r"(\w+\s)*",
        r"([a-z0-9]([-a-z0-9]*[a-z0-9])?\.)*x",
        "[^/]{1,64}",
        r"[]\]]+",
    ],
)
def test_what_both_read_is_taken(pattern: str) -> None:
    assert regex_problem(pattern) == ""


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(", "no regular expression"),
        ("(?=a)", "RE2"),
        ("(?<!a)b", "RE2"),
        (r"(a)\1", "RE2"),
        ("(?P=name)", "RE2"),
        ("(?>a)", "RE2"),
        ("a*+", "RE2"),
        ("(?(1)a|b)", "RE2"),
        ("x" * (MAX_LENGTH + 1), "longer"),
        ("(a+)+", "exponential"),
        ("(" * 150 + ")" * 150, "too complex|no regular expression|^$"),
    ],
)
def test_what_one_of_them_does_not_read_is_refused(pattern: str, reason: str) -> None:
    assert re.search(reason, regex_problem(pattern))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a*)*b",
        "(.*)*b",
        "(a|b|ab)*c",
        "(a?b?)*c",
        r"(\w+\s?)*b",
        "([a-z]{1,3})*1",
        "(x+x+)+y",
        "(a{2}|a{3})*b",
        "(([a-z])+.)+[A-Z]([a-z])+$",
        "(?i)(aB|Ab)*c",
        "/(é+)+b",
    ],
)
def test_a_loop_that_reads_text_in_two_ways_is_exponential(pattern: str) -> None:
    assert is_exponential(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a|ab)*c", "(a|A)*", "(/[a-z]+)*", "(a?)*", "(a{2,4}b)*", "[^a]*a[^b]*b", "(aB|Ab)*c"]
)
def test_other_loops_are_not(pattern: str) -> None:
    assert not is_exponential(pattern)


def test_what_is_too_large_is_not_judged() -> None:
    with pytest.raises(TooLargeError):
        is_exponential("(" + "a" * 300 + ")*")


PIECES = st.recursive(
    st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", "é"]),
    lambda inner: (
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{1,2}"])).map(lambda p: f"(?:{p[0]}){p[1]}")
        | st.lists(inner, min_size=2, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})")
    ),
    max_leaves=6,
)


@given(PIECES)
def test_a_loop_around_a_loop_of_its_own_is_always_exponential(piece: str) -> None:
    assert is_exponential(f"(?:(?:{piece}a)+)+")


@pytest.mark.parametrize(
    ("pattern", "substitution", "reason"),
    [
        ("(a)", r"\1", ""),
        ("a", r"\0\\", ""),
        ("(a)", r"\2", "group 2 of 1"),
        ("a", r"\n", "neither"),
        ("a", "\\", "neither"),
    ],
)
def test_substitutions_name_groups_that_there_are(pattern: str, substitution: str, reason: str) -> None:
    found = substitution_problem(pattern, substitution)
    assert bool(found) == bool(reason)
    assert reason in found
