# SPDX-License-Identifier: Apache-2.0
"""Real `python -m ztunnel` processes with a scripted node agent, controller and authority."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict

from mesh.model.policy import Authorization
from mesh.model.service import Service
from mesh.model.workload import TunnelProtocol, Workload
from mesh.proto import ca_pb2
from mesh.testing.fake_ca import FakeCa
from mesh.testing.fake_xds import FakeXds
from mesh.testing.netns import Fabric, PodNet, preserve_sources, redirect
from mesh.xds.encode import encode_address, encode_authorization, resource_name
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE
from mesh.zds.connection import ZdsPeer, ZdsServer
from mesh.zds.messages import AddWorkload
from tests.support.eventually import PATIENCE
from ztunnel.netns import PodNamespace

MARK = 0x77


class FakeAuthority:
    """CreateCertificate over TLS; signs whatever is asked and notes who asked for whom."""

    def __init__(self, ca: FakeCa, *, ttl_s: float | None = None) -> None:
        self.ca = ca
        self.ttl_s = ttl_s
        self.port = 0
        self.asked: list[dict[str, object]] = []
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen on a free loopback port."""
        server = grpc.aio.server()
        handler = grpc.unary_unary_rpc_method_handler(
            self._create,
            request_deserializer=ca_pb2.IstioCertificateRequest.FromString,
            response_serializer=ca_pb2.IstioCertificateResponse.SerializeToString,
        )
        service = "istio.v1.auth.IstioCertificateService"
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {"CreateCertificate": handler}),)
        )
        credentials = grpc.ssl_server_credentials([self.ca.server_pair("localhost")])
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        self._server = server

    async def _create(self, request: object, context: grpc.aio.ServicerContext) -> object:
        assert isinstance(request, ca_pb2.IstioCertificateRequest)
        metadata = MessageToDict(request.metadata)
        headers = {str(k): str(v) for k, v in context.invocation_metadata() or ()}
        self.asked.append(
            {"identity": metadata.get("ImpersonatedIdentity"), "token": headers.get("authorization")}
        )
        ttl_s = self.ttl_s or float(request.validity_duration)
        return ca_pb2.IstioCertificateResponse(cert_chain=self.ca.sign(request.csr, ttl_s=ttl_s))

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            await self._server.stop(None)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Node:
    """One ztunnel process and its agent."""

    def __init__(self, name: str, directory: Path, world: World) -> None:
        self.name = name
        self.directory = directory
        self.world = world
        self.admin, self.metrics, self.readiness = free_port(), free_port(), free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.log = directory / f"{name}.log"
        self.pods: dict[str, tuple[AddWorkload, PodNet]] = {}
        self.peers: list[ZdsPeer] = []
        self.errors: dict[str, str] = {}
        self.zds = ZdsServer(directory / f"{name}.sock", on_open=self._snapshot, on_close=self._closed)

    def environment(self, **more: str) -> dict[str, str]:
        """What the process is told."""
        world = self.world
        return {
            "PATH": os.environ["PATH"],
            "NODE_NAME": self.name,
            "INPOD_UDS": str(self.zds.path),
            "XDS_ADDRESS": f"https://{world.xds.address}",
            "XDS_ROOT_CA": str(world.directory / "root.pem"),
            "CA_ADDRESS": f"https://localhost:{world.authority.port}",
            "CA_ROOT_CA": str(world.directory / "root.pem"),
            "AUTH_TOKEN": str(world.directory / "token"),
            "AMBIT_ADMIN_ADDR": f"127.0.0.1:{self.admin}",
            "AMBIT_METRICS_ADDR": f"127.0.0.1:{self.metrics}",
            "AMBIT_READINESS_ADDR": f"127.0.0.1:{self.readiness}",
            "AMBIT_WORKERS": "2",
            "AMBIT_WORKLOAD_WAIT_S": "1",
            **more,
        }

    async def start(self, **more: str) -> None:
        """Start the process; does not wait for it to be ready."""
        if self.process is None and not self.zds.path.exists():
            await self.zds.start()
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-X",
                "dev",
                "-m",
                "ztunnel",
                env=self.environment(**more),
                stdout=log,
                stderr=log,
            )

    async def ready(self, deadline_s: float = 20) -> None:
        """Wait until it says that it is ready."""
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_s * PATIENCE
        answer = ""
        while loop.time() < end:
            assert self.process is not None
            assert self.process.returncode is None, self.log.read_text()
            try:
                status, answer = await self.get(self.readiness, "/healthz/ready")
            except OSError:
                status = 0
            if status == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{self.name} is not ready: {answer}\n{self.log.read_text()}")

    async def get(self, port: int, path: str, method: str = "GET") -> tuple[int, str]:
        """Make one request to an HTTP port."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0"
            writer.write(f"{head}\r\n\r\n".encode())
            data = await reader.read()
        finally:
            writer.close()
        answer, _, body = data.partition(b"\r\n\r\n")
        return int(answer.split(b" ")[1]), body.decode()

    async def json(self, path: str) -> dict[str, object]:
        """Read one admin page."""
        status, body = await self.get(self.admin, path)
        assert status == 200, body
        value = json.loads(body)
        assert isinstance(value, dict)
        return value

    async def stop(self, number: int = signal.SIGTERM, deadline_s: float = 15) -> int:
        """Send a signal and wait for the end; return the exit code."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        async with asyncio.timeout(deadline_s):
            return await self.process.wait()

    async def close(self) -> None:
        """End the process and the agent."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
        await self.zds.close()

    # --- the agent

    async def new_agent(self) -> None:
        """Start another agent on the same socket, as after a restart."""
        self.zds = ZdsServer(self.zds.path, on_open=self._snapshot, on_close=self._closed)
        await self.zds.start()

    async def _snapshot(self, peer: ZdsPeer) -> None:
        for add, net in self.pods.values():
            await self._send(peer, add, net)
        await peer.snapshot_sent()
        self.peers.append(peer)

    def _closed(self, peer: ZdsPeer, _why: str) -> None:
        if peer in self.peers:
            self.peers.remove(peer)

    async def _send(self, peer: ZdsPeer, add: AddWorkload, net: PodNet) -> None:
        fd = net.open()
        try:
            self.errors[add.uid] = await peer.add(add, fd)
        finally:
            os.close(fd)

    async def add(self, name: str, net: PodNet, service_account: str) -> str:
        """Hand over one pod; return the answer's error."""
        add = AddWorkload(uid=f"pod-{name}", name=name, namespace="default", service_account=service_account)
        self.pods[add.uid] = (add, net)
        for peer in self.peers:
            await self._send(peer, add, net)
        return self.errors.get(add.uid, "")

    async def delete(self, name: str) -> None:
        """Take one pod back."""
        self.pods.pop(f"pod-{name}", None)
        for peer in self.peers:
            await peer.delete(f"pod-{name}")


class World:
    """Controller, authority, fabric and nodes of one test."""

    def __init__(self, fabric: Fabric, directory: Path) -> None:
        self.fabric = fabric
        self.directory = directory
        self.ca = FakeCa()
        self.xds = FakeXds(self.ca)
        self.authority = FakeAuthority(self.ca)
        self.nodes: dict[str, Node] = {}
        self.workloads: dict[str, Workload] = {}
        self._spaces: dict[str, PodNamespace] = {}
        self._servers: list[asyncio.Server] = []

    async def start(self) -> None:
        """Start controller and authority."""
        (self.directory / "root.pem").write_bytes(self.ca.roots_pem)
        (self.directory / "token").write_text("node-token\n")
        await self.xds.start()
        await self.authority.start()

    def node(self, name: str) -> Node:
        """Describe a node."""
        node = self.nodes[name] = Node(name, self.directory, self)
        return node

    async def pod(self, name: str, node: str, **values: object) -> PodNet:
        """Make a meshed pod."""
        net = self.fabric.pod(name)
        preserve_sources(net)
        redirect(net, mark=MARK)
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
        self.put(workload)
        error = await self.nodes[node].add(name, net, workload.service_account)
        assert error == "", error
        return net

    def put(self, *values: Workload | Service | Authorization) -> None:
        """Publish resources."""
        for value in values:
            if isinstance(value, Authorization):
                self.xds.put(AUTHORIZATION_TYPE, {resource_name(value): encode_authorization(value)})
            else:
                self.xds.put(ADDRESS_TYPE, {resource_name(value): encode_address(value)})

    def space(self, net: PodNet) -> PodNamespace:
        """Open a pod's namespace for sockets of its processes."""
        if net.netns not in self._spaces:
            self._spaces[net.netns] = PodNamespace(net.open())
        return self._spaces[net.netns]

    async def serve(self, net: PodNet, port: int) -> None:
        """Run an echo server in a pod."""
        sock = self.space(net).socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", port))
        sock.listen(64)

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while data := await reader.read(65536):
                    writer.write(data)
            except ConnectionError:
                pass
            finally:
                writer.close()

        self._servers.append(await asyncio.start_server(echo, sock=sock))

    async def connect(
        self, net: PodNet, host: object, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as a captured process of a pod."""
        sock = self.space(net).socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        try:
            async with asyncio.timeout(5):
                await asyncio.get_running_loop().sock_connect(sock, (str(host), port))
            return await asyncio.open_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    async def ask(self, net: PodNet, host: object, port: int, data: bytes = b"hello") -> bytes:
        """Send bytes and the end, return what comes back; b'' when it was refused."""
        try:
            reader, writer = await self.connect(net, host, port)
        except ConnectionError:
            return b""
        try:
            async with asyncio.timeout(8):
                writer.write(data)
                writer.write_eof()
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def close(self) -> None:
        """Stop everything."""
        for server in self._servers:
            server.close()
        for space in self._spaces.values():
            space.close()
        for node in self.nodes.values():
            await node.close()
        await self.xds.stop()
        await self.authority.stop()


@contextlib.asynccontextmanager
async def world(prefix: str, directory: Path) -> AsyncIterator[World]:
    """Run controller, authority and a fabric for one test."""
    with Fabric(prefix) as fabric:
        made = World(fabric, directory)
        try:
            await made.start()
            yield made
        finally:
            await made.close()
