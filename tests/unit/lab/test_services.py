# SPDX-License-Identifier: Apache-2.0
"""ClusterIPs, EndpointSlices and what is made of them."""

from __future__ import annotations

from typing import Any

from lab import services
from lab.nft import Forward
from mesh.config.objects import RawObject, make_object


def service(name: str = "web", **spec: Any) -> RawObject:
    ports = [{"name": "http", "port": 80, "targetPort": "web"}]
    return make_object(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"app": "web"}, "ports": ports, **spec},
        }
    )


def pod(number: int, *, ready: bool = True, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"web-{number}",
            "namespace": "shop",
            "uid": f"u{number}",
            "labels": {"app": "web"},
            **metadata,
        },
        "spec": {"nodeName": "node1", "containers": [{"ports": [{"name": "web", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running",
            "podIPs": [{"ip": f"10.244.0.{number}"}, {"ip": f"fd00:10:244::{number:x}"}],
            "conditions": [{"type": "Ready", "status": str(ready)}],
        },
    }


def ips(data: dict[str, Any]) -> list[str]:
    return list(data["spec"]["clusterIPs"])


def test_services_get_addresses_of_both_families() -> None:
    one, other = services.allocate([service("a"), service("b")], {})
    assert ips(one) == ["10.96.0.20", "fd00:10:96::14"]
    assert ips(other) == ["10.96.0.21", "fd00:10:96::15"]
    assert one["spec"]["clusterIP"] == "10.96.0.20"
    assert one["spec"]["ipFamilies"] == ["IPv4", "IPv6"]


def test_a_service_keeps_its_addresses() -> None:
    first, _ = services.allocate([service("b"), service("c")], {})
    again = services.allocate([service("a"), service("b")], {("shop", "b"): ips(first)})
    assert [ips(data)[0] for data in again] == ["10.96.0.21", "10.96.0.20"]


def test_an_address_that_is_asked_for_is_given_and_not_twice() -> None:
    asked, other = services.allocate([service("a", clusterIP="10.96.0.20"), service("b")], {})
    assert ips(asked) == ["10.96.0.20"]
    assert ips(other)[0] == "10.96.0.21"


def test_single_stack_and_headless_services() -> None:
    single, headless = services.allocate(
        [service("a", ipFamilyPolicy="SingleStack", ipFamilies=["IPv6"]), service("b", clusterIP="None")], {}
    )
    assert ips(single) == ["fd00:10:96::14"]
    assert services.is_headless(headless)
    assert services.cluster_ips(headless) == ()
    assert not services.is_headless(service("c").data), "no clusterIP yet is not clusterIP: None"


def test_readiness_gates_endpoints() -> None:
    (data,) = services.allocate([service()], {})
    slices = services.endpoint_slices(data, [pod(2), pod(3, ready=False)])
    assert [s["addressType"] for s in slices] == ["IPv4", "IPv6"]
    ready = {e["addresses"][0]: e["conditions"]["ready"] for e in slices[0]["endpoints"]}
    assert ready == {"10.244.0.2": True, "10.244.0.3": False}
    forward, forward6 = services.forwards([data], slices)
    assert forward == Forward(vip="10.96.0.20", port=80, protocol="tcp", endpoints=(("10.244.0.2", 8080),))
    assert forward6.endpoints == (("fd00:10:244::2", 8080),)


def test_a_terminating_pod_serves_but_is_not_ready() -> None:
    (data,) = services.allocate([service()], {})
    slices = services.endpoint_slices(data, [pod(2, deletionTimestamp="2026-01-01T00:00:00Z")])
    assert slices[0]["endpoints"][0]["conditions"] == {"ready": False, "serving": True, "terminating": True}


def test_pods_of_other_namespaces_and_labels_and_ended_ones_are_no_endpoints() -> None:
    (data,) = services.allocate([service()], {})
    ended = pod(4)
    ended["status"]["phase"] = "Failed"
    others = [pod(2, namespace="other"), pod(3, labels={"app": "api"}), ended]
    assert services.endpoint_slices(data, others) == []


def test_names_of_services_and_of_headless_endpoints() -> None:
    plain, headless = services.allocate([service("web"), service("db", clusterIP="None")], {})
    named = pod(2)
    named["spec"]["hostname"] = "db-0"
    slices = services.endpoint_slices(headless, [named, pod(3, ready=False)])
    names = services.names([plain, headless], slices, "cluster.local")
    assert names["web.shop.svc.cluster.local"].addresses == ("10.96.0.20", "fd00:10:96::14")
    assert names["db.shop.svc.cluster.local"].addresses == ("10.244.0.2", "fd00:10:244::2")
    assert names["db-0.db.shop.svc.cluster.local"].addresses == ("10.244.0.2", "fd00:10:244::2")
    assert names["_http._tcp.web.shop.svc.cluster.local"].srv == ((80, "web.shop.svc.cluster.local"),)
