# SPDX-License-Identifier: Apache-2.0
"""Typed fields: numbers and durations, and the errors of what is neither."""

from __future__ import annotations

from typing import Any

import pytest

from controller.translate.fields import Fields, IllTypedError, spec
from mesh.config.objects import make_object


def fields(value: Any) -> Fields:
    metadata = {"name": "a", "namespace": "b"}
    data = {"apiVersion": "v1", "kind": "Thing", "metadata": metadata, "spec": {"x": value}}
    return spec(make_object(data), [])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("0s", 0),
        ("10s", 10),
        ("1.5s", 1.5),
        ("500ms", 0.5),
        ("1m30s", 90),
        ("1h0.5m", 3630),
        ("7us", 7e-6),
        ("7µs", 7e-6),
        ("7ns", 7e-9),
    ],
)
def test_durations_as_go_writes_them(text: str | None, seconds: float | None) -> None:
    found = fields(text).duration("x")
    assert found == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["10", "s", "-1s", "1d", "1s ", "1e3s", "99999999h", 5, ["1s"]])
def test_what_is_no_duration_is_refused(value: Any) -> None:
    with pytest.raises(IllTypedError) as caught:
        fields(value).duration("x")
    assert caught.value.path == ("spec", "x")


def test_numbers_have_bounds_and_are_no_booleans() -> None:
    assert fields(None).number("x", 7, 0, 9) == 7
    assert fields(0).number("x", 7, 0, 9) == 0
    assert fields(0.25).number("x", 7, 0, 9) == 0.25
    for value in (True, "1", 9.5, -1, float("nan"), float("inf")):
        with pytest.raises(IllTypedError, match="number from 0 to 9"):
            fields(value).number("x", 7, 0, 9)
