# SPDX-License-Identifier: Apache-2.0
"""Snapshots of what is served: taken whole, or not at all."""

from __future__ import annotations

import pytest

from controller.xds.snapshot import Resources


def test_an_encoder_that_fails_leaves_the_last_state_whole() -> None:
    def encode(value: str) -> bytes:
        if value == "bad":
            raise ValueError("out of range")
        return value.encode()

    resources = Resources({"a": encode, "b": encode})
    resources.update({"a": {"x": "1"}, "b": {"y": "1"}})
    with pytest.raises(ValueError, match="out of range"):
        resources.update({"a": {"x": "2"}, "b": {"y": "bad"}})
    assert resources.of("a")["x"].value == b"1"
    assert resources.of("b")["y"].value == b"1"
    (change,) = resources.update({"a": {"x": "2"}, "b": {"y": "1"}})
    assert (change.type_url, change.names) == ("a", frozenset({"x"}))
