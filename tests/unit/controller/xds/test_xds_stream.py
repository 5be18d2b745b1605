# SPDX-License-Identifier: Apache-2.0
"""What each proxy is told: all at first, then what changed, never twice, never out of order."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from controller.xds.snapshot import Resources
from controller.xds.stream import ProxyStream, Push

A, B = "type/a", "type/b"


def resources(**first: str) -> Resources:
    made = Resources({A: str.encode, B: str.encode})
    made.update({A: first, B: {}})
    return made


def ask(
    stream: ProxyStream,
    url: str = A,
    *,
    nonce: str = "",
    error: str = "",
    initial: Mapping[str, str] | None = None,
) -> None:
    stream.request(url, initial=initial or {}, nonce=nonce, error=error)


def drain(stream: ProxyStream) -> list[Push]:
    found = []
    while (push := stream.next_push()) is not None:
        found.append(push)
    return found


def names(push: Push) -> tuple[list[str], list[str]]:
    return [name for name, _ in push.resources], list(push.removed)


def test_a_first_request_gets_everything_once_even_when_that_is_nothing() -> None:
    stream = ProxyStream(resources(x="1", y="2"))
    ask(stream)
    ask(stream, B)
    first, second = drain(stream)
    assert (first.type_url, names(first)) == (A, (["x", "y"], []))
    assert (second.type_url, names(second)) == (B, ([], []))
    assert drain(stream) == []


def test_a_returning_proxy_gets_what_differs_and_what_is_gone() -> None:
    table = resources(x="1", y="2", z="3")
    have = {name: encoded.version for name, encoded in table.of(A).items()}
    stream = ProxyStream(table)
    ask(stream, initial={"x": have["x"], "y": "old", "z": "", "gone": "7", "refused": ""})
    (push,) = drain(stream)
    assert names(push) == (["y", "z"], ["gone", "refused"])


def test_a_change_is_told_once_and_only_its_names() -> None:
    table = resources(x="1", y="2")
    stream = ProxyStream(table)
    ask(stream)
    drain(stream)
    assert stream.changed(table.update({A: {"x": "1", "y": "9", "z": "3"}}))
    (push,) = drain(stream)
    assert names(push) == (["y", "z"], [])
    stream.changed(table.update({A: {"x": "1"}}))
    assert names(drain(stream)[0]) == ([], ["y", "z"])


def test_what_changed_back_before_it_was_told_is_not_told() -> None:
    table = resources(x="1")
    stream = ProxyStream(table)
    ask(stream)
    drain(stream)
    stream.changed(table.update({A: {"x": "2"}}))
    stream.changed(table.update({A: {"x": "1"}}))
    assert drain(stream) == []


def test_types_are_told_in_the_order_of_the_table() -> None:
    table = resources(x="1")
    stream = ProxyStream(table)
    ask(stream, B)
    ask(stream, A)
    assert [push.type_url for push in drain(stream)] == [A, B]


def test_what_others_name_comes_first_and_goes_last() -> None:
    table = Resources({A: str.encode, B: str.encode}, named_by_others=frozenset({B}))
    stream = ProxyStream(table)
    ask(stream, A)
    ask(stream, B)
    assert [push.type_url for push in drain(stream)] == [B, A]
    stream.changed(table.update({A: {"w": "names p"}, B: {"p": "1"}}))
    assert [(push.type_url, names(push)) for push in drain(stream)] == [(B, (["p"], [])), (A, (["w"], []))]
    stream.changed(table.update({A: {"w": "names q"}, B: {"q": "1"}}))
    assert [(push.type_url, names(push)) for push in drain(stream)] == [
        (B, (["q"], [])),
        (A, (["w"], [])),
        (B, ([], ["p"])),
    ]


def test_a_refusal_is_kept_until_the_next_acceptance() -> None:
    table = resources(x="1")
    stream = ProxyStream(table)
    ask(stream)
    (push,) = drain(stream)
    assert stream.unacknowledged == 1
    ask(stream, nonce=push.nonce, error="bad x")
    assert stream.refused == {A: "x: bad x"}
    ask(stream, nonce=push.nonce)
    assert stream.refused == {A: "x: bad x"}
    stream.changed(table.update({A: {"x": "2"}}))
    (push,) = drain(stream)
    ask(stream, nonce=push.nonce)
    assert (stream.refused, stream.unacknowledged) == ({}, 0)


def test_a_type_that_is_not_served_is_answered_with_nothing() -> None:
    stream = ProxyStream(resources())
    ask(stream, "type/unknown", initial={"x": "1"})
    (push,) = drain(stream)
    assert names(push) == ([], ["x"])


def test_what_did_not_change_is_not_encoded_again() -> None:
    encoded: list[str] = []

    def encode(value: str) -> bytes:
        encoded.append(value)
        return value.encode()

    table = Resources({A: encode})
    table.update({A: {f"n{i}": f"v{i}" for i in range(100)}})
    encoded.clear()
    (change,) = table.update({A: {f"n{i}": "new" if i == 7 else f"v{i}" for i in range(100)}})
    assert encoded == ["new"]
    assert change.names == {"n7"}


STATES = st.lists(st.dictionaries(st.sampled_from("abcd"), st.sampled_from("123")), min_size=1, max_size=6)


@given(STATES, st.lists(st.booleans(), max_size=6), st.dictionaries(st.sampled_from("abcde"), st.just("old")))
def test_a_proxy_ends_with_the_tables_state(
    states: list[dict[str, str]], told: list[bool], initial: dict[str, str]
) -> None:
    table = Resources({A: str.encode})
    table.update({A: states[0]})
    stream = ProxyStream(table)
    ask(stream, initial=initial)
    have = dict(initial)

    def apply() -> None:
        for push in drain(stream):
            for name in push.removed:
                del have[name]
            have.update({name: encoded.value.decode() for name, encoded in push.resources})

    for index, state in enumerate(states[1:]):
        stream.changed(table.update({A: state}))
        if index < len(told) and told[index]:
            apply()
    apply()
    assert have == states[-1]
