# SPDX-License-Identifier: Apache-2.0
import ctypes
import sys

import pytest

from bpf import abi
from bpf import compile as compiler
from bpf.errors import CompileError


class Same(ctypes.Structure):
    _fields_ = (("netns_cookie", ctypes.c_uint64), ("family", ctypes.c_uint32), ("kind", ctypes.c_uint32))


class Moved(ctypes.Structure):
    _fields_ = (("family", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("netns_cookie", ctypes.c_uint64))


class Renamed(ctypes.Structure):
    _fields_ = (("netns_cookie", ctypes.c_uint64), ("family", ctypes.c_uint32), ("sort", ctypes.c_uint32))


class Narrow(ctypes.Structure):
    _fields_ = (
        ("netns_cookie", ctypes.c_uint64),
        ("family", ctypes.c_uint16),
        ("pad", ctypes.c_uint16),
        ("kind", ctypes.c_uint32),
    )


def test_same_layout_passes() -> None:
    compiler._compare_fields("key of map slots", Same, abi.SlotsKey)


@pytest.mark.parametrize("theirs", [Moved, Renamed, Narrow])
def test_other_layout_is_refused_with_both(theirs: type[ctypes.Structure]) -> None:
    with pytest.raises(CompileError, match=r"key of map slots.*in C and.*in abi.py"):
        compiler._compare_fields("key of map slots", theirs, abi.SlotsKey)


def test_scalars_have_no_fields_to_compare() -> None:
    compiler._compare_fields("key of map pods", ctypes.c_uint64, ctypes.c_uint64)


def test_missing_bcc_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bcc", None)
    with pytest.raises(CompileError, match=r"install python3-bpfcc.*--bytecode"):
        compiler.compile_all()
