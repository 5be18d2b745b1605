# SPDX-License-Identifier: Apache-2.0
"""`make demo ARGS=--once`: it ends by itself, every proof of the main job holds, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kernel import needs_nftables

pytestmark = [
    pytest.mark.root,
    needs_nftables,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces, cgroups and BPF"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "testdemo"
TIMEOUT_S = 400
PROVEN = (
    "enrolled",
    "traffic",
    "wire",
    "control",
    "identity",
    "denied",
    "strict",
    "label flip",
    "latency",
)


def remains() -> list[str]:
    """Return what of the lab still has a name on this machine."""
    found = [path.name for path in Path("/run/netns").glob(f"ambit-{NAME}-*")]
    found += [
        str(path) for path in (Path("/run/ambit") / NAME, Path("/sys/fs/bpf/ambit") / NAME) if path.exists()
    ]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"ambit/{NAME}")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/ambit/{NAME}")]
    links = subprocess.run(["ip", "-d", "link"], capture_output=True, text=True, check=True).stdout
    return found + [line for line in links.splitlines() if f"ambit-lab-{NAME}" in line]


@pytest.mark.timeout(TIMEOUT_S + 60)
def test_demo_proves_the_main_job_and_leaves_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "examples/shop/demo.py", "--once", "--name", NAME],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    told = f"{done.stdout}\n{done.stderr[-6000:]}"
    lines = [line for line in done.stdout.splitlines() if line.startswith(("PROVEN", "FAILED"))]
    assert not [line for line in lines if line.startswith("FAILED")], told
    assert done.returncode == 0, told
    for name in PROVEN:
        assert any(line.startswith(f"PROVEN  {name} ") for line in lines), f"no line for {name}:\n{told}"
    assert sum(line.startswith("PROVEN  identity ") for line in lines) == 8, told
    assert remains() == []
