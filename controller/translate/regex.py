# SPDX-License-Identifier: Apache-2.0
"""Regular expressions of routes: those that both RE2, which the dialects specify, and Python read.

RE2 has no look-around and no reference to a group, and its time is linear in the text. What
waypoints match with goes back and forth instead, so that an expression whose time could grow
exponentially is refused.
"""

from __future__ import annotations

import re

from controller.translate.regex_cost import TooLargeError, is_exponential

MAX_LENGTH = 1024
"""Gateway API's bound on a path."""
_NOT_RE2 = re.compile(r"\(\?(?:[=!>(]|<[=!]|P=|#)|\\[1-9Z]|[*+?}]\+")
_ESCAPED_OR_CLASS = re.compile(r"\\[^1-9Z]|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)


def regex_problem(pattern: str) -> str:
    """Return why an expression cannot be used; empty: it can."""
    if len(pattern) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    found = _NOT_RE2.search(_ESCAPED_OR_CLASS.sub("x", pattern))
    if found is not None:
        return f"is no RE2 expression: {found[0]!r} is not part of that syntax"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is no regular expression: {error}"
    try:
        if is_exponential(pattern):
            return "can take exponential time: a loop in it can read some text in more than one way"
    except (TooLargeError, RecursionError):
        return "is too complex for its time to be judged; use several matches"
    return ""


def substitution_problem(pattern: str, substitution: str) -> str:
    r"""Return why a substitution (RE2's, with `\1`) does not fit its valid expression."""
    groups = re.compile(pattern).groups
    for escape in re.findall(r"\\(.?)", substitution, re.DOTALL):
        if not (escape.isdigit() or escape == "\\"):
            return f"holds \\{escape}, which is neither a group nor a backslash"
        if escape.isdigit() and int(escape) > groups:
            return f"names group {escape} of {groups}"
    return ""
