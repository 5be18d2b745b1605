# SPDX-License-Identifier: Apache-2.0
"""Every bound of an HBONE connection, with its default and why it has that value."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * 1024
MAX_WINDOW = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one HTTP/2 connection; checked when made, announced in SETTINGS where the protocol can."""

    max_tunnels: int = 200
    """Concurrent tunnels that the peer may open (server), and that we open at most (client)."""
    initial_window_bytes: int = 256 * KIB
    """Receive window of a new tunnel: what a stuck one may make us hold."""
    max_window_bytes: int = 4 * MIB
    """What a tunnel that is drained promptly may grow to."""
    growth_budget_bytes: int = 32 * MIB
    """Sum of all growth on one connection; with the two above it bounds memory."""
    connection_window_bytes: int = 16 * MIB
    """Receive window of the connection; credited on arrival, so that no tunnel can hold it."""
    max_frame_bytes: int = 1 * MIB
    """Longest DATA frame accepted; its payload is passed on as it arrives, never gathered."""
    send_frame_bytes: int = 64 * KIB
    """Longest DATA frame sent when the peer allows more: keeps the turn of each tunnel short."""
    send_queue_bytes: int = 256 * KIB
    """Bytes of one tunnel that wait for window before its source is no longer read."""
    max_header_list_bytes: int = 64 * KIB
    """Decoded header list, 32 bytes an entry included (RFC 9113 §6.5.2)."""
    max_header_block_bytes: int = 64 * KIB
    """Encoded header block, its CONTINUATION frames included."""
    max_continuations: int = 8
    """CONTINUATION frames of one header block."""
    max_control_frame_bytes: int = 16 * KIB
    """Longest frame of a type other than DATA, HEADERS and CONTINUATION."""
    header_table_bytes: int = 4 * KIB
    """HPACK dynamic table of the decoder."""
    control_burst: int = 10_000
    """Control frames (and empty DATA frames) accepted in one go..."""
    control_per_s: float = 5_000.0
    """...and each second after it."""
    reset_burst: int = 1_000
    """Tunnels reset before they were answered, or by the peer's own faults, in one go..."""
    reset_per_s: float = 500.0
    """...and each second after it."""
    handshake_timeout_s: float = 10.0
    """From connection to the peer's SETTINGS."""
    keepalive_interval_s: float = 10.0
    """Silence after which a PING is sent."""
    keepalive_timeout_s: float = 20.0
    """Silence after a PING after which the connection is closed."""
    max_unread_answers_bytes: int = 4 * MIB
    """Answers (acknowledgements, credit, resets) that wait for a peer that sends but does not read."""

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
