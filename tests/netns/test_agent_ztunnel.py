# SPDX-License-Identifier: Apache-2.0
"""The node agent, the BPF programs and the real ztunnel on one node; controller and CA are doubles."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
from agent_bed import Bed, Pod, ask, inside
from ztunnel_process import FakeAuthority

from mesh.model.policy import Action, Authorization, Match, Scope, StringMatch, StringMatchKind
from mesh.model.workload import TunnelProtocol, Workload
from mesh.testing.fake_ca import FakeCa
from mesh.testing.fake_xds import FakeXds
from mesh.xds.encode import encode_address, encode_authorization, resource_name
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    try:
        yield made
    finally:
        made.close()


class World:
    """Controller and authority inside the node's namespace, ztunnel as a process in its cgroup."""

    def __init__(self, bed: Bed) -> None:
        self.bed = bed
        self.ca = FakeCa()
        self.xds = FakeXds(self.ca)
        self.authority = FakeAuthority(self.ca)

    async def start(self) -> None:
        (self.bed.directory / "root.pem").write_bytes(self.ca.roots_pem)
        (self.bed.directory / "token").write_text("node-token\n")
        await self.xds.start()
        await self.authority.start()
        await asyncio.to_thread(self.bed.start_agent)
        self.start_ztunnel()
        await self.until(lambda: self.bed.agent_state("/healthz/ready") == "ready")

    def start_ztunnel(self, **more: str) -> None:
        bed, directory = self.bed, self.bed.directory
        bed.ztunnel = bed.spawn(
            "nsenter",
            f"--net=/run/netns/{bed.node}",
            sys.executable,
            "-m",
            "ztunnel",
            cgroup=bed.ztunnel_cgroup,
            log="ztunnel.log",
            env={
                "NODE_NAME": "n1",
                "INPOD_UDS": bed.settings["INPOD_UDS"],
                "AMBIT_BPFFS": str(bed.bpffs),
                "XDS_ADDRESS": f"https://{self.xds.address}",
                "XDS_ROOT_CA": str(directory / "root.pem"),
                "CA_ADDRESS": f"https://localhost:{self.authority.port}",
                "CA_ROOT_CA": str(directory / "root.pem"),
                "AUTH_TOKEN": str(directory / "token"),
                **more,
            },
        )

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait without stopping the doubles, which run on this loop."""
        try:
            return await asyncio.to_thread(eventually, condition)
        except AssertionError as error:
            logs = "".join(
                f"\n--- {name}\n{self.bed.log(name)[-4000:]}" for name in ("agent.log", "ztunnel.log")
            )
            raise AssertionError(f"{error}{logs}") from error

    async def pod(self, name: str) -> Pod:
        """Run a pod, tell the controller of it once it is enrolled, as a controller would."""
        pod = await asyncio.to_thread(Pod, self.bed, name)
        self.bed.write(pod.object())
        await self.until(lambda: self.bed.pod_state(pod).get("state") == "enrolled")
        await self.until(lambda: self.bed.enrollment(pod))
        workload = Workload(
            uid=f"Kubernetes//v1/Pod/shop/{name}",
            name=name,
            namespace="shop",
            service_account=name,
            addresses=(ip_address(pod.ip), ip_address(pod.ip6)),
            node="n1",
            tunnel_protocol=TunnelProtocol.HBONE,
            workload_name=name,
            canonical_name=name,
        )
        self.xds.put(ADDRESS_TYPE, {resource_name(workload): encode_address(workload)})
        return pod

    async def call(self, pod: Pod, address: str, port: int = 8080) -> str:
        return await asyncio.to_thread(pod.call, address, port)

    async def from_node(self, address: str, port: int = 8080) -> str:
        return await asyncio.to_thread(inside, self.bed.node, lambda: ask(address, port))

    async def stop(self) -> None:
        await self.xds.stop()
        await self.authority.stop()


def run(bed: Bed, scenario: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with its loop, and so the doubles, in the node's namespace."""

    async def body() -> None:
        world = World(bed)
        try:
            await world.start()
            await scenario(world)
        finally:
            await world.stop()

    inside(bed.node, lambda: asyncio.run(body()))


def strict() -> Authorization:
    """PeerAuthentication STRICT as the controller sends it."""
    anybody = StringMatch(kind=StringMatchKind.PRESENCE)
    return Authorization(
        name="istio_converted_static_strict",
        namespace="istio-system",
        scope=Scope.GLOBAL,
        action=Action.DENY,
        rules=(((Match(not_principals=(anybody,)),),),),
    )


def test_bytes_go_through_both_ends_and_the_application_sees_its_client(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web, client = await world.pod("web"), await world.pod("client")
        assert await world.call(client, web.ip) == f"app web from {client.ip}"
        assert await world.call(client, web.ip6) == f"app web from {client.ip6}"
        await world.until(
            lambda: 'dst.identity="spiffe://cluster.local/ns/shop/sa/web"' in bed.log("ztunnel.log")
        )
        assert await world.from_node(web.ip) == f"app web from {bed.gateway}"

        world.xds.put(AUTHORIZATION_TYPE, {resource_name(strict()): encode_authorization(strict())})
        await world.until(lambda: "app" not in inside(bed.node, lambda: ask(web.ip, 8080)))
        assert await world.call(client, web.ip) == f"app web from {client.ip}"
        # The kubelet's probe is no connection of an outsider.
        probe = await asyncio.to_thread(bed.ask_from, bed.node, bed.system, 8080, web.ip)
        assert probe == f"app web from {bed.gateway}"

    run(bed, scenario)


def test_a_label_flip_moves_a_running_pod_out_and_back(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web = await world.pod("web")
        assert web.process is not None
        pid = web.process.pid
        world.xds.put(AUTHORIZATION_TYPE, {resource_name(strict()): encode_authorization(strict())})
        await world.until(lambda: "app" not in inside(bed.node, lambda: ask(web.ip, 8080)))
        bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
        await world.until(lambda: bed.pod_state(web).get("state") == "ignored")
        assert await world.from_node(web.ip) == f"app web from {bed.gateway}"
        bed.write(web.object())
        await world.until(lambda: bed.pod_state(web).get("state") == "enrolled")
        await world.until(lambda: "app" not in inside(bed.node, lambda: ask(web.ip, 8080)))
        assert web.process.pid == pid
        assert web.process.poll() is None

    run(bed, scenario)


def test_ztunnel_and_agent_are_killed_in_turn_and_traffic_comes_back(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web, client = await world.pod("web"), await world.pod("client")
        expected = f"app web from {client.ip}"
        assert await world.call(client, web.ip) == expected

        assert bed.agent is not None
        bed.agent.kill()
        await asyncio.to_thread(bed.agent.wait, 10)
        assert await world.call(client, web.ip) == expected
        await asyncio.to_thread(bed.start_agent)
        await world.until(lambda: bed.pod_state(web).get("state") == "enrolled")
        assert await world.call(client, web.ip) == expected

        assert bed.ztunnel is not None
        bed.ztunnel.kill()
        await asyncio.to_thread(bed.ztunnel.wait, 10)
        world.start_ztunnel()
        await world.until(lambda: bed.pod_state(web).get("state") == "enrolled")
        await world.until(lambda: bed.pod_state(client).get("state") == "enrolled")
        await world.until(lambda: client.call(web.ip, 8080) == expected)

    run(bed, scenario)


def test_an_upgrade_of_ztunnel_refuses_no_connection(bed: Bed) -> None:
    async def scenario(world: World) -> None:
        web, client = await world.pod("web"), await world.pod("client")
        expected = f"app web from {client.ip}"
        answers: list[str] = []
        stop = asyncio.Event()

        async def keep_calling() -> None:
            while not stop.is_set():
                answers.append(await world.call(client, web.ip))

        calling = asyncio.get_running_loop().create_task(keep_calling())
        old = bed.ztunnel
        assert old is not None
        await world.until(lambda: len(answers) > 2)
        world.start_ztunnel(
            AMBIT_ADMIN_ADDR="127.0.0.1:25000",
            AMBIT_METRICS_ADDR="127.0.0.1:25020",
            AMBIT_READINESS_ADDR="127.0.0.1:25021",
        )
        await world.until(lambda: len(bed.agent_state("/ztunnel")) == 2)
        await world.until(lambda: bed.agent_state("/ztunnel")[-1]["ready"])
        assert bed.agent_state("/ztunnel")[-1]["pods"] == 2
        seen = len(answers)
        await world.until(lambda: len(answers) > seen + 2)
        old.terminate()
        await asyncio.to_thread(old.wait, 45)
        await world.until(lambda: len(bed.agent_state("/ztunnel")) == 1)
        seen = len(answers)
        await world.until(lambda: len(answers) > seen + 2)
        stop.set()
        await calling
        assert set(answers) == {expected}
        assert bed.pod_state(web)["state"] == "enrolled"

    run(bed, scenario)
