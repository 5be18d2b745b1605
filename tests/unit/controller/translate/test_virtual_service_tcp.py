# SPDX-License-Identifier: Apache-2.0
"""The tcp part of VirtualServices: who shares the connections to a port."""

from __future__ import annotations

import pytest

from controller.translate.types import Options
from controller.translate.virtual_service import translate_virtual_services
from controller.translate.world import World
from mesh.config.objects import RawObject
from mesh.model.service import AppProtocol, Service, ServicePort
from mesh.model.stream import StreamTable
from tests.support.dialects import SERVICES, key, virtual


def translated(*objects: RawObject) -> tuple[dict[str, StreamTable], list[str]]:
    world = World({obj.key: obj for obj in objects}, Options())
    found = translate_virtual_services(world, SERVICES, {})
    return dict(found.streams), [
        f"{'.'.join(map(str, problem.path))}: {problem.reason}" for problem in world.problems
    ]


def shares(table: StreamTable) -> list[tuple[str, int, int]]:
    return [
        (backend.service.hostname.partition(".")[0], backend.port, backend.weight)
        for backend in table.backends
        if backend.service is not None
    ]


TO = (
    "route: [{destination: {host: ratings, port: {number: 81}}, weight: 9},"
    " {destination: {host: reviews}, weight: 1}]"
)


def test_destinations_share_the_connections_by_weight() -> None:
    found, problems = translated(virtual(f"tcp: [{{{TO}}}]"))
    assert problems == []
    (table,) = found.values()
    assert list(found) == [f"{key('reviews')}:80"]
    assert (table.source, shares(table)) == (
        "VirtualService/app/v#tcp0",
        [("ratings", 81, 9), ("reviews", 80, 1)],
    )


def test_the_first_route_for_the_port_and_the_clients_holds() -> None:
    found, problems = translated(
        virtual(
            "hosts: [ratings]\n"
            "tcp: [{match: [{port: 81}, {gateways: [ingress]}], route: [{destination: {host: other}}]},"
            " {match: [{sourceNamespace: shop}], route: [{destination: {host: reviews}}]},"
            " {route: [{destination: {host: ratings}}]}]"
        )
    )
    assert problems == []
    assert {name.rpartition(":")[2]: shares(table) for name, table in found.items()} == {
        "80": [("ratings", 80, 1)],
        "80@shop": [("reviews", 80, 1)],
        "81": [("other", 9080, 1)],
        "81@shop": [("other", 9080, 1)],
    }


def test_ports_declared_as_http_have_none() -> None:
    port = ServicePort(service_port=80, target_port=80, app_protocol=AppProtocol.HTTP11)
    made = Service(name="t", namespace="app", hostname="t.example", ports=(port,))
    obj = virtual("hosts: [t.example]\ntcp: [{route: [{destination: {host: t.example}}]}]")
    world = World({obj.key: obj}, Options())
    assert translate_virtual_services(world, {made.key: made}, {}).streams == {}


@pytest.mark.parametrize(
    ("tcp", "path", "reason", "left"),
    [
        (
            "{match: [{destinationSubnets: [10.0.0.0/8]}], " + TO + "}",
            "match.0.destinationSubnets",
            "only",
            False,
        ),
        ("{match: [{sourceLabels: {a: b}}], " + TO + "}", "match.0.sourceLabels", "only", False),
        ("{match: [{port: x}], " + TO + "}", "match.0.port", "whole number", False),
        ("{match: 5, " + TO + "}", "match", "list", False),
        ("{route: []}", "route", "no destination has a weight", True),
        ("{route: [{destination: {}}]}", "route.0.destination.host", "missing", True),
        ("{colour: red, " + TO + "}", "colour", "not known", True),
    ],
)
def test_what_cannot_be_honoured_is_reported_by_its_path(
    tcp: str, path: str, reason: str, left: bool
) -> None:
    found, problems = translated(virtual(f"tcp: [{tcp}]"))
    assert len(problems) == 1
    assert problems[0].startswith(f"spec.tcp.0.{path}: ")
    assert reason in problems[0]
    assert bool(found) is left


def test_a_destination_that_is_not_there_keeps_its_share() -> None:
    found, _ = translated(
        virtual(
            "tcp: [{route: [{destination: {host: nothing}, weight: 1},"
            " {destination: {host: ratings}, weight: 1}]}]"
        )
    )
    (table,) = found.values()
    assert [(backend.service, backend.weight) for backend in table.backends] == [
        (None, 1),
        (key("ratings"), 1),
    ]
