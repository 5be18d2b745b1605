# SPDX-License-Identifier: Apache-2.0
"""The agent on a cluster: this node's pods from the API, and the annotation that says a pod is captured.

The annotation is set through the pod's status, the least right that allows it, and under
the pod's uid, so that a successor of the name is never taken for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from daemonset.codes import Code
from daemonset.config import Settings
from daemonset.lock import StartError
from daemonset.store import REDIRECTION_ANNOTATION, Enrollments, Remembered
from mesh.config.kube_api import (
    MERGE_PATCH,
    AnswerError,
    ConfigError,
    KubeApi,
    KubeError,
    gather_pages,
)
from mesh.config.kube_store import Kind
from mesh.config.kubernetes import KubernetesSource
from mesh.config.source import Snapshot
from mesh.runtime.clock import Clock

_log = logging.getLogger("ambit.agent.kube")

ENABLED = "enabled"
PATCH_TIMEOUT_S = 5.0
RECALL_TIMEOUT_S = 5.0
PAGE = 500
_NOT_FOUND = 404
_ANOTHER_POD = (409, 422)
"""The uid is not the pod's: conflict, or an attempt to change it."""


def kinds_of(node: str) -> tuple[Kind, ...]:
    """Return what an agent follows: the pods of its node, and all namespaces for their labels."""
    return (
        Kind(group="", versions=("v1",), kind="Pod", plural="pods", field_selector=f"spec.nodeName={node}"),
        Kind(group="", versions=("v1",), kind="Namespace", plural="namespaces"),
    )


class PodAnnotations:
    """`Enrollments` as annotations of this node's pods."""

    def __init__(self, api: KubeApi, node: str) -> None:
        self._api = api
        self._node = node
        self._published: dict[str, tuple[str, str]] = {}

    async def publish(self, pod: Remembered, *, point_to_point: bool) -> None:
        """Say that a pod is captured (see `Enrollments`).

        Raises:
            OSError: the API server does not take it; says why.
        """
        del point_to_point  # Of pods on one node, which the API does not tell apart.
        try:
            await self._patch(pod.namespace, pod.name, pod.uid, ENABLED)
        except KubeError as error:
            raise OSError(f"pod {pod.namespace}/{pod.name} cannot be annotated: {_text(error)}") from error
        self._published[pod.uid] = (pod.namespace, pod.name)

    async def withdraw(self, namespace: str, name: str, uid: str) -> None:
        """Take back what `publish` said of this pod; one that is gone or another's is left alone.

        Raises:
            OSError: the API server does not take it; says why.
        """
        try:
            await self._patch(namespace, name, uid, None)
        except AnswerError as error:
            if error.status != _NOT_FOUND and error.status not in _ANOTHER_POD:
                raise OSError(f"pod {namespace}/{name} keeps its annotation: {_text(error)}") from error
        except KubeError as error:
            raise OSError(f"pod {namespace}/{name} keeps its annotation: {error}") from error
        self._published.pop(uid, None)

    async def _patch(self, namespace: str, name: str, uid: str, value: str | None) -> None:
        body: dict[str, Any] = {"metadata": {"uid": uid, "annotations": {REDIRECTION_ANNOTATION: value}}}
        await self._api.call(
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/{name}/status",
            body=body,
            content_type=MERGE_PATCH,
            timeout_s=PATCH_TIMEOUT_S,
        )

    def published(self) -> dict[str, tuple[str, str]]:
        """Return uid -> (namespace, name) of the annotated pods of this node, as last seen."""
        return dict(self._published)

    async def recall(self, uids: Collection[str]) -> Collection[str]:
        """Return those that are annotated; all when the API server does not say in time.

        An agent that starts must not wait for an API server, since ztunnel waits for the agent.
        """
        if not uids:
            return uids
        try:
            async with asyncio.timeout(RECALL_TIMEOUT_S):
                return set(uids) & (await self.fetch()).keys()
        except (OSError, TimeoutError) as error:
            _log.warning(
                "which pods are annotated is not known, all are taken to be: %s", error or "no answer"
            )
            return uids

    async def fetch(self) -> dict[str, tuple[str, str]]:
        """Ask the API server which pods of this node are annotated.

        Raises:
            OSError: it does not say.
        """
        query = {"fieldSelector": f"spec.nodeName={self._node}"}
        try:
            items, _ = await gather_pages(
                self._api, "/api/v1/pods", query, accept="application/json", page=PAGE
            )
        except KubeError as error:
            raise OSError(f"the pods of node {self._node} cannot be listed: {_text(error)}") from error
        self._published = _annotated([item["metadata"] for item in items])
        return self.published()

    def observe(self, snapshot: Snapshot) -> None:
        """Take over what the pods say."""
        self._published = _annotated([pod.metadata for pod in snapshot.of("Pod")])


def _annotated(found: Collection[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    return {
        str(metadata["uid"]): (str(metadata["namespace"]), str(metadata["name"]))
        for metadata in found
        if (metadata.get("annotations") or {}).get(REDIRECTION_ANNOTATION) == ENABLED
    }


def _text(error: KubeError) -> str:
    advice = ""
    if isinstance(error, AnswerError) and error.status in (401, 403):
        advice = "; the agent's account needs the verbs list and watch on pods, and patch on pods/status"
    return f"{error}{advice}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The API of the agent's cluster; whoever opened it closes it."""

    close: Callable[[], Awaitable[None]]
    source: KubernetesSource
    enrollments: Enrollments

    @classmethod
    async def open(cls, settings: Settings, clock: Clock) -> Cluster:
        """Find the API server; nothing is asked of it yet. Only here its client is imported.

        Raises:
            StartError: where it is cannot be told.
        """
        from mesh.config.kube_client import KubeClient

        try:
            client = await KubeClient.open(settings.kubeconfig, user_agent="ambit-agent")
        except ConfigError as error:
            reason = f"{error} in AMBIT_KUBECONFIG, or directories of objects in AMBIT_OBJECTS"
            raise StartError(Code.BAD_SETTING, reason, 65) from error
        return cls(
            close=client.close,
            source=KubernetesSource(client, kinds_of(settings.node), clock=clock),
            enrollments=PodAnnotations(client, settings.node),
        )
