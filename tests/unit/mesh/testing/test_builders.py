# SPDX-License-Identifier: Apache-2.0
"""Built values are ones that the mesh takes: they survive the wire and judge as they say."""

from __future__ import annotations

import pytest

from mesh.authz.evaluate import Connection, evaluate
from mesh.identity.spiffe import SpiffeId
from mesh.model.address import parse_ip
from mesh.model.policy import Action, Authorization
from mesh.testing.builders import EVERYTHING, NEVER, hostname, policy, service, strict, workload
from mesh.xds.decode import decode_address, decode_authorization
from mesh.xds.encode import encode_address, encode_authorization, resource_name

PEER = Connection(
    source_identity=SpiffeId.parse(workload("web", "10.1.0.1").identity),
    source_ip=parse_ip("10.1.0.1"),
    destination_ip=parse_ip("10.1.0.2"),
    destination_port=80,
)


def test_workloads_and_services_survive_the_wire() -> None:
    web = workload("web", "10.1.0.1", "fd00::1", services={"web": {80: 8080}}, policies=("shop/p",))
    assert web.identity == "spiffe://cluster.local/ns/shop/sa/web"
    assert list(web.services) == [hostname("web")] == [service("web").key]
    for value in (web, workload("db", hbone=False, account="sa"), service("web", "10.96.0.1", ports={1: 2})):
        assert decode_address(encode_address(value), resource_name(value)) == value


@pytest.mark.parametrize(
    ("built", "allowed"),
    [
        (policy(Action.ALLOW), False),
        (policy(Action.ALLOW, EVERYTHING), True),
        (policy(Action.ALLOW, NEVER), False),
        (policy(Action.DENY), True),
        (policy(Action.DENY, EVERYTHING), False),
        (policy(Action.DENY, NEVER), True),
        (policy(Action.DENY, EVERYTHING, dry_run=True), True),
        (strict(), True),
    ],
)
def test_policies_survive_the_wire_and_judge(built: Authorization, allowed: bool) -> None:
    assert decode_authorization(encode_authorization(built), resource_name(built)) == built
    assert evaluate([built], PEER).allowed is allowed


def test_strict_denies_plaintext() -> None:
    plain = Connection(
        source_identity=None,
        source_ip=PEER.source_ip,
        destination_ip=PEER.destination_ip,
        destination_port=80,
    )
    assert evaluate([strict()], plain).policy == "istio-system/istio_converted_static_strict"
