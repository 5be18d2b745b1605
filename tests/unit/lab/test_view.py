# SPDX-License-Identifier: Apache-2.0
"""What is missing of a lab, and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lab import store, view
from lab.errors import LabError
from lab.layout import Layout
from lab.manifests import dump, object_path
from lab.shell import write_file
from mesh.config.objects import make_object
from mesh.config.source import Snapshot


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(name="t", state=tmp_path)
    for directory in (found.objects, found.status, found.generated):
        directory.mkdir()
    write_file(tmp_path / "daemons.json", json.dumps([{"name": "agent@node1", "running": True, "last": ""}]))
    return found


def put(layout: Layout, data: dict[str, Any], where: Path | None = None) -> None:
    metadata = data["metadata"]
    path = object_path(where or layout.status, data["kind"], metadata.get("namespace", ""), metadata["name"])
    write_file(path, dump(data))


def pod(ready: bool = True, message: str = "", **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": labels},
        "spec": {"nodeName": "node1", "containers": [{"name": "c"}]},
        "status": {
            "phase": "Running" if ready else "Pending",
            "message": message,
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def namespace(mode: str) -> dict[str, Any]:
    labels = {view.MODE_LABEL: mode}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}


def missing(layout: Layout) -> list[str]:
    return [str(item) for item in view.missing(layout, store.snapshot(layout))]


def test_nothing_is_missing_of_a_lab_that_is_up(layout: Layout) -> None:
    put(layout, pod())
    assert missing(layout) == []


def test_a_pod_that_waits_says_why(layout: Layout) -> None:
    put(layout, pod(ready=False, message="ConfigMap x does not exist"))
    assert missing(layout) == ["pod shop/web: ConfigMap x does not exist"]


def test_a_ready_pod_outside_the_mesh_it_is_labelled_for_is_missing(layout: Layout) -> None:
    put(layout, namespace("ambient"), layout.objects)
    put(layout, pod())
    assert missing(layout) == ["pod shop/web: it is not in the mesh yet"]
    enrollment = {
        "apiVersion": "ambit.io/v1alpha1",
        "kind": "Enrollment",
        "metadata": {"name": "web", "namespace": "shop"},
        "podUid": "another",
    }
    put(layout, enrollment)
    assert missing(layout) == ["pod shop/web: it is not in the mesh yet"], "that was its predecessor"
    put(layout, enrollment | {"podUid": "u1"})
    assert missing(layout) == []


def test_the_pods_own_label_wins(layout: Layout) -> None:
    put(layout, namespace("ambient"), layout.objects)
    put(layout, pod(**{view.MODE_LABEL: "none"}))
    assert missing(layout) == []


def test_a_program_that_ended_is_missing(layout: Layout) -> None:
    rows = [{"name": "controller", "running": False, "last": "it ended with code 1"}]
    write_file(layout.state / "daemons.json", json.dumps(rows))
    assert missing(layout) == ["controller: it ended with code 1"]


def test_labels_are_set_and_removed_in_the_applied_object(layout: Layout) -> None:
    put(layout, namespace("ambient"), layout.objects)
    store.set_labels(layout, "Namespace", "default", "shop", ["a=b", f"{view.MODE_LABEL}-"])
    _, item = store.find(layout, "Namespace", "", "shop")
    assert item.labels == {"a": "b"}
    with pytest.raises(LabError, match="neither KEY=VALUE"):
        store.set_labels(layout, "Namespace", "default", "shop", ["word"])
    with pytest.raises(LabError, match="Pod shop/no does not exist"):
        store.set_labels(layout, "Pod", "shop", "no", ["a=b"])


@pytest.mark.parametrize("word", ["pod", "pods", "po", "Pod", "PODS"])
def test_kinds_as_people_write_them(word: str) -> None:
    assert store.kind_named(word, ()) == "Pod"
    assert store.kind_named("authorizationpolicies", ()) == "AuthorizationPolicy"


def test_an_unknown_kind_lists_the_known() -> None:
    with pytest.raises(LabError, match=r"kinds are .*Deployment"):
        store.kind_named("thing", ())


GATEWAY = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "wp", "namespace": "shop"},
    "spec": {"gatewayClassName": "istio-waypoint"},
}
ROUTE = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "HTTPRoute",
    "metadata": {"name": "r", "namespace": "shop"},
    "spec": {"parentRefs": [{"kind": "Service", "name": "web"}]},
}
POLICY = {
    "apiVersion": "security.istio.io/v1",
    "kind": "AuthorizationPolicy",
    "metadata": {"name": "p", "namespace": "shop"},
    "spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "action": "DENY"},
}


@pytest.mark.parametrize(
    ("data", "status", "row"),
    [
        (GATEWAY, {}, ("istio-waypoint", "-", "-")),
        (
            GATEWAY,
            {
                "addresses": [{"type": "Hostname", "value": "h"}],
                "conditions": [{"type": "Programmed", "status": "False", "reason": "AddressNotUsable"}],
            },
            ("istio-waypoint", "h", "False (AddressNotUsable)"),
        ),
        (ROUTE, {}, ("web", "-", "-")),
        (
            ROUTE,
            {
                "parents": [
                    {
                        "conditions": [
                            {"type": "Accepted", "status": "True"},
                            {"type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound"},
                        ]
                    }
                ]
            },
            ("web", "True", "False (BackendNotFound)"),
        ),
        (
            POLICY,
            {"conditions": [{"type": "WaypointAccepted", "status": "True"}]},
            ("DENY", "waypoint", "True"),
        ),
    ],
)
def test_rows_say_what_became_of_an_object(data: dict[str, Any], status: dict[str, Any], row: Any) -> None:
    item = make_object(data | {"status": status})
    headers, rows = view.columns(item.kind, [item], Snapshot(objects={}), wide=False)
    assert rows == [("shop", item.name, *row)]
    assert len(headers) == len(rows[0])


def test_a_table_is_aligned_and_has_no_blanks_at_its_ends() -> None:
    assert view.table(("A", "BB"), [("long", "x")]) == "A     BB\nlong  x"
