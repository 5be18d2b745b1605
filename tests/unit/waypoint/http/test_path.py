# SPDX-License-Identifier: Apache-2.0
"""Path normalisation: one spelling, or a refusal."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypoint.http.message import BadMessageError
from waypoint.http.path import normalise_path


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/%61dmin", "/admin"),
        ("/%2e%2e/admin", "/admin"),
        ("/public/%2E%2E/admin", "/admin"),
        ("/a%2fb", "/a%2Fb"),
        ("//a", "//a"),
        ("/a//b", "/a//b"),
        ("/a/.b", "/a/.b"),
        ("/a/..b/c", "/a/..b/c"),
    ],
)
def test_one_spelling(path: str, expected: str) -> None:
    assert normalise_path(path) == expected


@pytest.mark.parametrize(
    "path", ["/a\\b", "/a%5cb", "/a%00", "/a%", "/a%4", "/a%zz", "/a/..;x/admin", "/a/.;/b"]
)
def test_what_could_be_read_in_two_ways_is_refused(path: str) -> None:
    with pytest.raises(BadMessageError):
        normalise_path(path)


@given(st.lists(st.sampled_from(["a", "b", ".", "..", "%2e", "%2E%2e", "x.y"]), max_size=8))
def test_idempotent_and_without_dot_segments(segments: list[str]) -> None:
    once = normalise_path("/" + "/".join(segments))
    assert normalise_path(once) == once
    assert not {".", ".."} & set(once.split("/"))


@given(st.lists(st.sampled_from(["a", "b", ".", ".."]), min_size=1, max_size=8))
def test_agrees_with_posix_path_resolution(segments: list[str]) -> None:
    ours = normalise_path("/" + "/".join(segments))
    theirs = posixpath.normpath("/" + "/".join(segments))
    assert ours.rstrip("/") == theirs.rstrip("/")
