# SPDX-License-Identifier: Apache-2.0
"""Which processes belong to a pod, and which cgroup a process is in; read-only.

A pod is found by its uid in the names that the kubelet (or the lab) gives its cgroup,
which no process inside the pod can change.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MAX_DEPTH = 5
"""Levels below AMBIT_PODS_CGROUP that are searched: QoS class, pod, container and nested ones."""
MAX_PIDS = 4096
"""Processes of one pod that are looked at for its namespace."""
MAX_RESOLV_CONF_BYTES = 65536


def is_pod_directory(name: str, uid: str) -> bool:
    """Whether a cgroup directory of this name is that of pod `uid`.

    Names: the uid alone (lab), `pod<uid>` (cgroupfs driver), `kubepods-burstable-pod<uid with
    underscores>.slice` (systemd driver).
    """
    if name in (uid, f"pod{uid}"):
        return True
    return name.endswith(f"-pod{uid.replace('-', '_')}.slice")


def pod_directory(root: Path, uid: str) -> Path | None:
    """Find the pod's cgroup directory below `root`; None when it has none there."""
    level = [root]
    for _ in range(MAX_DEPTH):
        below: list[Path] = []
        for directory in level:
            for entry in _subdirectories(directory):
                if is_pod_directory(entry.name, uid):
                    return entry
                below.append(entry)
        level = below
    return None


def _subdirectories(directory: Path) -> list[Path]:
    try:
        with os.scandir(directory) as entries:
            return [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # Removed while we looked.


def pids_below(directory: Path) -> Iterator[int]:
    """Yield the processes of a cgroup and of those below it, as they are now."""
    for path, _, files in os.walk(directory):
        if "cgroup.procs" not in files:
            continue
        try:
            lines = (Path(path) / "cgroup.procs").read_text().split()
        except OSError:
            continue
        yield from (int(line) for line in lines if line != "0")


def pod_pids(root: Path, uid: str, proc: Path = Path("/proc")) -> list[int]:
    """Return processes of pod `uid`, at most MAX_PIDS.

    Searched below `root` first; on hosts whose runtime uses cgroup v1, by the names in
    `/proc/PID/cgroup` of all processes.
    """
    directory = pod_directory(root, uid)
    if directory is not None:
        found = pids_below(directory)
        pids = [pid for pid, _ in zip(found, range(MAX_PIDS), strict=False)]
        if pids:
            return pids
    return _pids_by_name(uid, proc)


def _pids_by_name(uid: str, proc: Path) -> list[int]:
    pids = []
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            lines = (entry / "cgroup").read_text().splitlines()
        except OSError:
            continue
        if any(is_pod_directory(part, uid) for line in lines for part in line.split(":", 2)[-1].split("/")):
            pids.append(int(entry.name))
            if len(pids) == MAX_PIDS:
                break
    return pids


def v2_path(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Return a process's cgroup v2 path as its line `0::/path` has it; None when it has ended."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def v1_group(pid: int, uid: str, proc: Path = Path("/proc")) -> str | None:
    """Return the v1 cgroup of a process of pod `uid`, as its line `ID:CONTROLLERS:PATH`, else None."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy != "0" and any(is_pod_directory(part, uid) for part in path.split("/")):
            return line
    return None


def pids_of_v1(group: str, proc: Path = Path("/proc")) -> list[int]:
    """Return the processes that have `group` as a line of their cgroups."""
    found = []
    for entry in proc.iterdir():
        try:
            if entry.name.isdigit() and group in (entry / "cgroup").read_text().splitlines():
                found.append(int(entry.name))
        except OSError:
            continue  # It ended.
    return found


def v2_mount(mounts: Path = Path("/proc/self/mounts")) -> Path | None:
    """Return where cgroup v2 is mounted; None when it is not."""
    for line in mounts.read_text().splitlines():
        words = line.split()
        if len(words) > 2 and words[2] == "cgroup2":
            return Path(words[1])
    return None


def cgroup_id(directory: Path) -> int:
    """Return the id of a cgroup v2 directory, as bpf_get_current_cgroup_id gives it.

    Raises:
        OSError: there is no such directory.
    """
    return directory.stat().st_ino


def resolv_conf_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Read the resolv.conf that a process sees; None when there is none to read.

    The file is the pod's: it may be anything, so only a regular file is read, bounded,
    and nothing is waited for.
    """
    try:
        fd = os.open(
            proc / str(pid) / "root" / "etc" / "resolv.conf",
            os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY,
        )
    except OSError:
        return None
    try:
        if not os.path.isfile(f"/proc/self/fd/{fd}"):
            return None
        return os.read(fd, MAX_RESOLV_CONF_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)
