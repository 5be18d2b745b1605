# SPDX-License-Identifier: Apache-2.0
"""TLS over any end, as client or server: a socket, or a tunnel that has its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from mesh.net.relay import HELD_BYTES, CountedEnd, End, RelayOwner
from mesh.net.sockets import DialError
from mesh.telemetry.reasons import Reason

_READ_BYTES = 256 * 1024


class TlsEnd:
    """The plaintext side, an `End`; call `handshake` first. The other side is `inner`'s peer and owner."""

    def __init__(
        self,
        inner: CountedEnd,
        context: ssl.SSLContext,
        server_name: str,
        label: str,
        *,
        server_side: bool = False,
    ) -> None:
        """Prepare TLS with `server_name` (SNI, and the name to verify); `label` is for messages."""
        self._inner = inner
        self._label = label
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name or None
        )
        self._shaken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._peer: End | None = None
        self._owner: RelayOwner | None = None
        self._held: list[bytes] = []
        self._eof = False
        self._closed: Reason | None = None
        self._failed = False
        self._full = False
        """The inner end takes no more."""
        self.delivered = 0

    async def handshake(self) -> ssl.SSLObject:
        """Bring TLS up.

        Raises:
            DialError: TLS_FAILURE; says what OpenSSL says.
        """
        below = _Below(self)
        self._inner.start(below, below)
        self._step()
        try:
            await self._shaken
        except BaseException:
            self.abort(Reason.TLS_FAILURE)
            raise
        return self._tls

    def _step(self) -> None:
        """Take the handshake as far as it goes."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._flush()
            why = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error
            self._refuse(f"TLS with {self._label}: {why}")
        else:
            self._flush()
            if not self._shaken.done():
                self._shaken.set_result(None)
            self._read()

    def _refuse(self, detail: str) -> None:
        if not self._shaken.done():
            self._shaken.set_exception(DialError(Reason.TLS_FAILURE, detail))

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._inner.write(self._outgoing.read())

    def _read(self) -> None:
        """Push what is decrypted into the peer, or hold it until there is one."""
        while not self._eof and not self._failed:
            try:
                data = self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                data = b""
            except ssl.SSLError:
                # The bytes are not the peer's, or it ended without leave: nothing of them counts.
                self._break(Reason.TLS_FAILURE)
                return
            if not data:
                self._eof = True
                if self._peer is not None:
                    self._peer.write_eof()
            elif self._peer is None:
                self._held.append(data)
                if sum(map(len, self._held)) >= HELD_BYTES:
                    self._inner.pause_reading()
            else:
                self.delivered += len(data)
                self._peer.write(data)
        self._flush()

    def _break(self, reason: Reason) -> None:
        self._failed = True
        self._inner.abort(reason)

    # --- from the inner end

    def take(self, data: bytes) -> None:
        """Take encrypted bytes."""
        self._incoming.write(data)
        if not self._shaken.done():
            self._step()
        else:
            self._read()

    def take_eof(self) -> None:
        """The inner end delivers no more; without TLS's own end the bytes before it may be cut short."""
        self._incoming.write_eof()
        if not self._shaken.done():
            self._refuse(f"TLS with {self._label}: the peer closed the connection during the handshake")
        elif not self._eof:
            self._read()

    def take_end(self, reason: Reason) -> None:
        """The inner end is gone."""
        self._refuse(f"TLS with {self._label}: {reason.text}")
        self._closed = reason
        if self._peer is not None and self._owner is not None:
            if reason is not Reason.COMPLETE:
                self._peer.abort(reason)
            self._owner.end_closed(self, reason)

    def take_room(self, room: bool) -> None:
        """The inner end is full, or has room again."""
        self._full = not room
        if self._peer is not None:
            if room:
                self._peer.resume_reading()
            else:
                self._peer.pause_reading()

    # --- End

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Let plaintext flow to `peer`; what was held goes first."""
        self._peer, self._owner = peer, owner
        held, self._held = self._held, []
        for data in held:
            self.delivered += len(data)
            peer.write(data)
        if self._eof:
            peer.write_eof()
        if self._closed is not None:
            self.take_end(self._closed)
            return
        if self._full:
            peer.pause_reading()
        if sum(map(len, held)) >= HELD_BYTES:
            self._inner.resume_reading()

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if self._closed is not None or self._failed or not data:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError:
            self._break(Reason.TLS_FAILURE)
            return
        self._flush()

    def write_eof(self) -> None:
        """Say that nothing more comes, in TLS and below."""
        if self._closed is not None or self._failed:
            return
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # Raises as the peer's own end is still to come.
        self._flush()
        self._inner.write_eof()

    def abort(self, reason: Reason) -> None:
        """Break the connection off."""
        self._inner.abort(reason)

    def pause_reading(self) -> None:
        """Stop reading."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._inner.resume_reading()


class _Below:
    """The encrypted side: peer and owner of the inner end."""

    __slots__ = ("_end",)

    def __init__(self, end: TlsEnd) -> None:
        self._end = end

    def start(self, peer: End, owner: RelayOwner) -> None:
        """Nothing to take: the inner end is known."""

    def write(self, data: bytes) -> None:
        """Encrypted bytes came."""
        self._end.take(data)

    def write_eof(self) -> None:
        """No more will come."""
        self._end.take_eof()

    def abort(self, reason: Reason) -> None:
        """The inner end broke; `end_closed` follows."""

    def pause_reading(self) -> None:
        """The inner end is full."""
        self._end.take_room(room=False)

    def resume_reading(self) -> None:
        """The inner end has room."""
        self._end.take_room(room=True)

    def end_closed(self, end: End, reason: Reason) -> None:
        """The inner end is gone (RelayOwner)."""
        self._end.take_end(reason)
