# SPDX-License-Identifier: Apache-2.0
"""TLS contexts of an ingress gateway's listeners, from mounted files; chosen by the client's SNI.

Files are looked at for each handshake, so that a renewed certificate is used at once. One
that cannot be read leaves the last good one in use, and says so.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable

from waypoint.routing.front import FrontListener

_log = logging.getLogger("waypoint.ingress")
PROTOCOLS = ["h2", "http/1.1"]
Find = Callable[[int, str], FrontListener | None]
"""(port, host) to a listener."""
_Stamp = tuple[tuple[int, int], ...]


class _Context(ssl.SSLContext):
    """A context that knows the listener that it is for."""

    listener = ""


class _Made:
    """The contexts of one set of directories."""

    __slots__ = ("context", "stamp", "told")

    def __init__(self) -> None:
        self.context: ssl.SSLContext | None = None
        self.stamp: _Stamp = ()
        self.told = ""


class ServerCertificates:
    """Makes the contexts; loop thread only."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._fronts: dict[int, ssl.SSLContext] = {}
        self._made: dict[tuple[str, tuple[str, ...]], _Made] = {}

    def front(self, port: int) -> ssl.SSLContext:
        """Return the context that begins every handshake of a port; SNI puts a listener's in its place."""
        found = self._fronts.get(port)
        if found is None:
            found = self._fronts[port] = _new_context()
            found.sni_callback = lambda tls, name, _: self._choose(port, tls, name)
        return found

    def listener_of(self, tls: ssl.SSLObject) -> str:
        """Return the name of the listener that a finished handshake chose; empty: none."""
        return tls.context.listener if isinstance(tls.context, _Context) else ""

    def _choose(self, port: int, tls: ssl.SSLSocket | ssl.SSLObject, name: str | None) -> int | None:
        listener = self._find(port, (name or "").lower().removesuffix("."))
        if listener is None or not listener.secure:
            return int(ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME)
        context = self._context(listener)
        if context is None:
            return int(ssl.ALERT_DESCRIPTION_INTERNAL_ERROR)
        tls.context = context
        return None

    def _context(self, listener: FrontListener) -> ssl.SSLContext | None:
        """Return the context of a listener; None: its files have never been usable."""
        directories = listener.listener.certificates
        made = self._made.setdefault((listener.listener.name, directories), _Made())
        files = [f"{directory}/{name}" for directory in directories for name in ("tls.crt", "tls.key")]
        try:
            stamp = tuple((found.st_mtime_ns, found.st_ino) for found in map(os.stat, files))
            if stamp == made.stamp and made.context is not None:
                return made.context
            context = _new_context()
            context.listener = listener.listener.name
            for directory in directories:
                context.load_cert_chain(f"{directory}/tls.crt", f"{directory}/tls.key")
        except (OSError, ssl.SSLError) as error:
            self._tell(made, listener, f"{getattr(error, 'filename', None) or ', '.join(files)}: {error}")
            return made.context
        made.context, made.stamp, made.told = context, stamp, ""
        return context

    def _tell(self, made: _Made, listener: FrontListener, why: str) -> None:
        if made.told != why:
            made.told = why
            state = "the last good one stays in use" if made.context is not None else "handshakes fail"
            _log.error("certificate of listener %s cannot be used: %s; %s", listener.key, why, state)


def _new_context() -> _Context:
    context = _Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(PROTOCOLS)
    return context
