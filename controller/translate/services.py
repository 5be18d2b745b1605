# SPDX-License-Identifier: Apache-2.0
"""Service and EndpointSlice to Service and its endpoints.

An endpoint that a slice names without a pod becomes a workload of its own, unless a
workload has its address already. ExternalName services are reported, not served.
"""

from __future__ import annotations

from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, root, spec
from controller.translate.members import Members
from controller.translate.pods import Instance
from controller.translate.types import problem
from controller.translate.waypoints import waypoint_for, weighted_waypoints
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.address import IPAddress, parse_ip
from mesh.model.service import (
    AppProtocol,
    HealthPolicy,
    IpFamilies,
    LoadBalancing,
    LoadBalancingMode,
    LoadBalancingScope,
    Service,
    ServicePort,
)
from mesh.model.workload import NamespacedHostname, NetworkAddress, TunnelProtocol, Workload

DISCOVERY = "discovery.k8s.io"
_PROTOCOLS = {
    "http": AppProtocol.HTTP11,
    "kubernetes.io/ws": AppProtocol.HTTP11,
    "http2": AppProtocol.HTTP2,
    "kubernetes.io/h2c": AppProtocol.HTTP2,
    "grpc": AppProtocol.GRPC,
    "grpc-web": AppProtocol.HTTP11,
    "tcp": AppProtocol.TCP,
    "mongo": AppProtocol.TCP,
    "mysql": AppProtocol.TCP,
    "redis": AppProtocol.TCP,
    "tls": AppProtocol.TLS,
    "https": AppProtocol.TLS,
    "kubernetes.io/wss": AppProtocol.TLS,
}
_CLOSE = (
    LoadBalancingScope.NETWORK,
    LoadBalancingScope.REGION,
    LoadBalancingScope.ZONE,
)
_DISTRIBUTIONS = {
    "PreferClose": (*_CLOSE, LoadBalancingScope.SUBZONE),
    "PreferSameZone": _CLOSE,
    "PreferSameNode": (*_CLOSE, LoadBalancingScope.SUBZONE, LoadBalancingScope.NODE),
}
_NO_BEARING = (
    "type",
    "sessionAffinityConfig",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "allocateLoadBalancerNodePorts",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "externalName",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Port:
    name: str
    number: int
    target: int | str
    protocol: AppProtocol


def translate_services(world: World, members: Members) -> dict[NamespacedHostname, Service]:
    """Return the services, after making members of their endpoints."""
    slices: dict[tuple[str, str], list[RawObject]] = {}
    for obj in world.all(DISCOVERY, "EndpointSlice"):
        owner = obj.labels.get("kubernetes.io/service-name", "")
        slices.setdefault((obj.namespace, owner), []).append(obj)
    found = {}
    for obj in world.all("", "Service"):
        try:
            service = _service(world, obj, slices.get((obj.namespace, obj.name), []), members)
        except IllTypedError as error:
            world.report(obj, error, "the service is left out of the mesh")
            continue
        if service is not None:
            found[service.key] = service
    return found


def app_protocol(declared: str, name: str) -> AppProtocol:
    """Tell what a port speaks by `appProtocol`, or else by its name (`http-web`)."""
    if declared:
        return _PROTOCOLS.get(declared.lower(), AppProtocol.UNKNOWN)
    if name.startswith("grpc-web"):
        return AppProtocol.HTTP11
    return _PROTOCOLS.get(name.partition("-")[0].lower(), AppProtocol.UNKNOWN)


def load_balancing(distribution: str) -> LoadBalancing:
    """Return how endpoints are preferred under a `trafficDistribution`."""
    preference = _DISTRIBUTIONS.get(distribution)
    if preference is None:
        return LoadBalancing()
    return LoadBalancing(preference=preference, mode=LoadBalancingMode.FAILOVER)


def _service(world: World, obj: RawObject, slices: list[RawObject], members: Members) -> Service | None:
    fields = spec(obj, world.problems)
    if fields.text("type") == "ExternalName":
        fields.report("type", "ExternalName is not served; use a ServiceEntry")
        return None
    not_ready = fields.boolean("publishNotReadyAddresses")
    ports = _ports(fields)
    key = world.hostname(obj.name, obj.namespace)
    waypoint = waypoint_for(world, obj, "service")
    service = Service(
        name=obj.name,
        namespace=obj.namespace,
        hostname=key.hostname,
        addresses=_virtual(world, obj, fields),
        ports=tuple(
            ServicePort(
                service_port=port.number,
                target_port=port.target if isinstance(port.target, int) else 0,
                app_protocol=port.protocol,
            )
            for port in ports
        ),
        waypoint=waypoint,
        weighted_waypoints=weighted_waypoints(world, obj, waypoint),
        load_balancing=_load_balancing(obj, fields, not_ready),
        ip_families=_families(fields),
        canonical=True,
        ingress_use_waypoint=_ingress(world, obj),
    )
    selector = fields.string_map("selector")
    if fields.text("sessionAffinity", "None") != "None":
        fields.report("sessionAffinity", "session affinity is not honoured")
    if fields.strings("externalIPs"):
        fields.report("externalIPs", "external addresses are not captured")
    fields.skip(*_NO_BEARING)
    fields.finish()
    for one in slices:
        _join_slice(world, one, key, ports, not_ready, members)
    if selector and not slices:
        _join_selected(obj, key, ports, selector, not_ready, members)
    return service


def _ports(fields: Fields) -> list[_Port]:
    found = []
    numbers = set()
    for port in fields.children("ports"):
        number = port.integer("port", 0, 1, MAX_PORT)
        if not number:
            raise port.wrong("port", "is missing")
        name, declared = port.text("name"), port.text("appProtocol")
        target = port.number_or_name("targetPort") or number
        transport = port.text("protocol", "TCP")
        port.skip("nodePort")
        port.finish()
        # Only TCP is captured; a datagram port goes past the mesh as it is.
        if transport == "TCP" and number not in numbers:
            numbers.add(number)
            protocol = app_protocol(declared, name)
            found.append(_Port(name=name, number=number, target=target, protocol=protocol))
    return found


def _virtual(world: World, obj: RawObject, fields: Fields) -> tuple[NetworkAddress, ...]:
    texts = list(fields.strings("clusterIPs"))
    single = fields.text("clusterIP")
    if not texts and single:
        texts = [single]
    found = []
    for text in texts:
        if text in ("None", ""):
            continue
        try:
            address = parse_ip(text)
        except ValueError as error:
            raise fields.wrong("clusterIPs", f"{text[:100]!r} is no IP address") from error
        found.append(NetworkAddress(network=world.network_of(obj), address=address))
    return tuple(dict.fromkeys(found))


def _families(fields: Fields) -> IpFamilies:
    families = fields.strings("ipFamilies")
    fields.skip("ipFamilyPolicy")
    if len(families) == 2:
        return IpFamilies.DUAL
    if families == ("IPv4",):
        return IpFamilies.IPV4_ONLY
    if families == ("IPv6",):
        return IpFamilies.IPV6_ONLY
    return IpFamilies.AUTOMATIC


def _load_balancing(obj: RawObject, fields: Fields, not_ready: bool) -> LoadBalancing:
    health = HealthPolicy.ALLOW_ALL if not_ready else HealthPolicy.ONLY_HEALTHY
    distribution = fields.text("trafficDistribution")
    if not distribution:
        distribution = obj.annotations.get("networking.istio.io/traffic-distribution", "")
    elif distribution not in _DISTRIBUTIONS:
        fields.report("trafficDistribution", f"{distribution[:100]!r} is not known and has no effect")
    if fields.choice("internalTrafficPolicy", ("Cluster", "Local"), "Cluster") == "Local":
        return LoadBalancing(
            preference=(LoadBalancingScope.NODE,), mode=LoadBalancingMode.STRICT, health_policy=health
        )
    found = load_balancing(distribution)
    return LoadBalancing(preference=found.preference, mode=found.mode, health_policy=health)


def _ingress(world: World, obj: RawObject) -> bool:
    name = "istio.io/ingress-use-waypoint"
    return (obj.labels.get(name) or world.namespace_labels(obj.namespace).get(name)) == "true"


def _join_selected(
    obj: RawObject,
    key: NamespacedHostname,
    ports: list[_Port],
    selector: dict[str, str],
    not_ready: bool,
    members: Members,
) -> None:
    for instance in members.selected(obj.namespace, selector):
        if instance.workload.healthy or not_ready:
            members.join(instance, key, _resolved(ports, instance))


def _resolved(ports: list[_Port], instance: Instance) -> dict[int, int]:
    found = {}
    for port in ports:
        target: int | str | None = port.target
        if instance.source.kind == "WorkloadEntry" and port.name in instance.ports:
            target = instance.ports[port.name]
        if isinstance(target, str):
            # A name that the workload does not have leaves it without that port.
            target = instance.ports.get(target)
        if target:
            found[port.number] = target
    return found


def _join_slice(
    world: World,
    obj: RawObject,
    key: NamespacedHostname,
    ports: list[_Port],
    not_ready: bool,
    members: Members,
) -> None:
    try:
        fields = root(obj, world.problems)
        if fields.text("addressType", "IPv4") == "FQDN":
            fields.report("addressType", "FQDN endpoints are not served")
            return
        by_name = {
            port.text("name"): port.integer("port", 0, 1, MAX_PORT)
            for port in fields.children("ports")
            if port.text("protocol", "TCP") == "TCP" and port.has("port")
        }
        targets = {port.number: by_name[port.name] for port in ports if port.name in by_name}
        for endpoint in fields.children("endpoints"):
            ready = endpoint.child("conditions").boolean("ready", default=True)
            if ready or not_ready:
                for instance in _instances(world, obj, endpoint, members):
                    members.join(instance, key, targets)
    except IllTypedError as error:
        world.report(obj, error, "the rest of the slice is left out")


def _instances(world: World, obj: RawObject, endpoint: Fields, members: Members) -> list[Instance]:
    """Find the workloads behind one endpoint, or make one of each of its addresses."""
    target = endpoint.child("targetRef")
    if target.text("kind") == "Pod":
        namespace = target.text("namespace") or obj.namespace
        name = target.text("name")
        found = members.get(f"{world.options.cluster_id}//Pod/{namespace}/{name}")
        if found is None:
            endpoint.report("targetRef", f"pod {namespace}/{name} is not in the mesh; no endpoint")
            return []
        return [found]
    instances = []
    for index, text in enumerate(endpoint.strings("addresses")):
        try:
            address = parse_ip(text)
        except ValueError as error:
            raise IllTypedError((*endpoint.path, "addresses", index), "is no IP address") from error
        network = world.network_of(obj)
        found = members.at(network, address)
        if found is None:
            found = _stand_alone(world, obj, endpoint, network, address)
            members.add(found)
        instances.append(found)
    return instances


def _stand_alone(
    world: World, obj: RawObject, endpoint: Fields, network: str, address: IPAddress
) -> Instance:
    node = endpoint.text("nodeName")
    name = f"{obj.name}-{address}"
    workload = Workload(
        uid=f"{world.options.cluster_id}/{DISCOVERY}/EndpointSlice/{obj.namespace}/{obj.name}/{address}",
        name=name,
        namespace=obj.namespace,
        addresses=(address,),
        network=network,
        tunnel_protocol=TunnelProtocol.NONE,
        trust_domain=world.options.trust_domain,
        node=node,
        cluster_id=world.options.cluster_id,
        canonical_name=obj.labels.get("kubernetes.io/service-name", ""),
        canonical_revision="latest",
        workload_name=name,
        locality=world.locality(node),
    )
    return Instance(workload=workload, labels={}, ports={}, source=obj)


def unserved_slices(world: World, services: dict[NamespacedHostname, Service]) -> None:
    """Report every slice whose service is not served."""
    for obj in world.all(DISCOVERY, "EndpointSlice"):
        owner = obj.labels.get("kubernetes.io/service-name", "")
        if world.hostname(owner, obj.namespace) not in services:
            path = ("metadata", "labels", "kubernetes.io/service-name")
            reason = f"service {obj.namespace}/{owner} is not served; the slice has no effect"
            world.problems.append(problem(obj, path, reason))
