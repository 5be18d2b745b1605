# SPDX-License-Identifier: Apache-2.0
"""Workloads, services and stores for ztunnel's unit tests; each call names only what its test is about."""

from __future__ import annotations

from ipaddress import ip_address

from mesh.model.policy import Action, Authorization, Match, Scope
from mesh.model.service import Service, ServicePort
from mesh.model.workload import NamespacedHostname, NetworkAddress, PortMap, TunnelProtocol, Workload
from mesh.state.store import StateUpdate, Store


def workload(name: str, *addresses: str, **values: object) -> Workload:
    """Build a meshed pod of namespace `shop` on node `n1`."""
    fields: dict[str, object] = {
        "uid": f"Kubernetes//v1/Pod/shop/{name}",
        "name": name,
        "namespace": "shop",
        "service_account": name,
        "addresses": tuple(ip_address(address) for address in addresses),
        "node": "n1",
        "tunnel_protocol": TunnelProtocol.HBONE,
        "workload_name": name,
    }
    return Workload(**(fields | values))  # type: ignore[arg-type]


def key(name: str, namespace: str = "shop") -> NamespacedHostname:
    """Name a service."""
    return NamespacedHostname(namespace=namespace, hostname=f"{name}.{namespace}.svc.cluster.local")


def member(*names: str, ports: dict[int, int] | None = None) -> dict[NamespacedHostname, PortMap]:
    """Make a workload an endpoint of services."""
    return {key(name): PortMap(ports={80: 8080} if ports is None else ports) for name in names}


def service(name: str, *vips: str, **values: object) -> Service:
    """Build a service of namespace `shop` with port 80 to 8080."""
    fields: dict[str, object] = {
        "name": name,
        "namespace": "shop",
        "hostname": key(name).hostname,
        "addresses": tuple(NetworkAddress(network="", address=ip_address(vip)) for vip in vips),
        "ports": (ServicePort(service_port=80, target_port=8080),),
    }
    return Service(**(fields | values))  # type: ignore[arg-type]


def policy(name: str, action: Action = Action.DENY, *matches: Match, **values: object) -> Authorization:
    """Build a policy of namespace `shop` with one rule; no match: it matches everything."""
    fields: dict[str, object] = {
        "name": name,
        "namespace": "shop",
        "scope": Scope.NAMESPACE,
        "action": action,
        "rules": ((tuple(matches),),) if matches else ((),),
    }
    return Authorization(**(fields | values))  # type: ignore[arg-type]


def store(*values: Workload | Service | Authorization, **options: str) -> Store:
    """Build a store that holds these."""
    made = Store(**options)
    made.apply(
        StateUpdate(
            workloads=tuple(value for value in values if isinstance(value, Workload)),
            services=tuple(value for value in values if isinstance(value, Service)),
            policies=tuple(value for value in values if isinstance(value, Authorization)),
        )
    )
    return made
