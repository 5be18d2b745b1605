# SPDX-License-Identifier: Apache-2.0
"""HPACK against the `hpack` package, which we did not write."""

from __future__ import annotations

import hpack as reference
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone.hpack import HpackDecoder, HpackError, HpackFloodError, encode, list_bytes

names = st.sampled_from(
    [b":method", b":authority", b"baggage", b"forwarded", b"traceparent", b"x"]
) | st.binary(min_size=1, max_size=30)
values = st.sampled_from([b"CONNECT", b"200", b""]) | st.binary(max_size=80)
lists = st.lists(st.tuples(names, values), max_size=12)


@settings(deadline=None)
@given(st.lists(lists, max_size=8), st.booleans())
def test_decodes_what_the_reference_encodes(blocks: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    encoder, decoder = reference.Encoder(), HpackDecoder(4096)
    for headers in blocks:
        assert decoder.decode(encoder.encode(headers, huffman=huffman), 1 << 20) == headers
        assert decoder.table_bytes == encoder.header_table._current_size


@settings(deadline=None)
@given(lists)
def test_the_reference_decodes_what_we_encode(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = reference.Decoder()
    decoder.max_header_list_size = 1 << 20
    assert decoder.decode(encode(headers), raw=True) == headers
    assert decoder.header_table._current_size == 0, "the encoder never indexes"


@settings(deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=6))
def test_arbitrary_blocks_decode_as_the_reference_or_fail(blocks: list[bytes]) -> None:
    ours, theirs = HpackDecoder(4096), reference.Decoder()
    theirs.max_header_list_size = 1 << 20
    for block in blocks:
        try:
            expected = theirs.decode(block, raw=True)
        except (reference.HPACKError, IndexError, ValueError):
            with pytest.raises(HpackError):
                ours.decode(block, 1 << 20)
            return
        try:
            assert ours.decode(block, 1 << 20) == expected
        except HpackError:
            # Stricter: integers of six bytes and more.
            return


@settings(deadline=None)
@given(st.lists(lists, max_size=6), lists)
def test_a_block_means_the_same_while_the_version_stays(
    before: list[list[tuple[bytes, bytes]]], headers: list[tuple[bytes, bytes]]
) -> None:
    encoder, decoder = reference.Encoder(), HpackDecoder(4096)
    for earlier in before:
        decoder.decode(encoder.encode(earlier), 1 << 20)
    block, version = encoder.encode(headers), decoder.version
    assert decoder.decode(block, 1 << 20) == headers
    if decoder.version == version:
        assert decoder.decode(block, 1 << 20) == headers


@settings(deadline=None)
@given(st.lists(lists, max_size=4), lists, st.sampled_from([0, 60, 200, 4096]))
def test_a_block_that_depends_on_nothing_can_be_repeated(
    before: list[list[tuple[bytes, bytes]]], headers: list[tuple[bytes, bytes]], table: int
) -> None:
    # Literals with indexing, as nginx sends all of its fields.
    block = b"".join(
        b"\x40" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers
    )
    decoded, repeated = HpackDecoder(table), HpackDecoder(table)
    for earlier in before:
        for decoder in (decoded, repeated):
            decoder.decode(encode(earlier) + b"".join(b"\x40\x01x\x01" + n[:1] for n, _ in earlier), 1 << 20)
    assert decoded.decode(block, 1 << 20) == headers
    assert (decoded.added, decoded.depends) == (headers, False)
    repeated.repeat(decoded.added, list_bytes(decoded.added))
    assert repeated._entries == decoded._entries
    assert repeated.table_bytes == decoded.table_bytes <= table


def test_a_block_that_depends_on_the_table_is_known() -> None:
    decoder = HpackDecoder(4096)
    decoder.decode(b"\x40\x01a\x011", 4096)
    for block in (b"\xbe", b"\x7e\x012", b"\x0f\x2f\x012", b"\x3f\xe1\x1f"):
        decoder.decode(block, 4096)
        assert decoder.depends
    decoder.decode(b"\x82", 4096)
    assert not decoder.depends


def test_resized_table_evicts_as_the_reference() -> None:
    encoder, decoder = reference.Encoder(), HpackDecoder(4096)
    for size in (4096, 100, 0, 4096):
        encoder.header_table_size = size
        headers = [(b"x-%d" % n, b"v" * 20) for n in range(10)]
        assert decoder.decode(encoder.encode(headers), 1 << 20) == headers
        assert decoder.table_bytes <= size


def test_header_list_limit_at_the_limit() -> None:
    headers = [(b"name", b"value" * 10)] * 3
    size = list_bytes(headers)
    assert size == 3 * (4 + 50 + 32)
    assert HpackDecoder(4096).decode(encode(headers), size) == headers
    assert HpackDecoder(4096).decode(encode(headers), size - 1) is None


def test_a_list_that_is_too_long_still_keeps_the_table_in_step() -> None:
    encoder, decoder = reference.Encoder(), HpackDecoder(4096)
    headers = [(b"a", b"1" * 50), (b"b", b"2" * 50)]
    assert decoder.decode(encoder.encode(headers), 90) is None
    assert decoder.decode(encoder.encode(headers), 1000) == headers


def test_a_bomb_of_references_is_given_up_at_twice_the_limit() -> None:
    decoder = HpackDecoder(4096)
    # One entry of 4,000 bytes, then 60,000 one-byte references to it: 240 MB if kept.
    bomb = b"\x40\x01x" + b"\x7f\xa1\x1e" + b"v" * 4000 + b"\xbe" * 60_000
    with pytest.raises(HpackFloodError):
        decoder.decode(bomb, 65536)
    assert decoder.table_bytes == 1 + 4000 + 32


def test_a_list_of_twice_the_limit_is_decoded_and_one_more_header_is_not() -> None:
    block = encode([(b"name", b"value" * 10)] * 4)
    assert HpackDecoder(4096).decode(block, 2 * 86) is None
    with pytest.raises(HpackFloodError):
        HpackDecoder(4096).decode(block, 2 * 86 - 1)


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "beyond the table"),
        (b"\xff\xff\xff\xff\xff\x7f", "integer of more"),
        (b"\xff", "inside an integer"),
        (b"\x00\x05ab", "inside a string"),
        (b"\x00", "before a string"),
        (b"\x3f\xe2\x1f", "exceeds the announced"),
        (b"\x82\x20", "after a header"),
        (b"\x00\x81\xff\x00", "EOS"),
    ],
)
def test_broken_blocks_are_named(block: bytes, why: str) -> None:
    with pytest.raises(HpackError, match=why):
        HpackDecoder(4096).decode(block, 65536)


def test_a_smaller_table_evicts_at_once() -> None:
    encoder, decoder = reference.Encoder(), HpackDecoder(4096)
    decoder.decode(encoder.encode([(b"x-a", b"1")]), 1000)
    assert decoder.table_bytes > 0
    decoder.decode(b"\x20", 1000)
    assert decoder.table_bytes == 0
