# SPDX-License-Identifier: Apache-2.0
"""Hosts and clusters for tests of balancing; each call names only what its test is about."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from mesh.model.locality import Locality
from mesh.model.workload import TunnelProtocol
from tests.support.mesh_builders import key, workload
from waypoint.cluster.cluster import Cluster, ClusterKey, Member, Settings
from waypoint.cluster.host import Host, make_address

NOW_S = 1000.0


def member(
    number: int, *, weight: int = 1, place: str = "", labels: Mapping[str, str] | None = None
) -> Member:
    """Build the endpoint 10.0.0.`number`:8080; `place` is `region/zone/subzone`."""
    region, zone, subzone = [*place.split("/"), "", "", ""][:3]
    address = ip_address(f"10.0.{number >> 8}.{number & 255}")
    owner = workload(
        f"w{number}",
        str(address),
        locality=Locality(region=region, zone=zone, subzone=subzone),
        tunnel_protocol=TunnelProtocol.NONE,
        node=f"n{number}",
    )
    return Member(make_address(owner, address, 8080, "web"), weight, labels or {})


def host(number: int, *, weight: int = 1, place: str = "", labels: Mapping[str, str] | None = None) -> Host:
    """Build a host that has just appeared."""
    made = member(number, weight=weight, place=place, labels=labels)
    return Host(made.address, weight, dict(made.labels), NOW_S)


def cluster(*members: Member, seed: int = 1, **settings: object) -> Cluster:
    """Build a cluster that has these endpoints; keywords are those of `Settings`."""
    made = Cluster(ClusterKey(service=key("web"), port=80), seeded(seed))
    made.update(members, Settings(**settings), NOW_S)  # type: ignore[arg-type]
    return made


def seeded(seed: int) -> Callable[[], float]:
    """Return a source of random numbers that is the same in every run."""
    return random.Random(seed).random
