# SPDX-License-Identifier: Apache-2.0
"""What HTTPRoutes are told about themselves."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.mesh import Options, translate
from mesh.config.objects import make_object

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
"""
TO_WEB = {"group": "", "kind": "Service", "name": "web", "port": 80}


def parents_of(spec: Any) -> list[Any]:
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "r", "namespace": "shop", "generation": 4},
        "spec": spec,
    }
    objects = [make_object(data) for data in (yaml.safe_load(SERVICE), route)]
    found = translate({obj.key: obj for obj in objects}, Options())
    return [parent for status in found.statuses for parent in status.status["parents"]]


def conditions_of(spec: Any) -> dict[str, tuple[str, str]]:
    (parent,) = parents_of({"parentRefs": [TO_WEB]} | spec)
    assert {c["observedGeneration"] for c in parent["conditions"]} == {4}
    return {c["type"]: (c["status"], c["reason"]) for c in parent["conditions"]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}, {}),
        ({"parentRefs": [TO_WEB | {"name": "gone"}]}, {"Accepted": ("False", "NoMatchingParent")}),
        ({"parentRefs": [TO_WEB | {"port": 81}]}, {"Accepted": ("False", "NoMatchingParent")}),
        (
            {"rules": [{"backendRefs": [{"name": "gone", "port": 80}]}]},
            {"ResolvedRefs": ("False", "BackendNotFound")},
        ),
        (
            {"rules": [{"backendRefs": [{"name": "web", "kind": "Secret"}]}]},
            {"ResolvedRefs": ("False", "InvalidKind")},
        ),
        (
            {
                "rules": [
                    {
                        "backendRefs": [{"name": "web", "port": 80}],
                        "filters": [
                            {
                                "type": "RequestMirror",
                                "requestMirror": {"backendRef": {"name": "gone", "port": 80}},
                            }
                        ],
                    }
                ]
            },
            {"ResolvedRefs": ("False", "BackendNotFound")},
        ),
        ({"rules": [{"filters": [{"type": "What"}]}]}, {"PartiallyInvalid": ("True", "UnsupportedValue")}),
    ],
)
def test_conditions(spec: Any, expected: Any) -> None:
    good = {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}
    assert conditions_of(spec) == good | expected


def test_each_parent_has_its_entry_and_gateways_are_left_to_their_controllers() -> None:
    references = [TO_WEB, {"name": "ingress"}, TO_WEB | {"name": "gone"}]
    found = parents_of({"parentRefs": references})
    assert [parent["parentRef"] for parent in found] == [references[0], references[2]]
    assert {parent["controllerName"] for parent in found} == {"istio.io/gateway-controller"}


def test_a_route_of_gateways_only_has_no_status_of_ours() -> None:
    assert parents_of({"parentRefs": [{"name": "ingress"}]}) == []
