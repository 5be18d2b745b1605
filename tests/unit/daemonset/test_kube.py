# SPDX-License-Identifier: Apache-2.0
"""The annotation of captured pods: whose it is, what an API server in the way means."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from daemonset.kube import PodAnnotations, kinds_of
from daemonset.store import REDIRECTION_ANNOTATION, Remembered
from mesh.config.kube_api import AnswerError
from mesh.config.kubernetes import KubernetesSource
from tests.support.fake_kube import FakeKube
from tests.support.virtual import LoopClock, run_virtual

PODS, NAMESPACES = "/api/v1/pods", "/api/v1/namespaces"
POD = Remembered(
    uid="u1",
    namespace="shop",
    name="web",
    service_account="web",
    netns_path="/run/netns/x",
    cookie=4105,
    workload_id=3,
    addresses=(ip_address("10.1.0.5"),),
)


def cluster(*, uid: str = "u1", **annotations: str) -> FakeKube:
    api = FakeKube(PODS, NAMESPACES)
    metadata = {"uid": uid, "annotations": annotations}
    api.put(PODS, "shop", "web", metadata=metadata, spec={"nodeName": "n1"}, status={"phase": "Running"})
    return api


def annotations(api: FakeKube) -> dict[str, str]:
    found: dict[str, str] = api.get(PODS, "shop", "web")["metadata"]["annotations"]
    return found


async def test_a_captured_pod_has_the_annotation_and_keeps_the_rest() -> None:
    api = cluster(theirs="kept")
    enrollments = PodAnnotations(api, "n1")
    await enrollments.publish(POD, point_to_point=True)
    assert annotations(api) == {"theirs": "kept", REDIRECTION_ANNOTATION: "enabled"}
    assert api.requests == [("PATCH", "/api/v1/namespaces/shop/pods/web/status")]
    assert enrollments.published() == {"u1": ("shop", "web")}
    await enrollments.withdraw("shop", "web", "u1")
    await enrollments.withdraw("shop", "web", "u1")
    assert annotations(api) == {"theirs": "kept"}
    assert enrollments.published() == {}


async def test_a_successor_of_the_name_is_neither_annotated_nor_withdrawn() -> None:
    api = cluster(uid="u2", **{REDIRECTION_ANNOTATION: "enabled"})
    enrollments = PodAnnotations(api, "n1")
    with pytest.raises(OSError, match="pod shop/web cannot be annotated: 409"):
        await enrollments.publish(POD, point_to_point=True)
    await enrollments.withdraw("shop", "web", "u1")
    assert annotations(api) == {REDIRECTION_ANNOTATION: "enabled"}


async def test_a_pod_that_is_gone_needs_no_withdrawal() -> None:
    api = FakeKube(PODS)
    enrollments = PodAnnotations(api, "n1")
    await enrollments.withdraw("shop", "web", "u1")
    with pytest.raises(OSError, match="cannot be annotated: 404"):
        await enrollments.publish(POD, point_to_point=True)


async def test_refusals_say_what_the_account_lacks() -> None:
    api = cluster()
    api.refuse[PODS] = AnswerError(403, "Forbidden", "pods is forbidden")
    enrollments = PodAnnotations(api, "n1")
    with pytest.raises(OSError, match=r"403 Forbidden: pods is forbidden; .* patch on pods/status"):
        await enrollments.withdraw("shop", "web", "u1")
    with pytest.raises(OSError, match="pods of node n1 cannot be listed"):
        await enrollments.fetch()


async def test_only_this_nodes_pods_are_fetched() -> None:
    api = cluster(**{REDIRECTION_ANNOTATION: "enabled"})
    marked = {"uid": "u9", "annotations": {REDIRECTION_ANNOTATION: "enabled"}}
    api.put(PODS, "shop", "other", metadata=marked, spec={"nodeName": "n2"})
    api.put(PODS, "shop", "plain", spec={"nodeName": "n1"})
    enrollments = PodAnnotations(api, "n1")
    assert await enrollments.fetch() == {"u1": ("shop", "web")}
    assert await enrollments.recall(["u1", "u5"]) == {"u1"}


async def test_an_agent_that_starts_without_an_api_server_takes_all_pods_for_annotated() -> None:
    api = cluster()
    api.down = True
    assert await PodAnnotations(api, "n1").recall(["u1", "u5"]) == ["u1", "u5"]


def test_the_agent_follows_its_nodes_pods_and_learns_their_annotations() -> None:
    async def test() -> None:
        api = cluster(**{REDIRECTION_ANNOTATION: "enabled"})
        api.put(PODS, "shop", "other", spec={"nodeName": "n2"})
        api.put(NAMESPACES, "", "shop", metadata={"labels": {"istio.io/dataplane-mode": "ambient"}})
        enrollments = PodAnnotations(api, "n1")
        watch = KubernetesSource(api, kinds_of("n1"), clock=LoopClock()).watch()
        snapshot = await anext(watch)
        enrollments.observe(snapshot)
        assert [pod.name for pod in snapshot.of("Pod")] == ["web"]
        assert [namespace.labels for namespace in snapshot.of("Namespace")] == [
            {"istio.io/dataplane-mode": "ambient"}
        ]
        assert enrollments.published() == {"u1": ("shop", "web")}
        await watch.aclose()  # type: ignore[attr-defined]

    run_virtual(test)
