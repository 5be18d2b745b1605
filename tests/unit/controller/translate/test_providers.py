# SPDX-License-Identifier: Apache-2.0
"""MeshConfig's extensionProviders: what is read, what is left out and why."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from controller.translate.mesh import Mesh, Options, translate
from mesh.config.objects import make_object
from mesh.model.provider import Authoriser, AuthoriserProtocol
from mesh.model.workload import NamespacedHostname
from mesh.xds.providers import decode_authoriser, encode_authoriser

SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "opa", "namespace": "shop"},
    "spec": {"clusterIP": "10.96.0.20", "ports": [{"port": 9000}]},
}
OPA = NamespacedHostname(namespace="shop", hostname="opa.shop.svc.cluster.local")


def mesh_of(config: str) -> Mesh:
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": config},
    }
    objects = [make_object(data) for data in (SERVICE, config_map)]
    return translate({obj.key: obj for obj in objects}, Options())


def providers(*entries: dict[str, Any]) -> Mesh:
    return mesh_of(yaml.safe_dump({"extensionProviders": list(entries)}))


def test_a_grpc_provider_with_its_defaults() -> None:
    service = {"service": "shop/opa.shop.svc.cluster.local", "port": 9000}
    mesh = providers({"name": "opa", "envoyExtAuthzGrpc": service})
    assert mesh.authorisers == {
        "opa": Authoriser(name="opa", service=OPA, port=9000, protocol=AuthoriserProtocol.GRPC)
    }
    assert mesh.problems == ()


def test_an_http_provider_in_full_survives_the_wire() -> None:
    mesh = providers(
        {
            "name": "login",
            "envoyExtAuthzHttp": {
                "service": "opa.shop.svc.cluster.local",
                "port": "9000",
                "timeout": "1.5s",
                "pathPrefix": "/check",
                "failOpen": True,
                "statusOnError": "503",
                "includeRequestHeadersInCheck": ["Cookie", "X-Ext-*"],
                "includeAdditionalHeadersInCheck": {"X-From": "mesh"},
                "headersToUpstreamOnAllow": ["X-User"],
                "headersToDownstreamOnDeny": ["X-Why"],
                "headersToDownstreamOnAllow": ["Set-Cookie"],
            },
        }
    )
    login = mesh.authorisers["login"]
    assert login == Authoriser(
        name="login",
        service=OPA,
        port=9000,
        protocol=AuthoriserProtocol.HTTP,
        timeout_s=1.5,
        fail_open=True,
        status_on_error=503,
        path_prefix="/check",
        request_headers=("cookie", "x-ext-*"),
        additional_headers=(("x-from", "mesh"),),
        upstream_headers=("x-user",),
        denied_headers=("x-why",),
        allowed_headers=("set-cookie",),
    )
    assert decode_authoriser(encode_authoriser(login)) == login


def test_other_providers_are_nobody_to_ask() -> None:
    assert providers({"name": "zipkin", "zipkin": {"service": "z", "port": 1}}).authorisers == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"service": "nobody.shop.svc.cluster.local"}, "nobody.shop.svc.cluster.local is not known"),
        ({"port": 0}, "port"),
        ({"statusOnError": "teapot"}, "'teapot' is no HTTP status"),
        ({"includeRequestBodyInCheck": {"maxRequestBytes": 1}}, "bodies are never sent"),
        ({"timeout": "soon"}, "timeout"),
    ],
)
def test_what_cannot_be_honoured_leaves_the_provider_out_by_name(change: dict[str, Any], words: str) -> None:
    good = {"service": "opa.shop.svc.cluster.local", "port": 9000}
    mesh = providers({"name": "opa", "envoyExtAuthzGrpc": good | change})
    assert mesh.authorisers == {}
    (problem,) = mesh.problems
    assert problem.severity == "error"
    assert words in str(problem)


@pytest.mark.parametrize("text", ["[1, 2]", "extensionProviders: {a: b}", "a: [b"])
def test_a_malformed_mesh_config_is_reported_and_gives_none(text: str) -> None:
    mesh = mesh_of(text)
    assert mesh.authorisers == {}
    assert mesh.problems


@pytest.mark.parametrize(
    "value",
    [
        b"\xff",
        b"",
        encode_authoriser(
            Authoriser(
                name="a",
                service=NamespacedHostname(namespace="", hostname=""),
                port=1,
                protocol=AuthoriserProtocol.GRPC,
            )
        ),
    ],
)
def test_bytes_that_are_no_provider_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="authoriser"):
        decode_authoriser(value)
