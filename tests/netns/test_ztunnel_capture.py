# SPDX-License-Identifier: Apache-2.0
"""ztunnel behind the real capture programs: DNS as applications ask it, and clients that leave at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from agent_bed import Bed, Pod, inside
from dnslib import RR, A, DNSRecord
from test_agent_ztunnel import World, bed, run

from mesh.model.service import Service, ServicePort
from mesh.model.workload import NetworkAddress
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE

__all__ = ["bed"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]

ASK = """
import json, socket, sys
from dnslib import DNSRecord
server, kind, name, protocol = sys.argv[1:5]
question = bytes(DNSRecord.question(name, kind).pack())
family = socket.AF_INET6 if ":" in server else socket.AF_INET
if protocol == "tcp":
    s = socket.create_connection((server, 53), timeout=5)
    s.sendall(len(question).to_bytes(2, "big") + question)
    f = s.makefile("rb"); answer = f.read(int.from_bytes(f.read(2), "big")); peer = s.getpeername()
elif protocol == "connected":
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5); s.connect((server, 53))
    s.send(question); answer = s.recv(4096); peer = s.getpeername()
else:
    s = socket.socket(family, socket.SOCK_DGRAM); s.settimeout(5)
    s.sendto(question, (server, 53)); answer, peer = s.recvfrom(4096)
record = DNSRecord.parse(answer)
print(json.dumps([[str(r.rdata) for r in record.rr], peer[0], peer[1], record.header.aa]))
"""

CLOSERS = """
import socket, sys
host, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    s = socket.create_connection((host, 8081)); s.sendall(b"%d\\n" % number); s.close()
print("sent")
"""

COLLECT = """
import socket, sys, threading
seen, total = set(), int(sys.argv[1])
s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", 8081)); s.listen(1024)
print("listening", flush=True)
while len(seen) < total:
    c, p = s.accept()
    data = c.makefile("rb").readline(); c.close()
    if data: seen.add((int(data), p[0]))
print(len(seen), len({a for _, a in seen}), flush=True)
"""


async def in_pod(world: World, pod: Pod, script: str, *arguments: str) -> str:
    """Run a script as a process of the pod and return what it printed."""

    def work() -> str:
        process = world.bed.popen(
            "nsenter", f"--net=/run/netns/{pod.netns}", sys.executable, "-c", script, *arguments,
            cgroup=pod.cgroup, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        out, _ = process.communicate(timeout=60)
        return str(out.decode())

    return await asyncio.to_thread(work)


async def resolve(
    world: World, pod: Pod, server: str, name: str, protocol: str = "udp", kind: str = "A"
) -> Any:
    """Ask as the pod's resolver library would: (addresses, who answered, port, authoritative)."""
    out = await in_pod(world, pod, ASK, server, kind, name, protocol)
    assert out.startswith("["), out + world.bed.log("ztunnel.log")[-2000:]
    return json.loads(out)


class Upstream(asyncio.DatagramProtocol):
    """The nameserver on the node, which answers every name with one address."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        record = DNSRecord.parse(data)
        self.asked.append(str(record.q.qname))
        reply = record.reply()
        reply.add_answer(RR(record.q.qname, rdata=A("192.0.2.7")))
        self.transport.sendto(reply.pack(), addr)


def test_row_30_names_are_resolved_as_applications_ask_for_them(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        loop = asyncio.get_running_loop()
        transport, upstream = await loop.create_datagram_endpoint(Upstream, local_addr=(bed.gateway, 53))
        client = await world.pod("client")
        resolvers = ["10.96.0.10", bed.gateway]
        bed.write(client.object(annotations={"ambit.io/resolvers": ",".join(resolvers)}))
        await world.until(lambda: bed.pod_state(client).get("resolvers") == resolvers)
        made = Service(
            name="web",
            namespace="shop",
            hostname="web.shop.svc.cluster.local",
            addresses=(
                NetworkAddress(network="", address=ip_address("10.96.0.80")),
                NetworkAddress(network="", address=ip_address("fd96::80")),
            ),
            ports=(ServicePort(service_port=80, target_port=8080),),
        )
        world.xds.put(ADDRESS_TYPE, {resource_name(made): encode_address(made)})
        # Nothing answers at 10.96.0.10: only ztunnel can, and the application must not notice.
        for protocol in ("udp", "connected", "tcp"):
            answer = await resolve(world, client, "10.96.0.10", "web.shop.svc.cluster.local", protocol)
            assert answer == [["10.96.0.80"], "10.96.0.10", 53, 1], protocol
        answer = await resolve(world, client, "10.96.0.10", "web", kind="AAAA")
        assert answer[0] == ["fd96::80"]
        answer = await resolve(world, client, bed.gateway, "elsewhere.example")
        assert answer[:3] == [["192.0.2.7"], bed.gateway, 53]
        assert upstream.asked == ["elsewhere.example."]
        # A nameserver that is not the pod's own is none of ours.
        out = await in_pod(world, client, ASK, "10.96.0.99", "A", "web", "udp")
        assert "timed out" in out or "unreachable" in out
        transport.close()

    run(bed, scenario)


def test_a_thousand_clients_that_connect_send_and_close_all_arrive(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web, client = await world.pod("web"), await world.pod("client")
        server = asyncio.get_running_loop().create_task(in_pod(world, web, COLLECT, "1000"))
        await world.until(lambda: f":{8081:04X} 00000000:0000 0A" in _listening(web))
        assert await in_pod(world, client, CLOSERS, web.ip, "1000") == "sent\n"
        async with asyncio.timeout(60):
            # Each number once, and all from the client's own address.
            assert (await server).split() == ["listening", "1000", "1"]

    run(bed, scenario)


def _listening(pod: Pod) -> str:
    return inside(pod.netns, lambda: Path("/proc/thread-self/net/tcp").read_text())


def test_a_killed_worker_costs_its_connections_and_nothing_else(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web, client = await world.pod("web"), await world.pod("client")
        expected = f"app web from {client.ip}"
        assert await world.call(client, web.ip) == expected
        assert bed.ztunnel is not None
        children = Path(f"/proc/{bed.ztunnel.pid}/task/{bed.ztunnel.pid}/children").read_text().split()
        workers = [
            int(pid) for pid in children if b"ztunnel.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        # The other worker's listeners take everything, from the next connection on.
        answers = [await world.call(client, web.ip) for _ in range(20)]
        assert answers.count(expected) >= 19, answers  # One may meet the socket that is just closing.
        await world.until(lambda: bed.log("ztunnel.log").count("is up") == 3)
        assert {await world.call(client, web.ip) for _ in range(10)} == {expected}

    run(bed, scenario)
