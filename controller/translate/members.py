# SPDX-License-Identifier: Apache-2.0
"""Which workloads are endpoints of which services, gathered while services are translated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from controller.translate.fields import selects
from controller.translate.pods import Instance
from mesh.model.address import IPAddress
from mesh.model.workload import NamespacedHostname, NetworkMode, PortMap, Workload


class Members:
    """All workloads so far and their services; the first one to claim an address has it."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._instances: dict[str, Instance] = {}
        self._by_namespace: dict[str, list[Instance]] = {}
        self._by_address: dict[tuple[str, IPAddress], str] = {}
        self._services: dict[str, dict[NamespacedHostname, dict[int, int]]] = {}
        for instance in instances:
            self.add(instance)

    def add(self, instance: Instance) -> None:
        """Take a workload in; of two with one uid the first stays."""
        workload = instance.workload
        if workload.uid in self._instances:
            return
        self._instances[workload.uid] = instance
        self._by_namespace.setdefault(workload.namespace, []).append(instance)
        if workload.network_mode is NetworkMode.STANDARD:
            for address in workload.addresses:
                self._by_address.setdefault((workload.network, address), workload.uid)

    def get(self, uid: str) -> Instance | None:
        """Return a workload by its uid."""
        return self._instances.get(uid)

    def at(self, network: str, address: IPAddress) -> Instance | None:
        """Return the workload that has this address to itself."""
        uid = self._by_address.get((network, address))
        return self._instances[uid] if uid is not None else None

    def selected(self, namespace: str, selector: Mapping[str, str]) -> list[Instance]:
        """Return the labelled workloads of a namespace that have all labels of `selector`."""
        return [
            instance
            for instance in self._by_namespace.get(namespace, [])
            if instance.labels and selects(selector, instance.labels)
        ]

    def join(self, instance: Instance, service: NamespacedHostname, ports: Mapping[int, int]) -> None:
        """Make a workload an endpoint of a service; `ports` map service ports to its own."""
        services = self._services.setdefault(instance.workload.uid, {})
        services.setdefault(service, {}).update(ports)

    def joined(self) -> list[tuple[Instance, Workload]]:
        """Return every workload with all its services."""
        return [
            (
                instance,
                replace(
                    instance.workload,
                    services={
                        key: PortMap(ports=ports) for key, ports in self._services.get(uid, {}).items()
                    },
                ),
            )
            for uid, instance in self._instances.items()
        ]
