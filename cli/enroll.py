# SPDX-License-Identifier: Apache-2.0
"""`ambit enroll` and `ambit unenroll`: the label, and then a report of what came of it, pod by pod."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.checks_pods import WAYPOINT_LABEL, WAYPOINT_NAMESPACE_LABEL, admits_tunnel, selects, waypoint_missing
from cli.codes import EXIT_NO_DATA, EXIT_OK, EXIT_TIMEOUT, CliError, Code
from cli.facts import Facts, Pod
from cli.options import add_common, duration
from cli.output import Cell, Screen, document, dump, plural, say, table
from cli.target import Target, open_target
from lab.view import MODE_LABEL

POLL_S = 0.2
DEFAULT_WAIT_S = 30.0
KINDS = {
    "ns": "Namespace",
    "namespace": "Namespace",
    "deploy": "Deployment",
    "deployment": "Deployment",
    "pod": "Pod",
    "po": "Pod",
}
NOT_LABELLED, OPTED_OUT = "AMB2001", "AMB2002"
"""Codes of the agent for pods that are out by their labels."""
SERVER_FIRST = {25: "SMTP", 21: "FTP", 22: "SSH", 110: "POP3", 143: "IMAP", 3306: "MySQL"}
"""Well-known ports on which the server speaks first; at L4 they work as they are."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "names", metavar="ns/NAME|deploy/NAME|pod/NAME", nargs="+", help="what is meant; repeatable"
    )
    parser.add_argument("-n", "--namespace", default="default", metavar="NS", help="of Deployments and pods")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would come of it, and change nothing"
    )
    parser.add_argument(
        "--timeout", type=duration, default=DEFAULT_WAIT_S, metavar="DURATION", help="wait for the pods (30s)"
    )
    add_common(parser, formats=("table", "json", "yaml"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What came of one pod."""

    pod: str
    result: str
    """in the mesh, out of it, left out, pending, would be enrolled..."""
    note: str
    done: bool


def run(options: argparse.Namespace) -> int:
    """Set the labels, wait, and report; 124 when a pod is not there in time."""
    into = options.verb == "enroll"
    target = open_target(options)
    meant = [_parse(word, options.namespace) for word in options.names]
    facts = Facts(target)
    chosen = _pods(facts, meant)
    before = {p.uid: p.enrolled for p in chosen}
    warnings = _warnings(facts, chosen) if into else []
    if options.dry_run:
        lines = [_would(pod, into=into, named=_named(pod, meant)) for pod in chosen]
    else:
        for kind, namespace, name in meant:
            for item in _labelled(facts, kind, namespace, name):
                target.set_labels(*item, [_label(facts, item, into=into)])
        lines = _wait(target, meant, before, into=into, timeout_s=options.timeout)
    _show(options, meant, lines, warnings)
    if not lines:
        return EXIT_NO_DATA
    return EXIT_OK if all(line.done for line in lines) or options.dry_run else EXIT_TIMEOUT


Meant = tuple[str, str, str]
"""Kind, namespace, name."""


def _parse(word: str, namespace: str) -> Meant:
    parts = word.split("/")
    kind = KINDS.get(parts[0])
    if (
        kind is None
        or len(parts) not in (2, 3)
        or not all(parts)
        or (kind == "Namespace" and len(parts) == 3)
    ):
        raise CliError(
            Code.USAGE,
            f"{word!r} names nothing that can be enrolled",
            remedy="write ns/NAME, deploy/NAME or pod/NAME",
        )
    if kind == "Namespace":
        return kind, "", parts[1]
    return (kind, parts[1], parts[2]) if len(parts) == 3 else (kind, namespace, parts[1])


def _belongs(pod: Pod, meant: Sequence[Meant]) -> bool:
    for kind, namespace, name in meant:
        if kind == "Namespace" and pod.namespace == name:
            return True
        if pod.namespace == namespace and name == (pod.name if kind == "Pod" else pod.owner):
            return True
    return False


def _pods(facts: Facts, meant: Sequence[Meant]) -> list[Pod]:
    known = facts.namespaces()
    for kind, namespace, name in meant:
        place = name if kind == "Namespace" else namespace
        if place not in known:
            raise CliError(
                Code.NOT_FOUND,
                f"there is no namespace {place}",
                remedy=f"namespaces are {', '.join(sorted(known))}",
            )
        if kind != "Namespace" and not any(_belongs(p, [(kind, namespace, name)]) for p in facts.pods()):
            raise CliError(Code.NOT_FOUND, f"there is no {kind} {namespace}/{name} with pods")
    return [p for p in facts.pods() if not p.ended and _belongs(p, meant)]


def _labelled(facts: Facts, kind: str, namespace: str, name: str) -> list[tuple[str, str, str]]:
    """Return the objects that get the label: of a Deployment its pods, so that nothing restarts."""
    if kind != "Deployment":
        return [(kind, namespace, name)]
    return [
        ("Pod", p.namespace, p.name)
        for p in facts.pods()
        if _belongs(p, [(kind, namespace, name)]) and not p.ended
    ]


def _label(facts: Facts, item: tuple[str, str, str], *, into: bool) -> str:
    """Return the change: a pod leaves a namespace that is in the mesh by a label of its own."""
    if into:
        return f"{MODE_LABEL}=ambient"
    kind, namespace, _ = item
    return f"{MODE_LABEL}=none" if kind == "Pod" and facts.meshed(namespace) else f"{MODE_LABEL}-"


def _would(pod: Pod, *, into: bool, named: bool) -> Line:
    if not into:
        return Line(pod=pod.key, result="would leave" if pod.enrolled else "is out", note="", done=True)
    if pod.enrolled:
        return Line(pod=pod.key, result="is in the mesh", note="", done=True)
    if pod.state == "ignored" and pod.code not in _curable(named):
        return Line(pod=pod.key, result="stays out", note=f"{pod.reason} ({pod.code})", done=True)
    return Line(pod=pod.key, result="would be enrolled", note="", done=True)


def _outcome(pod: Pod, *, was: bool, into: bool, named: bool) -> Line:
    if not into and not named and pod.raw.labels.get(MODE_LABEL) == "ambient":
        note = f"it has the label {MODE_LABEL}: ambient itself"
        return Line(pod=pod.key, result="still in", note=note, done=True)
    if into and pod.enrolled:
        older = (
            f"{plural(len(pod.older), 'connection')} older than capture go on as they are"
            if pod.older
            else ""
        )
        return Line(pod=pod.key, result="was in the mesh" if was else "enrolled", note=older, done=True)
    if into and pod.state == "ignored" and pod.code not in _curable(named):
        return Line(pod=pod.key, result="left out", note=f"{pod.reason} ({pod.code})", done=True)
    if not into and not pod.captured and pod.state in ("", "ignored"):
        return Line(pod=pod.key, result="out of the mesh" if was else "was out of it", note="", done=True)
    reason = pod.reason or "its agent has not seen the label yet"
    return Line(pod=pod.key, result="pending", note=f"{reason} on {pod.node or 'no node'}", done=False)


def _named(pod: Pod, meant: Sequence[Meant]) -> bool:
    """Whether the pod's own label is changed, not only its namespace's."""
    return any(kind != "Namespace" and _belongs(pod, [(kind, ns, name)]) for kind, ns, name in meant)


def _curable(named: bool) -> frozenset[str]:
    """Return the codes of pods left out that the change of a label brings in."""
    return frozenset({NOT_LABELLED, OPTED_OUT} if named else {NOT_LABELLED})


def _wait(
    target: Target, meant: Sequence[Meant], before: dict[str, bool], *, into: bool, timeout_s: float
) -> list[Line]:
    deadline = time.monotonic() + timeout_s
    while True:
        pods = _pods(Facts(target.fresh()), meant)
        lines = [_outcome(p, was=before.get(p.uid, False), into=into, named=_named(p, meant)) for p in pods]
        if all(line.done for line in lines) or time.monotonic() >= deadline:
            return lines
        time.sleep(POLL_S)


def _warnings(facts: Facts, pods: Sequence[Pod]) -> list[str]:
    """What may surprise once the pods are in the mesh."""
    found = []
    policies = [
        p for p in facts.of("NetworkPolicy") if "Ingress" in (p.spec.get("policyTypes") or ["Ingress"])
    ]
    for pod in pods:
        near = [
            p
            for p in policies
            if p.namespace == pod.namespace and selects(p.spec.get("podSelector"), pod.raw.labels)
        ]
        if near and not any(map(admits_tunnel, near)):
            names = ", ".join(p.name for p in near)
            found.append(f"{pod.key}: NetworkPolicy {names} lets nobody reach the tunnel port 15008")
        first = [
            f"{number} ({SERVER_FIRST[number]})"
            for container in pod.raw.spec.get("containers") or ()
            for port in container.get("ports") or ()
            if (number := int(port.get("containerPort", 0))) in SERVER_FIRST
        ]
        if first:
            found.append(
                f"{pod.key}: the server speaks first on {', '.join(first)}: "
                "declare the port as TCP before it gets a waypoint"
            )
        udp = [
            p
            for c in pod.raw.spec.get("containers") or ()
            for p in c.get("ports") or ()
            if p.get("protocol") == "UDP"
        ]
        if udp:
            found.append(f"{pod.key}: UDP is not captured (ambit.io/non-tcp: deny refuses it)")
    namespaces = {p.namespace for p in pods}
    for item in facts.of("Namespace", "Service"):
        home = item.namespace or item.name
        name = item.labels.get(WAYPOINT_LABEL, "none")
        if home not in namespaces or name == "none":
            continue
        if why := waypoint_missing(facts, item.labels.get(WAYPOINT_NAMESPACE_LABEL, home), name):
            found.append(f"{item.key}: {why}")
    return found


def _show(
    options: argparse.Namespace, meant: Sequence[Meant], lines: Sequence[Line], warnings: Sequence[str]
) -> None:
    if options.output in ("json", "yaml"):
        items = [{"pod": x.pod, "result": x.result, "note": x.note, "done": x.done} for x in lines]
        report: dict[str, Any] = document("EnrollReport", items=items, warnings=list(warnings))
        print(dump(report, options.output))
        return
    screen = Screen.of(sys.stdout, options.color)
    if not lines:
        say("no pod runs there; those that start later follow the label")
        return
    colours = {True: "green", False: "yellow"}
    rows = [(line.pod, Cell(line.result, colours[line.done]), line.note) for line in lines]
    print(table(() if options.no_headers else ("POD", "RESULT", "NOTE"), rows, screen))
    for warning in warnings:
        say(f"{screen.glyph('warning')} {warning}")
    if any(kind == "Deployment" for kind, _, _ in meant) and options.verb == "enroll":
        say(f"Later pods of the Deployment follow only if its template has the label {MODE_LABEL}: ambient")
