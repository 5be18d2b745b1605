# SPDX-License-Identifier: Apache-2.0
"""The whole `python -m ztunnel` with a scripted agent, controller and authority: life, failure and end."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from ztunnel_mesh import needs_root, scenario
from ztunnel_process import Node, World, world

from mesh.model.policy import Action, Authorization, Match, Scope
from mesh.proto import authorization_pb2 as pb
from mesh.testing.netns import PodNet
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE
from tests.support.eventually import eventually_async

pytestmark = needs_root


async def pair(w: World, **environment: str) -> tuple[Node, Node, PodNet, PodNet]:
    """Start two nodes with one pod each and an echo server in b."""
    na, nb = w.node("na"), w.node("nb")
    a, b = await w.pod("a", "na"), await w.pod("b", "nb")
    await asyncio.gather(na.start(**environment), nb.start(**environment))
    await asyncio.gather(na.ready(), nb.ready())
    await w.serve(b, 8080)
    return na, nb, a, b


async def metric(node: Node, name: str) -> float:
    """Sum a metric's series."""
    _, body = await node.get(node.metrics, "/metrics")
    lines = [line for line in body.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


@scenario
async def test_two_nodes_two_workers_and_the_admin_surfaces(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, nb, a, b = await pair(w)
        answers = await asyncio.gather(*(w.ask(a, b.ipv4, 8080) for _ in range(16)))
        assert answers == [b"hello"] * 16

        async def counted() -> bool:
            closed = [await metric(node, "istio_tcp_connections_closed_total") for node in (na, nb)]
            return closed == [16, 16]

        await eventually_async(counted)
        assert await metric(na, "istio_tcp_received_bytes_total") == 16 * 5
        assert await metric(nb, "istio_tcp_sent_bytes_total") == 16 * 5
        assert await metric(nb, "istio_tcp_connections_opened_total") == 16
        # One tunnel connection per worker of the source at most, and at least one.
        assert 1 <= await metric(na, "ambit_tunnel_handshake_seconds_count") <= 2
        assert await metric(na, "ambit_cert_expiry_timestamp_seconds") > 1_700_000_000
        assert await metric(na, "ambit_config_sync_age_seconds") == 0
        assert await metric(na, "ambit_config_resources") == 2
        dump = await nb.json("/config_dump")
        assert {"certificates", "config", "policies", "services", "stagedServices", "version"} <= dump.keys()
        assert {"workloadState", "workloads", "workers"} <= dump.keys()
        assert len(dump["workers"]) == 2  # type: ignore[arg-type]
        assert "PRIVATE KEY" not in (await nb.get(nb.admin, "/config_dump"))[1]
        certs = await na.json("/certs")
        assert [entry["identity"] for entry in certs["certificates"]] == [  # type: ignore[union-attr,index]
            "spiffe://cluster.local/ns/default/sa/a"
        ]
        reader, writer = await w.connect(a, b.ipv4, 8080)
        writer.write(b"x")
        await reader.readexactly(1)
        (row,) = (await na.json("/connections"))["connections"]  # type: ignore[misc]
        assert row["dst.hbone_addr"] == f"{b.ipv4}:8080"
        writer.close()
        status, body = await na.get(na.admin, "/logging?level=debug", "POST")
        assert (status, body) == (200, "current log level is debug\n")
        assert (await na.get(na.admin, "/logging?level=loud", "POST"))[0] == 400
        assert (await na.get(na.admin, "/quitquitquit"))[0] == 405
        assert all(entry["token"] == "Bearer node-token" for entry in w.authority.asked)
        assert await na.stop() == 0
        log = na.log.read_text()
        assert "Traceback" not in log
        assert log.count("connection complete") == 17


@scenario
async def test_row_36_sigterm_drains_and_live_connections_run_to_the_deadline(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        _, nb, a, b = await pair(w, TERMINATION_GRACE_PERIOD_SECONDS="3")
        reader, writer = await w.connect(a, b.ipv4, 8080)
        writer.write(b"before")
        await reader.readexactly(6)
        loop = asyncio.get_running_loop()
        assert nb.process is not None
        started = loop.time()
        nb.process.send_signal(signal.SIGTERM)

        async def closed() -> bool:
            return "15008" not in b.exec("ss", "-Hltn")

        await eventually_async(closed)
        assert (await nb.get(nb.readiness, "/healthz/ready"))[0] == 500
        writer.write(b"during")
        assert await reader.readexactly(6) == b"during"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        async with asyncio.timeout(5):
            assert await nb.process.wait() == 0
        assert 1.8 <= loop.time() - started <= 6
        assert "drain_deadline" in nb.log.read_text()


@scenario
async def test_row_36_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, _, a, b = await pair(w, TERMINATION_GRACE_PERIOD_SECONDS="60")
        reader, writer = await w.connect(a, b.ipv4, 8080)
        writer.write(b"x")
        await reader.readexactly(1)
        assert na.process is not None
        na.process.send_signal(signal.SIGTERM)

        async def draining() -> bool:
            return "draining" in na.log.read_text()

        await eventually_async(draining)
        assert await na.stop(signal.SIGTERM, deadline_s=3) == 1
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


@scenario
async def test_row_37_a_successor_takes_over_without_a_refused_connection(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        _, old, a, b = await pair(w, TERMINATION_GRACE_PERIOD_SECONDS="5")
        # What the capture programs do by retiring listeners first (test_agent_ztunnel): handshakes that
        # are under way go to the other listener of the port.
        b.exec("sysctl", "-qw", "net.ipv4.tcp_migrate_req=1")
        new = Node("nb", tmp_path, w)
        # The successor of the same node hears of the pods from the same agent.
        new.zds, new.log = old.zds, tmp_path / "nb2.log"
        w.nodes["nb2"] = new
        await new.start(TERMINATION_GRACE_PERIOD_SECONDS="5")
        await new.ready()
        failed = 0

        async def keep_asking(stop: asyncio.Event) -> None:
            nonlocal failed
            while not stop.is_set():
                if await w.ask(a, b.ipv4, 8080) != b"hello":
                    failed += 1

        stop = asyncio.Event()
        asking = asyncio.get_running_loop().create_task(keep_asking(stop))
        assert await old.stop() == 0
        stop.set()
        await asking
        assert failed == 0, old.log.read_text()[-3000:] + w.nodes["na"].log.read_text()[-3000:]
        assert await w.ask(a, b.ipv4, 8080) == b"hello"


@scenario
async def test_a_hung_worker_is_replaced_with_all_state(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        _, nb, a, b = await pair(w, AMBIT_WORKERS="1", AMBIT_WORKER_DEADLINE_S="2")
        assert await w.ask(a, b.ipv4, 8080) == b"hello"
        (worker,) = (await nb.json("/config_dump"))["workers"]  # type: ignore[misc]
        os.kill(worker["pid"], signal.SIGSTOP)

        async def counted() -> bool:
            return await metric(nb, "ambit_workers_hung_total") == 1

        await eventually_async(counted, "it is found out")
        assert f"worker-0 (pid {worker['pid']}) hangs: nothing heard for 2 s" in nb.log.read_text()

        async def again() -> bool:
            return await w.ask(a, b.ipv4, 8080) == b"hello"

        await eventually_async(again, "another serves")
        await nb.ready()
        assert await metric(nb, "ambit_workers_started_total") == 2


@scenario
async def test_a_dead_worker_is_replaced_with_all_state(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        _, nb, a, b = await pair(w, AMBIT_WORKERS="1")
        deny = Authorization(
            name="deny", namespace="default", scope=Scope.NAMESPACE, action=Action.DENY,
            rules=(((Match(destination_ports=(9999,)),),),),
        )  # fmt: skip
        w.put(deny)
        assert await w.ask(a, b.ipv4, 8080) == b"hello"
        workers = (await nb.json("/config_dump"))["workers"]
        os.kill(workers[0]["pid"], signal.SIGKILL)  # type: ignore[index]

        async def again() -> bool:
            return await w.ask(a, b.ipv4, 8080) == b"hello"

        await eventually_async(again)
        await nb.ready()
        assert await metric(nb, "ambit_workers_started_total") == 2
        assert await w.ask(a, b.ipv4, 9999) == b""

        async def logged() -> bool:
            return "policy_denied" in nb.log.read_text()

        await eventually_async(logged)


@scenario
async def test_row_39_a_lost_agent_makes_unready_and_keeps_serving(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, _, a, b = await pair(w)
        await na.zds.close()

        async def unready() -> bool:
            return (await na.get(na.readiness, "/healthz/ready"))[0] == 500

        await eventually_async(unready)
        _, body = await na.get(na.readiness, "/healthz/ready")
        assert body == "not ready, pending: node agent\n"
        assert await w.ask(a, b.ipv4, 8080) == b"hello"
        await na.new_agent()
        await na.ready()
        await na.zds.close()
        na.pods.clear()
        await na.new_agent()

        async def gone() -> bool:
            return "15001" not in a.exec("ss", "-Hltn")

        # The next snapshot does not name the pod: it is let go.
        await eventually_async(gone)


@scenario
async def test_row_40_a_lost_controller_changes_nothing_and_versions_are_echoed(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, _, a, b = await pair(w)
        port = w.xds.port
        await w.xds.stop()

        async def noticed() -> bool:
            status = await na.json("/status")
            return not status["controller"]["connected"]  # type: ignore[index]

        await eventually_async(noticed)
        assert await w.ask(a, b.ipv4, 8080) == b"hello"
        assert (await na.get(na.readiness, "/healthz/ready"))[0] == 200
        w.xds.requests.clear()
        await w.xds.start(port)

        async def back() -> bool:
            first = [r for r in w.xds.requests if r.type_url == ADDRESS_TYPE and r.HasField("node")]
            return any(len(request.initial_resource_versions) == 2 for request in first)

        await eventually_async(back)


@scenario
async def test_defect_4_a_broken_policy_is_rejected_by_name_and_closes(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        _, nb, a, b = await pair(w)
        assert await w.ask(a, b.ipv4, 8080) == b"hello"
        # A source address of three bytes in a DENY: Istio's ztunnel drops it and lets all in.
        policy = pb.Authorization(name="bad", namespace="default", scope=pb.NAMESPACE, action=pb.DENY)
        match = policy.rules.add().clauses.add().matches.add()
        match.source_ips.add(address=b"\x0a\x00\x00", length=24)
        w.xds.put(AUTHORIZATION_TYPE, {"default/bad": policy.SerializeToString()})

        async def rejected() -> bool:
            status = await nb.json("/status")
            return "default/bad" in status["controller"]["rejected"]  # type: ignore[index]

        await eventually_async(rejected)
        assert await w.ask(a, b.ipv4, 8080) == b""
        assert any(r.error_detail.message for r in w.xds.acks(AUTHORIZATION_TYPE))
        w.xds.remove(AUTHORIZATION_TYPE, "default/bad")

        async def open_again() -> bool:
            return await w.ask(a, b.ipv4, 8080) == b"hello"

        await eventually_async(open_again)


@scenario
async def test_row_33_certificates_are_renewed_at_half_life(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        w.authority.ttl_s = 4
        na, _, a, b = await pair(w)
        first = (await na.json("/certs"))["certificates"][0]["serialNumber"]  # type: ignore[index]

        async def renewed() -> bool:
            assert await w.ask(a, b.ipv4, 8080) == b"hello"
            return bool((await na.json("/certs"))["certificates"][0]["serialNumber"] != first)  # type: ignore[index]

        await eventually_async(renewed)
        asked = [entry["identity"] for entry in w.authority.asked]
        assert asked.count("spiffe://cluster.local/ns/default/sa/a") >= 2


@scenario
async def test_row_33_an_identity_that_left_the_node_is_forgotten(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, _, _, _ = await pair(w)
        assert len((await na.json("/certs"))["certificates"]) == 1  # type: ignore[arg-type]
        await na.delete("a")
        assert (await na.json("/certs"))["certificates"] == []


@scenario
async def test_row_38_a_taken_port_is_answered_to_the_agent(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, _, _, _ = await pair(w)
        net = w.fabric.pod("c")
        taken = w.space(net).socket(2, 1)
        taken.bind(("0.0.0.0", 15001))
        taken.listen()
        error = await na.add("c", net, "c")
        assert "port 15001 (IPv4) is in use inside the pod" in error
        taken.close()
        assert await na.add("c", net, "c") == ""


@scenario
async def test_a_port_of_its_own_in_use_is_named(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na, nb = w.node("na"), w.node("nb")
        await na.start()
        await na.ready()
        nb.admin = na.admin
        await nb.start()
        assert nb.process is not None
        async with asyncio.timeout(10):
            assert await nb.process.wait() == 1
        assert f"admin cannot listen on 127.0.0.1:{na.admin}" in nb.log.read_text()
        assert "Traceback" not in nb.log.read_text()


@scenario
async def test_missing_settings_are_all_named(tmp_path: Path) -> None:
    async with world("ztp", tmp_path) as w:
        na = w.node("na")
        await na.start(NODE_NAME="", XDS_ADDRESS="", AMBIT_WORKERS="many")
        assert na.process is not None
        async with asyncio.timeout(10):
            assert await na.process.wait() == 64
        log = na.log.read_text()
        for name in ("NODE_NAME", "XDS_ADDRESS", "AMBIT_WORKERS"):
            assert f"ztunnel: {name}" in log
