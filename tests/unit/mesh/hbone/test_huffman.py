# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.hbone.huffman import HuffmanError, decode

reference = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_decodes_what_the_reference_encodes(data: bytes) -> None:
    assert decode(reference.encode(data)) == data


def test_every_symbol() -> None:
    assert decode(reference.encode(bytes(range(256)))) == bytes(range(256))


@pytest.mark.parametrize("data", [b"\xff", b"\xff\xff\xff\xff", b"\x00", b"\x1e"])
def test_wrong_padding_and_eos_are_errors(data: bytes) -> None:
    with pytest.raises(HuffmanError):
        decode(data)
