# SPDX-License-Identifier: Apache-2.0
"""Access-log lines of ztunnels as flows: text and JSON alike. Pure; what is no access line is None."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FIELD = re.compile(r'([A-Za-z_.]+)=("(?:[^"\\]|\\.)*"|[^ ]*)')
_WHO = re.compile(r"^denied .*? to \S+: ")
REFUSED = frozenset({"policy_denied", "policy_revoked", "policy_unknown", "tunnel_unauthorized"})
"""Reasons that are a policy's doing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One connection as one side wrote it down."""

    time: str
    """As written: UTC, ISO 8601."""
    node: str
    verdict: str
    """forwarded, denied (by policy) or failed."""
    direction: str
    reason: str
    error: str
    fields: Mapping[str, str]
    """Everything else by the log's names (src.addr, dst.workload...)."""

    def get(self, name: str) -> str:
        """Return a field; empty where it is not known."""
        return self.fields.get(name, "")

    @property
    def source(self) -> str:
        """`namespace/workload`, or the address."""
        return _peer(self, "src")

    @property
    def destination(self) -> str:
        """`namespace/workload`, or the address."""
        return _peer(self, "dst")

    @property
    def target(self) -> str:
        """The application's address and port."""
        return self.get("dst.hbone_addr") or self.get("dst.addr")

    @property
    def why(self) -> str:
        """The error without who asked whom, which stands beside it."""
        return _WHO.sub("", self.error)

    def data(self) -> dict[str, Any]:
        """Write it for JSON."""
        return {
            "time": self.time,
            "node": self.node,
            "verdict": self.verdict,
            "direction": self.direction,
            "reason": self.reason,
            "error": self.error,
            **self.fields,
        }


def _peer(flow: Flow, side: str) -> str:
    workload = flow.get(f"{side}.workload")
    if workload:
        return f"{flow.get(f'{side}.namespace')}/{workload}"
    address = flow.get("src.addr") if side == "src" else flow.target
    return address.rpartition(":")[0].strip("[]") if side == "src" else address


def parse_line(line: str, node: str = "") -> Flow | None:
    """Read one line of a ztunnel's log; None: it tells of no finished connection."""
    if line.startswith("{"):
        return _from_json(line, node)
    parts = line.split("\t", 4)
    if len(parts) < 5 or parts[2] != "access":
        return None
    found = {name: _unquoted(value) for name, value in _FIELD.findall(parts[4])}
    return _flow(parts[0], node, found)


def _from_json(line: str, node: str) -> Flow | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.get("scope") != "access":
        return None
    found = {k: str(v) for k, v in value.items() if k not in ("time", "level", "scope", "message")}
    return _flow(str(value.get("time", "")), node, found)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value.strip('"')


def _flow(time: str, node: str, found: dict[str, str]) -> Flow | None:
    reason = found.pop("reason", "")
    if not reason:
        return None  # A connection that has only begun.
    error = found.pop("error", "")
    verdict = "denied" if reason in REFUSED else "failed" if error else "forwarded"
    return Flow(
        time=time,
        node=node,
        verdict=verdict,
        direction=found.pop("direction", ""),
        reason=reason,
        error=error,
        fields=found,
    )
