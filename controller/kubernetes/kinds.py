# SPDX-License-Identifier: Apache-2.0
"""Which kinds the controller follows; RBAC rules of the same extent: docs/kubernetes.md."""

from __future__ import annotations

from mesh.config.kube_store import Kind

ROOT_CONFIG_MAP = "istio-ca-root-cert"
MANAGED_LABEL = "gateway.istio.io/managed"
_GATEWAY_API = "gateway.networking.k8s.io"
_ISTIO_NETWORKING, _ISTIO_SECURITY = "networking.istio.io", "security.istio.io"


def _core(kind: str, plural: str) -> Kind:
    return Kind(group="", versions=("v1",), kind=kind, plural=plural)


def _custom(group: str, versions: tuple[str, ...], kind: str, plural: str) -> Kind:
    return Kind(group=group, versions=versions, kind=kind, plural=plural, custom=True)


KINDS = (
    _core("Namespace", "namespaces"),
    _core("Node", "nodes"),
    _core("Pod", "pods"),
    _core("Service", "services"),
    Kind(group="discovery.k8s.io", versions=("v1",), kind="EndpointSlice", plural="endpointslices"),
    _custom(_ISTIO_NETWORKING, ("v1", "v1beta1"), "ServiceEntry", "serviceentries"),
    _custom(_ISTIO_NETWORKING, ("v1", "v1beta1"), "WorkloadEntry", "workloadentries"),
    _custom(_ISTIO_NETWORKING, ("v1", "v1beta1"), "DestinationRule", "destinationrules"),
    _custom(_ISTIO_SECURITY, ("v1", "v1beta1"), "AuthorizationPolicy", "authorizationpolicies"),
    _custom(_ISTIO_SECURITY, ("v1", "v1beta1"), "PeerAuthentication", "peerauthentications"),
    _custom(_ISTIO_SECURITY, ("v1", "v1beta1"), "RequestAuthentication", "requestauthentications"),
    _custom(_GATEWAY_API, ("v1", "v1beta1"), "Gateway", "gateways"),
    _custom(_GATEWAY_API, ("v1", "v1beta1"), "GatewayClass", "gatewayclasses"),
    _custom(_GATEWAY_API, ("v1", "v1beta1"), "HTTPRoute", "httproutes"),
    _custom(_GATEWAY_API, ("v1",), "GRPCRoute", "grpcroutes"),
    _custom(_GATEWAY_API, ("v1", "v1beta1"), "ReferenceGrant", "referencegrants"),
    # Our own writings, so that what others undo is done again.
    Kind(
        group="",
        versions=("v1",),
        kind="ConfigMap",
        plural="configmaps",
        field_selector=f"metadata.name={ROOT_CONFIG_MAP}",
    ),
    Kind(
        group="",
        versions=("v1",),
        kind="ServiceAccount",
        plural="serviceaccounts",
        label_selector=MANAGED_LABEL,
    ),
    Kind(
        group="apps", versions=("v1",), kind="Deployment", plural="deployments", label_selector=MANAGED_LABEL
    ),
)

PLURALS = {(kind.group, kind.kind): kind.plural for kind in KINDS}
"""(group, kind) -> plural, for paths of writes."""
