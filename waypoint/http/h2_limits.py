# SPDX-License-Identifier: Apache-2.0
"""Every bound of a waypoint's HTTP/2 connection, with its default and why it has that value."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * 1024
MAX_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Limits:
    """Bounds of one connection; checked when made, announced in SETTINGS where the protocol can."""

    max_streams: int = 256
    """Concurrent requests: that a client may have open, and that we open at most to a server."""
    initial_window_bytes: int = 64 * KIB
    """Receive window of a new stream: what a stuck one may make us hold."""
    max_window_bytes: int = 4 * MIB
    """What a stream that is drained promptly may grow to."""
    growth_budget_bytes: int = 16 * MIB
    """Sum of all growth on one connection; with the three above it bounds memory."""
    connection_window_bytes: int = 4 * MIB
    """Receive window of the connection; credited on arrival, so that no stream can hold it."""
    max_frame_bytes: int = 64 * KIB
    """Longest DATA frame accepted; its payload is passed on as it arrives, never gathered."""
    send_frame_bytes: int = 64 * KIB
    """Longest DATA frame sent when the peer allows more: keeps the turn of each stream short."""
    send_queue_bytes: int = 128 * KIB
    """Bytes of one stream that wait for window before its source is no longer read."""
    max_header_list_bytes: int = 64 * KIB
    """Decoded header list, 32 bytes an entry included (RFC 9113 §6.5.2); beyond it 431."""
    max_fields: int = 100
    """Fields of one header list; beyond it 431."""
    max_target_bytes: int = 16 * KIB
    """Request target; beyond it 414."""
    max_header_block_bytes: int = 64 * KIB
    """Encoded header block, its CONTINUATION frames included."""
    max_continuations: int = 8
    """CONTINUATION frames of one header block."""
    max_control_frame_bytes: int = 16 * KIB
    """Longest frame of a type other than DATA, HEADERS and CONTINUATION."""
    header_table_bytes: int = 4 * KIB
    """HPACK dynamic table of the decoder."""
    control_burst: int = 20_000
    """Frames that cost us and serve nobody (PING, SETTINGS, empty DATA, credit crumbs) in one go..."""
    control_per_s: float = 10_000.0
    """...and each second after it; beyond it GOAWAY ENHANCE_YOUR_CALM."""
    reset_burst: int = 1_000
    """Requests reset before their response, or by faults that made us reset them, in one go..."""
    reset_per_s: float = 500.0
    """...and each second after it; beyond it GOAWAY ENHANCE_YOUR_CALM."""
    handshake_timeout_s: float = 10.0
    """From the connection's start to the peer's SETTINGS."""
    head_timeout_s: float = 60.0
    """From the first byte of a frame or header block to its last."""
    idle_timeout_s: float = 3600.0
    """Without a stream, until the connection is closed."""
    keepalive_interval_s: float = 330.0
    """Silence after which a PING is sent; gRPC servers end connections pinged more often than all 300 s."""
    keepalive_timeout_s: float = 20.0
    """From a PING to a sign of life; then the connection is given up."""
    max_unread_answers_bytes: int = 1 * MIB
    """Answers (acknowledgements, credit, resets) that wait for a peer that sends but does not read."""
    close_s: float = 5.0
    """From our end of the connection to the peer's; then it is reset."""

    def __post_init__(self) -> None:
        """Reject bounds that HTTP/2 or this codec cannot keep.

        Raises:
            ValueError: names the bound (local fault).
        """
        for name in self.__slots__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if not 65535 <= self.initial_window_bytes <= self.max_window_bytes <= MAX_WINDOW:
            raise ValueError(
                "initial_window_bytes must be between 65535 (what a peer assumes before SETTINGS) "
                f"and max_window_bytes {self.max_window_bytes}, not {self.initial_window_bytes}"
            )
        if not 65535 <= self.connection_window_bytes <= MAX_WINDOW:
            raise ValueError(
                f"connection_window_bytes must be in 65535..2^31-1, not {self.connection_window_bytes}"
            )
        for name in ("max_frame_bytes", "send_frame_bytes"):
            if not 16384 <= getattr(self, name) <= 2**24 - 1:
                raise ValueError(f"{name} must be in 16384..16777215, not {getattr(self, name)}")
