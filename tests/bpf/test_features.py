# SPDX-License-Identifier: Apache-2.0
"""What the loader says on a kernel that lacks a feature, and that it leaves nothing there."""

import json
import struct
import subprocess
from pathlib import Path

import pytest

from bpf import abi, features
from bpf.bytecode import Bytecode
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

WITHOUT_HELPER = """
import ctypes, struct, sys
from bpf import abi, features, syscall
from bpf.__main__ import main

real = syscall._bpf
kind, number = int(abi.ProgramType[sys.argv.pop(1)]), features._NUMBERS[sys.argv.pop(1)]

def bpf(command, attributes):
    if command == syscall._PROG_LOAD and struct.unpack("=I", attributes[:4]) == (kind,):
        _, count, code, _, level, size, log = struct.unpack("=IIQQIIQ", attributes[:40])
        text = ctypes.string_at(code, 8 * count)
        calls = [text[i + 4:i + 8] for i in range(0, len(text), 8) if text[i] == 0x85]
        if struct.pack("=i", number) in calls:
            if level:
                said = f"unknown func #{number}".encode()
                ctypes.memmove(log, said, len(said))
            return -22
    return real(command, attributes)

syscall._bpf = bpf
sys.exit(main(sys.argv[1:]))
"""
"""The loader on a kernel whose verifier does not know one function for one program type."""

_CALL, _LOAD_64 = 0x85, 0x18


def run(program: str, node: Node, bytecode: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the loader on such a kernel; the last word is its command."""
    arguments = [*words]
    if words[-1] == "load":
        paths = ("--bpffs", node.bpffs, "--pods-cgroup", node.pods_cgroup, "--node-cgroup", node.cgroup)
        arguments += [*map(str, paths), "--bytecode", str(bytecode)]
    return subprocess.run(
        [PYTHON, "-c", program, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("kind", "program"), [("SK_LOOKUP", "sk_lookup"), ("CGROUP_SOCKOPT", "getsockopt")])
@pytest.mark.parametrize("command", ["probe", "load"])
def test_a_program_type_that_the_kernel_lacks_is_named_and_nothing_stays(
    bare: Node, bytecode: Path, command: str, kind: str, program: str
) -> None:
    done = run(LACKING, bare, bytecode, kind, command)
    said = done.stdout + done.stderr
    assert done.returncode == (2 if command == "probe" else 1), said
    assert f"this kernel lacks program {program}" in done.stderr
    assert "Invalid argument" in said
    assert "Traceback" not in said
    assert not list(bare.bpffs.glob("*"))


def test_a_refused_load_names_all_that_is_missing_and_the_command_that_tries_it(
    bare: Node, bytecode: Path
) -> None:
    done = run(WITHOUT_HELPER, bare, bytecode, "SOCK_OPS", "sk_storage_get", "load")
    assert done.returncode == 1
    message = json.loads(done.stdout)["message"]
    assert message.startswith(
        "this kernel lacks bpf_sk_storage_get in sockops, bpf_sk_storage_get in probe ("
    )
    assert "`python3 -m bpf probe`" in message
    assert "kernel refuses program ambit_sockops" in message
    assert not list(bare.bpffs.glob("*"))


def test_a_function_that_the_kernel_does_not_offer_fails_the_probe_by_name(
    bare: Node, bytecode: Path
) -> None:
    done = run(WITHOUT_HELPER, bare, bytecode, "CGROUP_SOCK_ADDR", "set_retval", "probe")
    assert done.returncode == 2
    assert "lacks bpf_set_retval in connect: this kernel does not offer it" in done.stderr


def test_an_error_that_is_not_the_kernels_is_told_as_it_is(bare: Node, bytecode: Path) -> None:
    command = ["-m", "bpf", "load", "--bpffs", str(bare.bpffs), "--bytecode", str(bytecode)]
    cgroups = ["--pods-cgroup", str(bare.pods_cgroup / "none"), "--node-cgroup", str(bare.cgroup)]
    done = subprocess.run(
        [PYTHON, *command, *cgroups], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "is no cgroup directory" in done.stderr
    assert "lacks" not in done.stderr


def calls(code: bytes) -> set[int]:
    """Numbers of the kernel's functions that instructions call."""
    found, index = set(), 0
    while index < len(code):
        op, registers, _, immediate = struct.unpack_from("=BBhi", code, index)
        if op == _CALL and not registers >> 4:
            found.add(immediate)
        index += 16 if op == _LOAD_64 else 8
    return found


@pytest.mark.parametrize("spec", abi.PROGRAMS, ids=lambda spec: spec.name)
def test_the_probe_tries_exactly_what_the_programs_call(spec: abi.ProgramSpec, code: Bytecode) -> None:
    assert calls(code.program(spec.name).code) - features.EVERYWHERE == set(
        features.helpers(spec.name).values()
    )
