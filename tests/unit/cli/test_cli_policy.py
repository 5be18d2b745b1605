# SPDX-License-Identifier: Apache-2.0
"""`policy suggest` and `policy try`: grouping, least privilege, and the same verdicts as the proxies'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import __main__ as main
from cli import policy as verb
from cli.facts import Facts
from cli.flow_log import Flow
from cli.replay import World, changed, recorded, replay
from cli.suggest import deny_rest, merge_same, policy_of, suggest
from mesh.config.objects import RawObject, parse_documents
from tests.support.fake_target import FakeTarget

NAMES = ("web", "cart", "redis")
PODS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
""" + "".join(
    f"""---
apiVersion: v1
kind: Pod
metadata:
  name: {name}-abc-{number}
  namespace: shop
  uid: u{number}
  labels: {{app: {name}, version: v{number}}}
  ownerReferences: [{{kind: Deployment, name: {name}-{number}}}]
spec: {{nodeName: node1, serviceAccountName: {name}, containers: [{{name: c}}]}}
status: {{phase: Running, podIPs: [{{ip: 10.0.0.{number}}}]}}
"""
    for number, name in enumerate((*NAMES, "web"), 1)
)


def identity(name: str) -> str:
    return f"spiffe://cluster.local/ns/shop/sa/{name}" if name else ""


def flow(
    source: str,
    destination: str = "cart-abc-2",
    port: int = 8080,
    verdict: str = "forwarded",
    second: int = 0,
) -> Flow:
    return Flow(
        time=f"2026-11-21T08:00:{second:02}.000000Z",
        node="node1",
        verdict=verdict,
        direction="inbound",
        reason="complete",
        error="",
        fields={
            "src.addr": "10.0.0.9:4000",
            "src.identity": identity(source),
            "dst.hbone_addr": f"10.0.0.2:{port}",
            "dst.workload": destination,
            "dst.namespace": "shop",
        },
    )


def policies(flows: Sequence[Flow]) -> list[dict[str, object]]:
    found = suggest(flows, Facts(FakeTarget(yaml=PODS)).pods())
    return [policy_of(target) for target in merge_same(found.targets)]


def test_callers_of_the_same_ports_share_a_rule() -> None:
    (policy,) = policies([flow("web"), flow("redis"), flow("cart", port=9090), flow("web", port=8080)])
    assert policy["metadata"] == {"name": "allow-to-cart", "namespace": "shop"}
    assert policy["spec"] == {
        "selector": {"matchLabels": {"app": "cart"}},
        "action": "ALLOW",
        "rules": [
            {
                "from": [
                    {
                        "source": {
                            "principals": ["cluster.local/ns/shop/sa/redis", "cluster.local/ns/shop/sa/web"]
                        }
                    }
                ],
                "to": [{"operation": {"ports": ["8080"]}}],
            },
            {
                "from": [{"source": {"principals": ["cluster.local/ns/shop/sa/cart"]}}],
                "to": [{"operation": {"ports": ["9090"]}}],
            },
        ],
    }


def test_two_versions_of_an_application_have_one_policy() -> None:
    found = policies([flow("cart", "web-abc-1"), flow("redis", "web-abc-4")])
    assert [policy["metadata"] for policy in found] == [{"name": "allow-to-web", "namespace": "shop"}]


def test_what_was_denied_justifies_nothing() -> None:
    assert policies([flow("web", verdict="denied")]) == []


def test_callers_without_identity_and_pods_that_are_gone_are_told() -> None:
    found = suggest([flow(""), flow("web", "old-1")], Facts(FakeTarget(yaml=PODS)).pods())
    assert found.targets == ()
    assert found.nameless == ("10.0.0.9 to shop/cart-2 port 8080",)
    assert found.unknown == ("shop/old-1",)


def objects(text: str) -> list[RawObject]:
    found, rejections = parse_documents(text, "x.yaml")
    assert not rejections
    return found


def judged(flows: Sequence[Flow], applied: str, before: str = "") -> list[tuple[str, bool]]:
    base = {item.key: item for item in objects(PODS + before)}
    after = changed(base, objects(applied), [])
    result = replay(recorded(flows), World(base), World(after))
    return [(change.asked.identity.rpartition("/")[2], change.allowed) for change in result.changes]


ONLY_WEB = """---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-web, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]}]
"""
STRICT = """---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


def test_what_would_be_denied_and_what_allowed() -> None:
    flows = [flow("web"), flow("redis"), flow("redis"), flow("")]
    assert judged(flows, ONLY_WEB) == [("redis", False), ("", False)]
    assert judged(flows, STRICT) == [("", False)]
    wider = ONLY_WEB.replace("sa/web]", "sa/web, cluster.local/ns/shop/sa/redis]")
    assert judged(flows, wider, before=ONLY_WEB) == [("redis", True)]


CALLS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(("web-abc-1", "cart-abc-2", "redis-abc-3", "web-abc-4")),
        st.sampled_from((80, 8080)),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=40)
@given(CALLS)
def test_suggestions_keep_all_that_was_seen_and_nothing_else(calls: list[tuple[str, str, int]]) -> None:
    flows = [flow(source, destination, port) for source, destination, port in calls]
    text = "\n---\n".join(yaml.safe_dump(p) for p in [*policies(flows), deny_rest("shop")])
    world = World({item.key: item for item in objects(PODS + "---\n" + text)})
    app = {"web-abc-1": "web", "cart-abc-2": "cart", "redis-abc-3": "redis", "web-abc-4": "web"}
    seen = {(source, app[destination], port) for source, destination, port in calls}
    for source in NAMES:
        for destination, name in app.items():
            for port in (80, 8080, 9):
                asked = next(iter(recorded([flow(source, destination, port)])))
                workload = world.find(f"shop/{destination}")
                assert workload is not None
                assert world.judge(workload, asked)[0] is ((source, name, port) in seen)


def line(source: str, second: int) -> str:
    return json.dumps(flow(source, second=second).data())


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verb, "open_target", lambda _: FakeTarget(yaml=PODS))
    flows = tmp_path / "flows.json"
    flows.write_text("\n".join([line("web", 1), line("redis", 2), line("web", 3)]))
    recorded_flows = ("--input-file", str(flows))
    assert main.main(["policy", "suggest", *recorded_flows, "--except", "redis", "--deny-rest"]) == 0
    out, err = capsys.readouterr()
    assert "# cluster.local/ns/shop/sa/web to port 8080: 2 connections, last at 2026-11-21T08:00:03Z" in out
    assert [d["metadata"]["name"] for d in yaml.safe_load_all(out)] == ["allow-to-cart", "allow-nothing"]
    assert "2 policies" in err
    file = tmp_path / "policy.yaml"
    file.write_text(out)
    assert main.main(["policy", "try", "-f", str(file), *recorded_flows]) == 2
    assert "newly denied  spiffe://cluster.local/ns/shop/sa/redis" in capsys.readouterr().out
    since = ("--since", "2026-11-21T08:00:03Z")
    assert main.main(["policy", "try", "-f", str(file), *recorded_flows, *since]) == 0
    assert "nothing changes for the 1 recorded connection" in capsys.readouterr().out
    flows.write_text("")
    assert main.main(["policy", "suggest", *recorded_flows]) == 4
    assert main.main(["policy", "try", "-f", str(file), *recorded_flows]) == 4
