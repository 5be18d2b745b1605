# SPDX-License-Identifier: Apache-2.0
"""`ambit describe pod|service NAME`: all that the mesh knows of one thing, on one screen."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cli.checks_pods import GATEWAY_LABEL, powers, waypoint_missing
from cli.codes import EXIT_OK, CliError, Code
from cli.facts import Facts, Pod
from cli.node import waypoint_name
from cli.options import add_common
from cli.output import Screen, document, dump, plural, span
from cli.policy_source import origin, strict_source
from cli.stat_words import kind_and_name
from cli.target import Part, open_target
from cli.why_target import find_service

KINDS = {"pod": "pod", "po": "pod", "deploy": "pod", "service": "service", "svc": "service"}
LABEL = 14

Section = tuple[str, list[str]]
"""Title and lines."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("names", metavar="pod|service NAME", nargs="+", help="NAME or NAMESPACE/NAME")
    parser.add_argument("-n", "--namespace", metavar="NS", help="its namespace")
    add_common(parser, formats=("table", "json", "yaml"))


def run(options: argparse.Namespace) -> int:
    """Print it."""
    kind, name = kind_and_name(options.names, KINDS)
    if not name:
        raise CliError(Code.USAGE, f"which {kind}?", remedy=f"ambit describe {kind} NAME")
    target = open_target(options)
    facts = Facts(target)
    if kind == "pod":
        pod = facts.pod(name, options.namespace)
        title, data = f"pod {pod.key}", pod_data(facts, pod)
    else:
        service = find_service(facts, name, options.namespace or "default") or _only_named(facts, name)
        title = f"service {service['namespace']}/{service['name']}"
        data = service_data(facts, service)
    if options.output in ("json", "yaml"):
        print(dump(document("Description", **data), options.output))
        return EXIT_OK
    screen = Screen.of(sys.stdout, options.color)
    print(screen.paint(title, "bold") + "\n")
    for label, lines in data.items():
        _write(screen, label, lines)
    return EXIT_OK


def _write(screen: Screen, label: str, lines: Any) -> None:
    texts = [str(line) for line in lines] if isinstance(lines, list) else [str(lines)]
    for number, text in enumerate(texts or ["none"]):
        head = screen.paint((_TITLES.get(label, label) if not number else "").ljust(LABEL), "dim")
        print(f"  {head}{text}")


_TITLES = {"olderConnections": "older conns", "liveConnections": "live conns", "notReady": "not ready"}


def _only_named(facts: Facts, name: str) -> Mapping[str, Any]:
    found = [row for row in facts.registry()["services"] if row["name"] == name]
    if len(found) == 1:
        return dict(found[0])
    if found:
        names = ", ".join(f"{r['namespace']}/{r['name']}" for r in found)
        raise CliError(Code.WRONG_MATCH, f"{name} stands for {len(found)} services: {names}")
    raise CliError(Code.NOT_FOUND, f"there is no service {name}")


def pod_data(facts: Facts, pod: Pod) -> dict[str, Any]:
    """Collect what is known of a pod; lists are lines."""
    data: dict[str, Any] = {
        "node": pod.node or "none yet",
        "addresses": list(pod.addresses),
        "account": pod.account,
        "mesh": _mesh_state(pod),
    }
    if pod.not_ready:
        data["notReady"] = pod.not_ready
    workload = _registered(facts, pod)
    if workload is None:
        data["controller"] = "does not serve it: it has ended, or has no address yet"
        return data
    identity = (
        f"spiffe://{workload['trust_domain']}/ns/{workload['namespace']}/sa/{workload['service_account']}"
    )
    data["identity"] = identity if pod.enrolled else "none: not in the mesh"
    if pod.enrolled:
        data["certificate"] = _certificate(facts, pod, identity)
    data["services"] = [
        f"{key} ({', '.join(f'{a} to {b}' for a, b in own['ports'].items()) or 'its ports'})"
        for key, own in workload["services"].items()
    ]
    data["waypoint"] = _waypoint(facts, workload)
    data["policies"] = _policies(facts, pod, workload)
    strict = strict_source(facts, pod.namespace, pod.raw.labels)
    data["mtls"] = f"STRICT, by {strict} {strict.place}" if strict else "PERMISSIVE: plaintext is accepted"
    listeners = facts.target.listening(pod.namespace, pod.name)
    if listeners is not None:
        data["listens"] = [
            f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            for address, port in sorted(listeners, key=lambda one: (one[1], one[0]))
        ]
    if pod.older:
        data["olderConnections"] = list(pod.older)
    data["liveConnections"] = _live(facts, pod)
    if why := powers(pod):
        data["powers"] = f"{why}: it can undo capture on its node"
    return data


def _mesh_state(pod: Pod) -> list[str]:
    if pod.enrolled:
        since = pod.details.get("since")
        steps = ", ".join(pod.details.get("done", ()))
        how = f", for {span(time.time() - since)}" if since else ""
        return [f"captured{how}", *([f"steps done: {steps}"] if steps else [])]
    reason = pod.reason or "the agent of its node does not know it"
    lines = [f"{pod.state or 'unknown'}: {reason}" + (f" ({pod.code})" if pod.code else "")]
    if pod.remedy:
        lines.append(f"what to do: {pod.remedy}")
    if pod.raw.labels.get(GATEWAY_LABEL):
        lines = [f"a waypoint of Gateway {pod.raw.labels[GATEWAY_LABEL]}: it speaks HBONE itself"]
    return lines


def _registered(facts: Facts, pod: Pod) -> Mapping[str, Any] | None:
    for row in facts.registry()["workloads"]:
        if (row["namespace"], row["name"]) == (pod.namespace, pod.name):
            return dict(row)
    return None


def _certificate(facts: Facts, pod: Pod, identity: str) -> str:
    try:
        rows = facts.ask(Part("ztunnel", pod.node), "/certs")["certificates"]
    except CliError as error:
        return error.what
    for row in rows:
        if row["identity"] == identity and row["state"] == "available":
            return f"valid, ends in {span(row['expirationTime'] - time.time())}"
    return "none yet"


def _waypoint(facts: Facts, row: Mapping[str, Any]) -> str:
    gateway = row.get("waypoint")
    name = waypoint_name(gateway)
    if not gateway or "hostname" not in gateway["destination"]:
        return "none" if name == "-" else name
    words = str(gateway["destination"]["hostname"]).split(".")
    namespace = words[1] if len(words) > 1 else str(row["namespace"])
    missing = waypoint_missing(facts, namespace, name)
    return f"{namespace}/{name}" + (f": {missing}" if missing else ", ready")


def _policies(facts: Facts, pod: Pod, workload: Mapping[str, Any]) -> list[str]:
    keys = [
        f"{p['namespace']}/{p['name']}"
        for p in facts.registry()["policies"]
        if p["scope"] == "global" or (p["scope"] == "namespace" and p["namespace"] == pod.namespace)
    ]
    keys += workload["authorization_policies"]
    actions = {f"{p['namespace']}/{p['name']}": p["action"].upper() for p in facts.registry()["policies"]}
    found = []
    for key in keys:
        source = origin(facts, key, namespace=pod.namespace, labels=pod.raw.labels)
        found.append(f"{actions.get(key, '?'):<5} {source} {source.place}".rstrip())
    return found


def _live(facts: Facts, pod: Pod) -> str:
    if not pod.enrolled:
        return "not known: not in the mesh"
    try:
        rows: Sequence[Mapping[str, Any]] = facts.ask(
            Part("ztunnel", pod.node), f"/connections?pod={pod.uid}"
        )["connections"]
    except CliError as error:
        return error.what
    inbound = sum(row["direction"] == "inbound" for row in rows)
    return f"{inbound} in, {len(rows) - inbound} out"


def service_data(facts: Facts, service: Mapping[str, Any]) -> dict[str, Any]:
    """Collect what is known of a service."""
    key = f"{service['namespace']}/{service['hostname']}"
    members = [w for w in facts.registry()["workloads"] if key in w["services"]]
    pods = {(p.namespace, p.name): p for p in facts.pods()}
    endpoints = []
    for row in members:
        pod = pods.get((row["namespace"], row["name"]))
        state = "ready" if row["healthy"] else f"not ready{f': {pod.not_ready}' if pod else ''}"
        mesh = "HBONE" if row["tunnel_protocol"] == "hbone" else "plain TCP"
        where = f" on {row['node']}" if row["node"] else ""
        endpoints.append(f"{row['namespace']}/{row['name']}{where}: {state}, {mesh}")
    balancing = service["load_balancing"]
    routes = [
        f"{item.kind} {item.namespace}/{item.name} {item.file}:{item.line}"
        for item in map(
            facts.target.written, facts.of("HTTPRoute", "GRPCRoute", "TCPRoute", "VirtualService")
        )
        if _routes_to(item.spec, service)
    ]
    return {
        "hostname": service["hostname"],
        "addresses": [a["address"] for a in service["addresses"]] or ["none: headless"],
        "ports": [
            f"{p['service_port']} to {p['target_port'] or 'a named port'}"
            + (f", {p['app_protocol']}" if p["app_protocol"] != "unknown" else "")
            for p in service["ports"]
        ],
        "endpoints": endpoints or ["none: connections are refused"],
        "balancing": "nearest first: " + ", ".join(balancing["preference"])
        if balancing["preference"]
        else f"all alike, {plural(sum(w['healthy'] for w in members), 'ready endpoint')}",
        "waypoint": _waypoint(facts, service),
        **({"routes": routes} if routes else {}),
    }


def _routes_to(spec: Mapping[str, Any], service: Mapping[str, Any]) -> bool:
    names = {service["name"], service["hostname"]}
    parents = [p.get("name") for p in spec.get("parentRefs") or () if p.get("kind") == "Service"]
    return bool(names.intersection([*parents, *(spec.get("hosts") or ())]))
