# SPDX-License-Identifier: Apache-2.0
"""What a waypoint needs around it, as a process: `python -m bench.waypoint_control DIR APP_ADDRESS APP_PORT`.

Serves configuration and certificates over real gRPC, writes the identities of the client's
and the application's ends below DIR, then prints the two ports.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import uvloop

from mesh.model.route import Backend, PathKind, PathMatch, RequestMatch, Retry, RouteRule, RouteTable
from mesh.model.workload import GatewayAddress
from mesh.testing.builders import hostname, service, workload
from mesh.testing.fake_ca import FakeCa, FakeCaServer
from mesh.testing.fake_xds import FakeXds
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE
from mesh.xds.routes import ROUTE_TABLE_TYPE, encode_route_table, route_table_name

VIP = "10.0.0.1"
POD = {"POD_NAME": "waypoint", "POD_NAMESPACE": "shop", "SERVICE_ACCOUNT": "waypoint", "NODE_NAME": "n1"}


def table() -> RouteTable:
    """Return three routes to one service; requests take the last."""
    backend = Backend(service=hostname("app"), port=80)
    retry = Retry(attempts=2, status_codes=(502, 503), on_reset=True)
    paths = ("/a", "/b", "/")
    return RouteTable(
        service=hostname("app"),
        port=80,
        rules=tuple(
            RouteRule(
                source=f"HTTPRoute/shop/bench#{index}",
                matches=(RequestMatch(path=PathMatch(kind=PathKind.SEGMENT_PREFIX, value=path)),),
                backends=(backend,),
                request_timeout_s=15.0,
                retry=retry,
            )
            for index, path in enumerate(paths)
        ),
    )


async def serve(directory: Path, app_address: str, app_port: int) -> None:
    """Serve until terminated."""
    ca = FakeCa()
    for name in ("client", "app", "waypoint"):
        certificate = ca.issue(f"spiffe://cluster.local/ns/shop/sa/{name}")
        target = directory / name
        target.mkdir()
        (target / "leaf.crt").write_bytes(b"".join(certificate.chain_pem))
        (target / "leaf.key").write_bytes(certificate.key_pem)
        (target / "leaf-ca.crt").write_bytes(certificate.roots_pem)
    xds, authority = FakeXds(ca), FakeCaServer(ca)
    gateway = GatewayAddress(destination=hostname("waypoint"), hbone_mtls_port=15008)
    objects = (
        workload("waypoint", "127.0.0.4", services={"waypoint": {15008: 15008}}),
        service("waypoint", "10.0.0.2", ports={15008: 15008}),
        workload("app", app_address, services={"app": {80: app_port}}),
        replace(service("app", VIP, ports={80: app_port}), waypoint=gateway),
    )
    xds.put(ADDRESS_TYPE, {resource_name(value): encode_address(value) for value in objects})
    routes = table()
    xds.put(ROUTE_TABLE_TYPE, {route_table_name(routes): encode_route_table(routes)})
    await xds.start()
    await authority.start()
    (directory / "roots.pem").write_bytes(ca.roots_pem)
    (directory / "token").write_text("bench")
    print(xds.port, authority.address.rpartition(":")[2], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
