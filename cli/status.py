# SPDX-License-Identifier: Apache-2.0
"""`ambit status`: nodes, control plane and pods at a glance; what waits, and for what."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cli.checks import root_ends
from cli.checks_pods import GATEWAY_LABEL
from cli.codes import EXIT_ERROR, EXIT_OK, CliError
from cli.facts import Facts, Pod
from cli.metrics import parse
from cli.options import add_common, add_watch
from cli.output import Cell, Screen, document, dump, plural, span, table
from cli.target import Part, open_target

SHOWN = 20
"""Waiting pods that are listed."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_common(parser)
    add_watch(parser)


def run(options: argparse.Namespace) -> int:
    """Print the state; 1 when a part is down or a pod waits."""
    facts = Facts(open_target(options))
    with ThreadPoolExecutor(max_workers=16) as pool:
        nodes = list(pool.map(lambda name: _node(facts, name), facts.target.nodes()))
    controller = _controller(facts)
    waiting = [
        p for p in facts.pods() if p.wanted and not p.ended and not p.enrolled and p.state != "ignored"
    ]
    well = controller.ready and not waiting and all(n.agent == n.ztunnel == "ready" for n in nodes)
    if options.output in ("json", "yaml"):
        print(dump(_document(facts, nodes, controller, waiting), options.output))
        return EXIT_OK if well else EXIT_ERROR
    screen = Screen.of(sys.stdout, options.color)
    _show(facts, nodes, controller, waiting, screen)
    return EXIT_OK if well else EXIT_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node as its own parts tell it."""

    name: str
    agent: str
    ztunnel: str
    controller: str
    enrolled: int
    pending: int
    open: int
    denied: int
    certificates_end_s: float | None
    """Earliest end, seconds of the epoch; None: no certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The control plane."""

    ready: bool
    why: str
    counts: Mapping[str, int]
    root_ends_s: float | None


def _ready(facts: Facts, part: Part) -> str:
    try:
        answer = facts.target.request(part, "/healthz/ready")
    except CliError:
        return "down"
    return "ready" if answer.status == 200 else "not ready"


def _node(facts: Facts, name: str) -> Node:
    agent = _ready(facts, Part("agent", name))
    ztunnel = _ready(facts, Part("ztunnel-ready", name))
    pods = [p for p in facts.pods() if p.node == name and not p.ended]
    controller, opened, denied, ends = "unknown", 0, 0, None
    if ztunnel != "down":
        try:
            state = facts.ask(Part("ztunnel", name), "/status")["controller"]
            controller = (
                "in sync" if state["connected"] and state["synced"] else f"cut off {span(state['age_s'])}"
            )
            opened, denied = _counters(facts, name)
            rows = facts.ask(Part("ztunnel", name), "/certs")["certificates"]
            ends = min((r["expirationTime"] for r in rows if r["state"] == "available"), default=None)
        except CliError:
            controller = "unknown"
    return Node(
        name=name,
        agent=agent,
        ztunnel=ztunnel,
        controller=controller,
        enrolled=sum(p.enrolled for p in pods),
        pending=sum(p.wanted and not p.enrolled and p.state != "ignored" for p in pods),
        open=opened,
        denied=denied,
        certificates_end_s=ends,
    )


def _counters(facts: Facts, node: str) -> tuple[int, int]:
    text = facts.target.request(Part("ztunnel-metrics", node), "/metrics").text
    values = parse(text, ("istio_tcp_sockets_open", "ambit_policy_denied_total"))
    opened = sum(v for (name, _), v in values.items() if name == "istio_tcp_sockets_open")
    denied = sum(v for (name, _), v in values.items() if name == "ambit_policy_denied_total")
    return int(opened), int(denied)


def _controller(facts: Facts) -> Controller:
    counts: dict[str, int] = {}
    why, ready = "", False
    try:
        registry = facts.registry()
        counts = {key: len(registry[key]) for key in ("workloads", "services", "policies")}
        ready = True
    except CliError as error:
        why = error.what
    pems = [
        str((i.data.get("data") or {}).get("root-cert.pem", ""))
        for i in facts.of("ConfigMap")
        if i.name == "istio-ca-root-cert"
    ]
    ends = root_ends(pems[0])[-1] if pems and pems[0] else None
    return Controller(ready=ready, why=why, counts=counts, root_ends_s=ends)


def _waypoints(pods: list[Pod]) -> list[tuple[str, int, int]]:
    """Count ready and all pods of each waypoint, by `namespace/gateway`."""
    found: dict[str, list[Pod]] = {}
    for pod in pods:
        if GATEWAY_LABEL in pod.raw.labels:
            found.setdefault(f"{pod.namespace}/{pod.raw.labels[GATEWAY_LABEL]}", []).append(pod)
    return [(name, sum(not p.not_ready for p in own), len(own)) for name, own in sorted(found.items())]


def _namespaces(pods: list[Pod]) -> list[tuple[str, int, int]]:
    pods = [p for p in pods if GATEWAY_LABEL not in p.raw.labels]
    names = sorted({p.namespace for p in pods})
    return [
        (name, sum(p.enrolled for p in pods if p.namespace == name), sum(p.namespace == name for p in pods))
        for name in names
    ]


def _state(text: str) -> Cell:
    return Cell(text, "green" if text in ("ready", "in sync") else "red")


def _show(
    facts: Facts, nodes: list[Node], controller: Controller, waiting: list[Pod], screen: Screen
) -> None:
    pods = [p for p in facts.pods() if not p.ended]
    now = time.time()
    wanted = sum(p.wanted for p in pods)
    print(
        f"{screen.paint(facts.target.title, 'bold')}: {plural(len(nodes), 'node')}, "
        f"{sum(p.enrolled for p in pods)} of {plural(wanted, 'labelled pod')} in the mesh\n"
    )
    rows = [
        (
            n.name,
            _state(n.agent),
            _state(n.ztunnel),
            _state(n.controller),
            str(n.enrolled),
            Cell(str(n.pending), "yellow") if n.pending else "-",
            str(n.open),
            Cell(str(n.denied), "yellow") if n.denied else "-",
            span(n.certificates_end_s - now) if n.certificates_end_s else "-",
        )
        for n in nodes
    ]
    titles = ("NODE", "AGENT", "ZTUNNEL", "CONTROLLER", "PODS", "PENDING", "OPEN", "DENIED", "CERTS-END")
    print(table(titles, rows, screen, right=range(4, 9)))
    state = (
        screen.paint("ready", "green") if controller.ready else screen.paint(f"down: {controller.why}", "red")
    )
    known = ", ".join(f"{count} {word}" for word, count in controller.counts.items())
    root = (
        f", root certificate ends in {span(controller.root_ends_s - now)}" if controller.root_ends_s else ""
    )
    print(f"\ncontrol plane: {state}{f', serves {known}' if known else ''}{root}")
    waypoints = [
        name
        + (screen.paint(" ready", "green") if ready else screen.paint(" not ready", "red"))
        + (f" ({ready} of {count})" if count > 1 else "")
        for name, ready, count in _waypoints(pods)
    ]
    if waypoints:
        print(f"waypoints: {', '.join(waypoints)}")
    rows_of_namespaces = [
        (name, f"{meshed}/{count}", "" if facts.meshed(name) else Cell("not labelled", "dim"))
        for name, meshed, count in _namespaces(pods)
    ]
    print("\n" + table(("NAMESPACE", "IN-MESH", ""), rows_of_namespaces, screen))
    _show_waiting(waiting, screen)


def _show_waiting(waiting: list[Pod], screen: Screen) -> None:
    if not waiting:
        return
    print(f"\n{screen.paint('waiting', 'yellow')}")
    for pod in waiting[:SHOWN]:
        print(f"  {pod.key} on {pod.node or 'no node'}: {pod.reason or 'its agent does not know it yet'}")
        if pod.remedy:
            print(screen.paint(f"    what to do: {pod.remedy} ({pod.code})", "dim"))
    if len(waiting) > SHOWN:
        print(f"  ... and {len(waiting) - SHOWN} more")


def _document(facts: Facts, nodes: list[Node], controller: Controller, waiting: list[Pod]) -> dict[str, Any]:
    pods = [p for p in facts.pods() if not p.ended]
    return document(
        "MeshStatus",
        mesh=facts.target.title,
        nodes=[
            {
                "name": n.name,
                "agent": n.agent,
                "ztunnel": n.ztunnel,
                "controller": n.controller,
                "enrolled": n.enrolled,
                "pending": n.pending,
                "openConnections": n.open,
                "deniedConnections": n.denied,
                "certificatesEnd": n.certificates_end_s,
            }
            for n in nodes
        ],
        controller={
            "ready": controller.ready,
            "why": controller.why,
            **controller.counts,
            "rootCertificateEnds": controller.root_ends_s,
        },
        namespaces=[
            {"name": name, "enrolled": meshed, "pods": count, "labelled": facts.meshed(name)}
            for name, meshed, count in _namespaces(pods)
        ],
        waypoints=[{"name": name, "ready": ready, "pods": count} for name, ready, count in _waypoints(pods)],
        pods=[
            {
                "namespace": p.namespace,
                "name": p.name,
                "node": p.node,
                "state": p.state,
                "waypoint": GATEWAY_LABEL in p.raw.labels,
                "code": p.code,
                "reason": p.reason,
            }
            for p in pods
        ],
        waiting=[{"pod": p.key, "reason": p.reason, "code": p.code, "remedy": p.remedy} for p in waiting],
    )
