# SPDX-License-Identifier: Apache-2.0
"""Checks as a graph: order, dependants, faults of a check."""

from __future__ import annotations

import threading

import pytest

from cli.check_engine import Check, Outcome, State, failed, ok, run_checks, warned
from cli.codes import CliError, Code


def check(key: str, outcome: Outcome, *needs: str) -> Check:
    return Check(key=key, category="c", title=f"{key} holds", run=lambda: outcome, needs=needs)


BAD = failed(Code.AGENT, "it is down")


def test_results_come_in_the_order_of_the_checks_whatever_their_needs() -> None:
    results = list(run_checks([check("late", ok(), "early"), check("early", ok())]))
    assert [r.check.key for r in results] == ["late", "early"]
    assert {r.outcome.state for r in results} == {State.OK}


def test_dependants_of_a_failure_are_skipped_with_the_reason_and_so_are_theirs() -> None:
    results = list(
        run_checks([check("a", BAD), check("b", ok(), "a"), check("c", ok(), "b"), check("d", ok())])
    )
    assert [r.outcome.state for r in results] == [State.ERROR, State.SKIPPED, State.SKIPPED, State.OK]
    assert results[1].outcome.details == ("because this does not hold: a holds",)


def test_a_warning_stops_nobody() -> None:
    results = list(run_checks([check("a", warned(Code.LAG)), check("b", ok(), "a")]))
    assert [r.outcome.state for r in results] == [State.WARNING, State.OK]


def test_independent_checks_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=20)

    def meet() -> Outcome:
        both.wait()
        return ok()

    checks = [Check(key=key, category="c", title=key, run=meet) for key in "ab"]
    assert [r.outcome.state for r in run_checks(checks)] == [State.OK, State.OK]


def test_a_part_that_fails_in_the_middle_is_a_finding() -> None:
    def fault() -> Outcome:
        raise CliError(Code.BAD_ANSWER, "no JSON")

    (result,) = run_checks([Check(key="a", category="c", title="a", run=fault)])
    assert (result.outcome.state, result.outcome.code) == (State.ERROR, Code.BAD_ANSWER)
    assert result.outcome.details == ("no JSON",)
    assert result.outcome.advice == Code.BAD_ANSWER.remedy


@pytest.mark.parametrize(
    "checks",
    [
        [check("a", ok(), "b"), check("b", ok(), "a")],
        [check("a", ok(), "unknown")],
        [check("a", ok()), check("a", ok())],
    ],
)
def test_a_graph_that_cannot_be_run_is_refused(checks: list[Check]) -> None:
    with pytest.raises(ValueError, match=r"needs|one key"):
        list(run_checks(checks))
