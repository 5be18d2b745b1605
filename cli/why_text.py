# SPDX-License-Identifier: Apache-2.0
"""What `ambit why` prints for a person."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cli.facts import Pod
from cli.flow_log import Flow
from cli.output import Screen, fold, span
from cli.why_cause import hears
from cli.why_path import KERNEL, Attempt, Branch
from cli.why_report import Judged, Report

LABEL = 13
_PATHS = {
    "passthrough": "plain TCP to an address that the mesh does not know",
    "direct": "to itself, past the proxy",
    "plain": "plain TCP: the destination is not in the mesh",
    KERNEL: "plain TCP: the caller is not in the mesh",
}


class Writer:
    """Writes a report for a person."""

    def __init__(self, report: Report, screen: Screen) -> None:
        self._report = report
        self._screen = screen

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
        secured = (
            f"HBONE tunnel with mutual TLS, as {branch.via_identity}" if branch.identity else "plain TCP"
        )
        self._line("", secured)
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
            if branch.kind != "direct":
                self._line("policy", "none: nobody judges what is not in the mesh")
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
            text = (
                "it works"
                if report.certain
                else (
                    "nothing in the mesh stands in its way; whether the application answers is not known here"
                )
            )
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
