# SPDX-License-Identifier: Apache-2.0
"""What differs between wanted and present, and only that."""

from __future__ import annotations

from typing import Any

import pytest

from controller.kubernetes.plan import contains, merged, path_of, plan
from controller.translate.gateway import Status
from controller.translate.route_status import CONTROLLER
from mesh.config.objects import ObjectKey, RawObject, make_object

NOW_S = 1_700_000_000.0
NOW = "2023-11-14T22:13:20Z"
EARLIER = "2023-01-01T00:00:00Z"


def live(*objects: dict[str, Any]) -> dict[ObjectKey, RawObject]:
    made = [make_object(item) for item in objects]
    return {item.key: item for item in made}


def namespace(name: str = "shop", **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}}


def root(pem: str = "PEM", name: str = "shop", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio-ca-root-cert", "namespace": name, **metadata},
        "data": {"root-cert.pem": pem},
    }


def route(*parents: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "7"},
        "spec": {},
        "status": {"parents": list(parents)},
    }


def parent(name: str, controller: str = CONTROLLER, status: str = "True", **more: Any) -> dict[str, Any]:
    condition = {"type": "Accepted", "status": status, "reason": "x", "message": "", **more}
    return {"controllerName": controller, "parentRef": {"name": name}, "conditions": [condition]}


def test_an_absent_object_is_made_and_a_present_one_left() -> None:
    (write,) = plan([root()], [], live(namespace()), NOW_S)
    assert write.path == "/api/v1/namespaces/shop/configmaps/istio-ca-root-cert"
    assert (write.status, write.exists, write.body) == (False, False, root())
    added = root(resourceVersion="9", uid="u", labels={"theirs": "kept"})
    assert plan([root()], [], live(namespace(), added), NOW_S) == []
    (write,) = plan([root("NEW")], [], live(namespace(), added), NOW_S)
    assert write.exists


@pytest.mark.parametrize("present", [[], [namespace(deletionTimestamp=EARLIER)]])
def test_nothing_is_made_in_a_namespace_that_is_not_there_or_ends(present: list[dict[str, Any]]) -> None:
    assert plan([root()], [], live(*present), NOW_S) == []


def test_a_status_is_written_over_the_version_that_was_seen() -> None:
    there = live(route())
    (entry,) = there.values()
    status = Status(obj=entry, status={"parents": [parent("a")]})
    (write,) = plan([], [status], there, NOW_S)
    assert write.path == "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/web/status"
    assert write.body == {
        "metadata": {"resourceVersion": "7"},
        "status": {"parents": [parent("a", lastTransitionTime=NOW)]},
    }
    assert plan([], [status], live(route(parent("a", lastTransitionTime=EARLIER))), NOW_S) == []
    assert plan([], [status], {}, NOW_S) == []


def test_parents_of_others_are_kept_and_our_old_ones_go() -> None:
    others = parent("edge", "example.com/gateway", lastTransitionTime=EARLIER)
    before = {"parents": [parent("old"), others, parent("a", lastTransitionTime=EARLIER)]}
    status = merged({"parents": [parent("a"), parent("b")]}, before, [{"name": "a"}, {"name": "b"}], NOW_S)
    assert status["parents"] == [
        others,
        parent("a", lastTransitionTime=EARLIER),
        parent("b", lastTransitionTime=NOW),
    ]


def test_a_parent_that_istio_speaks_for_is_kept_and_one_that_nobody_has_goes() -> None:
    theirs = parent("edge", lastTransitionTime=EARLIER)
    before = {"parents": [theirs, parent("gone", lastTransitionTime=EARLIER)]}
    references = [{"name": "edge"}, {"name": "a"}]
    status = merged({"parents": [parent("a")]}, before, references, NOW_S)
    assert status["parents"] == [theirs, parent("a", lastTransitionTime=NOW)]
    left = {**route(theirs, parent("gone")), "spec": {"parentRefs": [{"name": "edge"}]}}
    (write,) = plan([], [], live(left), NOW_S)
    assert write.body["status"] == {"parents": [theirs]}
    assert plan([], [], live({**left, "status": {"parents": [theirs]}}), NOW_S) == []


def test_a_condition_has_a_new_time_when_its_status_changes() -> None:
    before = {"parents": [parent("a", lastTransitionTime=EARLIER)]}
    (made,) = merged({"parents": [parent("a", status="False")]}, before, [{"name": "a"}], NOW_S)["parents"]
    assert made["conditions"][0]["lastTransitionTime"] == NOW
    whole = {"conditions": [{"type": "Programmed", "status": "True", "reason": "x"}]}
    assert merged(whole, {}, None, NOW_S)["conditions"][0]["lastTransitionTime"] == NOW


@pytest.mark.parametrize(
    ("there", "wanted", "answer"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": None}, True),
        ({"a": [{"x": 1, "default": 2}]}, {"a": [{"x": 1}]}, True),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a": [{"x": 1}]}, False),
        ({"a": [{"x": 2}]}, {"a": [{"x": 1}]}, False),
        # The API server leaves out what is empty.
        ({}, {"a": []}, True),
        ({}, {"a": {}}, True),
        ({}, {"a": [1]}, False),
        ({"a": "text"}, {"a": {"b": 1}}, False),
        ({"a": "text"}, {"a": [1]}, False),
    ],
)
def test_what_was_added_by_others_does_not_count(there: Any, wanted: Any, answer: bool) -> None:
    assert contains(there, wanted) is answer


def test_paths_are_those_of_the_api() -> None:
    (found,) = live(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "wp"}}
    ).values()
    assert path_of(found) == "/apis/apps/v1/namespaces/shop/deployments/wp"
    (found,) = live(
        {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "w"}}
    ).values()
    assert path_of(found) == "/apis/gateway.networking.k8s.io/v1/gatewayclasses/w"
