# SPDX-License-Identifier: Apache-2.0
"""The whole translation: it never raises, and depends on nothing but its input."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.translate.mesh import Options, Problem, translate
from mesh.config.objects import ObjectKey, RawObject, make_object, parse_documents
from mesh.xds.decode import decode_address, decode_authorization
from mesh.xds.encode import encode_address, encode_authorization
from mesh.xds.http_policy import decode_http_authorization, encode_http_authorization
from mesh.xds.routes import decode_route_table, encode_route_table, route_table_name

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 70000)
    | st.floats(allow_nan=False)
    | st.sampled_from(
        ["", "*", "a", "10.0.0.1", "10.0.0.0/8", "fd00::1", "STRICT", "DENY", "DNS", "80", "::%x"]
    )
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def fields(draw: st.DrawFn, /, **known: st.SearchStrategy[Any]) -> dict[str, Any]:
    """A mapping of these fields: mostly as meant, at times missing or of any other type."""
    found = {}
    for name, value in known.items():
        fate = draw(st.integers(0, 40))
        if fate > 3:
            found[name] = draw(value)
        elif fate > 2:
            found[name] = draw(VALUES)
    return found


def some(of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(of, min_size=1, max_size=2)


LABELS = st.dictionaries(st.just("app"), st.sampled_from(["a", "b"]), max_size=1)
ADDRESS = st.sampled_from(["10.0.0.1", "10.0.0.1", "fd00::1", "10.0.0.2", "a.example"])
PORT = fields(
    number=st.just(80), port=st.just(80), targetPort=st.sampled_from([8080, "http"]), name=st.just("http")
)
ENDPOINT = fields(address=ADDRESS, labels=LABELS, ports=st.just({"http": 80}), weight=st.just(1))
SOURCE = fields(
    principals=some(st.just("a*")), ipBlocks=some(st.just("10.0.0.0/8")), requestPrincipals=st.just([])
)
OPERATION = fields(ports=some(st.just("80")), methods=some(st.just("GET")))
CONDITION = fields(key=st.sampled_from(["source.ip", "request.x"]), values=some(st.just("10.0.0.1")))
SPECS: dict[tuple[str, str], st.SearchStrategy[Any]] = {
    ("v1", "Pod"): fields(
        nodeName=st.just("n"), containers=some(fields(ports=some(PORT))), hostNetwork=st.booleans()
    ),
    ("v1", "Node"): VALUES,
    ("v1", "Namespace"): VALUES,
    ("v1", "Service"): fields(
        clusterIP=ADDRESS,
        clusterIPs=some(ADDRESS),
        ports=some(PORT),
        selector=LABELS,
        type=st.just("ClusterIP"),
    ),
    ("networking.istio.io/v1", "WorkloadEntry"): ENDPOINT,
    ("networking.istio.io/v1", "ServiceEntry"): fields(
        hosts=some(st.sampled_from(["a.example", "*.b.example"])),
        addresses=some(ADDRESS),
        ports=some(PORT),
        endpoints=some(ENDPOINT),
        workloadSelector=fields(labels=LABELS),
        resolution=st.sampled_from(["NONE", "STATIC", "DNS"]),
    ),
    ("security.istio.io/v1", "AuthorizationPolicy"): fields(
        action=st.sampled_from(["ALLOW", "DENY", "CUSTOM"]),
        selector=fields(matchLabels=LABELS),
        targetRefs=some(
            fields(
                group=st.sampled_from(["", "gateway.networking.k8s.io", "networking.istio.io"]),
                kind=st.sampled_from(["Service", "Gateway", "GatewayClass", "ServiceEntry"]),
                name=st.sampled_from(["a", "istio-waypoint"]),
            )
        ),
        rules=some(
            fields(
                **{"from": some(fields(source=SOURCE)), "to": some(fields(operation=OPERATION))},
                when=some(CONDITION),
            )
        ),
    ),
    ("security.istio.io/v1", "PeerAuthentication"): fields(
        selector=fields(matchLabels=LABELS),
        mtls=fields(mode=st.sampled_from(["STRICT", "DISABLE"])),
        portLevelMtls=st.dictionaries(
            st.sampled_from(["80", 81, "x", True]), fields(mode=st.just("STRICT")), max_size=2
        ),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): fields(
        parentRefs=some(
            fields(
                group=st.sampled_from(["", "networking.istio.io"]),
                kind=st.sampled_from(["Service", "ServiceEntry", "Gateway"]),
                name=st.sampled_from(["a", "b"]),
                port=st.just(80),
            )
        ),
        rules=some(
            fields(
                matches=some(fields(path=fields(type=st.just("Exact"), value=st.just("/a")))),
                backendRefs=some(fields(name=st.sampled_from(["a", "b"]), port=st.just(80))),
            )
        ),
    ),
    ("gateway.networking.k8s.io/v1", "GatewayClass"): fields(
        controllerName=st.just("istio.io/mesh-controller")
    ),
    ("gateway.networking.k8s.io/v1", "Gateway"): fields(
        gatewayClassName=st.sampled_from(["istio-waypoint", "a"]),
        addresses=st.just([]),
        infrastructure=fields(labels=LABELS, annotations=LABELS),
        listeners=some(
            fields(
                protocol=st.just("HBONE"),
                port=st.just(15008),
                allowedRoutes=fields(
                    namespaces=fields(
                        **{"from": st.sampled_from(["All", "Selector"])}, selector=fields(matchLabels=LABELS)
                    )
                ),
            )
        ),
    ),
}
STATUS = fields(
    podIP=ADDRESS,
    podIPs=some(fields(ip=ADDRESS)),
    conditions=some(fields(type=st.just("Ready"), status=st.just("True"))),
    addresses=some(fields(type=st.sampled_from(["IPAddress", "Hostname"]), value=ADDRESS)),
)
METADATA: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["a", "b"]),
        "namespace": st.sampled_from(["shop", "istio-system"]),
        "labels": st.dictionaries(
            st.sampled_from(
                [
                    "app",
                    "istio.io/use-waypoint",
                    "istio.io/waypoint-for",
                    "kubernetes.io/service-name",
                    "gateway.networking.k8s.io/gateway-name",
                ]
            ),
            st.sampled_from(["a", "b"]),
        ),
    },
    optional={
        "uid": VALUES,
        "ownerReferences": VALUES | some(fields(controller=st.just(True), kind=st.just("Job"), name=ADDRESS)),
        "creationTimestamp": VALUES,
        "deletionTimestamp": VALUES,
    },
)
SLICE = st.builds(
    lambda metadata, extra: (
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata} | extra
    ),
    METADATA,
    fields(
        endpoints=some(
            fields(addresses=some(ADDRESS), targetRef=fields(kind=st.just("Pod"), name=st.just("a")))
        ),
        ports=some(PORT),
    ),
)


@st.composite
def raw(draw: st.DrawFn) -> RawObject | None:
    if draw(st.integers(0, 9)) == 0:
        data = draw(SLICE)
    else:
        version, kind = draw(st.sampled_from(sorted(SPECS)))
        data = {"apiVersion": version, "kind": kind, "metadata": draw(METADATA)}
        data |= {"spec": draw(SPECS[version, kind]), "status": draw(STATUS)}
    try:
        return make_object(data)
    except ValueError:
        return None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(raw(), min_size=2, max_size=8))
def test_nothing_that_objects_hold_raises(objects: list[RawObject | None]) -> None:
    found = {obj.key: obj for obj in objects if obj is not None}
    mesh = translate(found, Options())
    assert translate(dict(reversed(found.items())), Options()) == mesh
    for uid, workload in mesh.workloads.items():
        assert workload.uid == uid
        assert set(workload.services) <= set(mesh.services)
        assert set(workload.authorization_policies) <= set(mesh.policies)
        assert decode_address(encode_address(workload)) == workload
    for service in mesh.services.values():
        assert decode_address(encode_address(service)) == service
    for policy in mesh.policies.values():
        assert all(clause for rule in policy.rules for clause in rule)
        assert decode_authorization(encode_authorization(policy)) == policy
    for http_policy in mesh.http_policies.values():
        assert http_policy.services or http_policy.waypoints
        assert decode_http_authorization(encode_http_authorization(http_policy)) == http_policy
    for name, table in mesh.routes.items():
        assert route_table_name(table) == name
        assert decode_route_table(encode_route_table(table)) == table
    for data in mesh.derived:
        assert make_object(data).name == data["metadata"]["name"]


def mesh_problems(text: str) -> tuple[Problem, ...]:
    objects, _ = parse_documents(text, "t.yaml")
    return translate({obj.key: obj for obj in objects}, Options()).problems


def test_unknown_kind_is_reported_with_its_line() -> None:
    (found,) = mesh_problems(
        "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: s, namespace: shop}\n"
    )
    assert found.key == ObjectKey("networking.istio.io", "Sidecar", "shop", "s")
    assert (found.file, found.line, found.severity) == ("t.yaml", 2, "warning")


@pytest.mark.parametrize(
    ("version", "kind"), [("apps/v1", "Deployment"), ("v1", "ConfigMap"), ("batch/v1", "Job")]
)
def test_kinds_that_say_nothing_to_the_mesh(version: str, kind: str) -> None:
    assert not mesh_problems(f"{{apiVersion: {version}, kind: {kind}, metadata: {{name: a}}}}")


def test_nothing_is_an_empty_mesh() -> None:
    mesh = translate({}, Options())
    assert (mesh.workloads, mesh.services, mesh.policies, mesh.problems) == ({}, {}, {}, ())


def test_options_name_the_cluster() -> None:
    objects, _ = parse_documents(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIP: 10.0.0.1}}\n"
        "---\n{apiVersion: v1, kind: Service, metadata: {name: s}, spec: {clusterIP: 10.96.0.1}}\n",
        "t.yaml",
    )
    options = Options(trust_domain="td", cluster_id="c1", network="n1", cluster_domain="corp")
    mesh = translate({obj.key: obj for obj in objects}, options)
    workload = mesh.workloads["c1//Pod/default/a"]
    assert (workload.trust_domain, workload.cluster_id, workload.network) == ("td", "c1", "n1")
    (service,) = mesh.services.values()
    assert service.hostname == "s.default.svc.corp"
    assert service.addresses[0].network == "n1"
