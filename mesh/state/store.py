# SPDX-License-Identifier: Apache-2.0
"""What one ztunnel knows of the mesh: workloads, services, policies, and who wins a lookup.

`apply` takes decoded resources and answers what has to be looked at again. The store
does no I/O, reads no clock and keeps no history: after the same set of resources it
is the same store, whatever the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mesh.model.address import IPAddress
from mesh.model.policy import Authorization, Scope
from mesh.model.service import Service, Visibility
from mesh.model.workload import (
    NamespacedHostname,
    NetworkAddress,
    NetworkMode,
    PortMap,
    TunnelProtocol,
    Workload,
)
from mesh.state.index import MultiIndex, RangeIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class StateUpdate:
    """Decoded resources of one xDS response."""

    workloads: tuple[Workload, ...] = ()
    services: tuple[Service, ...] = ()
    policies: tuple[Authorization, ...] = ()
    removed_addresses: tuple[str, ...] = ()
    """Workload uids and service keys (`namespace/hostname`)."""
    removed_policies: tuple[str, ...] = ()
    broken_policies: Mapping[str, str] = field(default_factory=dict)
    """Policy name -> why it could not be decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What an update touched: which live connections to evaluate again."""

    workloads: frozenset[str] = frozenset()
    """uids whose workload was added, changed or removed."""
    namespaces: frozenset[str] = frozenset()
    """Namespaces with a changed namespace-wide (or broken) policy."""
    policies: frozenset[str] = frozenset()
    """Changed policies that workloads name."""
    everything: bool = False
    """A mesh-wide policy changed."""

    def touches(self, workload: Workload) -> bool:
        """Whether a verdict about connections to `workload` may have changed."""
        return (
            self.everything
            or workload.uid in self.workloads
            or workload.namespace in self.namespaces
            or any(name in self.policies for name in workload.authorization_policies)
        )

    def __bool__(self) -> bool:
        return bool(self.everything or self.workloads or self.namespaces or self.policies)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySet:
    """The policies in force for one workload."""

    policies: tuple[Authorization, ...]
    unusable: str = ""
    """Why no verdict can be given (a named policy is unknown or malformed); empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One workload as member of a service; `ports` is its own service port -> target port."""

    workload: Workload
    ports: PortMap


class Store:
    """The whole state; one writer (`apply`), any number of readers on the same loop."""

    def __init__(
        self, *, network: str = "", root_namespace: str = "istio-system", preferred_namespace: str = ""
    ) -> None:
        self.network = network
        self.root_namespace = root_namespace
        self.preferred_namespace = preferred_namespace
        self.workloads: dict[str, Workload] = {}
        self.services: dict[NamespacedHostname, Service] = {}
        self.policies: dict[str, Authorization] = {}
        self.broken: dict[str, str] = {}
        self._endpoints: dict[NamespacedHostname, dict[str, PortMap]] = {}
        self._by_address: MultiIndex[NetworkAddress, str] = MultiIndex()
        self._by_name: MultiIndex[tuple[str, str], str] = MultiIndex()
        self._by_vip: MultiIndex[NetworkAddress, NamespacedHostname] = MultiIndex()
        self._by_range = RangeIndex()
        self._by_host: MultiIndex[str, NamespacedHostname] = MultiIndex()
        self._scoped: MultiIndex[str, str] = MultiIndex()

    # --- writes

    def apply(self, update: StateUpdate) -> Changes:
        """Take over one response; removals first, so that a name may move within one response."""
        touched: set[str] = set()
        for name in update.removed_addresses:
            touched |= self._remove_address(name)
        for workload in update.workloads:
            touched.add(workload.uid)
            self._remove_workload(workload.uid)
            self._insert_workload(workload)
        for service in update.services:
            self._remove_service(service.key)
            self._insert_service(service)
        namespaces, policies, everything = self._apply_policies(update)
        return Changes(
            workloads=frozenset(touched),
            namespaces=frozenset(namespaces),
            policies=frozenset(policies),
            everything=everything,
        )

    def _apply_policies(self, update: StateUpdate) -> tuple[set[str], set[str], bool]:
        changed: list[tuple[str, Authorization | None]] = []
        for name in update.removed_policies:
            self.broken.pop(name, None)
            changed.append((name, self._remove_policy(name)))
        for policy in update.policies:
            self.broken.pop(policy.key, None)
            changed.append((policy.key, self._remove_policy(policy.key)))
            self.policies[policy.key] = policy
            if policy.scope is not Scope.WORKLOAD_SELECTOR:
                self._scoped.add("" if policy.scope is Scope.GLOBAL else policy.namespace, policy.key)
            changed.append((policy.key, policy))
        for name, why in update.broken_policies.items():
            if name not in self.policies:
                self.broken[name] = why
            changed.append((name, self.policies.get(name)))
        namespaces: set[str] = set()
        everything = False
        for name, known in changed:
            namespace = name.partition("/")[0]
            namespaces.add(namespace)
            everything |= namespace == self.root_namespace or (
                known is not None and known.scope is Scope.GLOBAL
            )
        return namespaces, {name for name, _ in changed}, everything

    def _remove_policy(self, name: str) -> Authorization | None:
        old = self.policies.pop(name, None)
        if old is not None and old.scope is not Scope.WORKLOAD_SELECTOR:
            self._scoped.remove("" if old.scope is Scope.GLOBAL else old.namespace, name)
        return old

    def _remove_address(self, name: str) -> set[str]:
        if name in self.workloads:
            self._remove_workload(name)
            return {name}
        # Two or more slashes: a workload uid, never `namespace/hostname`.
        if name.count("/") == 1:
            namespace, _, hostname = name.partition("/")
            self._remove_service(NamespacedHostname(namespace=namespace, hostname=hostname))
        return set()

    def _insert_workload(self, workload: Workload) -> None:
        self.workloads[workload.uid] = workload
        self._by_name.add((workload.namespace, workload.name), workload.uid)
        for key in self._address_keys(workload):
            self._by_address.add(key, workload.uid)
        for service, ports in workload.services.items():
            self._endpoints.setdefault(service, {})[workload.uid] = ports

    def _remove_workload(self, uid: str) -> None:
        old = self.workloads.pop(uid, None)
        if old is None:
            return
        self._by_name.remove((old.namespace, old.name), uid)
        for key in self._address_keys(old):
            self._by_address.remove(key, uid)
        for service in old.services:
            members = self._endpoints.get(service)
            if members is not None:
                members.pop(uid, None)
                if not members:
                    del self._endpoints[service]

    @staticmethod
    def _address_keys(workload: Workload) -> Iterator[NetworkAddress]:
        # Host-network workloads share the node's address: they are never found by it.
        if workload.network_mode is not NetworkMode.HOST_NETWORK:
            for address in workload.addresses:
                yield NetworkAddress(network=workload.network, address=address)

    def _insert_service(self, service: Service) -> None:
        self.services[service.key] = service
        self._by_host.add(service.hostname, service.key)
        for vip in service.addresses:
            self._by_vip.add(vip, service.key)
        for block in service.cidr_addresses:
            self._by_range.add(block.network, block.cidr, service.key)

    def _remove_service(self, key: NamespacedHostname) -> None:
        old = self.services.pop(key, None)
        if old is None:
            return
        self._by_host.remove(old.hostname, key)
        for vip in old.addresses:
            self._by_vip.remove(vip, key)
        for block in old.cidr_addresses:
            self._by_range.remove(block.network, block.cidr, key)

    # --- reads

    def find_local(self, *, name: str, namespace: str, service_account: str, node: str) -> Workload | None:
        """Find the workload of a pod of this node; all four must be equal."""
        for uid in self._by_name.get((namespace, name)):
            workload = self.workloads[uid]
            if workload.service_account == service_account and workload.node == node:
                return workload
        return None

    def find_workload(self, address: IPAddress, network: str | None = None) -> Workload | None:
        """Find who owns `address`: a meshed pod before a pod, before a meshed one, before the first."""
        key = NetworkAddress(network=self.network if network is None else network, address=address)
        claimants = [self.workloads[uid] for uid in self._by_address.get(key)]
        if not claimants:
            return None
        return max(claimants, key=_address_rank)

    def find_service(self, address: IPAddress, namespace: str) -> Service | None:
        """Find the service behind a virtual address, as a client in `namespace` sees it."""
        key = NetworkAddress(network=self.network, address=address)
        exact = self._prefer(self._by_vip.get(key), namespace)
        if exact is not None:
            return exact
        for claimants in self._by_range.find(self.network, address):
            found = self._prefer(claimants, namespace)
            if found is not None:
                return found
        return None

    def find_hostname(self, hostname: str, namespace: str) -> Service | None:
        """Find the service of a name (lower case, no final dot), as a client in `namespace` sees it."""
        return self._prefer(self._by_host.get(hostname), namespace)

    def _prefer(self, keys: Iterable[NamespacedHostname], namespace: str) -> Service | None:
        visible = [
            service
            for service in (self.services[key] for key in keys)
            if service.visibility is Visibility.PUBLIC or service.namespace == namespace
        ]
        if not visible:
            return None
        return max(
            visible,
            key=lambda s: (
                s.namespace == namespace,
                s.canonical,
                bool(s.namespace) and s.namespace == self.preferred_namespace,
            ),
        )

    def endpoints(self, service: NamespacedHostname) -> list[Endpoint]:
        """List the members of a service, whatever their health; O(members)."""
        members = self._endpoints.get(service, {})
        return [Endpoint(workload=self.workloads[uid], ports=ports) for uid, ports in members.items()]

    def staged(self) -> dict[NamespacedHostname, tuple[str, ...]]:
        """Endpoints whose service has not been received, by the service's key."""
        return {key: tuple(uids) for key, uids in self._endpoints.items() if key not in self.services}

    def policies_for(self, workload: Workload) -> PolicySet:
        """Collect the policies in force: mesh-wide, of its namespace, and those that it names.

        A named policy that is unknown makes the set unusable, as does a malformed
        policy that might apply: one of the workload's namespace or of the root namespace.
        """
        for name, why in self.broken.items():
            namespace = name.partition("/")[0]
            if name in workload.authorization_policies or namespace in (
                workload.namespace,
                self.root_namespace,
            ):
                return PolicySet(policies=(), unusable=f"policy {name} is malformed: {why}")
        names = dict.fromkeys((*self._scoped.get(""), *self._scoped.get(workload.namespace)))
        for name in workload.authorization_policies:
            if name not in self.policies:
                return PolicySet(
                    policies=(), unusable=f"policy {name} named by {workload.uid} has not been received"
                )
            names[name] = None
        return PolicySet(policies=tuple(self.policies[name] for name in names))


def _address_rank(workload: Workload) -> tuple[bool, bool]:
    # `cluster/group/kind/namespace/name`; a core group leaves `//v1/Pod/`.
    return ("/Pod/" in workload.uid, workload.tunnel_protocol is TunnelProtocol.HBONE)
