# SPDX-License-Identifier: Apache-2.0
"""The client's half of delta ADS: answers, versions across streams, and a server to check against."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.xds.protocol import MAX_ERROR_CHARS, DeltaSubscription, Phase, ProtocolError, Request, Response
from mesh.xds.resource import Rejection, Resource, Update

TYPE = "type.googleapis.com/x"


def response(*resources: tuple[str, str], nonce: str = "n1", removed: tuple[str, ...] = ()) -> Response:
    return Response(
        type_url=TYPE,
        nonce=nonce,
        resources=tuple(Resource(name, version, b"") for name, version in resources),
        removed=removed,
    )


@pytest.fixture
def subscription() -> DeltaSubscription:
    subscription = DeltaSubscription(TYPE)
    subscription.open()
    return subscription


def take(subscription: DeltaSubscription, got: Response, *rejected: str) -> Request:
    subscription.receive(got)
    return subscription.settle([Rejection(name, "bad") for name in rejected])


def test_the_first_request_asks_for_everything() -> None:
    assert DeltaSubscription(TYPE).open() == Request(type_url=TYPE)


def test_a_response_becomes_an_update_and_is_acknowledged(subscription: DeltaSubscription) -> None:
    update = subscription.receive(response(("a", "1"), removed=("b",)))
    assert update == Update(type_url=TYPE, upserted=(Resource("a", "1", b""),), removed=("b",))
    assert not subscription.synced
    assert subscription.settle([]) == Request(type_url=TYPE, nonce="n1")
    assert subscription.synced
    assert dict(subscription.versions) == {"a": "1"}


def test_an_empty_first_response_is_a_whole_too(subscription: DeltaSubscription) -> None:
    take(subscription, response())
    assert subscription.synced


def test_a_rejection_is_named_and_the_rest_is_in_force(subscription: DeltaSubscription) -> None:
    subscription.receive(response(("a", "1"), ("b", "1"), ("c", "1")))
    answer = subscription.settle([Rejection("b", "no port"), Rejection("c", "no name")])
    assert answer == Request(type_url=TYPE, nonce="n1", error="b: no port; c: no name")
    assert dict(subscription.versions) == {"a": "1"}
    assert subscription.rejected == {"b": "no port", "c": "no name"}


def test_the_next_stream_says_what_is_in_force(subscription: DeltaSubscription) -> None:
    take(subscription, response(("a", "1"), ("b", "1")))
    take(subscription, response(("a", "2"), nonce="n2", removed=("b",)))
    subscription.close()
    assert subscription.open().initial_versions == {"a": "2"}


def test_a_rejected_change_keeps_the_version_in_force(subscription: DeltaSubscription) -> None:
    take(subscription, response(("a", "1")))
    take(subscription, response(("a", "2"), ("new", "1"), nonce="n2"), "a", "new")
    # a@1 is still applied: the server must hear that, or its removal would never be told.
    assert subscription.open().initial_versions == {"a": "1", "new": ""}


def test_a_good_version_ends_a_rejection(subscription: DeltaSubscription) -> None:
    take(subscription, response(("a", "1")), "a")
    take(subscription, response(("a", "2"), nonce="n2"))
    assert subscription.rejected == {}
    take(subscription, response(("a", "3"), nonce="n3"), "a")
    take(subscription, response(nonce="n4", removed=("a",)))
    assert subscription.rejected == {}
    assert subscription.open().initial_versions == {}


def test_a_removal_learnt_after_a_reconnect_is_delivered(subscription: DeltaSubscription) -> None:
    take(subscription, response(("a", "1"), ("b", "1")))
    subscription.open()
    update = subscription.receive(response(nonce="m1", removed=("b",)))
    assert update.removed == ("b",)
    subscription.settle([])
    assert dict(subscription.versions) == {"a": "1"}


def test_a_removal_that_failed_is_asked_for_again(subscription: DeltaSubscription) -> None:
    take(subscription, response(("a", "1")))
    assert take(subscription, response(nonce="n2", removed=("a",)), "a").error == "a: bad"
    assert subscription.open().initial_versions == {"a": ""}
    take(subscription, response(nonce="n3", removed=("a",)))
    assert subscription.open().initial_versions == {}


def test_a_name_both_sent_and_removed_is_there(subscription: DeltaSubscription) -> None:
    update = subscription.receive(response(("a", "2"), removed=("a",)))
    assert update.removed == ()
    subscription.settle([])
    assert dict(subscription.versions) == {"a": "2"}


def test_an_unanswered_response_is_not_in_force_on_the_next_stream(subscription: DeltaSubscription) -> None:
    subscription.receive(response(("a", "1")))
    subscription.close()
    assert subscription.phase is Phase.CLOSED
    assert subscription.open().initial_versions == {}
    assert not subscription.synced


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (Response(type_url="other", nonce="n"), "expected"),
        (Response(type_url=TYPE, nonce=""), "no nonce"),
        (response(("a", "1"), ("a", "2")), "twice"),
        (response(("", "1")), "not at all"),
    ],
)
def test_a_server_that_breaks_the_protocol_is_told(
    subscription: DeltaSubscription, bad: Response, why: str
) -> None:
    with pytest.raises(ProtocolError, match=why):
        subscription.receive(bad)
    assert subscription.phase is Phase.WAITING


def test_calls_out_of_order_are_errors(subscription: DeltaSubscription) -> None:
    with pytest.raises(ProtocolError, match="nothing to settle"):
        subscription.settle([])
    subscription.receive(response())
    with pytest.raises(ProtocolError, match="while settling"):
        subscription.receive(response(nonce="n2"))
    with pytest.raises(ProtocolError, match="while closed"):
        DeltaSubscription(TYPE).receive(response())


def test_a_long_nack_is_cut_and_says_so(subscription: DeltaSubscription) -> None:
    subscription.receive(response(*[(f"name{index}", "1") for index in range(1000)]))
    answer = subscription.settle([Rejection(f"name{index}", "x" * 20) for index in range(1000)])
    assert answer.error.endswith("... (1000 rejected in all)")
    assert len(answer.error) < MAX_ERROR_CHARS + 50


@pytest.mark.parametrize("excess", [0, 1])
def test_a_nack_of_the_longest_length_is_whole(subscription: DeltaSubscription, excess: int) -> None:
    subscription.receive(response(("a", "1")))
    answer = subscription.settle([Rejection("a", "x" * (MAX_ERROR_CHARS - len("a: ") + excess))])
    assert answer.error.endswith("(1 rejected in all)") is bool(excess)


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=4),
            st.sampled_from(["deliver", "lose the answer", "reconnect"]),
        ),
        max_size=12,
    )
)
def test_client_and_server_agree_after_any_history(history: list[tuple[dict[str, int], str]]) -> None:
    """A server that diffs against what it was told must leave the client with exactly its state."""
    subscription = DeltaSubscription(TYPE)
    applied: dict[str, str] = {}
    told = dict(subscription.open().initial_versions)
    for number, (wanted, fate) in enumerate([*history, ({"a": 9}, "deliver")]):
        state = {name: str(version) for name, version in wanted.items()}
        if fate == "reconnect":
            subscription.close()
            told = dict(subscription.open().initial_versions)
        changed = [(name, version) for name, version in state.items() if told.get(name) != version]
        gone = tuple(name for name in told if name not in state)
        update = subscription.receive(response(*changed, nonce=f"n{number}", removed=gone))
        for name in update.removed:
            applied.pop(name, None)
        applied.update({resource.name: resource.version for resource in update.upserted})
        if fate == "lose the answer":
            subscription.close()
            told = dict(subscription.open().initial_versions)
        else:
            subscription.settle([])
            told = state
    # What was applied but never settled may linger only while the client does not count it.
    assert {name: applied[name] for name in subscription.versions} == dict(subscription.versions) == told
