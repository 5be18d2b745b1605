# SPDX-License-Identifier: Apache-2.0
"""A snapshot, then deltas; descriptors with adds and with nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.zds.messages import (
    AddWorkload,
    DelWorkload,
    KeepWorkload,
    SnapshotSent,
    ZdsProtocolError,
    ZdsRequest,
)
from mesh.zds.session import ClientSession


def add(uid: str) -> AddWorkload:
    return AddWorkload(uid=uid, name="n", namespace="s", service_account="a")


def test_a_snapshot_names_what_there_is() -> None:
    session = ClientSession()
    session.take(add("a"), 1)
    session.take(KeepWorkload(uid="b"), 0)
    session.take(add("c"), 1)
    session.take(DelWorkload(uid="c"), 0)
    assert not session.complete
    session.take(SnapshotSent(), 0)
    assert session.complete
    assert session.named == {"a", "b"}


def test_deltas_follow_and_change_the_snapshot_no_more() -> None:
    session = ClientSession()
    session.take(SnapshotSent(), 0)
    session.take(add("a"), 1)
    session.take(DelWorkload(uid="a"), 0)
    assert session.named == frozenset()


@pytest.mark.parametrize("late", [KeepWorkload(uid="a"), SnapshotSent()])
def test_what_belongs_to_a_snapshot_is_refused_after_it(late: ZdsRequest) -> None:
    session = ClientSession()
    session.take(SnapshotSent(), 0)
    with pytest.raises(ZdsProtocolError, match="after the snapshot"):
        session.take(late, 0)


@pytest.mark.parametrize(
    ("request_", "descriptors"),
    [
        (add("a"), 0),
        (add("a"), 2),
        (KeepWorkload(uid="a"), 1),
        (DelWorkload(uid="a"), 1),
        (SnapshotSent(), 1),
    ],
)
def test_the_wrong_number_of_descriptors_is_refused(request_: ZdsRequest, descriptors: int) -> None:
    session = ClientSession()
    with pytest.raises(ZdsProtocolError, match=f"with {descriptors} descriptors"):
        session.take(request_, descriptors)
    assert session.named == frozenset()
    assert not session.complete


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_the_last_word_on_each_pod_counts(history: list[tuple[str, bool]]) -> None:
    session = ClientSession()
    for uid, there in history:
        session.take(add(uid) if there else DelWorkload(uid=uid), 1 if there else 0)
    assert session.named == {uid for uid, there in dict(history).items() if there}
