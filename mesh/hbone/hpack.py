# SPDX-License-Identifier: Apache-2.0
"""HPACK: a bounded decoder with its dynamic table, and an encoder that keeps no state.

The encoder never indexes, so that a connection's peer holds nothing for us and one
tunnel's header can never show in another's length. Source: RFC 7541.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from mesh.hbone.huffman import HuffmanError
from mesh.hbone.huffman import decode as decode_huffman

Header = tuple[bytes, bytes]
ENTRY_OVERHEAD = 32
"""Octets that each entry counts beyond name and value (RFC 7541 §4.1, RFC 9113 §6.5.2)."""
_MAX_INTEGER_BYTES = 4
_STATIC: tuple[Header, ...] = (
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
_STATIC_COUNT = len(_STATIC)
_FULL = {header: index for index, header in reversed(list(enumerate(_STATIC, 1)))}
_NAMES = {name: index for index, (name, _) in reversed(list(enumerate(_STATIC, 1)))}


class HpackError(ValueError):
    """The header block cannot be decoded; the connection's state is lost (peer's fault)."""


class HpackFloodError(HpackError):
    """The header list is so long that decoding it is given up."""


class HpackDecoder:
    """Decodes the header blocks of one direction of one connection, in order."""

    __slots__ = ("_entries", "_max_table", "_size", "_table_limit", "added", "depends", "version")

    def __init__(self, max_table_bytes: int) -> None:
        self._max_table = max_table_bytes
        self._table_limit = max_table_bytes
        self._entries: deque[Header] = deque()
        self._size = 0
        self.version = 0
        """Changes with the dynamic table: while it stays, a block decodes to what it did before."""
        self.added: list[Header] = []
        """What the last block put into the dynamic table."""
        self.depends = False
        """Whether the last block took anything from the dynamic table or changed its size."""

    @property
    def table_bytes(self) -> int:
        """Size of the dynamic table as RFC 7541 §4.1 counts it."""
        return self._size

    def decode(self, block: bytes, max_list_bytes: int) -> list[Header] | None:
        """Decode one whole header block.

        The block is decoded to its end even when the list is too long, as later blocks
        depend on the table; what exceeds the bound is not kept. At twice the bound it is
        given up: one byte can stand for a header, so that a block could cost much time.

        Returns:
            The headers in order, or None when they exceed `max_list_bytes`.

        Raises:
            HpackError: an invalid index, integer, string or table size.
            HpackFloodError: more than twice `max_list_bytes`.
        """
        headers: list[Header] = []
        self.added = []
        self.depends = False
        total, at, end = 0, 0, len(block)
        while at < end:
            first = block[at]
            if first & 0x80:
                if first == 0xFF:
                    index, at = _integer(block, at, 7)
                else:
                    index, at = first & 0x7F, at + 1
                header = self._get(index)
            elif first & 0xE0 == 0x20:
                # `total` stays 0 until the first header: size updates come before it.
                if total:
                    raise HpackError("table size update after a header")
                size, at = _integer(block, at, 5)
                self._resize(size)
                continue
            else:
                incremental = first & 0xC0 == 0x40
                index, at = _integer(block, at, 6 if incremental else 4)
                if index:
                    name = self._get(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                header = (name, value)
                if incremental:
                    self._add(header)
            total += len(header[0]) + len(header[1]) + ENTRY_OVERHEAD
            if total <= max_list_bytes:
                headers.append(header)
            elif total > 2 * max_list_bytes:
                raise HpackFloodError(f"header list of more than twice {max_list_bytes} bytes")
        return headers if total <= max_list_bytes else None

    def _get(self, index: int) -> Header:
        if not index:
            raise HpackError("index 0")
        if index <= _STATIC_COUNT:
            return _STATIC[index - 1]
        self.depends = True
        try:
            return self._entries[index - _STATIC_COUNT - 1]
        except IndexError:
            raise HpackError(f"index {index} is beyond the table of {len(self._entries)} entries") from None

    def _add(self, header: Header) -> None:
        size = len(header[0]) + len(header[1]) + ENTRY_OVERHEAD
        self._entries.appendleft(header)
        self.added.append(header)
        self._size += size
        self.version += 1
        if self._size > self._table_limit:
            self._evict()

    def repeat(self, added: Sequence[Header], size: int) -> None:
        """Do to the dynamic table what a block did that is known not to depend on it.

        Args:
            added: what it put there, in order.
            size: `list_bytes` of that.
        """
        self._entries.extendleft(added)
        self._size += size
        self.version += 1
        if self._size > self._table_limit:
            self._evict()

    def _resize(self, size: int) -> None:
        self.depends = True
        if size > self._max_table:
            raise HpackError(f"table size {size} exceeds the announced {self._max_table}")
        self._table_limit = size
        self.version += 1
        self._evict()

    def _evict(self) -> None:
        while self._size > self._table_limit:
            name, value = self._entries.pop()
            self._size -= len(name) + len(value) + ENTRY_OVERHEAD


def encode(headers: Iterable[Header]) -> bytes:
    """Encode a header block: static references, or literals without indexing."""
    out = bytearray()
    for header in headers:
        full = _FULL.get(header)
        if full is not None:
            out.append(0x80 | full)
            continue
        name, value = header
        index = _NAMES.get(name, 0)
        _put_integer(out, index, 4, 0)
        if not index:
            _put_integer(out, len(name), 7, 0)
            out += name
        _put_integer(out, len(value), 7, 0)
        out += value
    return bytes(out)


def list_bytes(headers: Iterable[Header]) -> int:
    """Return the size of a header list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + ENTRY_OVERHEAD for name, value in headers)


def _put_integer(out: bytearray, value: int, prefix: int, flags: int) -> None:
    limit = (1 << prefix) - 1
    if value < limit:
        out.append(flags | value)
        return
    out.append(flags | limit)
    value -= limit
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _integer(block: bytes, at: int, prefix: int) -> tuple[int, int]:
    """Decode an integer (RFC 7541 §5.1); return it and the position after it."""
    limit = (1 << prefix) - 1
    value = block[at] & limit
    at += 1
    if value < limit:
        return value, at
    for count in range(_MAX_INTEGER_BYTES):
        if at >= len(block):
            raise HpackError("the block ends inside an integer")
        byte = block[at]
        at += 1
        value += (byte & 127) << (7 * count)
        if byte < 128:
            return value, at
    raise HpackError(f"an integer of more than {_MAX_INTEGER_BYTES + 1} bytes")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(block):
        raise HpackError("the block ends before a string")
    compressed = block[at] & 0x80
    length = block[at] & 0x7F
    if length == 0x7F:
        length, at = _integer(block, at, 7)
    else:
        at += 1
    end = at + length
    if end > len(block):
        raise HpackError("the block ends inside a string")
    if not compressed:
        return block[at:end], end
    try:
        return decode_huffman(block[at:end]), end
    except HuffmanError as error:
        raise HpackError(str(error)) from error
