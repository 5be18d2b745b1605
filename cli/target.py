# SPDX-License-Identifier: Apache-2.0
"""Where a mesh's objects, admin ports and logs come from: the one border between verbs and the place.

Verbs know only `Target`. A lab is one (`target_lab`); how a mesh is found is `open_target`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cli.codes import CliError, Code
from mesh.config.objects import RawObject
from mesh.config.source import Snapshot

LABS = Path("/run/ambit")


@dataclass(frozen=True, slots=True)
class Part:
    """An HTTP surface of the mesh; `node` is empty for the controller's."""

    name: str
    """controller, agent, ztunnel, ztunnel-metrics, ztunnel-ready, waypoint or waypoint-metrics."""
    node: str = ""
    """Of a waypoint its pod, as NAMESPACE/NAME."""

    def __str__(self) -> str:
        return f"{self.name} of {self.node}" if self.node else self.name


CONTROLLER = Part("controller")
Listener = tuple[str, int]
"""Address and port that a process listens on; `*` is every address, `0.0.0.0` and `::` all of a family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a part answered."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A process of the mesh as its supervisor sees it."""

    name: str
    running: bool
    restarts: int
    why: str
    """How it last ended; empty: it has not."""


class UnreachableError(CliError):
    """A part does not answer."""

    def __init__(self, part: Part, why: str) -> None:
        super().__init__(Code.UNREACHABLE, f"{part} does not answer: {why}")
        self.part = part
        self.why = why


class Target(Protocol):
    """One mesh. Every method may be called from any thread."""

    @property
    def title(self) -> str:
        """What a person calls it: `lab demo`."""
        ...

    def fresh(self) -> Target:
        """Return the same mesh with nothing remembered."""
        ...

    def command(self, words: str) -> str:
        """Return the `ambit` command with these words for this mesh, to be shown as the next step."""
        ...

    def nodes(self) -> tuple[str, ...]:
        """Return the nodes' names in order."""
        ...

    def objects(self) -> Snapshot:
        """Return every object with its status."""
        ...

    def written(self, raw: RawObject) -> RawObject:
        """Return an object as a person wrote it, with that file's lines; itself where that is not known."""
        ...

    def request(self, part: Part, path: str, *, method: str = "GET") -> Answer:
        """Ask a part.

        Raises:
            UnreachableError: it does not answer.
        """
        ...

    def metric_parts(self) -> list[Part]:
        """Return the parts whose `/metrics` count traffic: every ztunnel and waypoint."""
        ...

    def log(self, part: Part, *, lines: int) -> list[str]:
        """Return the last lines of a part's log."""
        ...

    def follow(self, parts: Sequence[Part]) -> Iterator[tuple[Part, str]]:
        """Yield new lines of logs as they come, until interrupted."""
        ...

    def programs(self) -> list[Program]:
        """Return the processes of the mesh."""
        ...

    def bpf(self, words: Sequence[str], node: str = "") -> Mapping[str, Any]:
        """Run the BPF loader's `status` or `probe` and return its report."""
        ...

    def missing_cgroups(self) -> list[str]:
        """Return cgroup directories that should be there and are not."""
        ...

    def listening(self, namespace: str, pod: str) -> frozenset[Listener] | None:
        """Return where a pod's own processes listen for TCP; None: not to be found out."""
        ...

    def set_labels(self, kind: str, namespace: str, name: str, words: Sequence[str]) -> None:
        """Set (KEY=VALUE) and remove (KEY-) labels."""
        ...

    def apply(self, data: Mapping[str, Any]) -> str:
        """Write an object; return `created`, `configured` or `unchanged`."""
        ...

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        """Remove an object that a person applied; False: there was none."""
        ...


def ask(target: Target, part: Part, path: str) -> Any:
    """Return the JSON that a part answers.

    Raises:
        UnreachableError: it does not answer.
        CliError: it answers with an error or something else than JSON.
    """
    answer = target.request(part, path)
    if answer.status != 200:
        raise CliError(Code.BAD_ANSWER, f"{part} answered {path} with {answer.status}: {answer.text[:200]}")
    try:
        return json.loads(answer.body)
    except ValueError as error:
        raise CliError(Code.BAD_ANSWER, f"{part} answered {path} with no JSON") from error


def labs() -> list[str]:
    """Return the names of the labs that are up on this machine.

    Raises:
        PermissionError: they cannot be seen.
    """
    if not LABS.is_dir():
        return []
    return sorted(path.name for path in LABS.iterdir() if (path / "lab.json").exists())


def open_target(options: argparse.Namespace) -> Target:
    """Find the mesh that the options mean.

    --lab or --state is a lab, --context or --kubeconfig a cluster; else the only lab that is up,
    else the cluster that kubectl is set to.

    Raises:
        CliError: there is none, several, or it cannot be seen without root.
    """
    context, kubeconfig = getattr(options, "context", None), getattr(options, "kubeconfig", None)
    name = options.lab or os.environ.get("AMBIT_LAB", "")
    explicit = bool(name or options.state)
    if (context or kubeconfig) and not options.lab and not options.state:
        return _open_cluster(context, kubeconfig)
    if not explicit and not _seen_labs():
        from cli.target_kube import usable

        if usable():
            return _open_cluster(None, None)
    return _open_lab(name, options.state)


def _seen_labs() -> list[str]:
    try:
        return labs()
    except PermissionError:
        return []


_clusters: dict[tuple[str | None, Path | None], Target] = {}
"""Clusters that are open: a watched verb keeps its port-forwards."""


def _open_cluster(context: str | None, kubeconfig: Path | None) -> Target:
    from cli.target_kube import Kubectl, KubeTarget

    known = _clusters.get((context, kubeconfig))
    if known is not None:
        return known.fresh()
    kubectl = Kubectl(context or "", kubeconfig)
    if not context:
        kubectl = Kubectl(kubectl.run("config", "current-context").strip(), kubeconfig)
    found = _clusters[context, kubeconfig] = KubeTarget(kubectl)
    return found


def _open_lab(name: str, state: Path | None) -> Target:
    from cli.target_lab import LabTarget
    from lab.errors import LabError
    from lab.layout import load_layout

    if os.geteuid() != 0:
        raise CliError(Code.NOT_HERE, "a lab's nodes cannot be entered without root")
    if state is None:
        up = labs()
        if not name and len(up) > 1:
            raise CliError(Code.WHICH_MESH, f"{len(up)} labs are up: {', '.join(up)}")
        if not name and not up:
            raise CliError(Code.NO_MESH, "no lab is up on this machine, and kubectl is set to no cluster")
        if name and name not in up:
            known = f"; up are {', '.join(up)}" if up else ""
            raise CliError(Code.NO_MESH, f"no lab {name} is up on this machine{known}")
        state = LABS / (name or up[0])
    try:
        return LabTarget(load_layout(state.absolute()))
    except LabError as error:
        raise CliError(Code.NO_MESH, error.what) from error
