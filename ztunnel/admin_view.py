# SPDX-License-Identifier: Apache-2.0
"""How state and connections look on the admin port: plain values for JSON. Pure, and never a key."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from mesh.runtime.clock import Clock
from ztunnel.connections import LiveConnection


def connection_view(row: LiveConnection, clock: Clock) -> dict[str, object]:
    """Describe one live connection with the fields of its log line."""
    view: dict[str, object] = {
        "id": row.number,
        "pod": row.pod,
        "state": "joined" if row.relay is not None else "opening",
        "age_s": round(clock.monotonic() - row.opened_s, 3),
        "bytes_to_server": row.relay.sent if row.relay is not None else 0,
        "bytes_to_client": row.relay.received if row.relay is not None else 0,
    }
    view.update({key: str(value) for key, value in row.flow.fields().items()})
    return view


def plain(value: object) -> object:
    """Turn model values into what JSON can hold; keys in camel case, as Istio's config_dump has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_camel(item.name): plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, IPv4Address | IPv6Address | IPv4Network | IPv6Network):
        return str(value)
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
