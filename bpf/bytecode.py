# SPDX-License-Identifier: Apache-2.0
"""Programs as data: instructions, and which of them name a map.

What bcc compiled becomes a `Program`, is stored by `python3 -m bpf build`, and is loaded by `load` from
either. Holds no I/O.

Shape: an instruction is 8 bytes, {u8 code, u8 registers (source in the upper half), s16 offset, s32
immediate}; a 64-bit constant takes two. Source: Documentation/bpf/standardization/instruction-set.rst.
"""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from bpf import abi
from bpf.errors import BpfError

_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_64 = 0x18
_SOURCE_IS_MAP = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One program whose map references are names, not descriptors."""

    name: str
    code: bytes
    """Instructions, 8 bytes each; the constants that name maps are zero."""
    maps: tuple[tuple[int, str], ...]
    """Index of a two-instruction constant -> name of the map that goes there."""

    @classmethod
    def from_compiled(cls, name: str, code: bytes, descriptors: Mapping[int, str]) -> "Program":
        """Take bcc's instructions, which hold the descriptors of bcc's own maps.

        Raises:
            BpfError: an instruction names a descriptor that is none of the maps.
        """
        out = bytearray(code)
        named: list[tuple[int, str]] = []
        index = 0
        while index < len(code) // 8:
            op, registers, _, immediate = _INSTRUCTION.unpack_from(code, index * 8)
            if op == _LOAD_64:
                if registers >> 4 == _SOURCE_IS_MAP:
                    if immediate not in descriptors:
                        raise BpfError(
                            f"program {name}, instruction {index}: descriptor {immediate} is no map of ours"
                        )
                    named.append((index, descriptors[immediate]))
                    struct.pack_into("=i", out, index * 8 + 4, 0)
                index += 1
            index += 1
        return cls(name=name, code=bytes(out), maps=tuple(named))

    def link(self, descriptors: Mapping[str, int]) -> bytes:
        """Return loadable instructions, with this process's descriptors of the maps put in."""
        out = bytearray(self.code)
        for index, name in self.maps:
            struct.pack_into("=i", out, index * 8 + 4, descriptors[name])
        return bytes(out)

    def with_constant(self, placeholder: int, value: int) -> "Program":
        """Return the program with each 64-bit constant `placeholder` replaced.

        Raises:
            BpfError: the program has no such constant: what it would do is then not known.
        """
        out = bytearray(self.code)
        found = 0
        index = 0
        while index < len(out) // 8:
            op, registers, _, low = _INSTRUCTION.unpack_from(out, index * 8)
            if op == _LOAD_64:
                high = struct.unpack_from("=I", out, index * 8 + 12)[0]
                if registers >> 4 == 0 and (high << 32 | low & 0xFFFFFFFF) == placeholder:
                    struct.pack_into("=I", out, index * 8 + 4, value & 0xFFFFFFFF)
                    struct.pack_into("=I", out, index * 8 + 12, value >> 32)
                    found += 1
                index += 1
            index += 1
        if not found:
            raise BpfError(f"program {self.name} has no constant {placeholder:#x} to replace")
        return Program(name=self.name, code=bytes(out), maps=self.maps)

    def encode(self) -> bytes:
        """Return the program as JSON."""
        return json.dumps(self.to_json(), separators=(",", ":")).encode()

    def to_json(self) -> dict[str, object]:
        """Return the program as JSON values."""
        return {
            "name": self.name,
            "code": base64.b64encode(self.code).decode(),
            "maps": [[index, name] for index, name in self.maps],
        }

    @classmethod
    def from_json(cls, value: object) -> "Program":
        """Parse `to_json`'s value.

        Raises:
            BpfError: the value has another shape.
        """
        try:
            assert isinstance(value, dict)
            code = base64.b64decode(value["code"], validate=True)
            maps = tuple((int(index), str(name)) for index, name in value["maps"])
            name = str(value["name"])
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise BpfError(f"stored program has a wrong shape: {error!r}") from error
        if len(code) % 8 or not code or any(not 0 <= index < len(code) // 8 for index, _ in maps):
            raise BpfError(f"stored program {name} is cut short")
        return cls(name=name, code=code, maps=maps)

    @classmethod
    def decode(cls, data: bytes) -> "Program":
        """Parse `encode`'s bytes; raises BpfError."""
        try:
            value = json.loads(data)
        except ValueError as error:
            raise BpfError(f"stored program is no JSON: {error}") from error
        return cls.from_json(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bytecode:
    """Every program of one version of the sources."""

    schema: str
    """Hex SHA-256 of the layout (`sources.schema_hash`)."""
    source: str
    """Hex SHA-256 of all sources (`sources.source_hash`)."""
    compiler: str
    """Versions of what compiled it."""
    programs: tuple[Program, ...]

    def program(self, name: str) -> Program:
        """Return the program of that name; raises BpfError."""
        for program in self.programs:
            if program.name == name:
                return program
        raise BpfError(f"bytecode of source {self.source[:12]} lacks program {name}: build it again")

    def encode(self) -> bytes:
        """Return the file that `build` writes: one JSON object, checksum last."""
        body = {
            "format": 1,
            "schema": self.schema,
            "source": self.source,
            "compiler": self.compiler,
            "programs": [program.to_json() for program in self.programs],
        }
        return json.dumps({**body, "sha256": _checksum(body)}, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "Bytecode":
        """Parse a file that `build` wrote.

        Raises:
            BpfError: not such a file, cut short, changed, or without one of this version's programs.
        """
        try:
            body = json.loads(data)
            claimed = body.pop("sha256")
            if body["format"] != 1:
                raise BpfError(f"bytecode has format {body['format']}, this version reads 1: build it again")
            if claimed != _checksum(body):
                raise BpfError("bytecode does not match its checksum: build it again")
            found = cls(
                schema=str(body["schema"]),
                source=str(body["source"]),
                compiler=str(body["compiler"]),
                programs=tuple(Program.from_json(item) for item in body["programs"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BpfError(f"bytecode has a wrong shape ({error!r}): build it again") from error
        for spec in abi.PROGRAMS:
            found.program(spec.name)
        return found


def _checksum(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
