# SPDX-License-Identifier: Apache-2.0
"""A prefix for commands that must run without root."""

from __future__ import annotations

UNPRIVILEGED = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    # Nobody, save that it may read this checkout, which may lie in /root.
    *(f"--{which}=-all,+dac_read_search" for which in ("inh-caps", "ambient-caps", "bounding-set")),
)
