# SPDX-License-Identifier: Apache-2.0
"""Checks as a graph: those whose needs hold run in parallel, the others are skipped by name.

Knows nothing of the mesh; a check is a function that answers an `Outcome`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from cli.codes import CliError, Code

WORKERS = 8


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The answer of a check."""

    state: State
    code: Code | None = None
    details: tuple[str, ...] = ()
    """What was found, a line each."""
    remedy: str = ""

    @property
    def advice(self) -> str:
        """What to do; the code's remedy unless the case has a better one."""
        return self.remedy or (self.code.remedy if self.code else "")


def ok(*details: str) -> Outcome:
    """All is well."""
    return Outcome(state=State.OK, details=details)


def failed(code: Code, *details: str, remedy: str = "") -> Outcome:
    """Something does not work."""
    return Outcome(state=State.ERROR, code=code, details=details, remedy=remedy)


def warned(code: Code, *details: str, remedy: str = "") -> Outcome:
    """Something works, and is not as it should be."""
    return Outcome(state=State.WARNING, code=code, details=details, remedy=remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question; `title` says what holds when all is well."""

    key: str
    category: str
    title: str
    run: Callable[[], Outcome]
    needs: tuple[str, ...] = ()
    """Keys of checks without which the question makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A check and how it ended."""

    check: Check
    outcome: Outcome


def run_checks(checks: Sequence[Check]) -> Iterator[Result]:
    """Yield the results in the order of `checks`, each as soon as those before it are there.

    Raises:
        ValueError: a need is no check, or two checks need each other.
    """
    order = _checked(checks)
    results: dict[str, Result] = {}
    running: dict[Future[Outcome], Check] = {}
    waiting = list(order)
    told = 0
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        while waiting or running:
            waiting = _start(waiting, results, running, pool)
            while told < len(checks) and checks[told].key in results:
                yield results[checks[told].key]
                told += 1
            if running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    check = running.pop(future)
                    results[check.key] = Result(check=check, outcome=future.result())
    for check in checks[told:]:
        yield results[check.key]


def _checked(checks: Sequence[Check]) -> list[Check]:
    known = {check.key: check for check in checks}
    if len(known) != len(checks):
        raise ValueError("two checks have one key")
    order: list[Check] = []
    done: set[str] = set()
    rest = list(checks)
    while rest:
        ready = [check for check in rest if all(need in done for need in check.needs)]
        if not ready:
            raise ValueError(f"{rest[0].key} needs what is no check, or needs itself")
        order += ready
        done |= {check.key for check in ready}
        rest = [check for check in rest if check.key not in done]
    return order


def _start(
    waiting: Sequence[Check],
    results: dict[str, Result],
    running: dict[Future[Outcome], Check],
    pool: ThreadPoolExecutor,
) -> list[Check]:
    """Start what can run, skip what never will; return what waits on."""
    rest: list[Check] = []
    for check in waiting:
        needs = [results.get(need) for need in check.needs]
        broken = [r for r in needs if r is not None and r.outcome.state in (State.ERROR, State.SKIPPED)]
        if broken:
            why = f"because this does not hold: {broken[0].check.title}"
            results[check.key] = Result(check=check, outcome=Outcome(state=State.SKIPPED, details=(why,)))
        elif None in needs:
            rest.append(check)
        else:
            running[pool.submit(_guarded, check)] = check
    return rest


def _guarded(check: Check) -> Outcome:
    """A part that stops answering in the middle is a finding, never a traceback."""
    try:
        return check.run()
    except CliError as error:
        return Outcome(state=State.ERROR, code=error.code, details=(error.what,), remedy=error.remedy)
