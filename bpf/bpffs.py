# SPDX-License-Identifier: Apache-2.0
"""Where pins are, and the mounting of bpffs where the host has none.

Layout under BPFFS: maps/NAME, links/NAME, pods/UID/lookup-COOKIE. bpffs allows no dot in a name.
"""

import ctypes
import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf.errors import BpfError, NotLoadedError

_MAGIC = 0xCAFE4A11
_MARK = "ambit_mounted"
_SYSTEM = Path("/sys/fs/bpf")
_KERNELS = {"maps.debug", "progs.debug"}
"""Files that the kernel itself puts into the root of a bpffs."""
_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_libc = ctypes.CDLL(None, use_errno=True)


def map_pin(root: Path, name: str) -> Path:
    """Return where a map is pinned."""
    return root / "maps" / name


def link_pin(root: Path, name: str) -> Path:
    """Return where a link is pinned."""
    return root / "links" / name


def pod_directory(root: Path, uid: str) -> Path:
    """Return where a pod's link is pinned; raises BpfError for a uid that is no file name."""
    if not _UID.fullmatch(uid):
        raise BpfError(f"pod uid {uid!r} cannot name a pin: letters, digits, - and _ only")
    return root / "pods" / uid


def is_bpffs(path: Path) -> bool:
    """Return whether the nearest existing directory is on bpffs."""
    while not path.exists():
        path = path.parent
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int(struct.unpack_from("=q", buffer.raw)[0]) & 0xFFFFFFFF == _MAGIC


def _mount_point(root: Path) -> Path:
    return _SYSTEM if root.is_relative_to(_SYSTEM) else root


@contextmanager
def _mounting(point: Path) -> Iterator[None]:
    """Keep two loaders from mounting twice, and one from unmounting what the other is about to use."""
    fd = os.open(point.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def prepare(root: Path) -> Path | None:
    """Make `root` and its directories, mounting bpffs if there is none; return where that was, if it was.

    The mount bears a mark, so that `unmount_if_ours` undoes this and nothing else.
    """
    point = _mount_point(root)
    point.parent.mkdir(parents=True, exist_ok=True)
    mounted = None
    with _mounting(point):
        if not is_bpffs(root):
            point.mkdir(exist_ok=True)
            if _libc.mount(b"bpf", os.fsencode(point), b"bpf", 0, b"mode=0700") != 0:
                raise BpfError(
                    f"cannot mount bpffs on {point}: {os.strerror(ctypes.get_errno())}; run as root"
                )
            (point / _MARK).mkdir()
            mounted = point
        for name in ("maps", "links", "pods"):
            (root / name).mkdir(parents=True, exist_ok=True)
    return mounted


def unmount_if_ours(root: Path) -> bool:
    """Unmount the bpffs that `prepare` mounted, if nothing is left on it; return whether it was."""
    point = _mount_point(root)
    if not point.is_dir():
        return False
    with _mounting(point):
        if {entry.name for entry in point.iterdir()} - _KERNELS != {_MARK}:
            return False
        (point / _MARK).rmdir()
        if _libc.umount2(os.fsencode(point), 0) != 0:
            number = ctypes.get_errno()
            (point / _MARK).mkdir()
            raise BpfError(f"cannot unmount {point}: {os.strerror(number)}")
    return True


def prune(root: Path) -> None:
    """Remove the empty directories of `root`, and the empty ones above it up to the mount."""
    for name in ("maps", "links", "pods"):
        directory = root / name
        if directory.is_dir():
            directory.rmdir()
    at = root
    while at.is_dir() and not at.is_mount() and not any(at.iterdir()):
        at.rmdir()
        at = at.parent


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Hold the one lock of these pins; raises NotLoadedError if there is no such directory."""
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise NotLoadedError(
            f"{root}: {error.strerror}; run `python3 -m bpf load --bpffs {root} ...`"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
