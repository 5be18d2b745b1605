# SPDX-License-Identifier: Apache-2.0
"""What the loader says on a kernel that lacks a feature, and that it leaves nothing there."""

import subprocess
from pathlib import Path

import pytest

from tests.bpf.node import PYTHON, REPOSITORY, Node

LACKING = """
import struct, sys
from bpf import abi, syscall
from bpf.__main__ import main

real, kind = syscall._bpf, int(abi.ProgramType[sys.argv.pop(1)])

def bpf(command, attributes):
    if command == syscall._PROG_LOAD and struct.unpack("=I", attributes[:4]) == (kind,):
        return -22
    return real(command, attributes)

syscall._bpf = bpf
sys.exit(main(sys.argv[1:]))
"""
"""The loader on a kernel that answers EINVAL to the load of one program type, as one without it does."""


@pytest.mark.parametrize(("kind", "program"), [("SK_LOOKUP", "sk_lookup"), ("CGROUP_SOCKOPT", "getsockopt")])
@pytest.mark.parametrize("command", ["probe", "load"])
def test_a_program_type_that_the_kernel_lacks_is_named_and_nothing_stays(
    bare: Node, bytecode: Path, command: str, kind: str, program: str
) -> None:
    arguments = [kind, command]
    if command == "load":
        paths = ("--bpffs", bare.bpffs, "--pods-cgroup", bare.pods_cgroup, "--node-cgroup", bare.cgroup)
        arguments += [*map(str, paths), "--bytecode", str(bytecode)]
    done = subprocess.run(
        [PYTHON, "-c", LACKING, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == (2 if command == "probe" else 1), said
    assert program in said
    assert "Invalid argument" in said
    assert "Traceback" not in said
    assert not list(bare.bpffs.glob("*"))
