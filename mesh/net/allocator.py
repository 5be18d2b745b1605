# SPDX-License-Identifier: Apache-2.0
"""Settings of the C allocator for processes that move bytes.

Each TLS read allocates 256 KiB and gives back what it did not fill. With glibc's defaults
the heap's end is returned to the kernel and faulted in again per message: measured here
as 27 % of the CPU time of small requests through a tunnel pair.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
MMAP_THRESHOLD_BYTES = 4 * 1024 * 1024
"""Buffers below it come from the heap: larger than any that the byte path makes."""
TRIM_THRESHOLD_BYTES = 8 * 1024 * 1024
"""What the process keeps at most of freed memory at the heap's end."""
TOP_PAD_BYTES = 1024 * 1024
"""How much the heap grows at a time."""


def keep_buffers() -> bool:
    """Let the allocator keep freed buffers; once, when the process starts.

    Returns:
        Whether the C library took all settings; False on one without `mallopt` (musl), which
        changes speed only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = (
        (_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES),
        (_M_TOP_PAD, TOP_PAD_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
