# SPDX-License-Identifier: Apache-2.0
"""Policies as sentences: what a rule of a node's policy says, for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAMES = (
    ("principals", "from"),
    ("namespaces", "from namespace"),
    ("serviceAccounts", "from account"),
    ("sourceIps", "from"),
    ("destinationIps", "to"),
    ("destinationPorts", "to port"),
)
_WILD = {"prefix": "{}*", "suffix": "*{}", "presence": "any identity"}


def rule_text(rule: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Say what a rule asks: clauses joined by `and`, their matches by `or`."""
    clauses = [" or ".join(filter(None, map(_match, clause))) for clause in rule if clause]
    return " and ".join(clauses) or "everything"


def _match(match: Mapping[str, Any]) -> str:
    parts = []
    for name, words in _NAMES:
        if match[name]:
            parts.append(f"{words} {', '.join(map(_value, match[name]))}")
        negative = f"not{name[0].upper()}{name[1:]}"
        if match[negative]:
            values = ", ".join(map(_value, match[negative]))
            # "not any identity" is what STRICT becomes: a caller that proves nothing.
            parts.append("without identity" if values == "any identity" else f"not {words} {values}")
    return ", ".join(parts) or "nothing"


def _value(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    if "serviceAccount" in value:
        return f"{value['namespace']}/{value['serviceAccount']}"
    text = str(value["value"])
    return _WILD.get(str(value["kind"]), "{}").format(text)
