# SPDX-License-Identifier: Apache-2.0
"""Who else decides on the pods' connects: programs of others on the same hooks, and whether they come first.

A program that rewrites a destination before ours sees it (a socket load balancer, say) hides services and
waypoints from the mesh. Within one cgroup the order is that of attaching; programs of a cgroup run before
those of its ancestors.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from bpf import abi, load, syscall
from bpf.errors import BpfError
from bpf.syscall import Fd

_HOOKS = (
    abi.AttachType.CONNECT4,
    abi.AttachType.CONNECT6,
    abi.AttachType.GETPEERNAME4,
    abi.AttachType.GETPEERNAME6,
    abi.AttachType.SENDMSG4,
    abi.AttachType.SENDMSG6,
    abi.AttachType.RECVMSG4,
    abi.AttachType.RECVMSG6,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A program of somebody else that runs for the pods' sockets."""

    hook: abi.AttachType
    program: int
    name: str
    earlier: bool
    """True if it runs before ours, and so can rewrite what ours should see."""


def neighbours(root: Path, pods_cgroup: Path) -> tuple[Neighbour, ...]:
    """Return the programs of others that run for sockets of `pods_cgroup`, in their order.

    Programs on cgroups below, which run earlier still, are not seen from here: ask for those directories.

    Raises:
        BpfError: not permitted, or no cgroup v2 directory.
    """
    own = {number for _, number, _, _ in load.programs(root)}
    found: list[Neighbour] = []
    directory = os.open(pods_cgroup, os.O_RDONLY | os.O_DIRECTORY)
    with Fd(directory) as cgroup:
        for hook in _HOOKS:
            found += _around(hook, syscall.effective_programs(cgroup.number, hook), own)
    return tuple(found)


def _around(hook: abi.AttachType, order: Collection[int], own: Collection[int]) -> list[Neighbour]:
    """Tell those before ours from those after; without ours, all count as earlier."""
    found: list[Neighbour] = []
    seen_ours = False
    for number in order:
        if number in own:
            seen_ours = True
        else:
            found.append(Neighbour(hook=hook, program=number, name=_name(number), earlier=not seen_ours))
    return found


def _name(number: int) -> str:
    try:
        with Fd(syscall.program_by_id(number)) as program:
            return syscall.program_name(program.number)
    except BpfError:
        return ""
