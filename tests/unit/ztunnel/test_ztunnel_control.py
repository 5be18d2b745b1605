# SPDX-License-Identifier: Apache-2.0
"""The control channel's frames."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.control import MAX_FRAME_BYTES, Decoder, Message, encode

MESSAGES = st.builds(
    Message,
    st.text(max_size=8),
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=3
    ),
    st.lists(st.binary(max_size=20), max_size=3).map(tuple),
)


@given(st.lists(st.tuples(MESSAGES, st.integers(0, 3)), max_size=4), st.integers(1, 7))
def test_any_split_gives_the_same_messages(messages: list[tuple[Message, int]], step: int) -> None:
    data = b"".join(encode(message, fds) for message, fds in messages)
    decoder = Decoder()
    found = []
    for start in range(0, len(data), step):
        found += decoder.feed(data[start : start + step])
    assert found == messages


def test_a_frame_that_is_too_long_or_does_not_add_up_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        Decoder().feed(struct.pack("!II", MAX_FRAME_BYTES, 1))
    text = b'{"kind":"x","body":{},"blobs":[1],"fds":0}'
    with pytest.raises(ValueError, match="do not fill"):
        Decoder().feed(struct.pack("!II", len(text), 2) + text + b"ab")
