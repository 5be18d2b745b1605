# SPDX-License-Identifier: Apache-2.0
"""HTTP/2 frames as bytes: numbers of the protocol, encoders, and the errors that end things.

Source: RFC 9113 §4, §6, §7. Pure; decoding with state is in `codec`.
"""

from __future__ import annotations

import enum
import struct

from mesh.telemetry.reasons import Reason

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES = 9
MAX_STREAM_ID = 2**31 - 1
DEFAULT_WINDOW = 65535
DEFAULT_FRAME = 16384

# Plain ints, not an enum: they are compared once per frame.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)
ENABLE_CONNECT_PROTOCOL = 8

_setting = struct.Struct(">HI")
_two_words = struct.Struct(">II")


class ErrorCode(enum.IntEnum):
    """RFC 9113 §7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13

    @classmethod
    def of(cls, code: int) -> ErrorCode:
        """Return the code, unknown ones as INTERNAL_ERROR (RFC 9113 §7)."""
        try:
            return cls(code)
        except ValueError:
            return cls.INTERNAL_ERROR


class HboneError(Exception):
    """Base of this package's errors; `reason` says whose doing it was."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.text}: {detail}" if detail else reason.text)
        self.reason = reason
        self.detail = detail


class ConnectionFailedError(HboneError):
    """The whole connection has to end, by the peer's fault; not safe to retry on it."""

    def __init__(self, code: ErrorCode, detail: str, reason: Reason = Reason.H2_PROTOCOL_ERROR) -> None:
        super().__init__(reason, f"{code.name}, {detail}")
        self.code = code


class StreamFailedError(HboneError):
    """One tunnel has to end, by the peer's fault."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(Reason.H2_PROTOCOL_ERROR, f"{code.name}, {detail}")
        self.code = code


class TunnelLimitError(HboneError):
    """The connection takes no further tunnel now; another connection may."""


class TunnelError(HboneError):
    """A tunnel could not be opened; `retryable` when the peer surely did not act on it."""

    def __init__(self, reason: Reason, detail: str, *, retryable: bool = False) -> None:
        super().__init__(reason, detail)
        self.retryable = retryable


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Encode one frame: length u24, type u8, flags u8, stream u31, payload; big-endian."""
    return b"%b%c%b%b" % (
        (len(payload) << 8 | kind).to_bytes(4, "big"),
        flags,
        stream_id.to_bytes(4, "big"),
        payload,
    )


def settings(values: dict[int, int]) -> bytes:
    """Encode a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_setting.pack(k, v) for k, v in values.items()))


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Decode the payload of a SETTINGS frame, in order; its length is a multiple of six."""
    return [_setting.unpack_from(payload, at) for at in range(0, len(payload), 6)]


def window_update(stream_id: int, increment: int) -> bytes:
    """Encode a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """Encode a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: ErrorCode, debug: bytes = b"") -> bytes:
    """Encode a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, _two_words.pack(last_stream_id, code) + debug)


def headers(stream_id: int, block: bytes, *, end_stream: bool, max_frame_bytes: int) -> bytes:
    """Encode HEADERS with the CONTINUATION frames that a long block needs."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[at : at + max_frame_bytes] for at in range(0, len(block), max_frame_bytes)]
    encoded = [frame(HEADERS, flags, stream_id, parts[0])]
    encoded += [frame(CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
    encoded.append(frame(CONTINUATION, END_HEADERS, stream_id, parts[-1]))
    return b"".join(encoded)
