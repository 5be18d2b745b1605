# SPDX-License-Identifier: Apache-2.0
"""What is known of a mesh while one command runs: each source is asked once, whichever thread is first.

Joins objects with what the agents say of pods; judges nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from cli.codes import CliError, Code
from cli.target import CONTROLLER, Part, Target, ask
from lab.view import MODE_LABEL, wants_mesh, why_not_ready
from mesh.config.objects import RawObject
from mesh.config.source import Snapshot

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod: its object, and what the agent of its node says of it."""

    raw: RawObject
    wanted: bool
    """Labels put it into the mesh."""
    state: str
    """enrolled, enrolling, leaving, ignored; empty: the agent does not know it."""
    code: str = ""
    reason: str = ""
    remedy: str = ""
    older: tuple[str, ...] = ()
    """Connections older than its capture."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """The agent's whole answer."""

    @property
    def key(self) -> str:
        """`namespace/name`."""
        return f"{self.raw.namespace}/{self.raw.name}"

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.raw.namespace

    @property
    def name(self) -> str:
        """Its name."""
        return self.raw.name

    @property
    def uid(self) -> str:
        """The object's uid."""
        return str(self.raw.metadata.get("uid", ""))

    @property
    def node(self) -> str:
        """Where it runs; empty: nowhere yet."""
        return str(self.raw.spec.get("nodeName") or "")

    @property
    def account(self) -> str:
        """Its service account."""
        return str(self.raw.spec.get("serviceAccountName") or "default")

    @property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses."""
        return tuple(str(entry["ip"]) for entry in self.raw.status.get("podIPs") or ())

    @property
    def enrolled(self) -> bool:
        """Whether it is in the mesh in full."""
        return self.state == "enrolled"

    @property
    def captured(self) -> bool:
        """Whether its connections go to ztunnel; that begins before enrolment is over."""
        return self.enrolled or bool(self.details.get("captured"))

    @property
    def ended(self) -> bool:
        """Whether it has run to its end."""
        return self.raw.status.get("phase") in ("Succeeded", "Failed")

    @property
    def not_ready(self) -> str:
        """Why it is not ready; empty: it is."""
        return why_not_ready(self.raw)

    @property
    def owner(self) -> str:
        """The Deployment (or other controller) that made it; its own name if none did."""
        for reference in self.raw.metadata.get("ownerReferences") or ():
            name = str(reference.get("name", self.name))
            generation = self.raw.labels.get("pod-template-hash")
            if reference.get("kind") == "ReplicaSet" and generation:
                return name.removesuffix(f"-{generation}")
            return name
        return self.name


class Facts:
    """What one command knows; every answer is kept, failures too."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._known: dict[Hashable, Future[Any]] = {}

    def _once(self, key: Hashable, find: Callable[[], T]) -> T:
        with self._lock:
            future = self._known.get(key)
            mine = future is None
            if future is None:
                future = self._known[key] = Future()
        if mine:
            try:
                future.set_result(find())
            except BaseException as error:  # noqa: BLE001 - handed to all who wait for the answer
                future.set_exception(error)
        return cast(T, future.result())

    def objects(self) -> Snapshot:
        """Every object with its status."""
        return self.target.objects()

    def of(self, *kinds: str) -> list[RawObject]:
        """Objects of these kinds by namespace and name."""
        return self.objects().of(*kinds)

    def namespaces(self) -> dict[str, Mapping[str, str]]:
        """Labels of each namespace."""
        return self._once("namespaces", lambda: {n.name: n.labels for n in self.of("Namespace")})

    def ask(self, part: Part, path: str) -> Any:
        """Ask a part for JSON, once."""
        return self._once((part, path), lambda: ask(self.target, part, path))

    def agent_pods(self, node: str) -> list[dict[str, Any]]:
        """What a node's agent says of its pods."""
        return cast(list[dict[str, Any]], self.ask(Part("agent", node), "/pods"))

    def dump(self, node: str) -> dict[str, Any]:
        """A ztunnel's whole state."""
        return cast(dict[str, Any], self.ask(Part("ztunnel", node), "/config_dump"))

    def registry(self) -> dict[str, Any]:
        """What the controller serves."""
        return cast(dict[str, Any], self.ask(CONTROLLER, "/debug/registry"))

    def problems(self) -> dict[str, Any]:
        """What the controller could not take from the objects."""
        return cast(dict[str, Any], self.ask(CONTROLLER, "/debug/problems"))

    def pods(self) -> list[Pod]:
        """Every pod; where an agent does not answer, its pods have no state."""
        return self._once("pods", self._pods)

    def _pods(self) -> list[Pod]:
        rows: dict[str, Mapping[str, Any]] = {}
        for node in self.target.nodes():
            try:
                rows |= {str(row["uid"]): row for row in self.agent_pods(node)}
            except CliError:
                continue
        labels = self.namespaces()
        found = []
        for raw in self.of("Pod"):
            row = rows.get(str(raw.metadata.get("uid", "")), {})
            found.append(
                Pod(
                    raw=raw,
                    wanted=wants_mesh(raw, labels),
                    state=str(row.get("state", "")),
                    code=str(row.get("code", "")),
                    reason=str(row.get("reason", "")),
                    remedy=str(row.get("remedy", "")),
                    older=tuple(row.get("older_connections", ())),
                    details=row,
                )
            )
        return found

    def pod(self, text: str, namespace: str | None) -> Pod:
        """Find a pod by `NS/NAME` or name, or by the name of its Deployment when that has one pod.

        Raises:
            CliError: there is none, or the name stands for several.
        """
        wanted_namespace, _, name = text.rpartition("/")
        wanted_namespace = wanted_namespace or namespace or ""
        pods = [p for p in self.pods() if wanted_namespace in ("", p.namespace)]
        exact = [p for p in pods if p.name == name]
        owned = [p for p in pods if p.owner == name and not p.ended]
        for found in (exact, owned):
            if len(found) == 1 or (found and len({p.namespace for p in found}) == 1 and found is owned):
                return found[0]
            if found:
                names = ", ".join(p.key for p in found)
                raise CliError(Code.WRONG_MATCH, f"{text} stands for {len(found)} pods: {names}")
        raise CliError(Code.NOT_FOUND, f"there is no pod {text}{_near(name, [p.name for p in pods])}")

    def service(self, text: str, namespace: str | None) -> RawObject:
        """Find a Service or ServiceEntry by `NS/NAME`, name, or DNS name.

        Raises:
            CliError: there is none, or the name stands for several.
        """
        found = self.services_named(text, namespace)
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{i.namespace}/{i.name}" for i in found)
            raise CliError(Code.WRONG_MATCH, f"{text} stands for {len(found)} services: {names}")
        name = text.rpartition("/")[2]
        names_known = [i.name for i in self.of("Service")]
        raise CliError(Code.NOT_FOUND, f"there is no service {text}{_near(name, names_known)}")

    def services_named(self, text: str, namespace: str | None) -> list[RawObject]:
        """Find Services and ServiceEntries by any of their names."""
        place, _, name = text.rpartition("/")
        words = name.removesuffix(".").split(".")
        candidates = {(place or namespace or "", name)}
        if len(words) > 1 and (len(words) == 2 or words[2] == "svc"):
            candidates.add((words[1], words[0]))
        services = [i for i in self.of("Service") if _named(i, candidates)]
        if services:
            return services
        return [
            i for i in self.of("ServiceEntry") if _named(i, candidates) or name in (i.spec.get("hosts") or ())
        ]

    def meshed(self, namespace: str) -> bool:
        """Whether a namespace's label puts its pods into the mesh."""
        return self.namespaces().get(namespace, {}).get(MODE_LABEL) == "ambient"


def _named(item: RawObject, candidates: set[tuple[str, str]]) -> bool:
    return any(name == item.name and place in ("", item.namespace) for place, name in candidates)


def _near(name: str, known: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, sorted(set(known)), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
