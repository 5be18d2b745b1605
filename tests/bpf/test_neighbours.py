# SPDX-License-Identifier: Apache-2.0
"""Programs of others at the same hooks: the order in which they run, and that it is seen."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bpf import abi, hooks, syscall
from bpf.bytecode import Bytecode
from tests.bpf.node import Node, Worker, bpf_command

SERVICE, BACKEND = "10.96.0.77", "192.0.2.99"


def balancer() -> bytes:
    """A socket load balancer as CNIs have one: SERVICE becomes BACKEND, everything else passes."""

    def number(text: str) -> int:
        return int(struct.unpack("=i", socket.inet_aton(text))[0])

    def insn(code: int, registers: int, offset: int, immediate: int) -> bytes:
        return struct.pack("=BBhi", code, registers, offset, immediate)

    user_ip4 = 4
    code = insn(0x61, 0x12, user_ip4, 0)  # r2 = user_ip4
    code += insn(0xB4, 0x03, 0, number(BACKEND))  # w3 = BACKEND
    code += insn(0x56, 0x02, 1, number(SERVICE))  # if w2 != SERVICE skip
    code += insn(0x63, 0x31, user_ip4, 0)  # user_ip4 = r3
    return code + insn(0xB7, 0, 0, 1) + insn(0x95, 0, 0, 0)


@pytest.fixture
def attach() -> Iterator[Callable[[Path], int]]:
    """Attach the balancer to a cgroup; return its program id."""
    opened: list[int] = []

    def run(cgroup: Path) -> int:
        program = syscall.prog_load(
            abi.ProgramType.CGROUP_SOCK_ADDR, abi.AttachType.CONNECT4, balancer(), "cni_balancer"
        )
        directory = os.open(cgroup, os.O_RDONLY)
        link = syscall.link_create(program, directory, abi.AttachType.CONNECT4, "the balancer")
        opened.extend((program, directory, link))
        return syscall.program_tag(program)[0]

    yield run
    for fd in reversed(opened):
        os.close(fd)


def dialled(node: Node) -> list[object]:
    """Dial the service from an enrolled pod; return what ztunnel takes for the destination."""
    pod = node.pod("a")
    pod.enroll()
    ztunnel: Worker = pod.ztunnel()
    assert pod.worker().call("attempt", SERVICE, 80)["data"] == "outbound"
    found: list[object] = ztunnel.run("result = seen[-1]['original']")
    return found


def test_balancer_at_an_ancestor_does_not_hide_the_service(
    bare: Node, code: Bytecode, attach: Callable[[Path], int]
) -> None:
    """Ours is attached later and runs first all the same: it is nearer to the pod."""
    number = attach(bare.cgroup)
    bare.load_here(code)
    assert dialled(bare) == [SERVICE, 80]
    assert hooks.neighbours(bare.bpffs, bare.pods_cgroup) == (
        hooks.Neighbour(hook=abi.AttachType.CONNECT4, program=number, name="cni_balancer", earlier=False),
    )


def test_balancer_on_the_same_cgroup_that_came_first_is_named_as_earlier(
    bare: Node, code: Bytecode, attach: Callable[[Path], int]
) -> None:
    attach(bare.pods_cgroup)
    bare.load_here(code)
    assert dialled(bare) == [BACKEND, 80], "that is why it has to be named"
    (one,) = hooks.neighbours(bare.bpffs, bare.pods_cgroup)
    assert (one.name, one.earlier) == ("cni_balancer", True)


def test_status_lists_the_programs_of_others(
    bare: Node, code: Bytecode, attach: Callable[[Path], int]
) -> None:
    bare.load_here(code)
    assert hooks.neighbours(bare.bpffs, bare.pods_cgroup) == ()
    number = attach(bare.pods_cgroup)
    found = bpf_command("status", "--bpffs", bare.bpffs, "--pods-cgroup", bare.pods_cgroup, "-o", "json")
    assert found["neighbours"] == [
        {"hook": "connect4", "program": number, "name": "cni_balancer", "earlier": False}
    ]
