# SPDX-License-Identifier: Apache-2.0
"""Writes the two files of definitions beside it as two Go modules publish them; run for a new version.

`python -m daemonset.manifests.kubernetes.crds.vendor`; needs `go`. Nothing in the definitions is changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
GATEWAY_API = "sigs.k8s.io/gateway-api@v1.5.0"
ISTIO_API = "istio.io/api@v1.31.1"
ISTIO_KINDS = (
    "AuthorizationPolicy",
    "DestinationRule",
    "PeerAuthentication",
    "RequestAuthentication",
    "ServiceEntry",
    "Telemetry",
    "VirtualService",
    "WorkloadEntry",
    "WorkloadGroup",
)
HEADER = """\
# SPDX-License-Identifier: Apache-2.0
# {what} of Go module {module}, written by vendor.py; do not edit.
"""


def directory(module: str) -> Path:
    """Download a module (verified by Go's checksum database) and return where it is."""
    answer = subprocess.run(
        ["go", "mod", "download", "-json", module], cwd="/", capture_output=True, check=True, text=True
    )
    return Path(json.loads(answer.stdout)["Dir"])


def documents(text: str) -> list[str]:
    """Split a YAML file into its documents, without comments before the first line of content."""
    found = []
    for part in f"\n{text}".split("\n---"):
        lines = part.strip("\n").split("\n")
        while lines and (not lines[0].strip() or lines[0].startswith("#")):
            lines.pop(0)
        if lines:
            found.append("\n".join(lines) + "\n")
    return found


def kind_of(definition: str) -> str:
    """Return the kind that a CustomResourceDefinition defines."""
    names = definition.partition("\n  names:\n")[2]
    return next(
        line.removeprefix("    kind: ") for line in names.split("\n") if line.startswith("    kind: ")
    )


def main() -> int:
    """Write both files."""
    gateway = [
        document
        for path in sorted((directory(GATEWAY_API) / "config/crd/standard").glob("*.yaml"))
        for document in documents(path.read_text())
        if "\nkind: CustomResourceDefinition\n" in f"\n{document}"
    ]
    generated = directory(ISTIO_API) / "kubernetes/customresourcedefinitions.gen.yaml"
    istio = [d for d in documents(generated.read_text()) if kind_of(d) in ISTIO_KINDS]
    for name, what, module, found in (
        ("gateway-api.yaml", "Standard channel", GATEWAY_API, gateway),
        ("istio.yaml", "Some definitions", ISTIO_API, istio),
    ):
        text = HEADER.format(what=what, module=module) + "---\n" + "---\n".join(found)
        (HERE / name).write_text(text)
        print(f"{name}: {', '.join(kind_of(d) for d in found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
