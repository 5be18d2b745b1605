# SPDX-License-Identifier: Apache-2.0
"""Generate `mesh/proto` from `proto/*.proto`; `--check` fails when it is stale.

Run by `make gen` and `make gen-check`. The virtual path makes the generated
modules import each other as `mesh.proto.*`.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "mesh" / "proto"
GRPC_SERVICES = frozenset({"ca.proto"})
"""Files that define services and so get a gRPC module too."""


def generate(out: Path) -> list[str]:
    """Write the modules under `out` and return their names relative to `mesh/proto`."""
    well_known = str(resources.files("grpc_tools") / "_proto")
    for source in sorted((ROOT / "proto").glob("*.proto")):
        args = [
            "protoc",
            f"-Imesh/proto={ROOT / 'proto'}",
            f"-I{well_known}",
            f"--python_out={out}",
            f"--pyi_out={out}",
        ]
        if source.name in GRPC_SERVICES:
            args.append(f"--grpc_python_out={out}")
        if protoc.main([*args, f"mesh/proto/{source.name}"]) != 0:
            raise SystemExit(f"protoc failed for {source.name}")
    return sorted(p.name for p in (out / "mesh" / "proto").iterdir())


def main() -> int:
    """Generate in place, or compare with what is committed."""
    if "--check" not in sys.argv:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as tmp:
        names = generate(Path(tmp))
        fresh = Path(tmp) / "mesh" / "proto"
        _, differing, missing = filecmp.cmpfiles(fresh, TARGET, names, shallow=False)
    if differing or missing:
        print(f"stale: {', '.join(differing + missing)}; run: make gen", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
