# SPDX-License-Identifier: Apache-2.0
"""The parts of a waypoint on loopback, without tunnels: plain TCP in, endpoints of 127.0.0.x out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

from mesh.model.destination import DestinationPolicy, EndpointLabels
from mesh.model.route import RouteTable
from mesh.model.service import AppProtocol, Service, ServicePort
from mesh.model.workload import NamespacedHostname, PortMap, TunnelProtocol, Workload
from mesh.net.relay import TcpEnd
from mesh.net.sockets import Peer, parse_sockaddr
from mesh.telemetry.reasons import Reason
from mesh.xds.destinations import (
    DESTINATION_TYPE,
    ENDPOINT_LABELS_TYPE,
    destination_policy_name,
    encode_destination_policy,
    encode_endpoint_labels,
)
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE, Resource, Update
from mesh.xds.routes import ROUTE_TABLE_TYPE, encode_route_table, route_table_name
from waypoint.app import App
from waypoint.config import read_config
from waypoint.proxy.server1 import Http1Server
from waypoint.proxy.server2 import Http2Server
from waypoint.requests import Requests
from waypoint.stream import ClientStream
from waypoint.telemetry import Client, Destination

WEB = NamespacedHostname(namespace="shop", hostname="web.shop.svc.cluster.local")
VIP = ip_address("10.96.0.20")


@dataclass(eq=False)
class Waypoint:
    """A waypoint whose clients connect by plain TCP to `port` and mean service WEB, port 80."""

    app: App
    declared: AppProtocol
    ends: list[TcpEnd] = field(default_factory=list)
    port: int = 0
    port2: int = 0
    """The same for clients that speak HTTP/2."""
    tcp_port: int = 0
    """The same for clients that speak something else."""

    # --- configuration, as the controller would send it

    def take(self, type_url: str, values: Mapping[str, bytes], removed: Iterable[str] = ()) -> None:
        """Apply resources."""
        upserted = tuple(Resource(name, "1", value) for name, value in values.items())
        rejected = self.app._updated(Update(type_url=type_url, upserted=upserted, removed=tuple(removed)))
        assert not rejected, rejected

    def endpoints(self, *ports: int, weights: Mapping[int, int] | None = None) -> None:
        """Make 127.0.0.1 with these ports the endpoints of WEB, in place of those before."""
        service = Service(
            name="web",
            namespace="shop",
            hostname=WEB.hostname,
            ports=(ServicePort(service_port=80, target_port=1, app_protocol=self.declared),),
        )
        wanted = [endpoint(port, (weights or {}).get(port, 1)) for port in ports]
        known = set(self.app.tables.store.workloads)
        self.take(
            ADDRESS_TYPE,
            {resource_name(each): encode_address(each) for each in (service, *wanted)},
            known - {each.uid for each in wanted},
        )

    def policy(self, policy: DestinationPolicy | None) -> None:
        """Set the destination policy of WEB."""
        if policy is None:
            self.take(DESTINATION_TYPE, {}, [str(WEB)])
        else:
            self.take(DESTINATION_TYPE, {destination_policy_name(policy): encode_destination_policy(policy)})

    def labels(self, labels: Mapping[int, Mapping[str, str]]) -> None:
        """Set the labels of endpoints, by their port."""
        made = {
            uid(port): encode_endpoint_labels(
                EndpointLabels(uid=uid(port), labels=tuple(sorted(values.items())))
            )
            for port, values in labels.items()
        }
        self.take(ENDPOINT_LABELS_TYPE, made)

    def routes(self, table: RouteTable) -> None:
        """Set the routes of WEB."""
        self.take(ROUTE_TABLE_TYPE, {route_table_name(table): encode_route_table(table)})

    # --- clients

    def client(self, end: TcpEnd) -> Client:
        """Name one client."""
        assert end.transport is not None
        peer = parse_sockaddr(end.transport.get_extra_info("peername"))
        identity = "spiffe://cluster.local/ns/shop/sa/client"
        return Client(identity=identity, namespace="shop", peer=peer, workload=None)

    def requests(self, end: TcpEnd) -> Requests:
        """Make what serves one client."""
        service = self.app.tables.service(WEB)
        destination = Destination(service=service, workload=None, peer=Peer(VIP, 80))
        return Requests(self.app.proxy, self.client(end), destination)

    def accepted(self, end: TcpEnd) -> None:
        """Serve a client of HTTP/1.1."""
        self.ends.append(end)
        server = Http1Server(
            service=self.requests(end), call_later=self.app.proxy.call_later, on_closed=lambda: None
        )
        server.start(end, server)
        end.start(server, server)

    def accepted2(self, end: TcpEnd) -> None:
        """Serve a client of HTTP/2."""
        self.ends.append(end)
        requests = self.requests(end)
        requests.http2 = True
        server = Http2Server(service=requests, call_later=self.app.proxy.call_later, on_closed=lambda: None)
        server.start(end, server)
        end.start(server, server)

    def accepted_tcp(self, end: TcpEnd) -> None:
        """Serve a client that speaks no HTTP."""
        self.ends.append(end)
        service = self.app.tables.service(WEB)
        stream = ClientStream(
            self.app.proxy,
            end,  # type: ignore[arg-type]
            self.client(end),
            Destination(service=service, workload=None, peer=Peer(VIP, 80)),
            tasks=self.app._tasks,
            on_closed=lambda _: None,
        )
        stream.serve(AppProtocol.TCP)

    def series(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the values of a metric by label set."""
        self.app.proxy.upstreams.tick()
        self.app._collect()
        return {labels: values[0] for metric, labels, values in self.app._totals if metric.name == name}


class Tunnel(TcpEnd):
    """A client's connection in place of its tunnel."""

    def accept(self) -> None:
        """Answer 200: a connection is accepted already."""

    def refuse(self, status: int, reason: Reason) -> None:
        """Answer with an error: there is a reset for that."""
        self.abort(reason)


def uid(port: int) -> str:
    """Name the endpoint on a port."""
    return f"Kubernetes//v1/Pod/shop/web-{port}"


def endpoint(port: int, weight: int = 1) -> Workload:
    """Build the endpoint of WEB on a port of 127.0.0.1."""
    return Workload(
        uid=uid(port),
        name=f"web-{port}",
        namespace="shop",
        addresses=(ip_address("127.0.0.1"),),
        tunnel_protocol=TunnelProtocol.NONE,
        capacity=weight,
        services={WEB: PortMap(ports={80: port})},
    )


@asynccontextmanager
async def waypoint(
    declared: AppProtocol = AppProtocol.HTTP11, *, ingress: bool = False
) -> AsyncIterator[Waypoint]:
    """Run the parts of a waypoint or an ingress gateway; no controller, no tunnels."""
    app = App(
        read_config(
            {
                "POD_NAME": "wp-1",
                "POD_NAMESPACE": "shop",
                "SERVICE_ACCOUNT": "wp",
                "NODE_NAME": "n1",
                "GATEWAY_NAME": "wp",
                "GATEWAY_MODE": "ingress" if ingress else "waypoint",
                "XDS_ADDRESS": "https://localhost:1",
                "XDS_ROOT_CA": "/nonexistent",
                "AUTH_TOKEN": "/nonexistent",
            }
        )
    )
    made = Waypoint(app, declared)
    loop = asyncio.get_running_loop()
    servers = [
        await loop.create_server(lambda: TcpEnd(made.accepted), "127.0.0.1", 0),
        await loop.create_server(lambda: TcpEnd(made.accepted2), "127.0.0.1", 0),
        await loop.create_server(lambda: Tunnel(made.accepted_tcp), "127.0.0.1", 0),
    ]
    made.port, made.port2, made.tcp_port = (server.sockets[0].getsockname()[1] for server in servers)
    try:
        yield made
    finally:
        for server in servers:
            server.close()
        for end in made.ends:
            end.abort(Reason.LOCAL_CLOSE)
        app.proxy.pool.close_idle()
        app.proxy.pool2.close_idle()
        await app._tasks.close()
        await app.certificates.close()
        while not all(end.closed for end in made.ends):
            await asyncio.sleep(0)
