# SPDX-License-Identifier: Apache-2.0
"""Where a workload runs: region, zone and subzone."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """A place; the empty string means unknown (`istio.workload.Locality`)."""

    region: str = ""
    zone: str = ""
    subzone: str = ""
