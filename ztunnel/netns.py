# SPDX-License-Identifier: Apache-2.0
"""A pod's network namespace, and the making of sockets inside it.

A socket belongs to the namespace in which it was made, for good; so the thread enters
the pod's namespace for the length of one socket() and is back before anything else can
run. Nothing here awaits.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_SO_NETNS_COOKIE = 71
"""Source: linux/asm-generic/socket.h; since Linux 5.14."""
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(OSError):
    """A namespace cannot be entered or is not the one that was named; says which and why."""


def _setns(fd: int, what: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise NamespaceError(
            number, f"cannot enter {what}: {os.strerror(number)} (ztunnel needs CAP_SYS_ADMIN)"
        )


class PodNamespace:
    """Owns a descriptor of one network namespace; loop thread only. `close` when the pod is gone."""

    def __init__(self, fd: int) -> None:
        """Take over `fd`.

        Raises:
            NamespaceError: it is no network namespace, or this process may not enter it.
        """
        self._fd = fd
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(fd).st_ino
        try:
            probe = self.socket(socket.AF_INET, socket.SOCK_STREAM)
        except OSError:
            os.close(self._home)
            raise
        with probe:
            self.cookie = netns_cookie(probe)

    @classmethod
    def own(cls) -> PodNamespace:
        """Open the namespace that this process is in."""
        return cls(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def socket(self, family: int, kind: int) -> socket.socket:
        """Make one non-blocking socket inside the namespace.

        Raises:
            NamespaceError: the namespace cannot be entered.
            OSError: no such family there, or out of descriptors.
        """
        with self._entered():
            return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        _setns(self._fd, "the pod's network namespace")
        try:
            yield
        finally:
            if _libc.setns(self._home, _CLONE_NEWNET) != 0:
                # Going on in the wrong namespace would mix up pods: no way to continue is safe.
                os.abort()

    def reflect_marks(self) -> None:
        """Let a refusal (RST) to one of our marked dials carry its mark, and so find its way back to us.

        `tcp_fwmark_accept`, which the node agent sets, covers accepted sockets only; a closed port
        has none, and its RST would leave the pod towards the real client: a dial of ten seconds.

        Raises:
            OSError: the setting cannot be written.
        """
        with self._entered():
            for version in ("ipv4", "ipv6"):
                path = Path(f"/proc/sys/net/{version}/fwmark_reflect")
                with contextlib.suppress(FileNotFoundError):
                    # The node agent has set it; in a container without privileges it could not be set here.
                    if path.read_text().strip() != "1":
                        path.write_text("1")

    def duplicate(self) -> int:
        """Return a new descriptor of the namespace, owned by the caller."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Let go of the namespace; sockets made in it live on."""
        if self._fd >= 0:
            os.close(self._fd)
            os.close(self._home)
            self._fd = -1


def netns_cookie(sock: socket.socket) -> int:
    """Return the cookie of the namespace that a socket belongs to: u64, never reused."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8))[0])
