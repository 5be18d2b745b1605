# SPDX-License-Identifier: Apache-2.0
"""`ambit why SRC DST[:PORT]`: would this connection work, by which way, and if not, what mends it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.codes import EXIT_CHECK, EXIT_OK, CliError, Code
from cli.facts import Facts, Pod
from cli.flow_log import Flow, parse_line
from cli.options import add_common
from cli.output import Screen, document, dump, fold, span
from cli.target import Part, Target, open_target
from cli.why_cause import Cause, blocked_cause, cause_of, hears
from cli.why_path import KERNEL, Asked, Attempt, Branch, Walk, Walker
from cli.why_target import find_destination

LINES = 3000
"""Of each node's log that are searched for the pair."""
LABEL = 13
_PATHS = {
    "passthrough": "plain TCP to an address that the mesh does not know",
    "direct": "to itself, past the proxy",
    "plain": "plain TCP: the destination is not in the mesh",
    KERNEL: "plain TCP: the caller is not in the mesh",
}


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("source", metavar="SRC", help="pod or Deployment: NAME or NAMESPACE/NAME")
    parser.add_argument(
        "destination",
        metavar="DST[:PORT]",
        help="service, pod, Deployment, DNS name or address, as the source would name it",
    )
    parser.add_argument("-n", "--namespace", metavar="NS", help="namespace of SRC")
    parser.add_argument("--method", default="GET", help="of the request, for waypoints; - is no HTTP (GET)")
    parser.add_argument("--path", default="/", help="its path (/)")
    parser.add_argument("--host", default="", help="its Host (the service's name)")
    parser.add_argument(
        "--header", action="append", default=[], metavar="NAME:VALUE", help="a header field; repeatable"
    )
    parser.add_argument("--flows", type=int, default=3, metavar="N", help="last log lines of the pair (3)")
    add_common(parser, formats=("table", "json", "yaml"))


def run(options: argparse.Namespace) -> int:
    """Explain; 0: it works, 2: it does not, or not always."""
    target = open_target(options)
    facts = Facts(target)
    source = facts.pod(options.source.removeprefix("pod/").removeprefix("deploy/"), options.namespace)
    destination = find_destination(facts, options.destination, source.namespace)
    if any(":" not in header for header in options.header):
        raise CliError(Code.USAGE, "a header is written NAME:VALUE")
    asked = Asked(method=options.method, path=options.path, host=options.host, headers=tuple(options.header))
    report = Report.of(Walker(facts, source, asked).walk(destination), target)
    flows = last_flows(target, report.walk, options.flows)
    if options.output in ("json", "yaml"):
        print(dump(report.document(flows), options.output))
    else:
        Writer(report, Screen.of(sys.stdout, options.color), target).write(flows)
    return EXIT_OK if report.works else EXIT_CHECK


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A branch and why it fails; None: it works."""

    branch: Branch
    cause: Cause | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The walk, judged."""

    walk: Walk
    attempts: tuple[tuple[Attempt, tuple[Judged, ...]], ...]
    blocked: Cause | None

    @classmethod
    def of(cls, walk: Walk, target: Target) -> Report:
        """Judge every branch."""
        return cls(
            walk=walk,
            attempts=tuple(
                (
                    attempt,
                    tuple(
                        Judged(branch=b, cause=cause_of(walk, b, target.command)) for b in attempt.branches
                    ),
                )
                for attempt in walk.attempts
            ),
            blocked=blocked_cause(walk, target.command) if walk.blocked else None,
        )

    @property
    def shares(self) -> list[float]:
        """Which share of connections works, per address."""
        return [sum(j.branch.share for j in judged if j.cause is None) for _, judged in self.attempts]

    @property
    def works(self) -> bool:
        """Whether a client that tries the addresses in turn always gets through."""
        return any(share > 1 - 1e-9 for share in self.shares)

    @property
    def first_cause(self) -> Cause | None:
        """What fails first."""
        if self.blocked:
            return self.blocked
        return next((j.cause for _, judged in self.attempts for j in judged if j.cause), None)

    def document(self, flows: Sequence[Flow]) -> dict[str, Any]:
        """Write everything for JSON."""
        walk, cause = self.walk, self.first_cause
        return document(
            "WhyReport",
            works=self.works,
            share=max(self.shares, default=0.0),
            source={
                "pod": walk.source.key,
                "node": walk.source.node,
                "captured": walk.source.captured,
                "since": walk.source.details.get("since"),
                "identity": walk.identity if walk.source.captured else "",
                "addresses": list(walk.source.addresses),
            },
            destination={
                "kind": walk.destination.kind,
                "name": walk.destination.name,
                "port": walk.destination.port,
                "addresses": [str(a) for a in walk.destination.addresses],
            },
            attempts=[
                {
                    "address": str(attempt.address),
                    "share": share,
                    "endpoints": [{"name": name, "whyNot": why} for name, why in attempt.endpoints],
                    "branches": [_branch_data(j) for j in judged],
                }
                for (attempt, judged), share in zip(self.attempts, self.shares, strict=True)
            ],
            cause=_cause_data(cause),
            flows=[flow.data() for flow in flows],
        )


def _cause_data(cause: Cause | None) -> dict[str, Any] | None:
    if cause is None:
        return None
    return {
        "code": str(cause.code),
        "text": cause.text,
        "remedy": cause.remedy,
        "yaml": cause.yaml,
        "place": cause.place,
    }


def _branch_data(judged: Judged) -> dict[str, Any]:
    branch, verdict = judged.branch, judged.branch.verdict
    return {
        "works": judged.cause is None,
        "share": branch.share,
        "path": branch.kind,
        "address": branch.address,
        "port": branch.port,
        "workload": branch.workload,
        "node": branch.node,
        "identity": branch.identity,
        "via": branch.via,
        "route": branch.route,
        "status": branch.status,
        "reason": branch.reason,
        "detail": branch.detail,
        "verdict": None
        if verdict is None
        else {
            "allowed": verdict.allowed,
            "reason": verdict.reason,
            "detail": verdict.detail,
            "policy": verdict.policy.data() if verdict.policy else None,
            "policies": list(verdict.policies),
            "dryRun": list(verdict.dry_run),
        },
        "listening": hears(branch) if branch.address and branch.kind != "reject" else None,
        "cause": _cause_data(judged.cause),
    }


def last_flows(target: Target, walk: Walk, count: int) -> list[Flow]:
    """Find the last log lines of the pair on the nodes that could have written them."""
    if count <= 0:
        return []
    source = walk.source
    ends = {b.workload for a in walk.attempts for b in a.branches if b.workload}
    addresses = {str(a) for a in walk.destination.addresses} | {
        b.address for a in walk.attempts for b in a.branches
    }
    nodes = {source.node, *(b.node for a in walk.attempts for b in a.branches)} & set(target.nodes())
    found = []
    for node in sorted(nodes):
        for line in target.log(Part("ztunnel", node), lines=LINES):
            flow = parse_line(line, node)
            if flow is None or not _is_from(flow, source):
                continue
            if flow.destination in ends or flow.target.rpartition(":")[0].strip("[]") in addresses:
                found.append(flow)
    # Of one connection both nodes write; the destination knows more of a denial, the source of the rest.
    found.sort(key=lambda flow: flow.time)
    side = "inbound" if any(f.verdict == "denied" and f.direction == "inbound" for f in found[-4:]) else ""
    return [f for f in found if not side or f.direction == side][-count:]


def _is_from(flow: Flow, source: Pod) -> bool:
    if flow.get("src.workload"):
        return flow.source == source.key
    return flow.get("src.addr").rpartition(":")[0].strip("[]") in source.addresses


class Writer:
    """Writes a report for a person."""

    def __init__(self, report: Report, screen: Screen, target: Target) -> None:
        self._report = report
        self._screen = screen
        self._target = target

    def _line(self, label: str, text: str) -> None:
        head = self._screen.paint(label.ljust(LABEL), "dim") if label else " " * LABEL
        print(f"  {head}{text}")

    def write(self, flows: Sequence[Flow]) -> None:
        """Print it."""
        walk, screen = self._report.walk, self._screen
        arrow = screen.glyph("arrow")
        goal = f"{walk.destination.kind} {walk.destination.name}:{walk.destination.port}"
        print(f"{screen.paint(f'{walk.source.key} {arrow} {goal}', 'bold')}\n")
        self._source(walk.source)
        shown: set[str] = set()
        for (attempt, judged), share in zip(self._report.attempts, self._report.shares, strict=True):
            key = "\n".join(f"{j.branch.workload}{j.branch.kind}{j.cause}" for j in judged)
            same = _without_addresses(key, attempt, judged)
            if same in shown:
                self._line("", screen.paint(f"the same over {attempt.address}", "dim"))
                continue
            shown.add(same)
            self._attempt(attempt, judged, share)
        for number, flow in enumerate(flows):
            self._line("last flows" if not number else "", _flow_text(flow, screen))
        self._conclude()

    def _source(self, source: Pod) -> None:
        self._line(
            "caller", f"pod {source.key} on {source.node or 'no node'} ({', '.join(source.addresses)})"
        )
        if source.captured:
            since = source.details.get("since")
            how = f", for {span(time.time() - since)}" if since else ""
            self._line("", f"captured{how}; identity {self._report.walk.identity}")
            if not source.enrolled:
                self._line("", self._screen.paint(source.reason, "yellow"))
            return
        why = source.reason or "its agent does not know it"
        self._line("", self._screen.paint("not captured", "yellow") + f": {why}")

    def _attempt(self, attempt: Attempt, judged: Sequence[Judged], share: float) -> None:
        walk = self._report.walk
        asked = f"{walk.destination.kind} {walk.destination.name}"
        if walk.destination.kind != "address":
            asked += f" at {attempt.address}"
        chosen = sum(not why for _, why in attempt.endpoints)
        if attempt.endpoints:
            asked += f": {chosen} of {len(attempt.endpoints)} endpoints can be chosen"
        self._line("destination", asked)
        for name, why in attempt.endpoints:
            if why:
                self._line("", self._screen.paint(f"not {name}: {why}", "yellow"))
        for one in judged:
            self._branch(one, several=len(judged) > 1)

    def _branch(self, judged: Judged, *, several: bool) -> None:
        branch, screen = judged.branch, self._screen
        sign = (
            screen.paint(screen.glyph("error"), "red")
            if judged.cause
            else screen.paint(screen.glyph("ok"), "green")
        )
        if branch.via:
            self._waypoint(judged, sign, several=several)
            return
        if branch.kind == "reject":
            self._line("path", f"{sign} refused by the caller's ztunnel: {branch.reason}")
            return
        where = (
            f"{branch.address}:{branch.port}"
            if ":" not in branch.address
            else f"[{branch.address}]:{branch.port}"
        )
        goal = f"{branch.workload or 'unknown'} at {where}" + (f" on {branch.node}" if branch.node else "")
        often = f"{branch.share * 100:.0f} %  " if several else ""
        self._line("endpoint", f"{sign} {often}{goal}")
        self._line("path", self._path(branch))
        if branch.identity:
            self._line("", f"its certificate must name {branch.identity}")
        self._policy(branch)
        heard = hears(branch)
        if heard is not None and (branch.verdict is None or branch.verdict.allowed):
            word = "listens" if heard else screen.paint("does not listen", "red")
            self._line("application", f"{word} on {where}")

    def _waypoint(self, judged: Judged, sign: str, *, several: bool) -> None:
        branch, screen = judged.branch, self._screen
        often = f"{branch.share * 100:.0f} %  " if several else ""
        self._line("waypoint", f"{sign} {often}{branch.via}, by HBONE tunnel with mutual TLS")
        if branch.unanswered and not branch.workload:
            self._line("", screen.paint(branch.unanswered, "red"))
            return
        if branch.reason == "later":
            self._line("", branch.detail)
            return
        if branch.reason:
            how = f"answers {branch.status} itself" if branch.status else branch.reason
            self._line("", f"{how}: {branch.detail}" + (f", by {branch.route}" if branch.route else ""))
            return
        self._line("route", branch.route or "none: to the service that was asked for")
        arrow = screen.glyph("arrow")
        where = f"{branch.address}:{branch.port}"
        self._line(
            "endpoint",
            f"{arrow} {branch.workload} at {where}" + (f" on {branch.node}" if branch.node else ""),
        )
        secured = "HBONE tunnel with mutual TLS" if branch.identity else "plain TCP"
        self._line("", f"{secured}, as {branch.via_identity}")
        self._policy(branch)

    def _path(self, branch: Branch) -> str:
        source = self._report.walk.source
        arrow = self._screen.glyph("arrow")
        if branch.kind in ("hbone", "waypoint"):
            way = (
                f"within {source.node}"
                if source.node == branch.node
                else f"{source.node} {arrow} {branch.node}"
            )
            what = "HBONE tunnel with mutual TLS"
            return f"{what}, {way}" + (
                f", to waypoint {branch.workload}" if branch.kind == "waypoint" else ""
            )
        return _PATHS.get(branch.kind, branch.kind)

    def _policy(self, branch: Branch) -> None:
        verdict, screen = branch.verdict, self._screen
        if branch.unanswered:
            self._line("policy", screen.paint(f"not known: {branch.unanswered}", "red"))
            return
        if verdict is None:
            if branch.kind not in ("direct", "waypoint"):
                self._line("policy", "none: nobody judges what is not in the mesh")
            elif branch.kind == "waypoint":
                self._line("policy", "the waypoint's routes and policies decide from here on")
            return
        word = screen.paint("allowed", "green") if verdict.allowed else screen.paint("denied", "red")
        by = f" by {verdict.policy}" if verdict.policy else f": {verdict.detail}"
        place = (
            f" {screen.paint(verdict.policy.place, 'dim')}" if verdict.policy and verdict.policy.place else ""
        )
        self._line("policy", f"{word}{by}{place}")
        if not verdict.allowed and len(verdict.policies) > 1:
            self._line("", screen.paint(f"in force: {', '.join(verdict.policies)}", "dim"))
        for note in verdict.dry_run:
            self._line("", screen.paint(note, "yellow"))

    def _conclude(self) -> None:
        report, screen = self._report, self._screen
        cause = report.first_cause
        best = max(report.shares, default=0.0)
        if report.works:
            text = "it works"
            if cause:
                text += ", but not over every address of the name"
            print(f"\n{screen.paint(screen.glyph('ok'), 'green')} {text}")
        else:
            how = f"it works for {best * 100:.0f} % of connections only" if best else "it does not work"
            print(f"\n{screen.paint(screen.glyph('error'), 'red')} {how}")
        if cause is None:
            return
        print(fold(f"{cause.text} ({cause.code})", width=screen.width, indent="  "))
        if cause.place:
            print(screen.paint(f"  decided at {cause.place}", "dim"))
        print(fold(f"what to do: {cause.remedy}", width=screen.width, indent="  "))
        if cause.yaml:
            print("\n" + "\n".join(f"    {line}" for line in cause.yaml.splitlines()))


def _without_addresses(key: str, attempt: Attempt, judged: Sequence[Judged]) -> str:
    """Make two families comparable: what differs is only their addresses."""
    for text in {str(attempt.address), *(j.branch.address for j in judged)}:
        key = key.replace(text, "") if text else key
    return key


def _flow_text(flow: Flow, screen: Screen) -> str:
    colour = {"forwarded": "green", "denied": "red", "failed": "red"}[flow.verdict]
    text = f"{flow.time[11:19]} {flow.node} {flow.direction:<8} {screen.paint(flow.verdict, colour)}"
    if flow.verdict == "forwarded":
        sent, received = flow.get("bytes_sent"), flow.get("bytes_recv")
        return f"{text}, {sent} B sent, {received} B received, {flow.get('duration')}"
    error = flow.why
    room = max(screen.width - LABEL - 40, 40)
    return f"{text}: {error if len(error) <= room else error[: room - 3] + '...'}"
