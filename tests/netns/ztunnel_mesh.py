# SPDX-License-Identifier: Apache-2.0
"""Two or more pods served by data planes in this process, captured by netfilter: no BPF, no controller."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from ipaddress import ip_address

import pytest
import uvloop

from mesh.hbone.driver import HboneConnection, Role
from mesh.hbone.limits import Limits
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import SpiffeId
from mesh.identity.tls import client_context
from mesh.model.address import IPAddress
from mesh.model.policy import Authorization
from mesh.model.service import Service, ServicePort
from mesh.model.workload import NamespacedHostname, NetworkAddress, PortMap, TunnelProtocol, Workload
from mesh.runtime.clock import SystemClock
from mesh.telemetry.metrics import Metric
from mesh.telemetry.reasons import Reason
from mesh.telemetry.series import Totals
from mesh.testing.fake_ca import FakeCa
from mesh.testing.netns import Fabric, PodNet, preserve_sources, redirect
from mesh.xds.encode import encode_address, encode_authorization, resource_name
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Resource, Update
from tests.support.kernel import needs_nftables
from ztunnel.config import DataPlaneConfig
from ztunnel.data_plane import DataPlane
from ztunnel.netns import PodNamespace
from ztunnel.plane import PodInfo

needs_root = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: network namespaces"),
    needs_nftables,  # `redirect` is netfilter's
]
MARK = 0x77
"""Mark of sockets that are captured."""


def scenario(test: Callable[..., Coroutine[object, object, None]]) -> Callable[..., None]:
    """Run a coroutine test on uvloop, as the data plane runs."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        uvloop.run(test(**fixtures))

    # pytest looks at the wrapped function to tell coroutines from tests; it keeps the signature.
    return run


class Mesh:
    """Pods, their workloads and one data plane a node."""

    def __init__(self, fabric: Fabric, ca: FakeCa) -> None:
        self.fabric = fabric
        self.ca = ca
        self.nets: dict[str, PodNet] = {}
        self.planes: dict[str, DataPlane] = {}
        self.workloads: dict[str, Workload] = {}
        self.updates: list[Update] = []
        self.synced = True
        """Whether nodes are told at once that they have all there is."""
        self.limits = Limits()
        """Bounds of the HBONE connections of nodes started from now on."""
        self.resolvers: dict[int, tuple[IPAddress, ...]] = {}
        """netns cookie -> nameservers."""
        self._spaces: dict[str, PodNamespace] = {}
        self._servers: list[asyncio.Server] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._connections: list[HboneConnection] = []
        self._totals: dict[str, Totals] = {}

    def node(self, name: str, **config: object) -> DataPlane:
        """Start a data plane that gets all state so far and to come."""
        plane: DataPlane

        def want(identity: SpiffeId) -> None:
            plane.certificates.put(self.ca.issue(identity))

        plane = DataPlane(
            DataPlaneConfig(node_name=name, workload_wait_s=0.5, **config),  # type: ignore[arg-type]
            clock=SystemClock(),
            want_certificate=want,
            limits=self.limits,
            resolvers=lambda cookie: self.resolvers.get(cookie, ()),
        )
        for update in self.updates:
            plane.apply(update)
        if self.synced:
            plane.apply(Update(type_url=ADDRESS_TYPE))
            plane.apply(Update(type_url=AUTHORIZATION_TYPE))
        self.planes[name] = plane
        return plane

    def net(self, name: str) -> PodNet:
        """Make a pod's namespace only: a pod outside the mesh."""
        net = self.nets[name] = self.fabric.pod(name)
        self._spaces[name] = PodNamespace(net.open())
        return net

    async def pod(self, name: str, node: str, *, known: bool = True, **values: object) -> Workload:
        """Make a meshed pod; `known=False` keeps its workload from everyone."""
        net = self.net(name)
        preserve_sources(net)
        redirect(net, mark=MARK)
        plane = self.planes.get(node) or self.node(node)
        workload = self.workload(name, node, net, **values)
        if known:
            self.apply(workload)
        info = PodInfo(
            uid=f"pod-{name}", name=name, namespace="default", service_account=workload.service_account
        )
        await plane.add_pod(info, net.open())
        return workload

    def workload(self, name: str, node: str, net: PodNet, **values: object) -> Workload:
        """Describe a pod of namespace `default`."""
        fields: dict[str, object] = {
            "uid": f"Kubernetes//v1/Pod/default/{name}",
            "name": name,
            "namespace": "default",
            "service_account": name,
            "addresses": (net.ipv4, net.ipv6),
            "node": node,
            "tunnel_protocol": TunnelProtocol.HBONE,
            "workload_name": name,
            "canonical_name": name,
            "canonical_revision": "v1",
        }
        workload = Workload(**(fields | values))  # type: ignore[arg-type]
        self.workloads[name] = workload
        return workload

    def apply(self, *values: Workload | Service | Authorization) -> None:
        """Send resources to every node, encoded as xDS carries them."""
        addresses = tuple(
            Resource(resource_name(v), "1", encode_address(v))
            for v in values
            if not isinstance(v, Authorization)
        )
        policies = tuple(
            Resource(resource_name(v), "1", encode_authorization(v))
            for v in values
            if isinstance(v, Authorization)
        )
        for type_url, resources in ((ADDRESS_TYPE, addresses), (AUTHORIZATION_TYPE, policies)):
            if resources:
                self._send(Update(type_url=type_url, upserted=resources))

    def remove(self, type_url: str, *names: str) -> None:
        """Take resources back by name."""
        self._send(Update(type_url=type_url, removed=names))

    def _send(self, update: Update) -> None:
        self.updates.append(update)
        for plane in self.planes.values():
            plane.apply(update)

    def space(self, name: str) -> PodNamespace:
        """Return a pod's namespace."""
        return self._spaces[name]

    def socket(
        self, name: str, family: socket.AddressFamily = socket.AF_INET, *, captured: bool = True
    ) -> socket.socket:
        """Make a TCP socket of a pod's process."""
        sock = self._spaces[name].socket(family, socket.SOCK_STREAM)
        if captured:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        return sock

    async def connect(
        self, name: str, host: object, port: int, *, captured: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a process of the pod."""
        family = socket.AF_INET6 if ip_address(str(host)).version == 6 else socket.AF_INET
        sock = self.socket(name, family, captured=captured)
        try:
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_connect(sock, (str(host), port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock)

    def closing(self, writer: asyncio.StreamWriter) -> None:
        """Close this connection at the end, whatever fails before it."""
        self._writers.append(writer)

    async def ask(
        self, name: str, host: object, port: int, data: bytes = b"hello", *, captured: bool = True
    ) -> bytes:
        """Send bytes and the end, return all that comes back; b'' when it was reset."""
        reader, writer = await self.connect(name, host, port, captured=captured)
        try:
            async with asyncio.timeout(10):
                writer.write(data)
                writer.write_eof()
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def serve(self, name: str, port: int, *, host: str = "::") -> list[str]:
        """Run an echo server that answers `PEER-IP|...`; return the list of its peers."""
        peers: list[str] = []

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = str(writer.get_extra_info("peername")[0]).removeprefix("::ffff:")
            peers.append(peer)
            try:
                writer.write(f"{name} {peer}|".encode())
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                writer.write_eof()
            except ConnectionError:
                pass
            finally:
                writer.close()

        await self.listen(name, port, echo, host=host)
        return peers

    async def listen(self, name: str, port: int, handler: Callable[..., object], *, host: str = "::") -> None:
        """Run any server inside a pod."""
        sock = self._spaces[name].socket(socket.AF_INET6, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_IPV6, 26, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
        self._servers.append(await asyncio.start_server(handler, sock=sock))  # type: ignore[arg-type]

    def service(
        self, name: str, vip: str, port: int, target: int, members: Iterable[str], **values: object
    ) -> Service:
        """Publish a service with one port and these members."""
        fields: dict[str, object] = {
            "name": name,
            "namespace": "default",
            "hostname": f"{name}.default.svc.cluster.local",
            "addresses": (NetworkAddress(network="", address=ip_address(vip)),) if vip else (),
            "ports": (ServicePort(service_port=port, target_port=target),),
        }
        service = Service(**(fields | values))  # type: ignore[arg-type]
        self.apply(service)
        for member in members:
            self.join_service(member, service, {port: target})
        return service

    def join_service(self, member: str, service: Service, ports: dict[int, int]) -> None:
        """Make a pod an endpoint of a service."""
        old = self.workloads[member]
        services = dict(old.services)
        services[NamespacedHostname(namespace=service.namespace, hostname=service.hostname)] = PortMap(
            ports=ports
        )
        self.workloads[member] = dataclasses.replace(old, services=services)
        self.apply(self.workloads[member])

    def change(self, name: str, **values: object) -> Workload:
        """Change a pod's workload and send it."""
        self.workloads[name] = dataclasses.replace(self.workloads[name], **values)  # type: ignore[arg-type]
        self.apply(self.workloads[name])
        return self.workloads[name]

    async def hbone(self, name: str, address: object, identity: str | WorkloadCertificate) -> HboneConnection:
        """Open an HBONE connection to a pod from inside another one, with any identity."""
        certificate = self.ca.issue(identity) if isinstance(identity, str) else identity
        family = socket.AF_INET6 if ip_address(str(address)).version == 6 else socket.AF_INET
        sock = self.socket(name, family, captured=False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (str(address), 15008))
        except BaseException:
            sock.close()
            raise
        connection = HboneConnection(
            role=Role.CLIENT,
            limits=Limits(),
            on_request=None,
            on_close=lambda _c, _r: None,
            clock=SystemClock(),
        )
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection, sock=sock, ssl=client_context(certificate), server_hostname=""
            )
        except BaseException:
            sock.close()
            raise
        self._connections.append(connection)
        return connection

    async def status(self, name: str, address: object, identity: str, authority: str) -> int:
        """Ask for one tunnel and return the answer's status."""
        connection = await self.hbone(name, address, identity)
        async with asyncio.timeout(5):
            response = await connection.open_tunnel(authority, ()).opened
        return response.status

    def values(self, node: str, metric: Metric) -> dict[tuple[str, ...], float]:
        """Return what a node counted so far."""
        totals = self._totals.setdefault(node, Totals(max_series=1000))
        totals.apply(node, self.planes[node].recorder.take(), 0.0)
        return {labels: values[0] for each, labels, values in totals if each is metric}

    async def close(self) -> None:
        """Stop servers and data planes."""
        for writer in self._writers:
            writer.close()
        for connection in self._connections:
            connection.close(Reason.LOCAL_CLOSE)
        for server in self._servers:
            server.close()
        for plane in self.planes.values():
            await plane.drain(0)
        for space in self._spaces.values():
            space.close()


@contextlib.asynccontextmanager
async def mesh(prefix: str, ca: FakeCa | None = None) -> AsyncIterator[Mesh]:
    """Run a mesh for one test and clean up behind it."""
    with Fabric(prefix) as fabric:
        made = Mesh(fabric, ca or FakeCa())
        try:
            yield made
        finally:
            await made.close()
