# SPDX-License-Identifier: Apache-2.0
"""What the admin port says of pods, and the metrics."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_address
from typing import Any

from daemonset import pods
from daemonset.admin import Admin, Kernel
from daemonset.codes import Code
from daemonset.enroll import NetnsReplaced, Step
from daemonset.handoff import Handoff
from daemonset.registry import Objects, Registry
from daemonset.worker import StepError, Subject
from mesh.runtime.clock import SystemClock
from mesh.runtime.http import Request, Response
from mesh.runtime.readiness import Readiness


class Steps:
    """Everything works, but the mark route of pod `bad`."""

    async def do(self, step: Step, subject: Subject) -> NetnsReplaced | None:
        if step is Step.ROUTE and subject.pod.name == "bad":
            raise StepError(Code.ROUTING_FAILED, "operation not permitted")
        return None


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": f"u-{name}", "labels": labels},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "podIP": "10.1.0.5"},
    }


def ask(path: str) -> Response:
    """Ask one page of an agent with an enrolled, a failing and an ignored pod."""

    async def body() -> Response:
        registry = Registry(
            node="n1",
            steps=Steps(),
            clock=SystemClock(),
            processes=lambda _uid: True,
            cookie_of=lambda _path: None,
            excluded_namespaces=frozenset(),
            cni_timeout_s=1.0,
        )
        handoff = Handoff(offers=dict, on_session=registry.on_session, ack_timeout_s=1.0)
        readiness = Readiness(["ztunnel"])
        admin = Admin(
            registry=registry,
            handoff=handoff,
            refused=lambda: 3,
            kernel=Kernel(counters=lambda: {"captured": 5}, fill=lambda: {"pods": (1, 1024)}),
            readiness=readiness,
            settings={"node": "n1"},
            source=lambda: [{"kind": "Pod", "failingSeconds": 12.5}, {"directory": "/objects"}],
        )
        registry.on_session(1)
        values = (pod("good"), pod("bad"), pod("out", **{pods.MODE_LABEL: "none"}))
        registry.apply(Objects(pods=values, namespaces={"shop": {pods.MODE_LABEL: "ambient"}}))
        while not all(w.state.enrolled or w.state.failure for w in registry.workers):
            await asyncio.sleep(0)
        request = Request(method="GET", path=path, query={}, headers={}, body=b"", peer="")
        try:
            return await admin.routes()[path].handler(request)
        finally:
            await registry.close()

    return asyncio.run(body())


def test_each_pod_has_its_state_and_what_to_do() -> None:
    rows = {row["name"]: row for row in json.loads(ask("/pods").body)}
    assert rows["good"]["state"] == "enrolled"
    assert rows["good"]["addresses"] == [str(ip_address("10.1.0.5"))]
    assert rows["bad"]["state"] == "enrolling"
    assert rows["bad"]["code"] == "AMB2106"
    assert "operation not permitted" in rows["bad"]["reason"]
    assert rows["bad"]["remedy"] == Code.ROUTING_FAILED.remedy
    assert (rows["out"]["state"], rows["out"]["code"]) == ("ignored", "AMB2002")


def test_metrics_count_pods_failures_strangers_and_what_the_kernel_says() -> None:
    text = ask("/metrics").body.decode()
    for line in (
        'ambit_agent_pods{state="enrolled"} 1.0',
        'ambit_agent_pods{state="ignored"} 1.0',
        'ambit_agent_pods_failing{code="AMB2106",step="route"} 1.0',
        "ambit_agent_zds_refused_total 3.0",
        'ambit_agent_objects_unfollowed_seconds{kind="Pod"} 12.5',
        'ambit_bpf_events_total{reason="captured"} 5.0',
        'ambit_bpf_map_capacity{map="pods"} 1024.0',
    ):
        assert line in text


def test_readiness_says_what_is_waited_for() -> None:
    response = ask("/healthz/ready")
    assert response.status == 503
    assert b"ztunnel" in response.body


def test_maps_and_settings_are_shown() -> None:
    assert json.loads(ask("/maps").body)["maps"]["pods"] == {"entries": 1, "capacity": 1024}
    assert json.loads(ask("/config").body) == {"node": "n1"}
    assert json.loads(ask("/source").body)[1] == {"directory": "/objects"}
    assert json.loads(ask("/ztunnel").body) == []
