# SPDX-License-Identifier: Apache-2.0
"""Model values with the few fields that a test is about; everything else is plausible and fixed.

Use `dataclasses.replace` on the result for fields that are not arguments here.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.model.address import parse_ip
from mesh.model.policy import Action, Authorization, Match, Rule, Scope, StringMatch, StringMatchKind
from mesh.model.service import Service, ServicePort
from mesh.model.workload import NamespacedHostname, NetworkAddress, PortMap, TunnelProtocol, Workload

EVERYTHING: Rule = ()
"""A rule that matches any connection."""
NEVER: Rule = ((Match(),),)
"""A rule that matches none."""


def hostname(name: str, namespace: str = "shop") -> NamespacedHostname:
    """Return the key of the service `name` in the cluster's domain."""
    return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local")


def workload(
    name: str,
    *addresses: str,
    namespace: str = "shop",
    node: str = "n1",
    account: str = "",
    hbone: bool = True,
    services: Mapping[str, Mapping[int, int]] | None = None,
    policies: tuple[str, ...] = (),
) -> Workload:
    """Return a pod; its service account has its name unless given; `services` are names of its namespace."""
    return Workload(
        uid=f"Kubernetes//v1/Pod/{namespace}/{name}",
        name=name,
        namespace=namespace,
        addresses=tuple(parse_ip(address) for address in addresses),
        tunnel_protocol=TunnelProtocol.HBONE if hbone else TunnelProtocol.NONE,
        service_account=account or name,
        node=node,
        canonical_name=name,
        workload_name=name,
        services={
            hostname(service, namespace): PortMap(ports=dict(ports))
            for service, ports in (services or {}).items()
        },
        authorization_policies=policies,
    )


def service(
    name: str, *vips: str, namespace: str = "shop", ports: Mapping[int, int] | None = None
) -> Service:
    """Return a service with these virtual addresses; `ports` map service ports to target ports."""
    return Service(
        name=name,
        namespace=namespace,
        hostname=hostname(name, namespace).hostname,
        addresses=tuple(NetworkAddress(network="", address=parse_ip(vip)) for vip in vips),
        ports=tuple(
            ServicePort(service_port=port, target_port=target)
            for port, target in (ports or {80: 8080}).items()
        ),
    )


def policy(
    action: Action,
    *rules: Rule,
    name: str = "p",
    namespace: str = "shop",
    scope: Scope = Scope.NAMESPACE,
    dry_run: bool = False,
) -> Authorization:
    """Return a policy; no rule is one that never matches."""
    return Authorization(
        name=name, namespace=namespace, scope=scope, action=action, rules=rules, dry_run=dry_run
    )


def strict(namespace: str = "istio-system") -> Authorization:
    """Return what PeerAuthentication STRICT of the mesh becomes: plaintext is denied."""
    presence = StringMatch(kind=StringMatchKind.PRESENCE)
    return policy(
        Action.DENY,
        ((Match(not_principals=(presence,)),),),
        name="istio_converted_static_strict",
        namespace=namespace,
        scope=Scope.GLOBAL,
    )
