# SPDX-License-Identifier: Apache-2.0
"""A walk, judged: which share of connections works, what fails first, and all of it as a document. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cli.flow_log import Flow
from cli.output import document
from cli.target import Target
from cli.why_cause import Cause, blocked_cause, cause_of, hears
from cli.why_path import Attempt, Branch, Walk


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
    def certain(self) -> bool:
        """Whether it is known of every working way that somebody listens at its end."""
        ways = [j.branch for _, judged in self.attempts for j in judged if j.cause is None]
        return all(hears(b) or b.status for b in ways)

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
            certain=self.certain,
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
