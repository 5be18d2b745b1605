# SPDX-License-Identifier: Apache-2.0
"""What the agent keeps on disk: one file per pod that it may have touched, and Enrollment objects.

The pod's file is written before the first thing is put in place and removed after the
last is gone, so that an agent that was killed knows what it may have left. It is a hint:
pins and namespaces are what counts. Enrollment objects are for the controller.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from mesh.config.source import Snapshot
from mesh.model.address import IPAddress, parse_ip

_log = logging.getLogger("ambit.agent.store")

REDIRECTION_ANNOTATION = "ambient.istio.io/redirection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """One pod as the agent last knew it."""

    uid: str
    namespace: str
    name: str
    service_account: str
    netns_path: str
    """Where its namespace was found; the CNI's path where it gave one."""
    cookie: int
    workload_id: int
    addresses: tuple[IPAddress, ...]
    resolvers: tuple[IPAddress, ...] = ()


def encode(pod: Remembered) -> str:
    """Return the JSON text of one file."""
    return json.dumps(
        {
            "uid": pod.uid,
            "namespace": pod.namespace,
            "name": pod.name,
            "service_account": pod.service_account,
            "netns_path": pod.netns_path,
            "cookie": pod.cookie,
            "workload_id": pod.workload_id,
            "addresses": [str(a) for a in pod.addresses],
            "resolvers": [str(a) for a in pod.resolvers],
        },
        indent=1,
    )


def decode(text: str) -> Remembered:
    """Read the JSON text of one file.

    Raises:
        ValueError: it is no such file, or an older agent's; the pod is then found anew.
    """
    try:
        value = json.loads(text)
        return Remembered(
            uid=str(value["uid"]),
            namespace=str(value["namespace"]),
            name=str(value["name"]),
            service_account=str(value["service_account"]),
            netns_path=str(value["netns_path"]),
            cookie=int(value["cookie"]),
            workload_id=int(value["workload_id"]),
            addresses=tuple(parse_ip(a) for a in value["addresses"]),
            resolvers=tuple(parse_ip(a) for a in value["resolvers"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a pod's file: {error!r}") from error


def _write(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader sees the old or the new whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.replace(beside, path)


class PodFiles:
    """The agent's files, one per pod uid, in RUN_DIR/pods; one writer."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / "pods"

    def save(self, pod: Remembered) -> None:
        """Write a pod's file.

        Raises:
            OSError: the directory cannot be written.
        """
        _write(self._directory / f"{pod.uid}.json", encode(pod))

    def remove(self, uid: str) -> None:
        """Remove a pod's file; an absent one is no error."""
        (self._directory / f"{uid}.json").unlink(missing_ok=True)

    def load(self) -> dict[str, Remembered]:
        """Read all files; an unreadable one is logged and skipped."""
        found: dict[str, Remembered] = {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                pod = decode(path.read_text())
            except (OSError, ValueError) as error:
                _log.warning("%s is skipped: %s", path, error)
                continue
            found[pod.uid] = pod
        return found


def enrollment_object(pod: Remembered, *, node: str, point_to_point: bool) -> Mapping[str, object]:
    """Build the Enrollment object of a captured pod (docs/architecture/contracts.md)."""
    return {
        "apiVersion": "ambit.io/v1alpha1",
        "kind": "Enrollment",
        "metadata": {
            "namespace": pod.namespace,
            "name": pod.name,
            "annotations": {REDIRECTION_ANNOTATION: "enabled"},
        },
        "podUid": pod.uid,
        "node": node,
        "addresses": [str(a) for a in pod.addresses],
        "pointToPoint": point_to_point,
    }


class Enrollments(Protocol):
    """What the controller is told of captured pods: files, or annotations (`daemonset.kube`)."""

    async def publish(self, pod: Remembered, *, point_to_point: bool) -> None:
        """Say that a pod is captured.

        Raises:
            OSError: it cannot be said now; try again.
        """
        ...

    async def withdraw(self, namespace: str, name: str, uid: str) -> None:
        """Take back what `publish` said of this pod; another pod of the name (a successor's) is left alone.

        Raises:
            OSError: it cannot be taken back now; try again.
        """
        ...

    def published(self) -> dict[str, tuple[str, str]]:
        """Return uid -> (namespace, name) of what is published for this node, as far as is known."""
        ...

    async def recall(self, uids: Collection[str]) -> Collection[str]:
        """Return those of an earlier agent's pods that may be published; all where it cannot be found out."""
        ...

    async def fetch(self) -> dict[str, tuple[str, str]]:
        """Return what is published for this node, asked anew.

        Raises:
            OSError: it cannot be found out.
        """
        ...

    def observe(self, snapshot: Snapshot) -> None:
        """Learn from the objects what is published."""
        ...


class EnrollmentFiles:
    """This node's Enrollment objects: STATUS_DIR/Enrollment/NAMESPACE/NAME.yaml; None: nobody reads them."""

    def __init__(self, status_dir: Path | None, node: str) -> None:
        self._directory = status_dir / "Enrollment" if status_dir is not None else None
        self._node = node

    async def publish(self, pod: Remembered, *, point_to_point: bool) -> None:
        """Say that a pod is captured.

        Raises:
            OSError: the directory cannot be written.
        """
        if self._directory is not None:
            value = enrollment_object(pod, node=self._node, point_to_point=point_to_point)
            _write(self._path(pod.namespace, pod.name), yaml.safe_dump(value, sort_keys=False))

    async def withdraw(self, namespace: str, name: str, uid: str) -> None:
        """Take back what `publish` said of this pod; another pod of the name (a successor's) is left alone.

        Raises:
            OSError: the directory cannot be written.
        """
        if self._directory is not None and self._uid(namespace, name) == uid:
            self._path(namespace, name).unlink(missing_ok=True)

    def published(self) -> dict[str, tuple[str, str]]:
        """Return uid -> (namespace, name) of what this node's agent has published."""
        found: dict[str, tuple[str, str]] = {}
        if self._directory is None:
            return found
        for path in sorted(self._directory.glob("*/*.yaml")):
            value = self._read(path)
            if value.get("node") == self._node:
                found[str(value.get("podUid"))] = (path.parent.name, path.stem)
        return found

    async def recall(self, uids: Collection[str]) -> Collection[str]:
        """Return those that are published."""
        return self.published().keys() & set(uids)

    async def fetch(self) -> dict[str, tuple[str, str]]:
        """Return what this node's agent has published."""
        return self.published()

    def observe(self, snapshot: Snapshot) -> None:
        """Learn nothing: the files are this agent's own."""

    def _path(self, namespace: str, name: str) -> Path:
        assert self._directory is not None
        return self._directory / namespace / f"{name}.yaml"

    def _uid(self, namespace: str, name: str) -> str:
        return str(self._read(self._path(namespace, name)).get("podUid"))

    def _read(self, path: Path) -> Mapping[str, object]:
        try:
            value = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError):
            return {}
        return value if isinstance(value, dict) else {}
