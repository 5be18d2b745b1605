# SPDX-License-Identifier: Apache-2.0
"""Judge recorded connections by changed objects: what would newly be denied or allowed.

The controller's translators and the proxies' own evaluation judge, on both states alike. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cli.flow_log import Flow
from controller.translate.mesh import Options, translate
from mesh.authz.evaluate import Connection, evaluate
from mesh.config.objects import ObjectKey, RawObject
from mesh.identity.spiffe import IdentityError, SpiffeId
from mesh.model.workload import Workload
from mesh.state.store import StateUpdate, Store


@dataclass(frozen=True, slots=True)
class Asked:
    """One connection as its destination's proxy judged it."""

    identity: str
    source: str
    """For people: `namespace/workload` or an address."""
    source_ip: str
    destination: str
    """`namespace/pod`."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A connection that would be judged otherwise."""

    asked: Asked
    count: int
    last: str
    allowed: bool
    """After the change."""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of all recorded connections."""

    changes: tuple[Change, ...]
    judged: int
    """Different connections."""
    skipped: tuple[str, ...]
    """Destinations that do not run any more."""


def recorded(flows: Iterable[Flow]) -> dict[Asked, tuple[int, str]]:
    """Return the different connections with how often and when last; a caller's port does not count."""
    found: dict[Asked, tuple[int, str]] = {}
    for flow in flows:
        workload = flow.get("dst.workload")
        if flow.direction != "inbound" or not workload:
            continue
        asked = Asked(
            identity=flow.get("src.identity"),
            source=flow.source,
            source_ip=flow.get("src.addr").rpartition(":")[0].strip("[]"),
            destination=f"{flow.get('dst.namespace')}/{workload}",
            port=int(flow.target.rpartition(":")[2]),
        )
        count, last = found.get(asked, (0, ""))
        found[asked] = (count + 1, max(last, flow.time))
    return found


class World:
    """The mesh that a set of objects makes."""

    def __init__(self, objects: Mapping[ObjectKey, RawObject], options: Options | None = None) -> None:
        mesh = translate(objects, options or Options())
        self.store = Store()
        self.store.apply(
            StateUpdate(
                workloads=tuple(mesh.workloads.values()),
                services=tuple(mesh.services.values()),
                policies=tuple(mesh.policies.values()),
            )
        )
        self._by_name = {f"{w.namespace}/{w.name}": w for w in mesh.workloads.values()}

    def find(self, name: str) -> Workload | None:
        """Find a pod, or one of the Deployment that its name was made of."""
        exact = self._by_name.get(name)
        if exact is not None:
            return exact
        stem = name
        while "-" in stem.rpartition("/")[2]:
            stem = stem.rpartition("-")[0]
            for other, workload in self._by_name.items():
                # A Deployment's pods bear its name and two generated words.
                if other.rsplit("-", 2)[0] == stem:
                    return workload
        return None

    def judge(self, workload: Workload, asked: Asked) -> tuple[bool, str]:
        """Say whether a connection is allowed, and why."""
        known = self.store.policies_for(workload)
        if known.unusable:
            return False, known.unusable
        source_ip = ip_address(asked.source_ip)
        own = [a for a in workload.addresses if a.version == source_ip.version] or list(workload.addresses)
        try:
            identity = SpiffeId.parse(asked.identity) if asked.identity else None
        except IdentityError as error:
            return False, str(error)
        verdict = evaluate(
            known.policies,
            Connection(
                source_identity=identity,
                source_ip=source_ip,
                destination_ip=own[0],
                destination_port=asked.port,
            ),
        )
        return verdict.allowed, verdict.reason


def replay(connections: Mapping[Asked, tuple[int, str]], before: World, after: World) -> Replay:
    """Judge every connection by both worlds."""
    changes: list[Change] = []
    skipped: dict[str, None] = {}
    judged = 0
    for asked, (count, last) in connections.items():
        old, new = before.find(asked.destination), after.find(asked.destination)
        if old is None or new is None:
            skipped[asked.destination] = None
            continue
        judged += 1
        was, _ = before.judge(old, asked)
        allowed, why = after.judge(new, asked)
        if was != allowed:
            changes.append(Change(asked=asked, count=count, last=last, allowed=allowed, why=why))
    changes.sort(key=lambda c: (c.allowed, -c.count, c.asked.destination))
    return Replay(changes=tuple(changes), judged=judged, skipped=tuple(skipped))


def changed(
    objects: Mapping[ObjectKey, RawObject], applied: Sequence[RawObject], deleted: Sequence[RawObject]
) -> dict[ObjectKey, RawObject]:
    """Return the objects as they are after applying some and deleting others."""
    found = {**objects, **{item.key: item for item in applied}}
    for item in deleted:
        found.pop(item.key, None)
    return found
