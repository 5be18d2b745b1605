# SPDX-License-Identifier: Apache-2.0
"""Where connections that are not HTTP go: to the service, or where a route sends them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.model.route import Backend
from mesh.model.service import Service, ServicePort
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname
from mesh.net.sockets import DialError
from mesh.xds.encode import encode_address
from mesh.xds.resource import ADDRESS_TYPE, Resource, Update
from mesh.xds.streams import STREAM_TABLE_TYPE, encode_stream_table, stream_table_name
from waypoint.passage import open_passage
from waypoint.tables import Tables


def key(name: str) -> NamespacedHostname:
    return NamespacedHostname(namespace="app", hostname=f"{name}.app.svc.cluster.local")


def service(name: str) -> Service:
    port = ServicePort(service_port=9000, target_port=9000)
    return Service(name=name, namespace="app", hostname=key(name).hostname, ports=(port,))


class Clusters:
    """Stands for the waypoint's clusters: notes what was asked for, and has none."""

    def __init__(self, draw: float) -> None:
        self.asked: list[tuple[NamespacedHostname, int, str]] = []
        self.draw = draw

    def random(self) -> float:
        return self.draw

    def cluster(self, service: Service, port: int, subset: str = "") -> None:
        self.asked.append((service.key, port, subset))


def tables(*streams: StreamTable) -> Tables:
    made = Tables(namespace="app", gateway="w", network="", root_namespace="istio-system")
    known = [Resource(str(s.key), "1", encode_address(s)) for s in map(service, ("db", "new", "old"))]
    assert made.apply(Update(type_url=ADDRESS_TYPE, upserted=tuple(known))) == ()
    written = [Resource(stream_table_name(s), "1", encode_stream_table(s)) for s in streams]
    assert made.apply(Update(type_url=STREAM_TABLE_TYPE, upserted=tuple(written))) == ()
    return made


def asked(made: Tables, namespace: str = "client", draw: float = 0.0) -> tuple[NamespacedHostname, int, str]:
    """Return the service, port and subset whose cluster a connection to db:9000 asks for."""
    clusters = Clusters(draw)
    shared = cast(Any, SimpleNamespace(tables=made, upstreams=clusters))
    client = cast(Any, SimpleNamespace(namespace=namespace, peer=None))
    destination = cast(
        Any,
        SimpleNamespace(service=service("db"), workload=None, peer=SimpleNamespace(address=None, port=9000)),
    )
    with pytest.raises(DialError) as caught:
        open_passage(shared, client, destination, frozenset())
    if not clusters.asked:
        raise caught.value
    (only,) = clusters.asked
    return only


def table(*backends: Backend, port: int = 9000, namespace: str = "") -> StreamTable:
    return StreamTable(
        service=key("db"), port=port, source="TCPRoute/app/r#0", backends=backends, client_namespace=namespace
    )


NEW = Backend(service=key("new"), port=9000, subset="v1", weight=3)
OLD = Backend(service=key("old"), port=9000, weight=1)


def test_without_a_route_it_is_the_service_itself() -> None:
    assert asked(tables()) == (key("db"), 9000, "")
    assert asked(tables(table(NEW, port=9001))) == (key("db"), 9000, "")


def test_backends_share_the_connections_by_weight() -> None:
    made = tables(table(NEW, OLD))
    assert [asked(made, draw=draw) for draw in (0.0, 0.74, 0.76)] == [
        (key("new"), 9000, "v1"),
        (key("new"), 9000, "v1"),
        (key("old"), 9000, ""),
    ]


def test_a_table_of_the_clients_namespace_comes_first_then_that_of_the_port() -> None:
    made = tables(table(OLD, port=0), table(NEW, namespace="vip"))
    assert asked(made, "vip") == (key("new"), 9000, "v1")
    assert asked(made, "client") == (key("old"), 9000, "")


def test_a_table_that_is_withdrawn_is_gone() -> None:
    made = tables(table(NEW))
    made.apply(Update(type_url=STREAM_TABLE_TYPE, removed=(stream_table_name(table(NEW)),)))
    assert asked(made) == (key("db"), 9000, "")


@pytest.mark.parametrize(
    ("backends", "why"),
    [
        ((), "no backend has a weight"),
        ((Backend(service=None, problem="service x does not exist"),), "service x does not exist"),
        ((Backend(service=key("gone"), port=1),), "is not known"),
    ],
)
def test_a_route_that_leads_nowhere_refuses_and_says_why(backends: tuple[Backend, ...], why: str) -> None:
    with pytest.raises(DialError) as caught:
        asked(tables(table(*backends)))
    assert caught.value.detail.startswith("TCPRoute/app/r#0: ")
    assert why in caught.value.detail
