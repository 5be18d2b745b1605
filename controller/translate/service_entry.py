# SPDX-License-Identifier: Apache-2.0
"""ServiceEntry to one Service per host, and its endpoints to workloads.

Hosts without an address get a virtual one, equal for equal sets of hosts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, age, spec
from controller.translate.members import Members
from controller.translate.pods import Instance
from controller.translate.services import app_protocol, load_balancing
from controller.translate.types import problem
from controller.translate.waypoints import waypoint_for, weighted_waypoints
from controller.translate.workload_entry import Endpoint, make_instance, read_endpoint
from controller.translate.world import ISTIO_NETWORKING, World
from mesh.config.objects import RawObject
from mesh.model.address import IPAddress
from mesh.model.locality import Locality
from mesh.model.service import CidrVip, LoadBalancing, LoadBalancingMode, Service, ServicePort
from mesh.model.workload import NamespacedHostname, NetworkAddress

VIP4 = IPv4Network("240.240.0.0/16")
VIP6 = IPv6Network("2001:2::/48")
_AUTO_OPT_OUT = "networking.istio.io/enable-autoallocate-ip"
_RESOLUTIONS = ("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
_LOCATIONS = ("MESH_EXTERNAL", "MESH_INTERNAL")
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([-a-z0-9_.]{0,251}[a-z0-9_])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    name: str
    number: int
    target: int
    protocol: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    source: RawObject
    hosts: tuple[str, ...]
    ports: tuple[_Port, ...]
    addresses: tuple[NetworkAddress, ...]
    ranges: tuple[CidrVip, ...]
    resolution: str
    endpoints: tuple[Endpoint, ...]
    selector: Mapping[str, str]
    subject_alt_names: tuple[str, ...]
    automatic: bool
    """Wants a virtual address where it has none."""


def translate_service_entries(
    world: World, members: Members, taken: Mapping[NamespacedHostname, Service]
) -> dict[NamespacedHostname, Service]:
    """Return the services of all entries; hosts in `taken` are those of Kubernetes and stay theirs."""
    entries = []
    for obj in sorted(world.all(ISTIO_NETWORKING, "ServiceEntry"), key=age):
        try:
            entries.append(_read(world, obj))
        except IllTypedError as error:
            world.report(obj, error, "the entry is left out of the mesh")
    found: dict[NamespacedHostname, Service] = {}
    unaddressed = []
    for entry in entries:
        for index, host in enumerate(entry.hosts):
            key = NamespacedHostname(namespace=entry.source.namespace, hostname=host)
            if key in taken or key in found:
                reason = f"{key} is served by a Service or an older entry already"
                world.problems.append(problem(entry.source, ("spec", "hosts", index), reason))
                continue
            found[key] = _service(world, entry, host)
            if entry.automatic and not host.startswith("*"):
                unaddressed.append(key)
            _join(world, entry, key, members)
    used = {a.address for s in (*taken.values(), *found.values()) for a in s.addresses}
    for key, pair in allocate(unaddressed, used).items():
        network = world.options.network
        found[key] = replace(
            found[key], addresses=tuple(NetworkAddress(network=network, address=vip) for vip in pair)
        )
    return found


def allocate(
    keys: list[NamespacedHostname], used: set[IPAddress]
) -> dict[NamespacedHostname, tuple[IPAddress, ...]]:
    """Give each key one address of either family.

    Places come from a hash of the key, the next free one where two meet; keys are taken in
    sorted order, so that equal sets of keys get equal addresses. Keys beyond the range's
    size get none.
    """
    found: dict[NamespacedHostname, tuple[IPAddress, ...]] = {}
    # The first and last address of the range are network and broadcast by custom.
    size = VIP4.num_addresses - 2
    busy = {int(a) - int(VIP4[0]) for a in used if isinstance(a, IPv4Address) and a in VIP4}
    busy |= {int(a) - int(VIP6[0]) for a in used if isinstance(a, IPv6Address) and a in VIP6}
    free = size - len({place for place in busy if 1 <= place <= size})
    for key in sorted(set(keys), key=str)[:free]:
        digest = hashlib.sha256(str(key).encode()).digest()
        place = int.from_bytes(digest[:8], "big") % size + 1
        while place in busy:
            place = place % size + 1
        busy.add(place)
        found[key] = (VIP4[place], VIP6[place])
    return found


def _read(world: World, obj: RawObject) -> _Entry:
    fields = spec(obj, world.problems)
    hosts = fields.strings("hosts")
    if not hosts:
        raise fields.wrong("hosts", "must name at least one host")
    for host in hosts:
        if _HOST.fullmatch(host.lower()) is None:
            raise fields.wrong("hosts", f"{host[:100]!r} is no host name")
    resolution = fields.choice("resolution", _RESOLUTIONS, "NONE")
    fields.choice("location", _LOCATIONS, "MESH_EXTERNAL")
    endpoints = tuple(read_endpoint(world, obj, child) for child in fields.children("endpoints"))
    selector = _selector(fields)
    if endpoints and selector:
        raise fields.wrong("workloadSelector", "endpoints and workloadSelector exclude each other")
    addresses, ranges = _addresses(world, obj, fields)
    _check_endpoints(fields, resolution, endpoints)
    if fields.strings("exportTo"):
        fields.report("exportTo", "exportTo is not enforced")
    entry = _Entry(
        source=obj,
        hosts=tuple(dict.fromkeys(host.lower() for host in hosts)),
        ports=_ports(fields),
        addresses=addresses,
        ranges=ranges,
        resolution=resolution,
        endpoints=endpoints,
        selector=selector,
        subject_alt_names=fields.strings("subjectAltNames"),
        automatic=not addresses
        and not ranges
        and resolution != "NONE"
        and obj.labels.get(_AUTO_OPT_OUT) != "false",
    )
    fields.finish()
    return entry


def _selector(fields: Fields) -> dict[str, str]:
    selector = fields.child("workloadSelector")
    labels = selector.string_map("labels")
    selector.finish()
    return labels


def _check_endpoints(fields: Fields, resolution: str, endpoints: tuple[Endpoint, ...]) -> None:
    if resolution == "NONE" and endpoints:
        fields.report("endpoints", "resolution NONE goes to the address that was asked for; no effect")
    if resolution == "STATIC" and any(endpoint.hostname for endpoint in endpoints):
        raise fields.wrong("endpoints", "resolution STATIC needs IP addresses")
    if resolution == "DYNAMIC_DNS":
        fields.report("resolution", "DYNAMIC_DNS needs a waypoint; ztunnel resolves the hosts as for DNS")


def _ports(fields: Fields) -> tuple[_Port, ...]:
    found = []
    for port in fields.children("ports"):
        number = port.integer("number", 0, 1, MAX_PORT)
        if not number:
            raise port.wrong("number", "is missing")
        found.append(
            _Port(
                name=port.text("name"),
                number=number,
                # Zero is an unset number in Istio's API.
                target=port.integer("targetPort", number, 0, MAX_PORT) or number,
                protocol=port.text("protocol"),
            )
        )
        port.finish()
    return tuple(port for port in found if port.protocol.upper() != "UDP")


def _addresses(
    world: World, obj: RawObject, fields: Fields
) -> tuple[tuple[NetworkAddress, ...], tuple[CidrVip, ...]]:
    single, ranges = [], []
    network = world.network_of(obj)
    for cidr in fields.networks("addresses"):
        if cidr.prefixlen == cidr.max_prefixlen:
            single.append(NetworkAddress(network=network, address=cidr.network_address))
        else:
            ranges.append(CidrVip(network=network, cidr=cidr))
    return tuple(dict.fromkeys(single)), tuple(dict.fromkeys(ranges))


def _service(world: World, entry: _Entry, host: str) -> Service:
    balancing = load_balancing(entry.source.annotations.get("networking.istio.io/traffic-distribution", ""))
    if entry.resolution == "NONE":
        balancing = LoadBalancing(mode=LoadBalancingMode.PASSTHROUGH)
    waypoint = waypoint_for(world, entry.source, "service")
    return Service(
        name=entry.source.name,
        namespace=entry.source.namespace,
        hostname=host,
        addresses=entry.addresses,
        cidr_addresses=entry.ranges,
        ports=tuple(
            ServicePort(
                service_port=port.number,
                target_port=port.target,
                app_protocol=app_protocol(port.protocol, port.name),
            )
            for port in entry.ports
        ),
        subject_alt_names=entry.subject_alt_names,
        waypoint=waypoint,
        weighted_waypoints=weighted_waypoints(world, entry.source, waypoint),
        load_balancing=balancing,
    )


def _join(world: World, entry: _Entry, key: NamespacedHostname, members: Members) -> None:
    if entry.resolution == "NONE":
        return
    if entry.selector:
        for instance in members.selected(key.namespace, entry.selector):
            # Names of a pod's ports are for Services; an entry goes by number.
            own = instance.ports if instance.source.kind == "WorkloadEntry" else {}
            if instance.workload.healthy:
                members.join(instance, key, _targets(entry, own))
        return
    endpoints = entry.endpoints
    if not endpoints and entry.resolution != "STATIC":
        if key.hostname.startswith("*"):
            reason = "a wildcard host without endpoints needs a waypoint; it has no endpoint"
            world.problems.append(problem(entry.source, ("spec", "hosts"), reason))
            return
        endpoints = (_itself(world, entry, key.hostname),)
    for index, endpoint in enumerate(endpoints):
        instance = _instance(world, entry, endpoint, index, members)
        members.join(instance, key, _targets(entry, endpoint.ports))


def _itself(world: World, entry: _Entry, host: str) -> Endpoint:
    """A host that is resolved to find its own endpoint."""
    return Endpoint(
        address=None,
        hostname=host,
        labels={},
        ports={},
        weight=1,
        network=world.network_of(entry.source),
        locality=Locality(),
        service_account="default",
    )


def _instance(world: World, entry: _Entry, endpoint: Endpoint, index: int, members: Members) -> Instance:
    obj = entry.source
    if endpoint.address is not None:
        # Whoever has the address keeps it, and with it the identity that peers expect there.
        found = members.at(endpoint.network, endpoint.address)
        if found is not None:
            return found
    # Endpoints of one entry may share a name; a host that is its own endpoint is known by that.
    where = endpoint.address or endpoint.hostname or index
    uid = f"{world.options.cluster_id}/{ISTIO_NETWORKING}/ServiceEntry/{obj.namespace}/{obj.name}/{where}"
    instance = make_instance(world, obj, endpoint, uid, obj.name)
    members.add(instance)
    return members.get(uid) or instance


def _targets(entry: _Entry, own: Mapping[str, int]) -> dict[int, int]:
    return {port.number: own.get(port.name, port.target) for port in entry.ports}
