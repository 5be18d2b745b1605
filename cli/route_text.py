# SPDX-License-Identifier: Apache-2.0
"""Rules of route tables as sentences: which requests, and what becomes of them. Pure.

Reads tables as a waypoint's admin port writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PATHS = {"exact": "{}", "prefix": "{}*", "segment_prefix": "{}/*", "regex": "~{}"}


def match_text(matches: Sequence[Mapping[str, Any]]) -> str:
    """Say which requests a rule takes."""
    return " or ".join(_one(match) for match in matches) or "none"


def _one(match: Mapping[str, Any]) -> str:
    parts = []
    if match["method"]:
        parts.append(str(match["method"]["value"]))
    parts += [_path(path) for path in (match["path"], *match["morePaths"]) if path]
    if match["authority"]:
        parts.append(f"host {_value(match['authority'])}")
    parts += [f"{header['name']}: {_value(header)}" for header in match["headers"]]
    parts += [f"?{item['name']}={_value(item)}" for item in match["query"]]
    return " ".join(parts) or "all"


def _path(path: Mapping[str, Any]) -> str:
    value = str(path["value"])
    text = _PATHS.get(str(path["kind"]), "{}").format(
        value.rstrip("/") if path["kind"] == "segment_prefix" else value
    )
    return f"not {text}" if path["invert"] else text


def _value(match: Mapping[str, Any]) -> str:
    kind, value = str(match["kind"]), str(match["value"])
    text = {
        "present": "*",
        "prefix": f"{value}*",
        "regex": f"~{value}",
    }.get(kind, value)
    return f"not {text}" if match["invert"] else text


def action_text(rule: Mapping[str, Any]) -> str:
    """Say what becomes of the requests that a rule takes."""
    if rule["redirect"]:
        return _redirect(rule["redirect"])
    if rule["direct"]:
        return f"answered with {rule['direct']['status']}"
    total = sum(backend["weight"] for backend in rule["backends"])
    parts = [
        _backend(backend, total)
        for backend in rule["backends"]
        if backend["weight"] or len(rule["backends"]) == 1
    ]
    text = ", ".join(parts) or "no backend: answered with 500"
    return "; ".join([text, *_extras(rule)])


def _redirect(redirect: Mapping[str, Any]) -> str:
    path = redirect["path"] or {}
    to = "".join(
        (
            f"{redirect['scheme']}://" if redirect["scheme"] else "",
            redirect["hostname"] or "",
            f":{redirect['port']}" if redirect["port"] else "",
            path.get("full") or (f"{path['prefix']}..." if path.get("prefix") else ""),
        )
    )
    return f"redirected with {redirect['status']}" + (f" to {to}" if to else "")


def _backend(backend: Mapping[str, Any], total: int) -> str:
    if backend["service"] is None:
        name = f"nowhere ({backend['problem']}): answered with {backend['problemStatus']}"
    else:
        name = service_name(backend["service"]) + f":{backend['port']}"
    subset = f" subset {backend['subset']}" if backend["subset"] else ""
    share = f"{backend['weight'] * 100 / total:.0f}% " if total and backend["weight"] != total else ""
    return f"{share}{name}{subset}"


def service_name(service: Mapping[str, str]) -> str:
    """Name a service as `namespace/name`, an external one by its host."""
    name, inside, _ = service["hostname"].partition(f".{service['namespace']}.svc.")
    return f"{service['namespace']}/{name}" if inside else service["hostname"]


def _extras(rule: Mapping[str, Any]) -> list[str]:
    found = []
    if rule["rewrite"]:
        found.append("rewritten")
    if rule["requestTimeoutS"] is not None:
        found.append(f"timeout {rule['requestTimeoutS']:g} s")
    if rule["retry"] and rule["retry"]["attempts"]:
        found.append(f"{rule['retry']['attempts']} retries")
    fault = rule["fault"] or {}
    if fault.get("delayPercent"):
        found.append(f"{fault['delayPercent']:g}% delayed by {fault['delayS']:g} s")
    if fault.get("abortPercent"):
        status = fault["abortStatus"] or f"gRPC {fault['abortGrpc']}"
        found.append(f"{fault['abortPercent']:g}% answered with {status}")
    found += [
        f"{mirror['percent']:g}% copied to {service_name(mirror['service'])}" for mirror in rule["mirrors"]
    ]
    return found
