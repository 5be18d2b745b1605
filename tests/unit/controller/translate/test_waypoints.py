# SPDX-License-Identifier: Apache-2.0
"""Waypoints: which pods are one, when a waypoint is used, what runs it, what its Gateway says."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.mesh import Mesh, Options, translate
from controller.translate.types import WaypointTemplate
from mesh.config.objects import make_object
from mesh.model.workload import GatewayAddress, NamespacedHostname, TunnelProtocol

GATEWAY = """
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {}}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
"""
POD = """
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, uid: u1, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {nodeName: n1, serviceAccountName: wp}
status: {podIP: 10.244.0.9, conditions: [{type: Ready, status: 'True'}]}
"""
OWN = """
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {clusterIP: 10.96.0.21, ports: [{port: 15008}]}
"""
NAMESPACE = """
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: wp}}
"""
HOST = "wp.shop.svc.cluster.local"
AT = GatewayAddress(destination=NamespacedHostname(namespace="shop", hostname=HOST), hbone_mtls_port=15008)
WEB = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")


def mesh_of(*texts: str, options: Options | None = None) -> Mesh:
    objects = [make_object(data) for text in texts for data in yaml.safe_load_all(text)]
    return translate({obj.key: obj for obj in objects}, options or Options())


def changed(text: str, **parts: Any) -> str:
    """The object with parts of it replaced; names of parts are joined by two underscores."""
    data = yaml.safe_load(text)
    for name, value in parts.items():
        *steps, last = name.split("__")
        inner = data
        for step in steps:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return yaml.safe_dump(data)


def status_of(*texts: str) -> Any:
    (status,) = (s.status for s in mesh_of(*texts).statuses if s.obj.kind == "Gateway")
    return status


def programmed(*texts: str) -> tuple[str, str, list[Any]]:
    status = status_of(*texts)
    (condition,) = (c for c in status["conditions"] if c["type"] == "Programmed")
    return condition["status"], condition["reason"], status["addresses"]


# --- pods


def test_a_waypoint_pod_speaks_hbone_and_may_read_the_configuration() -> None:
    found = mesh_of(GATEWAY, POD)
    (workload,) = found.workloads.values()
    assert workload.tunnel_protocol is TunnelProtocol.HBONE
    assert found.waypoint_pods == {("shop", "wp-1", "u1")}


@pytest.mark.parametrize(
    "gateway",
    [
        "",
        changed(GATEWAY, metadata__name="other"),
        changed(GATEWAY, metadata__namespace="other"),
        changed(GATEWAY, spec__gatewayClassName="nginx"),
        changed(GATEWAY, spec__gatewayClassName=7),
    ],
)
def test_the_label_alone_makes_no_waypoint(gateway: str) -> None:
    found = mesh_of(*([gateway] if gateway else []), POD)
    (workload,) = found.workloads.values()
    assert workload.tunnel_protocol is TunnelProtocol.NONE
    assert found.waypoint_pods == frozenset()


def test_a_class_of_the_mesh_controller_is_one_too() -> None:
    own = """
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: mine, labels: {istio.io/waypoint-for: all}}
spec: {controllerName: istio.io/mesh-controller}
"""
    gateway = changed(GATEWAY, spec__gatewayClassName="mine")
    found = mesh_of(own, gateway, POD)
    assert len(found.waypoint_pods) == 1
    assert {d["metadata"]["labels"]["istio.io/waypoint-for"] for d in found.derived} == {"all"}


# --- use


def test_a_ready_waypoint_takes_the_namespaces_services() -> None:
    found = mesh_of(GATEWAY, POD, OWN, SERVICE, NAMESPACE)
    assert found.services[WEB].waypoint == AT
    assert found.problems == ()


def test_before_its_first_ready_pod_connections_go_past_it() -> None:
    unready = changed(POD, status__conditions=[])
    found = mesh_of(GATEWAY, unready, OWN, SERVICE, NAMESPACE)
    assert found.services[WEB].waypoint is None
    assert ["WaypointIsNotReady" in p.reason for p in found.problems] == [True]


def test_once_used_it_stays_when_all_its_pods_are_gone() -> None:
    had = changed(GATEWAY, status={"addresses": [{"type": "Hostname", "value": HOST}]})
    found = mesh_of(had, SERVICE, NAMESPACE)
    assert found.services[WEB].waypoint == AT
    assert programmed(had) == ("False", "AddressNotUsable", [{"type": "Hostname", "value": HOST}])


def test_a_gateways_own_service_and_pods_have_no_waypoint() -> None:
    for_all = changed(GATEWAY, metadata__labels={"istio.io/waypoint-for": "all"})
    found = mesh_of(for_all, POD, OWN, NAMESPACE)
    assert [s.waypoint for s in found.services.values()] == [None]
    assert [w.waypoint for w in found.workloads.values()] == [None]


@pytest.mark.parametrize(
    ("serves", "own", "used", "words"),
    [
        ("service", True, True, ""),
        ("all", True, True, ""),
        ("workload", True, False, "UnsupportedTrafficType"),
        ("none", True, False, "UnsupportedTrafficType"),
        ("workload", False, False, ""),
    ],
)
def test_type_of_traffic(serves: str, own: bool, used: bool, words: str) -> None:
    gateway = changed(GATEWAY, metadata__labels={"istio.io/waypoint-for": serves})
    labelled = changed(SERVICE, metadata__labels={"istio.io/use-waypoint": "wp"})
    found = mesh_of(gateway, POD, OWN, *([labelled] if own else [SERVICE, NAMESPACE]))
    assert (found.services[WEB].waypoint is not None) is used
    assert [p.reason for p in found.problems if words not in p.reason] == []
    assert len(found.problems) == bool(words)


HAD = changed(GATEWAY, status={"addresses": [{"type": "Hostname", "value": HOST}]})


def weighted(*, weight: str | None, canary: str = "next", more: str) -> tuple[list[int], list[str]]:
    labels = {"istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary": canary}
    annotations = {} if weight is None else {"istio.io/use-waypoint-canary-weight": weight}
    service = changed(SERVICE, metadata__labels=labels, metadata__annotations=annotations)
    found = mesh_of(HAD, more, POD, OWN, service)
    return [w.weight for w in found.services[WEB].weighted_waypoints], [p.reason for p in found.problems]


@pytest.mark.parametrize(
    ("weight", "weights"),
    [("30", [70, 30]), ("100", [0, 100]), ("1", [99, 1]), ("0", []), (None, [])],
)
def test_a_canary_takes_its_weight(weight: str | None, weights: list[int]) -> None:
    ready = changed(
        POD,
        metadata__name="next-1",
        metadata__uid="u2",
        metadata__labels={"gateway.networking.k8s.io/gateway-name": "next"},
    )
    own = changed(
        OWN, metadata__name="next", metadata__labels={"gateway.networking.k8s.io/gateway-name": "next"}
    )
    gateway = changed(GATEWAY, metadata__name="next")
    more = "\n---\n".join((gateway, ready, own))
    assert weighted(weight=weight, more=more) == (weights, [])


@pytest.mark.parametrize(
    ("weight", "canary", "words"),
    [
        ("101", "next", "CanaryInvalidWeight"),
        ("-1", "next", "CanaryInvalidWeight"),
        ("x", "next", "CanaryInvalidWeight"),
        ("10", "wp", "CanarySameAsPrimary"),
        ("10", "gone", "does not exist"),
        ("10", "next", "WaypointIsNotReady"),
    ],
)
def test_a_canary_that_cannot_be_takes_nothing_and_is_reported(weight: str, canary: str, words: str) -> None:
    weights, reasons = weighted(weight=weight, canary=canary, more=changed(GATEWAY, metadata__name="next"))
    assert weights == []
    assert [words in reason for reason in reasons] == [True]


def test_a_canary_that_is_lost_takes_nothing() -> None:
    status = {"addresses": [{"type": "Hostname", "value": "next.shop.svc.cluster.local"}]}
    weights, reasons = weighted(weight="10", more=changed(GATEWAY, metadata__name="next", status=status))
    assert weights == []
    assert ["WaypointIsNotReady" in reason for reason in reasons] == [True]


def test_a_namespaces_canary_has_its_weight_beside_it() -> None:
    namespace = changed(
        NAMESPACE,
        metadata__labels={"istio.io/use-waypoint": "wp", "istio.io/use-waypoint-canary": "wp"},
        metadata__annotations={"istio.io/use-waypoint-canary-weight": "40"},
    )
    found = mesh_of(HAD, POD, OWN, SERVICE, namespace)
    assert ["CanarySameAsPrimary" in p.reason for p in found.problems] == [True]


# --- status


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], ("False", "AddressNotAssigned", [])),
        ([changed(POD, status__conditions=[])], ("False", "AddressNotAssigned", [])),
        ([changed(POD, metadata__namespace="other")], ("False", "AddressNotAssigned", [])),
        ([changed(POD, metadata__deletionTimestamp="now")], ("False", "AddressNotAssigned", [])),
    ],
)
def test_programmed_waits_for_a_ready_pod(more: list[str], expected: Any) -> None:
    assert programmed(GATEWAY, *more) == expected


def test_programmed_when_a_pod_is_ready_behind_its_service() -> None:
    assert programmed(GATEWAY, POD, OWN) == ("True", "Programmed", [{"type": "Hostname", "value": HOST}])


@pytest.mark.parametrize(
    "listeners",
    [
        [],
        [{"name": "web", "port": 80, "protocol": "HTTP"}],
        [{"name": "m", "protocol": "HBONE", "port": 1}],
        5,
    ],
)
def test_a_gateway_without_hbone_listener_is_refused(listeners: Any) -> None:
    gateway = changed(GATEWAY, spec__listeners=listeners)
    conditions = {c["type"]: c for c in status_of(gateway, POD)["conditions"]}
    assert (conditions["Accepted"]["status"], conditions["Accepted"]["reason"]) == (
        "False",
        "ListenersNotValid",
    )
    found = mesh_of(gateway)
    assert found.derived == ()
    assert [p.severity for p in found.problems] == ["error"]


def test_a_listener_that_is_not_hbone_is_refused_alone() -> None:
    listeners = [
        {"name": "mesh", "port": 15008, "protocol": "HBONE"},
        {"name": "web", "port": 80, "protocol": "HTTP"},
    ]
    status = status_of(changed(GATEWAY, spec__listeners=listeners, metadata__generation=3))
    accepted = [listener["conditions"][0]["status"] for listener in status["listeners"]]
    assert accepted == ["True", "False"]
    assert {c["observedGeneration"] for c in status["conditions"]} == {3}


@pytest.mark.parametrize(
    "gateway",
    [
        changed(GATEWAY, metadata__labels={"istio.io/rev": "foo"}),
        changed(GATEWAY, spec__addresses=[{"type": "Hostname", "value": "mine.shop.svc.cluster.local"}]),
        changed(GATEWAY, spec__gatewayClassName="nginx"),
    ],
)
def test_a_gateway_that_others_run_is_left_alone(gateway: str) -> None:
    found = mesh_of(gateway)
    assert (found.derived, found.statuses) == ((), ())


# --- objects


def derived(*texts: str, **options: Any) -> dict[str, Any]:
    return {data["kind"]: data for data in mesh_of(*texts, options=Options(**options)).derived}


def test_what_runs_a_waypoint() -> None:
    found = derived(GATEWAY)
    assert set(found) == {"ServiceAccount", "Service", "Deployment"}
    for data in found.values():
        assert (data["metadata"]["name"], data["metadata"]["namespace"]) == ("wp", "shop")
        assert data["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == "wp"
        assert data["metadata"]["labels"]["istio.io/waypoint-for"] == "service"
        assert make_object(data).key.name == "wp"
    ports = {port["name"]: port["port"] for port in found["Service"]["spec"]["ports"]}
    assert ports["mesh"] == 15008
    template = found["Deployment"]["spec"]["template"]
    assert found["Service"]["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    assert (
        found["Deployment"]["spec"]["selector"]["matchLabels"].items()
        <= template["metadata"]["labels"].items()
    )
    assert template["metadata"]["labels"]["istio.io/dataplane-mode"] == "none"
    assert template["spec"]["serviceAccountName"] == "wp"
    (container,) = template["spec"]["containers"]
    assert container["command"] == ["python", "-m", "waypoint"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert env["GATEWAY_NAME"] == "wp"
    assert env["TRUST_DOMAIN"] == "cluster.local"
    (token,) = (v["projected"]["sources"] for v in template["spec"]["volumes"] if "projected" in v)
    assert token[0]["serviceAccountToken"] == {
        "audience": "istio-ca",
        "expirationSeconds": 43200,
        "path": env["AUTH_TOKEN"].rpartition("/")[2],
    }
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    for name in ("XDS_ROOT_CA", "CA_ROOT_CA", "AUTH_TOKEN"):
        assert env[name].rpartition("/")[0] in mounted, name


def test_the_pod_is_admitted_at_pod_security_level_restricted() -> None:
    spec = derived(GATEWAY)["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(v.keys() - {"name"})) for v in spec["volumes"]} <= {"configMap", "projected"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()


def test_the_operators_template_is_used() -> None:
    template = WaypointTemplate(image="r/a:1", command=("w",), controller="https://c:1")
    (container,) = derived(GATEWAY, waypoint=template)["Deployment"]["spec"]["template"]["spec"]["containers"]
    env = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert (container["image"], container["command"], env["XDS_ADDRESS"]) == ("r/a:1", ["w"], "https://c:1")


def test_the_image_is_the_controllers_own_unless_one_is_named() -> None:
    own = changed(
        POD, metadata__name="c-1", metadata__labels={}, spec__containers=[{"name": "c", "image": "r/a:2"}]
    )
    for template, image in (
        (WaypointTemplate(image_of=("shop", "c-1")), "r/a:2"),
        (WaypointTemplate(image_of=("shop", "c-1"), image="r/b:3"), "r/b:3"),
        (WaypointTemplate(image_of=("shop", "gone")), "ambit"),
        (WaypointTemplate(), "ambit"),
    ):
        found = derived(GATEWAY, own, waypoint=template)
        (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
        assert container["image"] == image


@pytest.mark.parametrize(
    ("text", "replicas", "problems"),
    [("3", 3, 0), ("0", 0, 0), ("1000", 1000, 0), ("1001", None, 1), ("-1", None, 1)],
)
def test_replicas_are_those_of_the_annotation(text: str, replicas: int | None, problems: int) -> None:
    found = mesh_of(changed(GATEWAY, metadata__annotations={"ambit.io/replicas": text}))
    (deployment,) = (d for d in found.derived if d["kind"] == "Deployment")
    assert deployment["spec"].get("replicas") == replicas
    assert len(found.problems) == problems


def test_infrastructure_labels_and_annotations_are_copied_but_not_ours_replaced() -> None:
    infrastructure = {
        "labels": {"team": "a", "gateway.networking.k8s.io/gateway-name": "x"},
        "annotations": {"note": "b"},
        "parametersRef": {"group": "", "kind": "ConfigMap", "name": "c"},
    }
    found = mesh_of(changed(GATEWAY, spec__infrastructure=infrastructure))
    for data in found.derived:
        assert data["metadata"]["labels"]["team"] == "a"
        assert data["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == "wp"
        assert data["metadata"]["annotations"]["note"] == "b"
    assert ["parametersRef is not honoured" in p.reason for p in found.problems] == [True]


def test_a_gateway_with_a_uid_owns_its_objects() -> None:
    for data in derived(changed(GATEWAY, metadata__uid="g1")).values():
        assert [owner["uid"] for owner in data["metadata"]["ownerReferences"]] == ["g1"]
    for data in derived(GATEWAY).values():
        assert "ownerReferences" not in data["metadata"]


def test_an_object_of_another_is_not_taken_over() -> None:
    found = mesh_of(GATEWAY, changed(SERVICE, metadata__name="wp"))
    assert [data["kind"] for data in found.derived] == ["ServiceAccount", "Deployment"]
    assert ["is not of this Gateway" in p.reason for p in found.problems] == [True]


def test_an_unknown_type_of_traffic_is_reported() -> None:
    found = mesh_of(changed(GATEWAY, metadata__labels={"istio.io/waypoint-for": "everything"}))
    assert ["is none of service, workload" in p.reason for p in found.problems] == [True]
