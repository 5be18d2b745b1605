# SPDX-License-Identifier: Apache-2.0
"""Outbound rows of the ztunnel feature table, with real sockets in namespaces (captured by netfilter)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
from ztunnel_mesh import mesh, needs_root, scenario

from mesh.hbone.limits import Limits
from mesh.model.locality import Locality
from mesh.model.service import HealthPolicy, LoadBalancing, LoadBalancingMode, LoadBalancingScope, ServicePort
from mesh.model.workload import PortMap, TunnelProtocol
from mesh.telemetry.metrics import ON_DEMAND_DNS
from tests.support.eventually import eventually_async
from ztunnel.plane import PodInfo

pytestmark = needs_root


def failures(caplog: pytest.LogCaptureFixture) -> list[dict[str, str]]:
    """Return the fields of the access log's failed connections."""
    return [
        {key: str(value) for key, value in record.fields.items()}
        for record in caplog.records
        if record.name == "access" and "error" in getattr(record, "fields", {})
    ]


@scenario
async def test_row_1_listeners_are_inside_the_pod_in_both_families() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        table = m.nets["a"].exec("ss", "-Hltn")
        for port in (15001, 15006, 15008):
            assert f"0.0.0.0:{port}" in table
            assert f"[::]:{port}" in table
        table = m.nets["a"].exec("ss", "-Hlun")
        for port in (15053, 15054, 15055):
            assert f"127.0.0.1:{port}" in table
            assert f"[::1]:{port}" in table


@scenario
async def test_a_reserved_port_in_use_is_named_and_leaves_nothing_open() -> None:
    async with mesh("zto") as m:
        m.net("a")
        taken = m.socket("a", captured=False)
        taken.bind(("0.0.0.0", 15006))
        taken.listen()
        plane = m.node("na")
        info = PodInfo(uid="pod-a", name="a", namespace="default", service_account="a")
        with taken, pytest.raises(OSError, match=r"port 15006 \(IPv4\) is in use inside the pod"):
            await plane.add_pod(info, m.nets["a"].open())
        assert plane.pods == ()
        assert "15001" not in m.nets["a"].exec("ss", "-Hltn")
        await eventually_async(lambda: "1505" not in m.nets["a"].exec("ss", "-Hlun"))


@scenario
async def test_row_3_an_unknown_local_workload_is_waited_for_then_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zto") as m:
        workload = await m.pod("a", "na", known=False)
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        asked = asyncio.get_running_loop().create_task(m.ask("a", m.nets["b"].ipv4, 8080))
        await eventually_async(lambda: len(m.planes["na"].connections) == 1)
        m.apply(workload)
        assert await asked == b"b 10.77.1.2|hello"
        m.remove("type.googleapis.com/istio.workload.Address", workload.uid)
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        (failed,) = failures(caplog)
        assert failed["reason"] == "unknown_source"
        assert failed["error"].startswith("failed to fetch information about local workload: a.default (a)")


@scenario
async def test_row_4_a_service_address_reaches_an_endpoint_on_its_target_port() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        m.service("web", "10.96.0.10", 80, 8080, ["b"])
        assert await m.ask("a", "10.96.0.10", 80) == b"b 10.77.1.2|hello"


@scenario
async def test_row_4_what_the_mesh_does_not_know_passes_unchanged() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        m.net("outside")
        await m.serve("outside", 7000)
        assert await m.ask("a", m.nets["outside"].ipv4, 7000) == b"outside 10.77.1.2|hello"
        assert m.planes["na"].dialer.view() == []


@scenario
async def test_row_4_a_known_workload_outside_the_mesh_is_reached_in_the_clear() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        net = m.net("legacy")
        m.apply(m.workload("legacy", "nx", net, tunnel_protocol=TunnelProtocol.NONE))
        await m.serve("legacy", 7000)
        m.service("old", "10.96.0.11", 80, 7000, ["legacy"])
        assert await m.ask("a", "10.96.0.11", 80) == b"legacy 10.77.1.2|hello"
        assert m.planes["na"].dialer.view() == []


@scenario
async def test_rows_4_and_5_a_service_without_endpoint_is_reset_and_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        m.service("web", "10.96.0.10", 80, 8080, [])
        reader, writer = await m.connect("a", "10.96.0.10", 80)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        (failed,) = failures(caplog)
        assert failed["reason"] == "no_healthy_upstream"
        assert failed["error"].startswith("no healthy upstream: 10.96.0.10:80")
        assert failed["dst.service"] == "web.default.svc.cluster.local"


@scenario
async def test_row_5_a_refused_upstream_is_a_reset_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        assert await m.ask("a", m.nets["b"].ipv4, 9) == b""
        reasons = {failed["direction"]: failed["reason"] for failed in failures(caplog)}
        assert reasons == {"inbound": "connect_refused", "outbound": "tunnel_upstream_failed"}


@scenario
async def test_row_6_many_connections_share_few_tunnels() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        opened = await asyncio.gather(*(m.connect("a", m.nets["b"].ipv4, 8080) for _ in range(450)))
        await eventually_async(lambda: len(m.planes["nb"].connections) == 450)
        pool = m.planes["na"].dialer.view()
        assert sum(int(str(entry["tunnels"])) for entry in pool) == 450
        assert 3 <= len(pool) <= 8
        for _, writer in opened:
            writer.close()
        await eventually_async(lambda: len(m.planes["na"].connections) == 0)


@scenario
async def test_row_6_sources_never_share_a_connection() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("c", "na", service_account="a")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        for name in ("a", "c"):
            assert await m.ask(name, m.nets["b"].ipv4, 8080)
        assert {entry["pod"] for entry in m.planes["na"].dialer.view()} == {"pod-a", "pod-c"}


@scenario
async def test_row_6_an_idle_connection_is_closed() -> None:
    async with mesh("zto") as m:
        plane = m.node("na", pool_idle_s=0.05)
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        assert await m.ask("a", m.nets["b"].ipv4, 8080)

        def idle() -> bool:
            plane.tick()
            return plane.dialer.view() == []

        await eventually_async(idle)
        await eventually_async(lambda: len(m.planes["nb"].inbound) == 0)


@scenario
async def test_row_7_an_idle_tunnel_is_pinged_and_a_dead_one_is_given_up_by_both_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zto") as m:
        m.limits = Limits(keepalive_interval_s=0.2, keepalive_timeout_s=0.6)
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        reader, writer = await m.connect("a", m.nets["b"].ipv4, 8080)
        m.closing(writer)
        writer.write(b"once")
        assert await reader.readexactly(16) == b"b 10.77.1.2|once"

        def tunnels() -> str:
            return m.nets["b"].exec("ss", "-Htnioe", "state", "established", "sport", "=", ":15008")

        def arrived() -> int:
            return int(tunnels().partition("bytes_received:")[2].split()[0])

        # The application is silent: what arrives from here on are pings and their answers.
        for _ in range(3):
            before = arrived()
            await eventually_async(lambda before=before: arrived() > before, what="a ping")  # type: ignore[misc]
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        m.nets["b"].exec(
            "nft",
            "add table inet cut;"
            " add chain inet cut in { type filter hook prerouting priority -400; };"
            " add rule inet cut in iifname eth0 drop;"
            " add chain inet cut out { type filter hook output priority -400; };"
            " add rule inet cut out oifname eth0 drop",
        )
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(10):
                await reader.read()
        await eventually_async(lambda: not tunnels(), what="the server's end is closed")
        assert {f["reason"] for f in failures(caplog)} == {"keepalive_timeout"}


@scenario
async def test_row_7_plain_connections_elsewhere_have_tcp_keepalive() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        m.net("x")
        await m.serve("x", 8080)
        reader, writer = await m.connect("a", m.nets["x"].ipv4, 8080)
        m.closing(writer)
        writer.write(b"once")
        assert await reader.readexactly(16) == b"x 10.77.1.2|once"
        dialled = m.nets["a"].exec("ss", "-Htno", "state", "established", "dport", "=", ":8080")
        assert dialled.count("timer:(keepalive,") == 1, "ztunnel's socket, not the application's"


@scenario
async def test_rows_8_and_35_the_application_sees_the_client_in_both_families() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b"b 10.77.1.2|hello"
        assert await m.ask("a", m.nets["b"].ipv6, 8080) == b"b fd77::1:2|hello"


@scenario
async def test_rows_20_and_22_weights_and_health_choose_the_endpoint() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        for name in ("b", "c", "d"):
            await m.pod(name, "nb")
            await m.serve(name, 8080)
        m.change("b", capacity=3)
        m.change("c", healthy=False)
        m.change("d", capacity=0)
        service = m.service("web", "10.96.0.10", 80, 8080, ["b", "c", "d"])
        answers = {(await m.ask("a", "10.96.0.10", 80))[:1] for _ in range(10)}
        assert answers == {b"b"}
        m.service(
            "web",
            "10.96.0.10",
            80,
            8080,
            [],
            load_balancing=LoadBalancing(health_policy=HealthPolicy.ALLOW_ALL),
        )
        answers = {(await m.ask("a", "10.96.0.10", 80))[:1] for _ in range(40)}
        assert answers == {b"b", b"c"}
        assert service.hostname


@scenario
async def test_row_21_failover_takes_the_nearest_and_strict_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zto") as m:
        here, there = Locality(region="r1", zone="z1"), Locality(region="r2", zone="z2")
        await m.pod("a", "na", locality=here)
        await m.pod("near", "nb", locality=here)
        await m.pod("far", "nb", locality=there)
        for name in ("near", "far"):
            await m.serve(name, 8080)
        preference = (LoadBalancingScope.REGION, LoadBalancingScope.ZONE)
        failover = LoadBalancing(preference=preference, mode=LoadBalancingMode.FAILOVER)
        m.service("web", "10.96.0.10", 80, 8080, ["near", "far"], load_balancing=failover)
        assert {(await m.ask("a", "10.96.0.10", 80))[:3] for _ in range(8)} == {b"nea"}
        m.change("near", healthy=False)
        assert (await m.ask("a", "10.96.0.10", 80))[:3] == b"far"
        strict = LoadBalancing(preference=preference, mode=LoadBalancingMode.STRICT)
        m.service("web", "10.96.0.10", 80, 8080, [], load_balancing=strict)
        assert await m.ask("a", "10.96.0.10", 80) == b""
        assert failures(caplog)[-1]["reason"] == "no_healthy_upstream"


@scenario
async def test_row_23_an_endpoints_own_port_beats_the_services() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 9090)
        service = m.service("web", "10.96.0.10", 80, 8080, ["b"])
        m.join_service("b", service, {80: 9090})
        assert (await m.ask("a", "10.96.0.10", 80))[:1] == b"b"
        named = m.service("named", "10.96.0.11", 80, 0, [])
        assert await m.ask("a", "10.96.0.11", 80) == b""
        m.join_service("b", named, {80: 9090})
        assert (await m.ask("a", "10.96.0.11", 80))[:1] == b"b"
        assert PortMap(ports={80: 9090}) in m.workloads["b"].services.values()


@scenario
async def test_row_25_a_workload_with_only_a_name_is_resolved_when_dialled() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na", addresses=())
        net = m.nets["a"]
        m.change("a", addresses=(net.ipv4, net.ipv6))
        await m.serve("a", 7000)
        outside = m.workload(
            "byname", "", net, addresses=(), hostname="localhost", tunnel_protocol=TunnelProtocol.NONE
        )
        m.apply(outside)
        m.service("ext", "240.240.0.1", 80, 7000, ["byname"], hostname="ext.example.com")
        assert (await m.ask("a", "240.240.0.1", 80)).startswith(b"a ")
        ((labels, count),) = m.values("na", ON_DEMAND_DNS).items()
        assert (labels[-1], count) == ("localhost", 1)


@scenario
async def test_row_27_the_clients_namespace_wins_a_shared_address() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.pod("c", "nb")
        for name in ("b", "c"):
            await m.serve(name, 8080)
        m.service("theirs", "10.96.0.10", 80, 8080, ["c"], namespace="other", canonical=True)
        assert (await m.ask("a", "10.96.0.10", 80))[:1] == b"c"
        m.service("ours", "10.96.0.10", 80, 8080, ["b"])
        assert (await m.ask("a", "10.96.0.10", 80))[:1] == b"b"


@scenario
async def test_a_pod_calling_its_own_service_is_dialled_directly() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.serve("a", 8080)
        m.service("self", "10.96.0.10", 80, 8080, ["a"])
        assert (await m.ask("a", "10.96.0.10", 80)).startswith(b"a ")
        assert m.planes["na"].dialer.view() == []


@scenario
async def test_a_direct_dial_of_15001_is_refused_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        with contextlib.suppress(ConnectionResetError):
            assert await m.ask("a", "127.0.0.1", 15001, captured=False) == b""
        assert [failed["reason"] for failed in failures(caplog)] == ["no_capture_record"]


@scenario
async def test_half_close_is_kept_in_each_direction() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"first")
            writer.write_eof()
            data = await reader.read()
            received.append(data)
            writer.close()

        received: list[bytes] = []
        await m.listen("b", 8080, server)
        reader, writer = await m.connect("a", m.nets["b"].ipv4, 8080)
        assert await reader.read() == b"first"
        writer.write(b"after their end")
        await writer.drain()
        writer.write_eof()
        await eventually_async(lambda: received == [b"after their end"])
        writer.close()


@scenario
async def test_a_reset_of_the_client_reaches_the_server_as_a_reset() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        ends: list[str] = []

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.read(1)
                writer.write(b"ok")
                await reader.read()
                ends.append("eof")
            except ConnectionResetError:
                ends.append("reset")
            writer.close()

        await m.listen("b", 8080, server)
        reader, writer = await m.connect("a", m.nets["b"].ipv4, 8080)
        writer.write(b"x")
        assert await reader.readexactly(2) == b"ok"
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.transport.abort()
        await eventually_async(lambda: bool(ends))
        assert ends == ["reset"]


@scenario
async def test_several_ports_of_one_service() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        await m.serve("b", 8081)
        ports = (
            ServicePort(service_port=80, target_port=8080),
            ServicePort(service_port=81, target_port=8081),
        )
        service = m.service("web", "10.96.0.10", 80, 8080, ["b"], ports=ports)
        m.join_service("b", service, {})
        assert await m.ask("a", "10.96.0.10", 80)
        assert await m.ask("a", "10.96.0.10", 81)
        assert await m.ask("a", "10.96.0.10", 82) == b""


@scenario
async def test_no_descriptor_task_or_row_is_left_however_connections_end() -> None:
    async with mesh("zto") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        m.service("none", "10.96.0.9", 80, 8080, [])
        m.net("outside")
        address = m.nets["b"].ipv4

        async def each_kind() -> None:
            assert await m.ask("a", address, 8080)  # well
            assert await m.ask("a", address, 9) == b""  # refused by the application
            assert await m.ask("a", "10.96.0.9", 80) == b""  # no endpoint
            assert await m.ask("a", m.nets["outside"].ipv4, 9) == b""  # passthrough, refused
            assert await m.ask("outside", address, 8080, captured=False)  # plaintext in
            with contextlib.suppress(ConnectionResetError):
                assert await m.ask("a", "127.0.0.1", 15001, captured=False) == b""  # uncaptured
            _, writer = await m.connect("a", address, 8080)
            writer.transport.abort()  # the client leaves while its tunnel is opened

        def counts() -> tuple[int, int, int]:
            rows = sum(len(plane.connections) for plane in m.planes.values())
            return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()), rows

        await each_kind()
        await eventually_async(lambda: counts()[2] == 0)
        before = counts()
        for _ in range(10):
            await each_kind()
        await eventually_async(lambda: counts() == before, what=f"{counts()} after, {before} before")


@scenario
async def test_row_5_what_does_not_answer_is_given_up_in_time_and_says_who_may_block_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zto") as m:
        m.node("na", connect_timeout_s=0.3)
        await m.pod("a", "na")
        await m.pod("b", "nb")
        m.net("outside")
        for name in ("b", "outside"):
            net = m.nets[name]
            net.exec("nft", "add", "table", "inet", "hold")
            net.exec("nft", "add chain inet hold in { type filter hook prerouting priority -300; }")
            net.exec(
                "nft",
                "add",
                "rule",
                "inet",
                "hold",
                "in",
                "iifname",
                "eth0",
                "meta",
                "l4proto",
                "tcp",
                "drop",
            )
        for address, port in ((m.nets["b"].ipv4, 15008), (m.nets["outside"].ipv4, 8080)):
            assert await m.ask("a", address, 8080) == b""
            failed = failures(caplog)[-1]
            assert failed["reason"] == "connect_timeout"
            assert f"{address}:{port} within 0.3 s" in failed["error"]
            assert "NetworkPolicy" in failed["error"]
