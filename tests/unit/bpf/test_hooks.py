# SPDX-License-Identifier: Apache-2.0
import pytest

from bpf import abi, hooks

HOOK = abi.AttachType.CONNECT4


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ((), []),
        ((7,), []),
        ((1, 7, 2), [(1, True), (2, False)]),
        ((7, 1, 2), [(1, False), (2, False)]),
        ((1, 2), [(1, True), (2, True)]),
    ],
)
def test_others_are_told_apart_by_whether_they_run_before_ours(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...], expected: list[tuple[int, bool]]
) -> None:
    monkeypatch.setattr(hooks, "_name", lambda number: f"p{number}")
    found = hooks._around(HOOK, order, {7})
    assert [(one.program, one.earlier) for one in found] == expected
    assert all(one.name == f"p{one.program}" and one.hook is HOOK for one in found)
