# SPDX-License-Identifier: Apache-2.0
"""Which kinds the controller follows; its ClusterRole in daemonset/manifests/kubernetes has the same extent.

Kinds that have no effect are followed too: whoever relies on one is told that it has none.
"""

from __future__ import annotations

from mesh.config.kube_store import Kind

ROOT_CONFIG_MAP = "istio-ca-root-cert"
MESH_CONFIG_MAP = "istio"
MANAGED_LABEL = "gateway.istio.io/managed"
_V1 = ("v1",)
_STABLE = ("v1", "v1beta1")
_GATEWAY_API = "gateway.networking.k8s.io"
_NETWORKING, _SECURITY, _TELEMETRY = "networking.istio.io", "security.istio.io", "telemetry.istio.io"

_BUILT_IN = (
    ("", "Namespace", "namespaces"),
    ("", "Node", "nodes"),
    ("", "Pod", "pods"),
    ("", "Service", "services"),
    ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
)
_CUSTOM = (
    (_NETWORKING, _STABLE, "DestinationRule", "destinationrules"),
    (_NETWORKING, _STABLE, "ServiceEntry", "serviceentries"),
    (_NETWORKING, _STABLE, "Sidecar", "sidecars"),
    (_NETWORKING, _STABLE, "VirtualService", "virtualservices"),
    (_NETWORKING, _STABLE, "WorkloadEntry", "workloadentries"),
    (_NETWORKING, ("v1alpha3",), "EnvoyFilter", "envoyfilters"),
    (_SECURITY, _STABLE, "AuthorizationPolicy", "authorizationpolicies"),
    (_SECURITY, _STABLE, "PeerAuthentication", "peerauthentications"),
    (_SECURITY, _STABLE, "RequestAuthentication", "requestauthentications"),
    (_TELEMETRY, ("v1", "v1alpha1"), "Telemetry", "telemetries"),
    (_GATEWAY_API, _STABLE, "Gateway", "gateways"),
    (_GATEWAY_API, _STABLE, "GatewayClass", "gatewayclasses"),
    (_GATEWAY_API, _STABLE, "HTTPRoute", "httproutes"),
    (_GATEWAY_API, _V1, "GRPCRoute", "grpcroutes"),
    (_GATEWAY_API, _STABLE, "ReferenceGrant", "referencegrants"),
    (_GATEWAY_API, ("v1", "v1alpha2"), "TCPRoute", "tcproutes"),
    (_GATEWAY_API, ("v1", "v1alpha3", "v1alpha2"), "TLSRoute", "tlsroutes"),
    ("split.smi-spec.io", ("v1alpha4", "v1alpha3", "v1alpha2", "v1alpha1"), "TrafficSplit", "trafficsplits"),
    ("specs.smi-spec.io", ("v1alpha4", "v1alpha3", "v1alpha2"), "HTTPRouteGroup", "httproutegroups"),
    ("linkerd.io", ("v1alpha2",), "ServiceProfile", "serviceprofiles"),
    ("policy.linkerd.io", ("v1beta3", "v1beta2", "v1beta1", "v1alpha1"), "HTTPRoute", "httproutes"),
)


def kinds(root_namespace: str) -> tuple[Kind, ...]:
    """Return what is followed; `root_namespace` has the mesh's configuration."""
    return (
        *(Kind(group=group, versions=_V1, kind=kind, plural=plural) for group, kind, plural in _BUILT_IN),
        *(
            Kind(group=group, versions=versions, kind=kind, plural=plural, custom=True)
            for group, versions, kind, plural in _CUSTOM
        ),
        Kind(
            group="",
            versions=_V1,
            kind="ConfigMap",
            plural="configmaps",
            namespace=root_namespace,
            field_selector=f"metadata.name={MESH_CONFIG_MAP}",
        ),
        # Our own writings, so that what others undo is done again.
        Kind(
            group="",
            versions=_V1,
            kind="ConfigMap",
            plural="configmaps",
            field_selector=f"metadata.name={ROOT_CONFIG_MAP}",
        ),
        Kind(
            group="",
            versions=_V1,
            kind="ServiceAccount",
            plural="serviceaccounts",
            label_selector=MANAGED_LABEL,
        ),
        Kind(
            group="apps",
            versions=_V1,
            kind="Deployment",
            plural="deployments",
            label_selector=MANAGED_LABEL,
        ),
    )


PLURALS = {(kind.group, kind.kind): kind.plural for kind in kinds("")}
"""(group, kind) -> plural, for paths of writes."""
