# SPDX-License-Identifier: Apache-2.0
"""The C sources as text, and the hashes by which pins and stored bytecode are recognised."""

import hashlib
import re
from pathlib import Path

from bpf import abi

_HERE = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([a-z0-9_]+\.h)"\n', re.MULTILINE)
_PREAMBLE = "#include <uapi/linux/bpf.h>\n"


def flatten(source: str) -> str:
    """Return progs/SOURCE.c with its own headers put in: bcc rewrites map calls in the main file only."""
    seen: set[str] = set()

    def include(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(include, (_HERE / "include" / name).read_text())

    return _PREAMBLE + _INCLUDE.sub(include, (_HERE / "progs" / f"{source}.c").read_text())


def shim() -> Path:
    """Return the directory of the stand-ins for kernel headers."""
    return _HERE / "shim"


def schema_hash() -> str:
    """Return hex SHA-256 of the layout: the ABI and the maps without comments and blanks."""
    digest = hashlib.sha256()
    for name in ("ambit_abi.h", "ambit_maps.h"):
        text = (_HERE / "include" / name).read_text()
        text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
        digest.update(" ".join(text.split()).encode() + b"\0")
    return digest.hexdigest()


def source_hash() -> str:
    """Return hex SHA-256 of all that decides the instructions."""
    digest = hashlib.sha256()
    for source in sorted({spec.source for spec in abi.PROGRAMS}):
        digest.update(source.encode() + b"\0" + flatten(source).encode() + b"\0")
    digest.update((shim() / "kconfig.h").read_bytes())
    return digest.hexdigest()
