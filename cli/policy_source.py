# SPDX-License-Identifier: Apache-2.0
"""From a policy's name on a node to the object, file and line that a person wrote. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cli.checks_pods import ROOT_NAMESPACE, selects
from cli.facts import Facts
from mesh.config.objects import RawObject

STATIC_STRICT = "istio_converted_static_strict"
CONVERTED = "converted_peer_authentication_"
_RULE = re.compile(r"\(rule (\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who wrote a policy and where."""

    kind: str
    namespace: str
    name: str
    file: str = ""
    line: int = 0
    raw: RawObject | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    @property
    def place(self) -> str:
        """FILE:LINE; empty where it is from no file."""
        return f"{self.file}:{self.line}" if self.file else ""

    def data(self) -> dict[str, Any]:
        """Write it for JSON."""
        return {
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "file": self.file,
            "line": self.line,
        }


def origin(facts: Facts, key: str, *, namespace: str, labels: Mapping[str, str], detail: str = "") -> Origin:
    """Return where the policy `key` (as ztunnel names it) comes from, for a workload it applies to.

    `detail` is the verdict's sentence: if it names a rule, the line is that rule's.
    """
    place, _, name = key.partition("/")
    if name == STATIC_STRICT:
        found = strict_source(facts, namespace, labels)
        return found or Origin(kind="PeerAuthentication", namespace=place, name="(mesh default)")
    kind = "AuthorizationPolicy"
    if name.startswith(CONVERTED):
        kind, name = "PeerAuthentication", name.removeprefix(CONVERTED)
    for raw in facts.of(kind):
        if (raw.namespace, raw.name) == (place, name):
            return _at(facts.target.written(raw), detail)
    return Origin(kind=kind, namespace=place, name=name)


def _at(raw: RawObject, detail: str) -> Origin:
    line = raw.line
    match = _RULE.search(detail)
    rules = raw.spec.get("rules") or ()
    # A rule that needs L7 is left out when ztunnels are told, so a number is sure only where none is.
    if match and int(match[1]) < len(rules) and not any(_needs_http(rule) for rule in rules):
        line = raw.line_of(("spec", "rules", int(match[1])))
    return Origin(kind=raw.kind, namespace=raw.namespace, name=raw.name, file=raw.file, line=line, raw=raw)


def _needs_http(rule: Any) -> bool:
    text = str(rule)
    return any(f"'{word}'" in text for word in ("methods", "paths", "hosts", "requestPrincipals"))


def strict_source(facts: Facts, namespace: str, labels: Mapping[str, str]) -> Origin | None:
    """Find the PeerAuthentication that makes a workload STRICT: the nearest that sets a mode."""
    wide: dict[str, RawObject] = {}
    for raw in facts.of("PeerAuthentication"):
        mode = (raw.spec.get("mtls") or {}).get("mode", "UNSET")
        selector = raw.spec.get("selector")
        if selector and raw.namespace == namespace and selects(selector, labels) and mode == "STRICT":
            return _mode(facts.target.written(raw))
        if not selector and mode == "STRICT":
            wide.setdefault(raw.namespace, raw)
    for place in (namespace, ROOT_NAMESPACE):
        if place in wide:
            return _mode(facts.target.written(wide[place]))
    return None


def _mode(raw: RawObject) -> Origin:
    line = raw.line_of(("spec", "mtls", "mode"))
    return Origin(kind=raw.kind, namespace=raw.namespace, name=raw.name, file=raw.file, line=line, raw=raw)
