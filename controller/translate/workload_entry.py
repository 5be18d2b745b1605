# SPDX-License-Identifier: Apache-2.0
"""WorkloadEntry, and the like-shaped endpoints of a ServiceEntry, to Workload."""

from __future__ import annotations

from dataclasses import dataclass

from controller.translate.fields import Fields, IllTypedError, spec
from controller.translate.pods import Instance, canonical_name, canonical_revision
from controller.translate.waypoints import waypoint_for
from controller.translate.world import ISTIO_NETWORKING, World
from mesh.config.objects import RawObject
from mesh.model.address import IPAddress, parse_ip
from mesh.model.locality import Locality
from mesh.model.workload import TunnelProtocol, Workload

TUNNEL_LABEL = "networking.istio.io/tunnel"
"""`http` on an endpoint outside Kubernetes: it takes HBONE."""
MAX_WEIGHT = 2**32 - 1
_MAX_HOSTNAME = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The fields that a WorkloadEntry and an endpoint of a ServiceEntry share."""

    address: IPAddress | None
    hostname: str
    """A name to resolve; empty when there is an address, or neither is given."""
    labels: dict[str, str]
    ports: dict[str, int]
    weight: int
    network: str
    locality: Locality
    service_account: str


def translate_workload_entries(world: World) -> list[Instance]:
    """Return one workload per WorkloadEntry."""
    found = []
    for obj in world.all(ISTIO_NETWORKING, "WorkloadEntry"):
        try:
            endpoint = read_endpoint(world, obj, spec(obj, world.problems))
        except IllTypedError as error:
            world.report(obj, error, "the workload is left out of the mesh")
            continue
        uid = f"{world.options.cluster_id}/{ISTIO_NETWORKING}/WorkloadEntry/{obj.namespace}/{obj.name}"
        found.append(make_instance(world, obj, endpoint, uid, obj.name))
    return found


def read_endpoint(world: World, obj: RawObject, fields: Fields) -> Endpoint:
    """Read the shared fields.

    Raises:
        IllTypedError: one of them cannot be honoured.
    """
    text = fields.text("address")
    address: IPAddress | None = None
    hostname = ""
    if text.startswith("unix:"):
        raise fields.wrong("address", "a unix socket cannot be reached through the mesh")
    try:
        address = parse_ip(text)
    except ValueError:
        hostname = text
    if len(hostname) > _MAX_HOSTNAME or not all(c.isalnum() or c in "-._" for c in hostname):
        raise fields.wrong("address", "is neither an IP address nor a host name")
    if not text and not fields.has("network"):
        raise fields.wrong("address", "is missing")
    region, _, rest = fields.text("locality").partition("/")
    zone, _, subzone = rest.partition("/")
    labels = fields.string_map("labels")
    endpoint = Endpoint(
        address=address,
        hostname=hostname,
        labels=labels,
        ports=fields.port_map("ports"),
        # Zero is what an unset weight is on the wire; it means one.
        weight=fields.integer("weight", 1, 0, MAX_WEIGHT) or 1,
        network=fields.text("network") or world.network_of(obj),
        locality=Locality(region=region, zone=zone, subzone=subzone),
        service_account=fields.text("serviceAccount") or "default",
    )
    fields.finish()
    return endpoint


def make_instance(world: World, obj: RawObject, endpoint: Endpoint, uid: str, name: str) -> Instance:
    """Make the workload of an endpoint that `obj` describes."""
    labels = {**obj.labels, **endpoint.labels}
    tunnelled = labels.get(TUNNEL_LABEL) == "http"
    workload = Workload(
        uid=uid,
        name=name,
        namespace=obj.namespace,
        addresses=(endpoint.address,) if endpoint.address is not None else (),
        network=endpoint.network,
        hostname=endpoint.hostname,
        tunnel_protocol=TunnelProtocol.HBONE if tunnelled else TunnelProtocol.NONE,
        trust_domain=world.options.trust_domain,
        service_account=endpoint.service_account,
        cluster_id=world.options.cluster_id,
        canonical_name=canonical_name(labels, name),
        canonical_revision=canonical_revision(labels),
        workload_name=name,
        capacity=endpoint.weight,
        locality=endpoint.locality,
        waypoint=waypoint_for(world, obj, "workload") if obj.kind == "WorkloadEntry" else None,
    )
    return Instance(workload=workload, labels=labels, ports=endpoint.ports, source=obj)
