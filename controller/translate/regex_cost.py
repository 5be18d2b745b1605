# SPDX-License-Identifier: Apache-2.0
"""Whether a backtracking matcher can take exponential time over a regular expression.

It can if a loop reads some text in two ways: then n repetitions have 2^n readings, which a
text that fails at its end makes it try. Each character of the expression becomes a position;
two readings are two different ways through the positions of one loop, or one way that the
expression offers twice, as `(a+)+` does. Source: Weideman et al., "Analyzing Matching Time
Behavior of Backtracking Regular Expression Matchers" (CIAA 2016), condition EDA.
"""

from __future__ import annotations

import re
from collections import Counter
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_POSITIONS = 2000
MAX_LOOP = 200
"""Positions of one loop; a larger one is not looked through."""
_OTHER_DIGIT, _OTHER_SPACE, _OTHER_WORD, _OTHER_REST = (1 << 128 + kind for kind in range(4))
"""Beyond ASCII, the characters of a kind are one."""
_OTHER = _OTHER_DIGIT | _OTHER_SPACE | _OTHER_WORD | _OTHER_REST
_ALL = (1 << 128) - 1 | _OTHER


class TooLargeError(Exception):
    """The expression is too large to be judged."""


def is_exponential(pattern: str) -> bool:
    """Judge an expression that `re` compiles.

    Raises:
        TooLargeError: it has too many positions; nothing is known about it.
    """
    tree = _parser.parse(pattern)
    automaton = _Automaton(bool(tree.state.flags & re.IGNORECASE))
    automaton.sequence(tree)
    return automaton.ambiguous_loop()


class _Part:
    """A piece of the expression: may it be empty, and which positions begin and end it."""

    __slots__ = ("empty", "first", "last")

    def __init__(self, *, empty: bool, first: list[int], last: list[int]) -> None:
        self.empty = empty
        self.first = first
        self.last = last


class _Automaton:
    """Positions, the characters that they read, and how often one may follow another."""

    def __init__(self, ignore_case: bool) -> None:
        self._masks: list[int] = []
        self._follow: list[Counter[int]] = []
        self._ignore_case = ignore_case

    # --- building

    def sequence(self, items: Any) -> _Part:
        found = _Part(empty=True, first=[], last=[])
        for operation, value in items:
            found = self._then(found, self._item(operation, value))
        return found

    def _then(self, left: _Part, right: _Part) -> _Part:
        self._link(left.last, right.first)
        return _Part(
            empty=left.empty and right.empty,
            first=left.first + (right.first if left.empty else []),
            last=right.last + (left.last if right.empty else []),
        )

    def _link(self, last: list[int], first: list[int]) -> None:
        for position in last:
            self._follow[position].update(first)

    def _item(self, operation: Any, value: Any) -> _Part:
        if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            return self._repeat(*value)
        if operation is sre.SUBPATTERN:
            return self.sequence(value[-1])
        if operation is sre.BRANCH:
            parts = [self.sequence(branch) for branch in value[1]]
            return _Part(
                empty=any(part.empty for part in parts),
                first=[position for part in parts for position in part.first],
                last=[position for part in parts for position in part.last],
            )
        if operation is sre.AT:
            return _Part(empty=True, first=[], last=[])
        return self._position(self._mask(operation, value))

    def _repeat(self, least: int, most: Any, body: Any) -> _Part:
        part = self.sequence(body)
        if most is sre.MAXREPEAT:
            self._link(part.last, part.first)
        elif most > 1:
            # Inside a loop, twice shows what more often would.
            again = self.sequence(body)
            again.empty = True
            part = self._then(part, again)
        part.empty = part.empty or least == 0
        return part

    def _position(self, mask: int) -> _Part:
        if len(self._masks) >= MAX_POSITIONS:
            raise TooLargeError
        self._masks.append(mask)
        self._follow.append(Counter())
        return _Part(empty=False, first=[len(self._masks) - 1], last=[len(self._masks) - 1])

    def _mask(self, operation: Any, value: Any) -> int:
        if operation is sre.ANY:
            return _ALL
        if operation is sre.LITERAL:
            return self._of(value, value)
        if operation is sre.NOT_LITERAL:
            return _ALL & ~(1 << value) if value < 128 else _ALL
        if operation is sre.IN:
            negated = bool(value) and value[0][0] is sre.NEGATE
            mask = kinds = 0
            for kind, member in value[negated:]:
                mask |= self._member(kind, member)
                kinds |= self._member(kind, member) if kind is sre.CATEGORY else 0
            if not negated:
                return mask
            # Beyond ASCII, some of a kind are left unless the whole kind is named.
            return _ALL & ~(mask & ~_OTHER) & ~(kinds & _OTHER)
        return _ALL

    def _member(self, kind: Any, member: Any) -> int:
        if kind is sre.LITERAL:
            return self._of(member, member)
        if kind is sre.RANGE:
            return self._of(*member)
        if kind is sre.CATEGORY:
            return _CATEGORIES.get(member, _ALL)
        return _ALL

    def _of(self, low: int, high: int) -> int:
        mask = sum(1 << code for code in range(low, min(high, 127) + 1))
        if self._ignore_case:
            text = "".join(chr(code) for code in range(128) if mask >> code & 1)
            for character in text.swapcase():
                mask |= 1 << ord(character)
        if high > 127:
            mask |= _other(chr(low)) if low == high else _OTHER
        return mask

    # --- judging

    def ambiguous_loop(self) -> bool:
        for loop in self._loops():
            if len(loop) > MAX_LOOP:
                raise TooLargeError
            if self._offered_twice(loop) or self._read_in_two_ways(loop):
                return True
        return False

    def _loops(self) -> list[set[int]]:
        """Return the sets of positions that can all be reached from each other."""
        forward = [self._reach(position) for position in range(len(self._masks))]
        found: list[set[int]] = []
        seen: set[int] = set()
        for position, reached in enumerate(forward):
            if position in reached and position not in seen:
                loop = {other for other in reached if position in forward[other]}
                seen |= loop
                found.append(loop)
        return found

    def _reach(self, start: int) -> set[int]:
        found: set[int] = set()
        stack = list(self._follow[start])
        while stack:
            position = stack.pop()
            if position not in found:
                found.add(position)
                stack.extend(self._follow[position])
        return found

    def _offered_twice(self, loop: set[int]) -> bool:
        return any(
            count > 1 and other in loop
            for position in loop
            for other, count in self._follow[position].items()
        )

    def _read_in_two_ways(self, loop: set[int]) -> bool:
        """Look for two ways that part, read the same text, and meet again."""
        steps: dict[tuple[int, int], set[tuple[int, int]]] = {}
        back: dict[tuple[int, int], set[tuple[int, int]]] = {}
        stack = [(position, position) for position in loop]
        while stack:
            pair = stack.pop()
            if pair in steps:
                continue
            steps[pair] = {
                (min(left, right), max(left, right))
                for left in self._follow[pair[0]]
                for right in self._follow[pair[1]]
                if left in loop and right in loop and self._masks[left] & self._masks[right]
            }
            for target in steps[pair]:
                back.setdefault(target, set()).add(pair)
            stack.extend(steps[pair])
        returning = {(position, position) for position in loop}
        stack = list(returning)
        while stack:
            for pair in back.get(stack.pop(), set()):
                if pair not in returning:
                    if pair[0] != pair[1]:
                        return True
                    returning.add(pair)
                    stack.append(pair)
        return False


def _other(character: str) -> int:
    """Return the kind of a character beyond ASCII."""
    if character.isspace():
        return _OTHER_SPACE
    if character.isdecimal():
        return _OTHER_DIGIT
    return _OTHER_WORD if character.isalnum() else _OTHER_REST


def _ascii(text: str) -> int:
    return sum(1 << ord(character) for character in text)


_DIGITS = _ascii("0123456789")
_SPACES = _ascii(" \t\n\r\f\v")
_WORDS = _DIGITS | _ascii("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_CATEGORIES = {
    sre.CATEGORY_DIGIT: _DIGITS | _OTHER_DIGIT,
    sre.CATEGORY_NOT_DIGIT: _ALL & ~(_DIGITS | _OTHER_DIGIT),
    sre.CATEGORY_SPACE: _SPACES | _OTHER_SPACE,
    sre.CATEGORY_NOT_SPACE: _ALL & ~(_SPACES | _OTHER_SPACE),
    sre.CATEGORY_WORD: _WORDS | _OTHER_DIGIT | _OTHER_WORD,
    sre.CATEGORY_NOT_WORD: _ALL & ~(_WORDS | _OTHER_DIGIT | _OTHER_WORD),
}
