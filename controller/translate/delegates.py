# SPDX-License-Identifier: Apache-2.0
"""How a VirtualService's route and that of the VirtualService it delegates to become one.

Each match of the delegate has to be part of some match of the route; what the delegate does
not say is taken from the route. Works on the fields as written, so that what is wrong with
them is found where they stand. Source: istio pilot/pkg/model/virtualservice.go MergeHTTPRoutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INHERITED = (
    "rewrite",
    "directResponse",
    "timeout",
    "retries",
    "fault",
    "mirror",
    "mirrorPercent",
    "mirrorPercentage",
    "mirrors",
    "corsPolicy",
    "headers",
)
_COMPARED = ("uri", "scheme", "method", "authority")
_MAPPED = ("headers", "withoutHeaders", "queryParams", "sourceLabels")
_KINDS = ("exact", "prefix", "regex")


def merge_routes(root: Mapping[str, Any], delegate: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the delegate's route inside the root's; None: their matches exclude each other."""
    matches = _merge_matches(_list(root.get("match")), _list(delegate.get("match")))
    if matches is None:
        return None
    inherited = {name: root[name] for name in INHERITED if root.get(name) is not None}
    own = {name: value for name, value in delegate.items() if value is not None}
    return {**inherited, **own, "match": matches}


def _merge_matches(roots: list[Any], leaves: list[Any]) -> list[Any] | None:
    if not roots or not leaves:
        return leaves or roots
    found = []
    for leaf in leaves:
        fitting = [root for root in roots if not _conflict(_mapping(root), _mapping(leaf))]
        if not fitting:
            return None
        found += [_merge_match(_mapping(root), _mapping(leaf)) for root in fitting]
    return found


def _merge_match(root: Mapping[str, Any], leaf: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: value for name, value in root.items() if name != "ignoreUriCase"}
    merged.update((name, value) for name, value in leaf.items() if value not in (None, "", 0, []))
    for name in _MAPPED:
        if name in merged:
            merged[name] = {**_mapping(root.get(name)), **_mapping(leaf.get(name))}
    return merged


def _conflict(root: Mapping[str, Any], leaf: Mapping[str, Any]) -> bool:
    if any(_text_conflict(root.get(name), leaf.get(name)) for name in _COMPARED):
        return True
    for name in ("headers", "withoutHeaders", "queryParams"):
        own = _mapping(root.get(name))
        if any(_text_conflict(own.get(key), value) for key, value in _mapping(leaf.get(name)).items()):
            return True
    if bool(root.get("ignoreUriCase")) != bool(leaf.get("ignoreUriCase")):
        return True
    if root.get("port") and leaf.get("port") and root["port"] != leaf["port"]:
        return True
    if root.get("sourceNamespace") and leaf.get("sourceNamespace") != root["sourceNamespace"]:
        return True
    labels = _mapping(root.get("sourceLabels"))
    if any(labels.get(key, value) != value for key, value in _mapping(leaf.get("sourceLabels")).items()):
        return True
    gateways, own_gateways = _list(leaf.get("gateways")), _list(root.get("gateways"))
    return bool(own_gateways) and any(gateway not in own_gateways for gateway in gateways)


def _text_conflict(root: Any, leaf: Any) -> bool:
    """Tell whether what the leaf takes is not part of what the root takes."""
    root_kind, root_value = _kind(root)
    leaf_kind, leaf_value = _kind(leaf)
    if root is None or leaf is None:
        return False
    if root_kind == "regex" or leaf_kind == "regex":
        return True
    if root_kind == "exact":
        return leaf_kind != "exact" or leaf_value != root_value
    if root_kind == "prefix" and leaf_kind:
        return not leaf_value.startswith(root_value)
    return True


def _kind(match: Any) -> tuple[str, str]:
    """Return how and with what is compared; nothing: empty texts."""
    given = _mapping(match)
    for kind in _KINDS:
        value = given.get(kind)
        if isinstance(value, str) and value:
            return kind, value
    return "", ""


def _list(raw: Any) -> list[Any]:
    return raw if isinstance(raw, list) else []


def _mapping(raw: Any) -> Mapping[str, Any]:
    return raw if isinstance(raw, Mapping) else {}
