# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

_CODE = """
import resource
from mesh.net.allocator import keep_buffers
{setup}
for _ in range(50):
    buffer = bytearray(3_000_000)
    del buffer
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    buffer = bytearray(3_000_000)
    del buffer
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(setup: str) -> int:
    """Return the page faults of 50 large buffers in a process of its own."""
    command = [sys.executable, "-c", _CODE.format(setup=setup)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_freed_buffers_are_used_again_without_page_faults() -> None:
    assert faults("assert keep_buffers()") < 50
