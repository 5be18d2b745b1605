# SPDX-License-Identifier: Apache-2.0
"""The Huffman code of HPACK, decoding only: what we send is not compressed.

The code is canonical, so the lengths of its codes define it whole. Decoding walks a
table of (state, nibble); a state is an inner node of the code's tree.

Source: RFC 7541 §5.2 and appendix B.
"""

from __future__ import annotations

from functools import lru_cache

_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
)
_EOS_LENGTH = 30
_CACHED_BYTES = 128
"""Longer strings are not worth a place in the cache."""


class HuffmanError(ValueError):
    """The string is no valid Huffman string (peer's fault)."""


def _tree() -> list[list[int]]:
    """Return the code's tree: node -> [child for 0, child for 1]; a leaf is -1 - symbol, EOS symbol 256."""
    lengths = (*_LENGTHS, _EOS_LENGTH)
    nodes = [[0, 0]]
    code = length = 0
    for symbol in sorted(range(257), key=lambda s: (lengths[s], s)):
        code <<= lengths[symbol] - length
        length = lengths[symbol]
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes.append([0, 0])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = -1 - symbol
        code += 1
    return nodes


def _table() -> tuple[list[tuple[int, int]], frozenset[int]]:
    """Return (state * 16 + nibble) -> (next state, symbol or -1), and the states that may end a string.

    A next state of -1 means EOS: an error. A nibble ends at most one symbol, as the shortest
    code has five bits.
    """
    nodes = _tree()
    table: list[tuple[int, int]] = []
    for state in range(len(nodes)):
        for nibble in range(16):
            node, symbol = state, -1
            for shift in (3, 2, 1, 0):
                child = nodes[node][nibble >> shift & 1]
                if child == -257:
                    node = -1
                    break
                if child < 0:
                    symbol, node = -1 - child, 0
                else:
                    node = child
            table.append((node, symbol))
    # Padding is up to seven bits of the most significant bits of EOS, all ones.
    ends, node = {0}, 0
    for _ in range(7):
        node = nodes[node][1]
        ends.add(node)
    return table, frozenset(ends)


_TABLE, _ENDS = _table()


def decode(data: bytes) -> bytes:
    """Return the decoded string.

    Raises:
        HuffmanError: EOS inside the string, or padding that is too long or not all ones (peer).
    """
    return _cached(data) if len(data) <= _CACHED_BYTES else _decode(data)


def _decode(data: bytes) -> bytes:
    table, state, out = _TABLE, 0, bytearray()
    for byte in data:
        state, symbol = table[state << 4 | byte >> 4]
        if symbol >= 0:
            out.append(symbol)
        if state < 0:
            raise HuffmanError("EOS inside a string")
        state, symbol = table[state << 4 | byte & 15]
        if symbol >= 0:
            out.append(symbol)
        if state < 0:
            raise HuffmanError("EOS inside a string")
    if state not in _ENDS:
        raise HuffmanError("padding is not the beginning of EOS")
    return bytes(out)


_cached = lru_cache(maxsize=1024)(_decode)
