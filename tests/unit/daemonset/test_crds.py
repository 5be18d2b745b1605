# SPDX-License-Identifier: Apache-2.0
"""The copies of others' definitions: how they are picked, and that what the mesh needs is among them."""

from __future__ import annotations

import yaml

from daemonset.manifests.kubernetes.crds import vendor

TWO = """# a comment before
apiVersion: v1
kind: CustomResourceDefinition
spec:
  names:
    kind: One
---
# another comment
apiVersion: v1
kind: CustomResourceDefinition
spec:
  names:
    listKind: TwoList
    kind: Two
---
"""


def test_documents_are_parted_and_named_by_the_kind_they_define() -> None:
    found = vendor.documents(TWO)
    assert [vendor.kind_of(text) for text in found] == ["One", "Two"]
    assert all(text.startswith("apiVersion: v1\n") and text.endswith("\n") for text in found)


def defined(name: str) -> dict[str, str]:
    text = (vendor.HERE / name).read_text()
    return {d["spec"]["names"]["kind"]: d["spec"]["group"] for d in yaml.load_all(text, yaml.CSafeLoader)}


def test_the_files_have_what_they_are_to_have() -> None:
    assert set(defined("istio.yaml")) == set(vendor.ISTIO_KINDS)
    gateway = defined("gateway-api.yaml")
    assert {"Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute", "ReferenceGrant"} <= gateway.keys()
    assert set(gateway.values()) == {"gateway.networking.k8s.io"}


def test_the_files_say_where_they_are_from() -> None:
    for name, module in (("gateway-api.yaml", vendor.GATEWAY_API), ("istio.yaml", vendor.ISTIO_API)):
        head = (vendor.HERE / name).read_text()[:300]
        assert module in head
        assert head.startswith("# SPDX-License-Identifier: Apache-2.0\n")
