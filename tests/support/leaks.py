# SPDX-License-Identifier: Apache-2.0
"""What a machine holds of ours: namespaces, links, cgroups, pins, child processes."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

CGROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
BPFFS = Path("/sys/fs/bpf")
STATE = Path("/run/ambit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Names by kind; compare a later one with an earlier one."""

    namespaces: frozenset[str]
    links: frozenset[str]
    cgroups: frozenset[str]
    pins: frozenset[str]
    labs: frozenset[str]
    processes: frozenset[str]

    @classmethod
    def take(cls) -> Census:
        """Look now."""
        return cls(
            namespaces=_names(Path("/run/netns")),
            links=_names(Path("/sys/class/net")),
            cgroups=frozenset(
                name for base in CGROUPS for name in _names(base) if "ambit" in name or "test" in name
            ),
            pins=_names(BPFFS),
            # The lock between labs stays: removing it would let two of them hold it.
            labs=_names(STATE) - {".lock"},
            processes=_children(os.getpid()),
        )

    def beyond(self, earlier: Census) -> list[str]:
        """List what this census has and the earlier one has not."""
        return [
            f"{field.name}: {', '.join(sorted(more))}"
            for field in fields(self)
            if (more := getattr(self, field.name) - getattr(earlier, field.name))
        ]


def _names(directory: Path) -> frozenset[str]:
    try:
        return frozenset(entry.name for entry in directory.iterdir())
    except OSError:
        return frozenset()


def _children(pid: int) -> frozenset[str]:
    """List living children; a zombie that nobody waited for counts too."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return frozenset()
    found = set()
    for child in text.split():
        try:
            command = (
                Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
        except OSError:
            continue
        found.add(f"{child} {command[:80] or '(zombie)'}")
    return frozenset(found)
