# SPDX-License-Identifier: Apache-2.0
"""Whether an object may refer to one of another namespace. Source: gateway-api ReferenceGrant v1beta1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.translate.world import GATEWAY_API, World
from mesh.config.objects import RawObject


def is_granted(world: World, referrer: RawObject, namespace: str, kind: str, name: str) -> bool:
    """Tell whether `referrer` may name an object of the core group in another namespace."""
    group = referrer.key.group
    for grant in world.all(GATEWAY_API, "ReferenceGrant"):
        if grant.namespace != namespace:
            continue
        asked = any(
            entry.get("group") == group
            and entry.get("kind") == referrer.kind
            and entry.get("namespace") == referrer.namespace
            for entry in _mappings(grant.spec.get("from"))
        )
        given = any(
            entry.get("group", "") in ("", "core")
            and entry.get("kind") == kind
            and entry.get("name") in (None, "", name)
            for entry in _mappings(grant.spec.get("to"))
        )
        if asked and given:
            return True
    return False


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []
