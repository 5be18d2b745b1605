# SPDX-License-Identifier: Apache-2.0
"""Compile the programs with bcc: the only importer of bcc, and so of LLVM.

Only the short process `python3 -m bpf load|build` imports this module. bcc compiles and creates maps of its
own to do so; what is taken from it are the instructions and the layout.
"""

import contextlib
import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bpf import abi, sources
from bpf.bytecode import Bytecode, Program
from bpf.errors import CompileError

_FLAGS = ("-Wno-macro-redefined", "-Werror=implicit-function-declaration")


def compile_all() -> Bytecode:
    """Compile every program, after checking each map's layout against `abi`.

    Raises:
        CompileError: bcc or the UAPI headers are missing, a program does not compile, or the layout differs.
    """
    bcc = _import_bcc()
    with _kernel_headers():
        module = _compile(bcc)
    try:
        descriptors = check_layout(bcc, module)
        programs = tuple(
            Program.from_compiled(spec.name, bytes(module.dump_func(spec.name)), descriptors)
            for spec in abi.PROGRAMS
        )
    finally:
        module.cleanup()
    return Bytecode(
        schema=sources.schema_hash(),
        source=sources.source_hash(),
        compiler=f"bcc {bcc.__version__} {platform.machine()}",
        programs=programs,
    )


def check_layout(bcc: Any, module: Any) -> Mapping[int, str]:
    """Compare the maps that clang saw with `abi`; return descriptor -> name of bcc's maps.

    Raises:
        CompileError: naming the map, the field and both layouts.
    """
    descriptors: dict[int, str] = {}
    for spec in abi.map_specs(abi.Limits()):
        if not spec.compiled:
            continue
        name = spec.name.encode()
        descriptor = bcc.lib.bpf_table_fd(module.module, name)
        if descriptor < 0:
            raise CompileError(f"ambit_maps.h declares no map {spec.name}")
        descriptors[descriptor] = spec.name
        number = bcc.lib.bpf_table_id(module.module, name)
        kind = bcc.lib.bpf_table_type_id(module.module, number)
        if kind != spec.type:
            raise CompileError(
                f"map {spec.name} has type {kind} in ambit_maps.h and {spec.type.name} in abi.py"
            )
        for side, ours, described, size in (
            ("key", spec.key, bcc.lib.bpf_table_key_desc, bcc.lib.bpf_table_key_size_id),
            ("value", spec.value, bcc.lib.bpf_table_leaf_desc, bcc.lib.bpf_table_leaf_size_id),
        ):
            if size(module.module, number) != ctypes.sizeof(ours):
                raise CompileError(
                    f"{side} of map {spec.name}: {size(module.module, number)} bytes in C, "
                    f"{ctypes.sizeof(ours)} in abi.py"
                )
            theirs = bcc.BPF._decode_table_type(json.loads(described(module.module, name)))
            _compare_fields(f"{side} of map {spec.name}", theirs, ours)
    return descriptors


def _compare_fields(what: str, theirs: Any, ours: abi.Words) -> None:
    if not issubclass(ours, ctypes.Structure) or ours is abi.Address:
        return
    mirror = [(name, getattr(ours, name).offset, getattr(ours, name).size) for name, *_ in ours._fields_]
    actual = [
        (name, getattr(theirs, name).offset, getattr(theirs, name).size) for name, *_ in theirs._fields_
    ]
    if mirror != actual:
        raise CompileError(f"{what}: fields (name, offset, size) are {actual} in C and {mirror} in abi.py")


def _import_bcc() -> Any:
    try:
        import bcc
    except ImportError as error:
        raise CompileError(
            f"bcc cannot be imported ({error}): install python3-bpfcc and run this with the system's "
            "/usr/bin/python3, or load stored bytecode with --bytecode FILE"
        ) from error
    return bcc


def _compile(bcc: Any) -> Any:
    try:
        return bcc.BPF(text=sources.unit(), cflags=list(_FLAGS))
    except Exception as error:
        raise CompileError(
            f"bcc does not compile the programs: {error} (clang's messages are above)"
        ) from error


@contextlib.contextmanager
def _kernel_headers() -> Iterator[None]:
    """Point bcc at a tree of UAPI headers: the programs need no kernel headers, and hosts have none."""
    uapi = Path("/usr/include/linux")
    machine = Path(f"/usr/include/{platform.machine()}-linux-gnu/asm")
    if not (uapi / "bpf.h").exists() or not machine.is_dir():
        raise CompileError(f"no UAPI headers in {uapi} and {machine}: install linux-libc-dev")
    before = os.environ.get("BCC_KERNEL_SOURCE")
    with tempfile.TemporaryDirectory(prefix="ambit-bpf-") as name:
        root = Path(name) / "include"
        for directory in ("linux", "uapi/linux", "asm"):
            (root / directory).mkdir(parents=True)
        (root / "linux/kconfig.h").write_text((sources.shim() / "kconfig.h").read_text())
        for empty in ("linux/log2.h", "asm/page.h", "uapi/linux/bpf.h"):
            (root / empty).write_text("")
        for entry in uapi.iterdir():
            if entry.name != "bpf.h":
                (root / "uapi/linux" / entry.name).symlink_to(entry)
        for entry in machine.iterdir():
            if entry.name != "page.h":
                (root / "asm" / entry.name).symlink_to(entry)
        (root / "asm-generic").symlink_to("/usr/include/asm-generic")
        for entry_name in ("version.h", "types.h"):
            (root / "linux" / entry_name).symlink_to(uapi / entry_name)
        os.environ["BCC_KERNEL_SOURCE"] = name
        try:
            yield
        finally:
            if before is None:
                del os.environ["BCC_KERNEL_SOURCE"]
            else:
                os.environ["BCC_KERNEL_SOURCE"] = before
