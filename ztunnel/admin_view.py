# SPDX-License-Identifier: Apache-2.0
"""How connections look on the admin port."""

from __future__ import annotations

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
