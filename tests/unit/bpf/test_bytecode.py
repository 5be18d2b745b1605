# SPDX-License-Identifier: Apache-2.0
import json
import struct

import pytest

from bpf import abi
from bpf.bytecode import Bytecode, Program
from bpf.errors import BpfError

EXIT = struct.pack("=BBhi", 0x95, 0, 0, 0)


def load_64(value: int, source: int = 0) -> bytes:
    return struct.pack(
        "=BBhi", 0x18, source << 4 | 1, 0, struct.unpack("=i", struct.pack("=I", value & 0xFFFFFFFF))[0]
    ) + (struct.pack("=BBhI", 0, 0, 0, value >> 32))


def program(name: str = "p") -> Program:
    return Program.from_compiled(name, load_64(7, source=1) + load_64(0x1122334455667788) + EXIT, {7: "pods"})


def whole() -> Bytecode:
    return Bytecode(
        schema="aa",
        source="bb",
        compiler="cc",
        programs=tuple(program(spec.name) for spec in abi.PROGRAMS),
    )


def test_descriptors_become_names_and_other_descriptors() -> None:
    taken = program()
    assert taken.maps == ((0, "pods"),)
    assert taken.code[:16] == load_64(0, source=1)
    assert taken.link({"pods": 42}) == load_64(42, source=1) + load_64(0x1122334455667788) + EXIT


def test_descriptor_of_no_map_is_refused() -> None:
    with pytest.raises(BpfError, match="descriptor 9 is no map"):
        Program.from_compiled("p", load_64(9, source=1) + EXIT, {7: "pods"})


def test_constant_is_replaced_wherever_it_is() -> None:
    twice = Program(name="p", code=load_64(5 << 32 | 6) * 2 + EXIT, maps=())
    assert twice.with_constant(5 << 32 | 6, 0xFFFFFFFF00000001).code == load_64(0xFFFFFFFF00000001) * 2 + EXIT


def test_constant_with_its_low_half_negative_is_found() -> None:
    one = Program(name="p", code=load_64(0x00000001FFFFFFFF) + EXIT, maps=())
    assert one.with_constant(0x00000001FFFFFFFF, 3).code == load_64(3) + EXIT


def test_constant_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BpfError, match="no constant 0x5"):
        program().with_constant(5, 6)


def test_second_half_of_a_constant_is_not_taken_for_an_instruction() -> None:
    """The upper half's first byte may look like the opcode of a 64-bit load."""
    tricky = struct.pack("=BBhi", 0x18, 1, 0, 1) + struct.pack("=BBhI", 0x18, 0x10, 0, 9) + EXIT
    assert Program.from_compiled("p", tricky, {}).maps == ()


def test_program_survives_storage() -> None:
    assert Program.decode(program().encode()) == program()


def test_bytecode_survives_storage() -> None:
    assert Bytecode.decode(whole().encode()) == whole()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text[: len(text) // 2], "wrong shape"),
        (lambda text: b"[]", "wrong shape"),
        (lambda text: b"{}", "wrong shape"),
        (lambda text: text.replace(b'"schema": "aa"', b'"schema": "ab"'), "checksum"),
        (lambda text: text.replace(b'"format": 1', b'"format": 2'), "format 2"),
    ],
)
def test_spoilt_bytecode_is_refused_by_name(spoil, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BpfError, match=message):
        Bytecode.decode(spoil(whole().encode()))


def test_bytecode_without_a_program_is_refused() -> None:
    short = Bytecode(schema="aa", source="bb", compiler="cc", programs=whole().programs[1:])
    with pytest.raises(BpfError, match="lacks program sockops"):
        Bytecode.decode(short.encode())


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"name": "p", "code": "AAA", "maps": []},
        {"name": "p", "code": "", "maps": []},
        {"name": "p", "code": "AAAA", "maps": []},
        {"name": "p", "code": "lQAAAAAAAAA=", "maps": [[1, "pods"]]},
        {"name": "p", "code": "lQAAAAAAAAA=", "maps": [[-1, "pods"]]},
        {"name": "p", "code": "lQAAAAAAAAA=", "maps": [1]},
    ],
)
def test_stored_program_of_a_wrong_shape_is_refused(value: object) -> None:
    with pytest.raises(BpfError, match="stored program"):
        Program.from_json(value)


def test_stored_program_that_is_no_json_is_refused() -> None:
    with pytest.raises(BpfError, match="no JSON"):
        Program.decode(b"\xff")


def test_file_is_readable_json() -> None:
    assert json.loads(whole().encode())["compiler"] == "cc"
