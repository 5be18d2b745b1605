# SPDX-License-Identifier: Apache-2.0
"""Words that name one kind of object, and one of it: `deploy`, `deploy web`, `deploy/web`, `web`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cli.codes import CliError, Code


def kind_and_name(words: Sequence[str], kinds: Mapping[str, str]) -> tuple[str, str]:
    """Return the kind (default: the first) and the name; empty: all of the kind.

    Raises:
        CliError: the words are no kind, or too many.
    """
    default = next(iter(kinds.values()))
    if not words:
        return default, ""
    first, slash, rest = words[0].partition("/")
    if first in kinds:
        if len(words) > 2 or (slash and len(words) > 1):
            raise CliError(Code.USAGE, f"{' '.join(words)!r} names more than one object")
        return kinds[first], rest if slash else (words[1] if len(words) > 1 else "")
    if len(words) == 1:
        return default, words[0]
    known = ", ".join(dict.fromkeys(kinds.values()))
    raise CliError(Code.USAGE, f"{first!r} is no kind; kinds are {known}")
