# SPDX-License-Identifier: Apache-2.0
"""Follow a connection hop by hop: what the proxies on its way decide, and what the application does.

Asks the proxies' explain endpoints and the kernel's tables; what they answer is judged in `why_cause`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlencode

from cli.codes import CliError
from cli.facts import Facts, Pod
from cli.policy_source import Origin, origin
from cli.target import Listener, Part
from cli.why_target import Address, Destination


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The request that is sent, for waypoints; a method of `-` is no HTTP."""

    method: str = "GET"
    path: str = "/"
    host: str = ""
    """Empty: the service's name."""
    headers: tuple[str, ...] = ()
    """NAME:VALUE"""


KERNEL = "kernel"
"""Kind of a branch that no proxy decides: the caller is not captured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the destination's proxy says."""

    allowed: bool
    reason: str
    detail: str
    policy: Origin | None
    policies: tuple[str, ...]
    dry_run: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One thing that can happen to a connection."""

    share: float
    kind: str
    """As ztunnel names it (hbone, plain, direct, passthrough, waypoint, reject), or `kernel`."""
    address: str = ""
    """The application's, or what is dialled."""
    port: int = 0
    workload: str = ""
    """`namespace/name` of who is dialled."""
    node: str = ""
    identity: str = ""
    """Expected of the peer."""
    reason: str = ""
    detail: str = ""
    verdict: Verdict | None = None
    """None: nobody judges."""
    unanswered: str = ""
    """Why the destination's proxy could not be asked."""
    via: str = ""
    """The waypoint's pod, `namespace/name`."""
    via_identity: str = ""
    route: str = ""
    """Rule of a waypoint that decided (`HTTPRoute/namespace/name#0`), or the policy that refused."""
    status: int = 0
    """HTTP status that a waypoint answers itself; 0: it forwards."""
    listeners: frozenset[Listener] | None = None
    """Of the application; None: not to be found out."""
    pod: Pod | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A connect to one of the destination's addresses."""

    address: Address
    branches: tuple[Branch, ...]
    endpoints: tuple[tuple[str, str], ...] = ()
    """Members of the service, and why one is not chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """Everything that was found out."""

    source: Pod
    destination: Destination
    identity: str
    attempts: tuple[Attempt, ...]
    blocked: str = ""
    """Why no connection can begin at all."""
    notes: tuple[str, ...] = field(default_factory=tuple)


class Walker:
    """Follows connections of one source."""

    def __init__(self, facts: Facts, source: Pod, asked: Asked | None = None) -> None:
        self._facts = facts
        self._asked = asked or Asked()
        self._source = source
        self._workload = self._registered(source.namespace, source.name)
        self._pods = {p.key: p for p in facts.pods()}

    def walk(self, destination: Destination) -> Walk:
        """Follow connections to every address of a destination."""
        blocked = self._blocked()
        attempts: tuple[Attempt, ...] = ()
        if not blocked:
            attempts = tuple(self._attempt(destination, address) for address in destination.addresses)
        trust_domain = self._workload["trust_domain"] if self._workload else "cluster.local"
        source = self._source
        return Walk(
            source=source,
            destination=destination,
            identity=f"spiffe://{trust_domain}/ns/{source.namespace}/sa/{source.account}",
            attempts=attempts,
            blocked=blocked,
        )

    def _registered(self, namespace: str, name: str) -> dict[str, Any] | None:
        for row in self._facts.registry()["workloads"]:
            if (row["namespace"], row["name"]) == (namespace, name):
                return dict(row)
        return None

    def _blocked(self) -> str:
        source = self._source
        if source.ended or not source.addresses:
            return f"pod {source.key} does not run ({source.raw.status.get('phase', 'Pending')})"
        if not self._source.captured:
            return ""
        if self._workload is None:
            return f"the controller does not know pod {source.key}"
        try:
            served = self._facts.dump(source.node)["workloadState"]
        except CliError as error:
            return f"{error.what}; connections of captured pods are refused, never sent past it"
        if source.uid not in served:
            return f"the ztunnel of {source.node} has not taken pod {source.key} over yet: {source.reason}"
        return ""

    def _from(self, towards: Address, sender: Pod | None = None) -> str:
        addresses = (sender or self._source).addresses
        for text in addresses:
            if ip_address(text).version == towards.version:
                return text
        return addresses[0]

    def _attempt(self, destination: Destination, address: Address) -> Attempt:
        if not self._source.captured:
            return Attempt(address=address, branches=tuple(self._uncaptured(destination, address)))
        assert self._workload is not None
        query = urlencode({"source": self._workload["uid"], "address": address, "port": destination.port})
        answer = self._facts.ask(Part("ztunnel", self._source.node), f"/explain/outbound?{query}")
        return Attempt(
            address=address,
            branches=tuple(branch for outcome in answer["outcomes"] for branch in self._branches(outcome)),
            endpoints=tuple((f"{e['namespace']}/{e['name']}", str(e["whyNot"])) for e in answer["endpoints"]),
        )

    def _branches(self, outcome: dict[str, Any]) -> list[Branch]:
        return self._through(outcome) if outcome["kind"] == "waypoint" else [self._branch(outcome)]

    def _through(self, outcome: dict[str, Any]) -> list[Branch]:
        """Ask the chosen waypoint what it would do, and follow each endpoint that it may choose."""
        pod = outcome["workload"]
        via = f"{pod['namespace']}/{pod['name']}"
        share = float(outcome["share"])
        asked = self._asked
        question = {
            "identity": self._identity(),
            "source_ip": self._from(ip_address(outcome["address"])),
            "authority": outcome["authority"],
            "method": asked.method,
            "path": asked.path,
            "host": asked.host,
            "headers": "\n".join(asked.headers),
        }
        common: dict[str, Any] = {"kind": "waypoint", "via": via, "node": pod["node"]}
        try:
            answer = self._facts.ask(Part("waypoint", via), f"/explain?{urlencode(question)}")
        except CliError as error:
            return [Branch(**common, share=share, unanswered=error.what)]
        found: list[Branch] = []
        for one in answer["outcomes"]:
            part = share * float(one["share"])
            if one["result"] == "forward":
                found += self._onwards(common, one, part, str(answer["identity"]))
                continue
            found.append(
                Branch(
                    **common,
                    share=part,
                    via_identity=str(answer["identity"]),
                    route=str(one.get("source", "")),
                    status=int(one.get("status", 0)),
                    reason=str(one["result"]),
                    detail=str(one["detail"]),
                )
            )
        return found

    def _onwards(
        self, common: dict[str, Any], outcome: dict[str, Any], share: float, identity: str
    ) -> list[Branch]:
        endpoints = outcome["endpoints"]
        base = common | {"via_identity": identity, "route": str(outcome["source"])}
        if not endpoints:
            detail = f"{outcome['service']}:{outcome['port']} has no endpoint that can be chosen"
            return [Branch(**base, share=share, reason="no_healthy_upstream", detail=detail)]
        found = []
        for row in endpoints:
            key = f"{row['namespace']}/{row['name']}"
            branch = Branch(
                **base | {"node": row["node"]},
                share=share / len(endpoints),
                address=row["address"],
                port=row["port"],
                workload=key,
                identity=row["identity"] if row["hbone"] else "",
                pod=self._pods.get(key),
            )
            if row["authority"]:
                dialled = ip_address(row["address"])
                sender = self._pods.get(branch.via)
                branch = self._judged(
                    branch, authority=row["authority"], dialled=dialled, identity=identity, sender=sender
                )
            else:
                branch = self._plain(branch)
            found.append(branch)
        return found

    def _branch(self, outcome: dict[str, Any]) -> Branch:
        workload = outcome["workload"] or {}
        key = f"{workload['namespace']}/{workload['name']}" if workload else ""
        common: dict[str, Any] = {
            "share": float(outcome["share"]),
            "kind": outcome["kind"],
            "workload": key,
            "node": str(workload.get("node", "")),
            "pod": self._pods.get(key),
        }
        if outcome["kind"] == "reject":
            return Branch(**common, reason=outcome["reason"], detail=outcome["detail"])
        identities = outcome["identities"]
        common["identity"] = str(workload.get("identity", "")) if identities else ""
        if outcome["kind"] != "hbone":
            branch = Branch(**common, address=outcome["address"], port=outcome["port"])
            return self._plain(branch) if outcome["kind"] in ("plain", "direct") else branch
        host, _, port = outcome["authority"].rpartition(":")
        address = ip_address(host.strip("[]"))
        return self._judged(
            Branch(**common, address=str(address), port=int(port)),
            authority=outcome["authority"],
            dialled=ip_address(outcome["address"]),
            identity=self._identity(),
        )

    def _identity(self) -> str:
        assert self._workload is not None
        row = self._workload
        return f"spiffe://{row['trust_domain']}/ns/{row['namespace']}/sa/{row['service_account']}"

    def _uncaptured(self, destination: Destination, address: Address) -> list[Branch]:
        """What the kernel does without the mesh: any ready endpoint, or the address itself."""
        service = destination.service
        if service is None or destination.headless:
            found = [(key, str(address), destination.port) for key in self._owner(str(address))]
            targets = found or [("", str(address), destination.port)]
        else:
            targets = self._endpoints(service, destination.port, address.version)
            if not targets:
                ports = [int(row["service_port"]) for row in service["ports"]]
                detail = (
                    f"the service has no port {destination.port}"
                    if destination.port not in ports
                    else "it has no ready endpoint"
                )
                return [Branch(share=1.0, kind="reject", reason="no_healthy_upstream", detail=detail)]
        branches = []
        for key, text, port in targets:
            pod = self._pods.get(key)
            branch = Branch(
                share=1 / len(targets),
                kind=KERNEL,
                workload=key,
                node=pod.node if pod else "",
                address=text,
                port=port,
                pod=pod,
            )
            branches.append(self._plain(branch))
        return branches

    def _owner(self, address: str) -> list[str]:
        return [key for key, pod in self._pods.items() if address in pod.addresses and not pod.ended]

    def _endpoints(
        self, service: dict[str, Any] | Any, port: int, version: int
    ) -> list[tuple[str, str, int]]:
        full = f"{service['namespace']}/{service['hostname']}"
        found = []
        for row in self._facts.registry()["workloads"]:
            own = row["services"].get(full)
            if own is None or not row["healthy"]:
                continue
            target = own["ports"].get(str(port)) or _target_port(service, port)
            same = [a for a in row["addresses"] if ip_address(a).version == version]
            if target and same:
                found.append((f"{row['namespace']}/{row['name']}", same[0], int(target)))
        return found

    def _plain(self, branch: Branch) -> Branch:
        """A connection without a tunnel: judged only where the destination is captured."""
        pod = branch.pod
        own = pod is not None and pod.key == self._source.key
        if pod is None or own or not pod.captured:
            return self._application(branch)
        return self._judged(branch, authority="", dialled=ip_address(branch.address), identity="")

    def _judged(
        self, branch: Branch, *, authority: str, dialled: Address, identity: str, sender: Pod | None = None
    ) -> Branch:
        namespace, _, name = branch.workload.partition("/")
        row = self._registered(namespace, name)
        if row is None or not branch.node:
            return _with(branch, unanswered=f"the controller does not know {branch.workload}")
        question = {
            "destination": row["uid"],
            "address": dialled,
            "port": branch.port,
            "source_ip": self._from(dialled, sender),
            **({"authority": authority} if authority else {}),
            **({"identity": identity} if identity else {}),
        }
        try:
            answer = self._facts.ask(Part("ztunnel", branch.node), f"/explain/inbound?{urlencode(question)}")
        except CliError as error:
            return _with(branch, unanswered=error.what)
        labels = branch.pod.raw.labels if branch.pod else {}
        policy = (
            origin(self._facts, answer["policy"], namespace=namespace, labels=labels, detail=answer["detail"])
            if answer["policy"]
            else None
        )
        verdict = Verdict(
            allowed=answer["allowed"],
            reason=answer["reason"],
            detail=answer["detail"],
            policy=policy,
            policies=tuple(answer["policies"]),
            dry_run=tuple(answer["dryRun"]),
        )
        return self._application(_with(branch, verdict=verdict))

    def _application(self, branch: Branch) -> Branch:
        namespace, _, name = branch.workload.partition("/")
        if branch.pod is None:
            return branch
        return _with(branch, listeners=self._facts.target.listening(namespace, name))


def _target_port(service: dict[str, Any] | Any, port: int) -> int:
    for row in service["ports"]:
        if int(row["service_port"]) == port:
            return int(row["target_port"])
    return 0


def _with(branch: Branch, **values: Any) -> Branch:
    from dataclasses import replace

    return replace(branch, **values)
