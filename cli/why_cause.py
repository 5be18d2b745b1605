# SPDX-License-Identifier: Apache-2.0
"""The first cause for which a connection fails, and what mends it: a command, or lines of YAML. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from cli.codes import Code
from cli.policy_source import Origin
from cli.why_path import KERNEL, Branch, Walk

LOCALHOST = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why one branch fails."""

    code: Code
    text: str
    remedy: str
    yaml: str = ""
    """Lines that mend it; empty: the remedy is a command."""
    place: str = ""
    """FILE:LINE of what decided."""


def cause_of(walk: Walk, branch: Branch, command: Callable[[str], str]) -> Cause | None:
    """Return why a branch fails, by the order in which it would; None: it works as far as can be told."""
    if branch.kind == "reject":
        return _rejected(walk, branch)
    if branch.via and branch.kind == "waypoint" and (found := _at_waypoint(walk, branch)) is not None:
        return found
    if branch.unanswered:
        return Cause(
            code=Code.DESTINATION_AWAY,
            text=f"{branch.workload or branch.via} is in the mesh, but nobody answers for it: "
            f"{branch.unanswered}",
            remedy=f"`{command('check')}`",
        )
    if branch.verdict is not None and not branch.verdict.allowed:
        return _denied(walk, branch, command)
    return _unheard(branch)


def blocked_cause(walk: Walk, command: Callable[[str], str]) -> Cause:
    """Return why no connection can begin."""
    source = walk.source
    return Cause(
        code=Code.SOURCE_STOPPED,
        text=walk.blocked,
        remedy=f"`{command(f'describe pod {source.key}')}`",
    )


def _rejected(walk: Walk, branch: Branch) -> Cause:
    destination = walk.destination
    ports = [int(row["service_port"]) for row in (destination.service or {}).get("ports", ())]
    if branch.reason == "no_healthy_upstream" and ports and destination.port not in ports:
        return Cause(
            code=Code.NO_SUCH_PORT,
            text=f"service {destination.name} has no port {destination.port}",
            remedy=f"its ports are {', '.join(map(str, sorted(ports)))}",
        )
    if branch.reason == "no_healthy_upstream":
        return Cause(
            code=Code.NO_ENDPOINT,
            text=f"service {destination.name} has no endpoint that may be chosen: {branch.detail}",
            remedy=Code.NO_ENDPOINT.remedy,
        )
    code = {"waypoint_unavailable": Code.WAYPOINT_AWAY, "illegal_port": Code.RESERVED_PORT}.get(
        branch.reason, Code.REFUSED
    )
    return Cause(code=code, text=branch.detail or branch.reason, remedy=code.remedy)


def _at_waypoint(walk: Walk, branch: Branch) -> Cause | None:
    """Return why a waypoint ends a request; None: it forwards it, or answers well."""
    if branch.reason == "no_healthy_upstream":
        return Cause(code=Code.NO_ENDPOINT, text=branch.detail, remedy=Code.NO_ENDPOINT.remedy)
    if branch.reason == "refused":
        return Cause(
            code=Code.REFUSED, text=f"waypoint {branch.via}: {branch.detail}", remedy=Code.REFUSED.remedy
        )
    if branch.reason != "answer" or 100 <= branch.status < 400:
        return None
    if branch.route.startswith("AuthorizationPolicy"):
        policy = branch.route.replace("/", " ", 1)
        code = Code.NOT_ALLOWED if "no ALLOW policy matches" in branch.detail else Code.DENIED
        return Cause(
            code=code,
            text=f"waypoint {branch.via} denies it with {branch.status}: {_last(branch.detail)}",
            remedy=f"add a rule for {walk.identity} to {policy}"
            if code is Code.NOT_ALLOWED
            else f"narrow the rule of {policy}, if {walk.source.key} should get through",
            yaml=_rule_for(walk) if code is Code.NOT_ALLOWED else "",
        )
    return Cause(
        code=Code.NO_ROUTE,
        text=f"waypoint {branch.via} answers {branch.status} itself: {branch.detail}",
        remedy=Code.NO_ROUTE.remedy,
    )


def _denied(walk: Walk, branch: Branch, command: Callable[[str], str]) -> Cause:
    verdict = branch.verdict
    assert verdict is not None
    policy = verdict.policy
    place = policy.place if policy else ""
    if verdict.reason == "policy_unknown":
        return Cause(code=Code.UNJUDGED, text=verdict.detail, remedy=f"`{command('check')}`")
    if verdict.reason != "policy_denied":
        code = Code.RESERVED_PORT if verdict.reason == "illegal_port" else Code.REFUSED
        return Cause(code=code, text=verdict.detail, remedy=code.remedy)
    if policy is not None and policy.kind == "PeerAuthentication":
        return _plaintext(walk, branch, policy, command)
    if "no ALLOW policy matches" in verdict.detail:
        return _not_allowed(walk, branch, policy)
    return Cause(
        code=Code.DENIED,
        text=f"{policy or 'a policy'} denies it: {_last(verdict.detail)}",
        remedy=f"narrow the rule, if {walk.source.key} should get through: {place or policy}",
        place=place,
    )


def _last(detail: str) -> str:
    """Keep what a verdict says of the policy; who asked whom is told elsewhere."""
    for mark in ("DENY policy", "policy "):
        if mark in detail:
            return detail[detail.index(mark) :]
    return detail


def _plaintext(walk: Walk, branch: Branch, policy: Origin, command: Callable[[str], str]) -> Cause:
    source = walk.source
    name = policy.name if policy.raw is not None else "STRICT"
    if source.wanted:
        remedy = f"wait until {source.key} is in the mesh: `{command(f'describe pod {source.key}')}`"
    else:
        remedy = (
            f"bring the caller into the mesh: `{command(f'enroll pod/{source.name} -n {source.namespace}')}`"
        )
    return Cause(
        code=Code.PLAINTEXT_REFUSED,
        text=f"{branch.workload} accepts mutual TLS only (PeerAuthentication {policy.namespace}/{name}), "
        f"and {source.key} is not in the mesh",
        remedy=remedy,
        place=policy.place,
    )


def _not_allowed(walk: Walk, branch: Branch, policy: Origin | None) -> Cause:
    if branch.via:
        principal = branch.via_identity.removeprefix("spiffe://")
        return Cause(
            code=Code.NOT_ALLOWED,
            text=f"no ALLOW policy of {branch.workload} matches its own waypoint {branch.via_identity}",
            remedy=f"the waypoint dials in the callers' stead: let it in, under spec.rules of {policy}:",
            yaml=f"- from: [{{source: {{principals: [{principal}]}}}}]",
            place=policy.place if policy else "",
        )
    captured = branch.kind != KERNEL
    if not captured:
        source = walk.source
        return Cause(
            code=Code.NOT_ALLOWED,
            text=f"{policy} allows identities only, and {source.key} has none: it is not in the mesh",
            remedy=f"bring {source.key} into the mesh, and add this under spec.rules of {policy}:",
            yaml=_rule_for(walk),
            place=policy.place if policy else "",
        )
    return Cause(
        code=Code.NOT_ALLOWED,
        text=f"no ALLOW policy of {branch.workload} matches {walk.identity} on port {branch.port}",
        remedy=f"if it should get through, add this under spec.rules of {policy}:"
        if policy
        else Code.NOT_ALLOWED.remedy,
        yaml=_rule_for(walk),
        place=policy.place if policy else "",
    )


def _rule_for(walk: Walk) -> str:
    principal = walk.identity.removeprefix("spiffe://")
    return f"- from: [{{source: {{principals: [{principal}]}}}}]"


def hears(branch: Branch) -> bool | None:
    """Whether a process listens where the branch ends; None: not to be found out."""
    if branch.listeners is None:
        return None
    address = ip_address(branch.address)
    every = "::" if address.version == 6 else "0.0.0.0"
    heard = {str(address), "*", every, f"::ffff:{address}"}
    return any(port == branch.port and where in heard for where, port in branch.listeners)


def _unheard(branch: Branch) -> Cause | None:
    if hears(branch) is not False:
        return None
    listeners = branch.listeners or frozenset()
    here = sorted({where for where, port in listeners if port == branch.port})
    if here and set(here) <= LOCALHOST:
        return Cause(
            code=Code.NOBODY_LISTENS,
            text=f"{branch.workload} listens on {', '.join(here)} port {branch.port} only, "
            f"not on its own address {branch.address}",
            remedy="let the application listen on all addresses (0.0.0.0 and ::)",
        )
    if here:
        return Cause(
            code=Code.NOBODY_LISTENS,
            text=f"{branch.workload} listens on {', '.join(here)} port {branch.port}, "
            f"not on {branch.address}",
            remedy="let the application listen on both address families (0.0.0.0 and ::)",
        )
    others = sorted({port for where, port in listeners if where not in LOCALHOST})
    known = f"it listens on {', '.join(map(str, others))}" if others else "it listens on no port"
    return Cause(
        code=Code.NOBODY_LISTENS,
        text=f"nothing listens on port {branch.port} of {branch.workload}; {known}",
        remedy="correct the Service's targetPort, or start the application",
    )
