# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone.flow import Bucket, GrowthBudget, ReceiveWindow


def test_no_credit_while_the_consumer_is_full_and_all_of_it_after() -> None:
    window = ReceiveWindow(100, 100, GrowthBudget(0))
    assert window.take(60) == 0
    window.left -= 60
    assert window.resume() == 60
    assert window.left == 100
    window.pause()
    window.left -= 100
    assert window.take(100) == 0
    assert window.resume() == 100
    window.pause()
    window.left -= 50
    assert window.take(50) == 0
    assert window.resume() == 50, "half of it is due at once"


def test_credit_comes_in_halves() -> None:
    window = ReceiveWindow(100, 100, GrowthBudget(0))
    window.resume()
    assert window.take(49) == 0
    assert window.take(1) == 50


def test_a_window_that_is_drained_grows_to_its_maximum_within_the_budget() -> None:
    budget = GrowthBudget(250)
    window = ReceiveWindow(100, 1000, budget)
    window.resume()
    assert window.take(50) == 150, "what is owed and as much growth as the window"
    assert window.size == 200
    assert window.take(100) == 100 + 150, "the rest of the budget"
    assert budget.left == 0
    assert window.take(175) == 175
    window.release()
    window.release()
    assert budget.left == 250, "given back once"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["take", "pause", "resume"]), st.integers(1, 90)), max_size=60))
def test_what_is_granted_never_exceeds_size(steps: list[tuple[str, int]]) -> None:
    budget = GrowthBudget(500)
    window = ReceiveWindow(100, 400, budget)
    for step, size in steps:
        if step == "take":
            size = min(size, window.left)
            window.left -= size
            window.take(size)
        elif step == "pause":
            window.pause()
        else:
            window.resume()
        assert 0 <= window.left <= window.size <= 400
        assert window.size - 100 + budget.left == 500


def test_bucket_gives_its_burst_and_then_its_rate() -> None:
    now = 0.0
    bucket = Bucket(5, 2.0, lambda: now)
    assert [bucket.spend() for _ in range(6)] == [True] * 5 + [False]
    now = 1.0
    assert [bucket.spend() for _ in range(3)] == [True, True, False]
    now = 100.0
    assert [bucket.spend() for _ in range(6)] == [True] * 5 + [False], "never more than its burst"
