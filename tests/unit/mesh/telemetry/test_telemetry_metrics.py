# SPDX-License-Identifier: Apache-2.0
"""Names, label order and label values that Istio's dashboards read."""

from __future__ import annotations

from mesh.model.locality import Locality
from mesh.model.service import Service
from mesh.model.workload import Workload
from mesh.telemetry.metrics import BY_NAME, METRICS, TCP_LABELS, MetricType, TcpFlow, peer_labels

ISTIO = """
reporter source_workload source_canonical_service source_canonical_revision source_workload_namespace
source_principal source_app source_version source_cluster destination_service
destination_service_namespace destination_service_name destination_workload
destination_canonical_service destination_canonical_revision destination_workload_namespace
destination_principal destination_app destination_version destination_cluster request_protocol
response_flags connection_security_policy source_region source_zone destination_region destination_zone
"""


def test_the_tcp_labels_are_istios_in_istios_order() -> None:
    assert list(TCP_LABELS) == ISTIO.split()


def test_names_are_unique_and_counters_have_no_total_of_their_own() -> None:
    assert len(BY_NAME) == len(METRICS)
    assert not [m.name for m in METRICS if m.kind is MetricType.COUNTER and m.name.endswith("_total")]
    tcp = {m.name for m in METRICS if m.labels == TCP_LABELS}
    assert tcp == {
        f"istio_tcp_{name}"
        for name in (
            "connections_opened",
            "connections_closed",
            "connections_failed",
            "received_bytes",
            "sent_bytes",
        )
    }


def test_what_is_not_known_is_unknown_and_what_is_known_is_said() -> None:
    nothing = dict(zip(TCP_LABELS, TcpFlow(reporter="source").labels(), strict=True))
    assert nothing.pop("reporter") == "source"
    assert (nothing.pop("request_protocol"), nothing.pop("response_flags")) == ("tcp", "-")
    assert set(nothing.values()) == {"unknown"}
    flow = TcpFlow(
        reporter="destination",
        source=Workload(
            uid="u", name="web-1", namespace="shop", canonical_name="web", canonical_revision="v2"
        ),
        source_principal="spiffe://td/ns/shop/sa/web",
        destination=Workload(
            uid="v",
            name="cart-1",
            namespace="shop",
            workload_name="cart",
            cluster_id="c1",
            locality=Locality(region="r", zone="z"),
        ),
        service=Service(name="cart", namespace="shop", hostname="cart.shop.svc"),
        mutual_tls=True,
    )
    known = dict(zip(TCP_LABELS, flow.labels("DENY"), strict=True))
    assert (known["source_workload"], known["source_app"], known["source_version"]) == (
        "unknown",
        "web",
        "v2",
    )
    assert known["source_principal"] == "spiffe://td/ns/shop/sa/web"
    assert (known["destination_service"], known["destination_service_name"]) == ("cart.shop.svc", "cart")
    assert (known["destination_workload"], known["destination_cluster"]) == ("cart", "c1")
    assert (known["destination_region"], known["destination_zone"]) == ("r", "z")
    assert (known["response_flags"], known["connection_security_policy"]) == ("DENY", "mutual_tls")


def test_a_principal_without_a_workload_is_kept() -> None:
    assert peer_labels(None, "spiffe://x")[4] == "spiffe://x"
