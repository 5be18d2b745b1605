# SPDX-License-Identifier: Apache-2.0
"""The C sources as text, and the hashes by which pins and stored bytecode are recognised."""

import hashlib
import re
from pathlib import Path

from bpf import abi

_HERE = Path(__file__).parent
_INCLUDE = re.compile(r'^#include "([a-z0-9_]+\.h)"\n', re.MULTILINE)
_PREAMBLE = "#include <uapi/linux/bpf.h>\n"


def unit() -> str:
    """Return all programs as one text, own headers put in once.

    bcc rewrites map calls in the main file only, and one compilation takes a fifth of the time of one a file.
    """
    seen: set[str] = set()

    def include(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(include, (_HERE / "include" / name).read_text())

    texts = [(_HERE / "progs" / f"{source}.c").read_text() for source in _files()]
    return _PREAMBLE + "".join(_INCLUDE.sub(include, text) for text in texts)


def _files() -> list[str]:
    return sorted({spec.source for spec in abi.PROGRAMS})


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
    return hashlib.sha256(unit().encode() + b"\0" + (shim() / "kconfig.h").read_bytes()).hexdigest()
