# SPDX-License-Identifier: Apache-2.0
"""Names of what delta ADS carries: type URLs, resources, updates, rejections.

A resource's value stays bytes here; `decode` turns it into the model where it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"


@dataclass(frozen=True, slots=True)
class Resource:
    """One named value; `version` is opaque and compared for equality only."""

    name: str
    version: str
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What one response changes; removals are applied first."""

    type_url: str
    upserted: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource of an update that was not taken, and why; the others were."""

    name: str
    reason: str
