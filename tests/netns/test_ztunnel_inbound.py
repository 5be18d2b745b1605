# SPDX-License-Identifier: Apache-2.0
"""Inbound rows of the ztunnel feature table and its known defects, with real TLS in namespaces."""

from __future__ import annotations

import asyncio
import ssl

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from ztunnel_mesh import Mesh, mesh, needs_root, scenario

from mesh.hbone.frames import TunnelError
from mesh.identity.certificate import WorkloadCertificate
from mesh.identity.spiffe import SpiffeId
from mesh.model.policy import Action, Authorization, Match, Scope, StringMatch, StringMatchKind
from mesh.model.workload import (
    ApplicationProtocol,
    ApplicationTunnel,
    GatewayAddress,
    NamespacedHostname,
    NetworkAddress,
)
from mesh.telemetry.metrics import CONNECTIONS_FAILED, CONNECTIONS_OPENED, POLICY_DENIED, TCP_LABELS
from mesh.telemetry.reasons import Reason
from mesh.testing.fake_ca import FakeCa
from mesh.xds.encode import encode_address, resource_name
from mesh.xds.resource import ADDRESS_TYPE, Resource, Update
from tests.support.eventually import eventually_async
from ztunnel.plane import PodInfo

pytestmark = needs_root

CLIENT = "spiffe://cluster.local/ns/default/sa/client"
ANYONE = StringMatch(kind=StringMatchKind.PRESENCE)


def policy(
    name: str,
    action: Action,
    *matches: Match,
    scope: Scope = Scope.NAMESPACE,
    namespace: str = "default",
    dry_run: bool = False,
) -> Authorization:
    """Build a policy of one rule with one clause of these matches."""
    rules = ((matches,),) if matches else ((),)
    return Authorization(
        name=name, namespace=namespace, scope=scope, action=action, rules=rules, dry_run=dry_run
    )


STRICT = policy(
    "istio_converted_static_strict",
    Action.DENY,
    Match(not_principals=(ANYONE,)),
    scope=Scope.GLOBAL,
    namespace="istio-system",
)


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the reasons of the access log, in order."""
    return [str(record.fields["reason"]) for record in caplog.records if record.name == "access"]


def labels(m: Mesh, node: str, name: str) -> list[dict[str, str]]:
    """Return the label sets of a node's failed or opened connections."""
    metric = {"failed": CONNECTIONS_FAILED, "opened": CONNECTIONS_OPENED}[name]
    return [dict(zip(TCP_LABELS, values, strict=True)) for values in m.values(node, metric)]


@scenario
async def test_row_9_the_authority_must_be_the_dialled_address() -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        address = m.nets["b"].ipv4
        assert await m.status("x", address, CLIENT, f"{address}:8080") == 200
        for wrong in (
            "10.99.0.1:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "b",
            "b:0",
            "b:99999",
            f"{address}",
            f"{address}:8080x",
        ):
            assert await m.status("x", address, CLIENT, wrong) in (400, 503), wrong
        assert await m.status("x", address, CLIENT, f"[::ffff:{address}]:8080") == 200


@scenario
async def test_row_9_ztunnels_own_ports_are_no_target() -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        address = m.nets["b"].ipv4
        for port in (15001, 15006, 15008):
            assert await m.status("x", address, CLIENT, f"{address}:{port}") == 503


@scenario
async def test_row_9_a_waypoint_may_be_asked_for_what_names_it() -> None:
    async with mesh("zti") as m:
        await m.pod("wp", "nb")
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("wp", 8080)
        key = NamespacedHostname(namespace="default", hostname="waypoint.default.svc.cluster.local")
        m.service("waypoint", "10.96.0.20", 15008, 15008, ["wp"])
        address, target = m.nets["wp"].ipv4, m.nets["b"].ipv4
        assert await m.status("x", address, CLIENT, f"{target}:8080") == 400
        m.change("b", waypoint=GatewayAddress(destination=key, hbone_mtls_port=15008))
        # Always the waypoint's own port: ztunnel relays to nobody else.
        assert await m.status("x", address, CLIENT, f"{target}:8080") == 200


@scenario
async def test_row_10_a_hostname_authority_is_translated_to_the_target_port() -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        m.service("web", "10.96.0.10", 80, 8080, ["b"])
        address = m.nets["b"].ipv4
        assert await m.status("x", address, CLIENT, "web.default.svc.cluster.local:80") == 200
        assert await m.status("x", address, CLIENT, "web.default.svc.cluster.local:81") == 503
        assert await m.status("x", address, CLIENT, "other.default.svc.cluster.local:80") == 503


@scenario
async def test_row_11_denied_tunnels_get_401_and_denied_plaintext_is_reset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        client = StringMatch(kind=StringMatchKind.EXACT, value="cluster.local/ns/default/sa/a")
        m.apply(policy("only-a", Action.ALLOW, Match(principals=(client,))))
        address = m.nets["b"].ipv4
        assert await m.ask("a", address, 8080) == b"b 10.77.1.2|hello"
        assert await m.status("x", address, CLIENT, f"{address}:8080") == 401
        assert await m.ask("x", address, 8080, captured=False) == b""
        assert reasons(caplog)[-2:] == ["policy_denied", "policy_denied"]
        assert {entry["response_flags"] for entry in labels(m, "nb", "failed")} == {"DENY"}
        assert m.values("nb", POLICY_DENIED) == {("only-a", "default", "policy_denied"): 2}
        error = str(caplog.records[-1].fields["error"])
        assert "only-a" in error
        assert "a peer without identity (10.77.3.2) to default/b:8080" in error


@scenario
async def test_row_12_deny_beats_allow_and_an_allow_of_nothing_denies_all() -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        address = m.nets["b"].ipv4
        m.apply(policy("allow-all", Action.ALLOW))
        assert await m.ask("a", address, 8080)
        m.apply(policy("deny-8080", Action.DENY, Match(destination_ports=(8080,))))
        assert await m.ask("a", address, 8080) == b""
        m.remove("type.googleapis.com/istio.security.Authorization", "default/deny-8080")
        assert await m.ask("a", address, 8080)
        m.apply(
            Authorization(
                name="allow-all", namespace="default", scope=Scope.NAMESPACE, action=Action.ALLOW, rules=()
            )
        )
        assert await m.ask("a", address, 8080) == b""


@scenario
async def test_strict_refuses_plaintext_and_takes_hbone(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        m.apply(STRICT)
        for address in (m.nets["b"].ipv4, m.nets["b"].ipv6):
            assert await m.ask("x", address, 8080, captured=False) == b""
            assert await m.ask("a", address, 8080)
        assert reasons(caplog).count("policy_denied") == 2


@scenario
async def test_row_13_dry_run_denies_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        m.apply(policy("try", Action.DENY, Match(destination_ports=(8080,)), dry_run=True))
        assert await m.ask("a", m.nets["b"].ipv4, 8080)
        assert any(
            "dry-run DENY policy default/try matches" in record.getMessage() for record in caplog.records
        )


async def live(m: Mesh, name: str = "a") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection that stays: its greeting has been read."""
    reader, writer = await m.connect(name, m.nets["b"].ipv4, 8080)
    await reader.readuntil(b"|")
    return reader, writer


async def is_cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether the connection ends without our doing."""
    try:
        async with asyncio.timeout(5):
            return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


@scenario
async def test_row_14_a_new_deny_cuts_the_live_connection_and_only_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("c", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        first, second = await live(m, "a"), await live(m, "c")
        who = StringMatch(kind=StringMatchKind.SUFFIX, value="/sa/a")
        m.apply(policy("no-a", Action.DENY, Match(principals=(who,))))
        assert await is_cut(*first)
        second[1].write(b"still here")
        assert await second[0].readexactly(10) == b"still here"
        second[1].close()
        await eventually_async(lambda: "policy_revoked" in reasons(caplog))


@scenario
async def test_defect_1_a_selector_policy_attached_later_holds_for_a_live_connection() -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        opened = await live(m)
        m.apply(policy("pick", Action.DENY, Match(destination_ports=(8080,)), scope=Scope.WORKLOAD_SELECTOR))
        opened[1].write(b"x")
        assert await opened[0].readexactly(1) == b"x"
        m.change("b", authorization_policies=("default/pick",))
        assert await is_cut(*opened)


@scenario
async def test_defect_2_and_row_15_an_unknown_policy_closes_and_its_arrival_opens(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb", authorization_policies=("default/late",))
        await m.serve("b", 8080)
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        assert "policy_unknown" in reasons(caplog)
        m.apply(policy("late", Action.DENY, Match(destination_ports=(9,)), scope=Scope.WORKLOAD_SELECTOR))
        assert await m.ask("a", m.nets["b"].ipv4, 8080)


@scenario
async def test_row_16_only_a_policy_makes_the_waypoint_the_only_way_in() -> None:
    async with mesh("zti") as m:
        await m.pod("w", "nb")
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        address = m.nets["b"].ipv4
        beside = NetworkAddress(network="", address=m.nets["w"].ipv4)
        m.change("b", waypoint=GatewayAddress(destination=beside, hbone_mtls_port=15008))
        assert await m.status("x", address, CLIENT, f"{address}:8080") == 200
        waypoint = "spiffe://cluster.local/ns/default/sa/w"
        exact = StringMatch(kind=StringMatchKind.EXACT, value="cluster.local/ns/default/sa/w")
        m.apply(policy("from-waypoint", Action.ALLOW, Match(principals=(exact,))))
        assert await m.status("x", address, CLIENT, f"{address}:8080") == 401
        assert await m.status("x", address, waypoint, f"{address}:8080") == 200


@scenario
async def test_defect_2_a_pooled_connection_gets_no_stale_verdict() -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        first, second = await live(m), await live(m)
        assert len(m.planes["na"].dialer.view()) == 1
        m.change("b", authorization_policies=("default/late",))
        assert await is_cut(*first)
        assert await is_cut(*second)


@scenario
async def test_defect_3_and_row_32_two_identities_in_one_certificate_are_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        key = ec.generate_private_key(ec.SECP256R1())
        uris = ("spiffe://other/ns/x/sa/y", CLIENT)
        certificate = WorkloadCertificate(
            identity=SpiffeId.parse(CLIENT),
            chain_pem=(m.ca.leaf(key.public_key(), uris=uris).public_bytes(Encoding.PEM),),
            key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            roots_pem=m.ca.roots_pem,
            not_before_s=0,
            not_after_s=2**40,
            serial="1",
        )
        address = m.nets["b"].ipv4
        connection = await m.hbone("x", address, certificate)
        with pytest.raises(TunnelError):
            await connection.open_tunnel(f"{address}:8080", ()).opened
        assert "identity_invalid" in reasons(caplog)


@scenario
async def test_row_32_another_trust_domain_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        await m.serve("b", 8080)
        address = m.nets["b"].ipv4
        connection = await m.hbone("x", address, "spiffe://other.example/ns/default/sa/client")
        with pytest.raises(TunnelError):
            await connection.open_tunnel(f"{address}:8080", ()).opened
        assert reasons(caplog) == ["identity_invalid"]
        assert {entry["response_flags"] for entry in labels(m, "nb", "failed")} == {"IDENTITY_ERROR"}


@scenario
async def test_row_32_a_stranger_to_our_roots_gets_no_tunnel(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("b", "nb")
        m.net("x")
        stranger = FakeCa("stranger").issue(CLIENT)
        trusting = WorkloadCertificate(
            identity=stranger.identity,
            chain_pem=stranger.chain_pem,
            key_pem=stranger.key_pem,
            roots_pem=m.ca.roots_pem,
            not_before_s=stranger.not_before_s,
            not_after_s=stranger.not_after_s,
            serial=stranger.serial,
        )
        address = m.nets["b"].ipv4
        try:
            connection = await m.hbone("x", address, trusting)
            with pytest.raises(TunnelError):
                await connection.open_tunnel(f"{address}:8080", ()).opened
        except (ssl.SSLError, ConnectionError):
            pass  # TLS 1.3: the refusal may come before or after the client's handshake ends.
        await eventually_async(lambda: reasons(caplog) == ["tls_failure"])


@scenario
async def test_row_31_a_server_of_another_identity_is_not_spoken_to(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        # The client's side believes that another account runs at this address.
        told = m.workload("b", "nb", m.nets["b"], service_account="someone-else")
        resource = Resource(resource_name(told), "2", encode_address(told))
        m.planes["na"].apply(Update(type_url=ADDRESS_TYPE, upserted=(resource,)))
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        assert "identity_mismatch" in reasons(caplog)
        assert any(
            "peer did not present the expected SAN" in str(record.fields["error"])
            for record in caplog.records
            if record.name == "access"
        )
        assert {entry["response_flags"] for entry in labels(m, "na", "failed")} == {"IDENTITY_ERROR"}


@scenario
async def test_row_19_proxy_protocol_names_client_and_target() -> None:
    async with mesh("zti") as m:
        tunnel = ApplicationTunnel(protocol=ApplicationProtocol.PROXY, port=15088)
        await m.pod("b", "nb", application_tunnel=tunnel)
        m.net("x")
        heads: list[bytes] = []

        async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readexactly(16))
            heads.append(await reader.readexactly(int.from_bytes(heads[0][14:16], "big")))
            writer.close()

        await m.listen("b", 15088, server)
        address = m.nets["b"].ipv4
        assert await m.status("x", address, CLIENT, "10.50.0.1:8443") == 200
        await eventually_async(lambda: len(heads) == 2)
        assert heads[0][:14] == b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
        body = heads[1]
        assert body[:4] == m.nets["x"].ipv4.packed
        assert body[4:8] == bytes((10, 50, 0, 1))
        assert int.from_bytes(body[10:12], "big") == 8443
        assert body[12] == 0xD0
        assert body[15:].decode() == CLIENT


@scenario
async def test_row_33_a_missing_certificate_closes_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        plane = m.planes["na"]
        plane.certificates._want = lambda identity: plane.certificates.refuse(
            identity, "the authority is down"
        )
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        assert reasons(caplog) == ["certificate_unavailable"]
        assert "the authority is down" in str(caplog.records[-1].fields["error"])


@scenario
async def test_row_38_a_removed_pod_is_cut_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        opened = await live(m)
        assert await m.planes["nb"].remove_pod("pod-b")
        assert await is_cut(*opened)
        assert "15008" not in m.nets["b"].exec("ss", "-Hltn")
        assert "forced_close" in reasons(caplog)
        assert not await m.planes["nb"].remove_pod("pod-b")


@scenario
async def test_row_36_drain_lets_connections_finish_and_cuts_at_the_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        stays, ends = await live(m), await live(m)
        draining = asyncio.get_running_loop().create_task(m.planes["nb"].drain(0.5))
        await eventually_async(lambda: "15008" not in m.nets["b"].exec("ss", "-Hltn"))
        ends[1].write(b"last words")
        ends[1].write_eof()
        assert await ends[0].read() == b"last words"
        ends[1].close()
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        assert await draining == 1
        assert await is_cut(*stays)
        assert "drain_deadline" in reasons(caplog)


@scenario
async def test_a_policy_change_during_the_dial_is_not_missed() -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        plane = m.planes["nb"]
        # Nothing answers: the SYN is dropped, so that the connection stays in its dial.
        m.nets["b"].exec("nft", "add", "table", "inet", "hold")
        m.nets["b"].exec("nft", "add chain inet hold in { type filter hook input priority 0; }")
        m.nets["b"].exec("nft", "add", "rule", "inet", "hold", "in", "tcp", "dport", "8080", "drop")
        asked = asyncio.get_running_loop().create_task(m.ask("a", m.nets["b"].ipv4, 8080))
        await eventually_async(lambda: any(row.policy is not None for row in plane.connections))
        m.apply(policy("deny", Action.DENY, Match(destination_ports=(8080,))))
        assert await asked == b""
        assert len(plane.connections) == 0


@scenario
async def test_limit_of_connections_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        m.node("nb", max_connections=2)
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        first, second = await live(m), await live(m)
        assert await m.ask("a", m.nets["b"].ipv4, 8080) == b""
        assert Reason.LIMIT_EXCEEDED.value in reasons(caplog)
        first[1].close()
        await eventually_async(lambda: len(m.planes["nb"].connections) == 1)
        assert await m.ask("a", m.nets["b"].ipv4, 8080)
        second[1].close()


@scenario
async def test_nothing_is_let_in_before_the_policies_are_known(caplog: pytest.LogCaptureFixture) -> None:
    async with mesh("zti") as m:
        m.synced = False
        m.net("x")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        address = m.nets["b"].ipv4
        assert await m.ask("x", address, 8080, captured=False) == b""
        assert reasons(caplog) == ["unknown_source"]
        assert "policies were not received" in str(caplog.records[-1].fields["error"])
        asked = asyncio.get_running_loop().create_task(m.ask("x", address, 8080, captured=False))
        await eventually_async(lambda: len(m.planes["nb"].connections) == 1)
        m.apply(STRICT)
        assert await asked == b""
        assert reasons(caplog)[-1] == "policy_denied"


@scenario
async def test_hbone_connections_are_bounded_and_a_peer_without_identity_holds_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mesh("zti") as m:
        m.node("nb", max_connections=2)
        await m.pod("b", "nb")
        m.net("x")
        plane, address = m.planes["nb"], m.nets["b"].ipv4
        await m.hbone("x", address, "spiffe://other.example/ns/default/sa/client")
        await eventually_async(lambda: reasons(caplog) == ["identity_invalid"])
        await eventually_async(lambda: len(plane.inbound) == 0)
        first = await m.hbone("x", address, CLIENT)
        await m.hbone("x", address, CLIENT)
        assert len(plane.inbound) == 2
        with pytest.raises((ConnectionError, ssl.SSLError)):
            await m.hbone("x", address, CLIENT)
        assert reasons(caplog)[-1] == "limit_exceeded"
        first.close(Reason.LOCAL_CLOSE)
        await eventually_async(lambda: len(plane.inbound) == 1)
        await m.hbone("x", address, CLIENT)


@scenario
async def test_row_41_the_own_pod_is_reached_over_mtls_and_captures_nothing() -> None:
    async with mesh("zti") as m:
        net = m.net("own")
        m.net("x")
        plane = m.node("nb")
        m.apply(m.workload("own", "nb", net))
        info = PodInfo(uid="self", name="own", namespace="default", service_account="own", hbone_only=True)
        await plane.add_pod(info, net.open())
        await m.serve("own", 15020)
        assert await m.status("x", net.ipv4, CLIENT, f"{net.ipv4}:15020") == 200
        assert await m.ask("x", net.ipv4, 15020, captured=False) == b"own 10.77.2.2|hello"
        table = net.exec("ss", "-Hltun")
        assert "15008" in table
        for port in ("15001", "15006", "15053"):
            assert port not in table


@scenario
async def test_defect_5_each_cause_has_its_own_flag_at_the_source() -> None:
    async with mesh("zti") as m:
        await m.pod("a", "na")
        await m.pod("b", "nb")
        await m.serve("b", 8080)
        m.service("none", "10.96.0.9", 80, 8080, [])
        address = m.nets["b"].ipv4

        async def flags(host: object, port: int) -> set[str]:
            before = dict(m.values("na", CONNECTIONS_FAILED))
            assert await m.ask("a", host, port) == b""
            after = m.values("na", CONNECTIONS_FAILED)
            index = TCP_LABELS.index("response_flags")
            return {labels[index] for labels, value in after.items() if value != before.get(labels, 0)}

        assert await flags(address, 9) == {"CONNECT"}
        assert await flags("10.96.0.9", 80) == {"NO_HEALTHY_UPSTREAM"}
        m.apply(policy("deny", Action.DENY, Match(destination_ports=(8080,))))
        assert await flags(address, 8080) == {"DENY"}
        told = m.workload("b", "nb", m.nets["b"], service_account="someone-else")
        resource = Resource(resource_name(told), "2", encode_address(told))
        m.planes["na"].apply(Update(type_url=ADDRESS_TYPE, upserted=(resource,)))
        assert await flags(address, 8081) == {"IDENTITY_ERROR"}
        await m.planes["nb"].remove_pod("pod-b")
        assert await flags(address, 8082) == {"CONNECT"}
