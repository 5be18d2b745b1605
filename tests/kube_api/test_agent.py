# SPDX-License-Identifier: Apache-2.0
"""The agent's source and annotations on a real API server, on its own loop, with the manifests' rights."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
import uvloop

from daemonset.kube import PodAnnotations, kinds_of
from daemonset.pods import Enroll, decide, parse_pod
from daemonset.store import REDIRECTION_ANNOTATION, Remembered
from mesh.config.kube_client import KubeClient
from mesh.config.kubernetes import KubernetesSource
from mesh.config.source import Snapshot
from tests.kube_api.control_plane import ControlPlane
from tests.support.eventually import eventually_async


@contextmanager
def pods_of(plane: ControlPlane, *names: tuple[str, str]) -> Iterator[dict[str, str]]:
    """Create a labelled namespace with pods (name, node) and yield their uids."""
    labels = {"istio.io/dataplane-mode": "ambient"}
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "agent", "labels": labels}})
    yield {name: plane.pod("agent", name, node=node) for name, node in names}
    plane.kubectl("-n", "agent", "delete", "pods", "--all", "--force")


@pytest.fixture
def kubeconfig(control_plane: ControlPlane) -> Iterator[Path]:
    """Return the configuration of an agent on node n1: its token is bound to its pod."""
    plane = control_plane
    plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}})
    uid = plane.pod("istio-system", "ambit-node-x", account="ztunnel")
    token = plane.token("istio-system", "ztunnel", pod="ambit-node-x", uid=uid)
    yield plane.kubeconfig_of(token, "agent")
    plane.kubectl("-n", "istio-system", "delete", "pod", "ambit-node-x", "--force")


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[KubeClient]:
    client = await KubeClient.open(kubeconfig, user_agent="test")
    try:
        yield client
    finally:
        await client.close()


def following(client: KubeClient) -> AsyncGenerator[Snapshot, None]:
    watch = KubernetesSource(client, kinds_of("n1")).watch()
    assert isinstance(watch, AsyncGenerator)
    return watch


def remembered(uid: str, name: str) -> Remembered:
    return Remembered(
        uid=uid,
        namespace="agent",
        name=name,
        service_account="default",
        netns_path="",
        cookie=1,
        workload_id=1,
        addresses=(ip_address("10.244.1.7"),),
    )


def plane_removes(plane: ControlPlane, name: str) -> None:
    """Take an annotation away as administrator."""
    plane.kubectl("-n", "agent", "annotate", "pod", name, f"{REDIRECTION_ANNOTATION}-")


def annotation(plane: ControlPlane, name: str) -> str | None:
    found = plane.get("pod", "agent", name)["metadata"].get("annotations", {}).get(REDIRECTION_ANNOTATION)
    return found if found is None else str(found)


def test_the_agent_sees_its_nodes_pods_with_what_it_decides_by(
    control_plane: ControlPlane, kubeconfig: Path
) -> None:
    async def test(uids: dict[str, str]) -> None:
        async with connected(kubeconfig) as client, aclosing(following(client)) as watch:
            snapshot = await anext(watch)
        labels = {item.name: item.labels for item in snapshot.of("Namespace")}
        found = [parse_pod(item.data) for item in snapshot.of("Pod") if item.namespace == "agent"]
        assert [(pod.name, pod.uid) for pod in found] == [("here", uids["here"])]
        assert found[0].addresses == (ip_address("10.244.1.7"),)
        assert isinstance(decide(found[0], labels["agent"], node="n1"), Enroll)

    with pods_of(control_plane, ("here", "n1"), ("there", "n2")) as uids:
        uvloop.run(test(uids))


def test_captured_pods_are_annotated_under_their_uid_and_of_the_own_node_only(
    control_plane: ControlPlane, kubeconfig: Path
) -> None:
    plane = control_plane

    async def test(uids: dict[str, str]) -> None:
        async with connected(kubeconfig) as client:
            await _captured(client, uids)

    async def _captured(client: KubeClient, uids: dict[str, str]) -> None:
        enrollments = PodAnnotations(client, "n1")

        async def refused() -> bool:
            try:
                await enrollments.publish(remembered(uids["there"], "there"), point_to_point=True)
            except OSError as error:
                return "own node only" in str(error)
            plane_removes(plane, "there")
            return False

        # A policy is in force some moments after it was made.
        await eventually_async(refused, "a refusal for the pod of another node")
        await enrollments.publish(remembered(uids["here"], "here"), point_to_point=True)
        assert annotation(plane, "here") == "enabled"
        assert await enrollments.fetch() == {uids["here"]: ("agent", "here")}
        # A successor of the name, and a pod of another node.
        await enrollments.withdraw("agent", "here", "00000000-0000-0000-0000-000000000000")
        assert annotation(plane, "here") == "enabled"
        with pytest.raises(OSError, match="here cannot be annotated: 4"):
            await enrollments.publish(
                remembered("00000000-0000-0000-0000-000000000000", "here"), point_to_point=True
            )
        with pytest.raises(OSError, match=r"there cannot be annotated: 403.*own node only"):
            await enrollments.publish(remembered(uids["there"], "there"), point_to_point=True)
        assert annotation(plane, "there") is None
        await enrollments.withdraw("agent", "here", uids["here"])
        assert annotation(plane, "here") is None
        assert plane.get("pod", "agent", "here")["status"]["podIP"] == "10.244.1.7"
        await enrollments.withdraw("agent", "gone", uids["here"])

    with pods_of(plane, ("here", "n1"), ("there", "n2")) as uids:
        uvloop.run(test(uids))
