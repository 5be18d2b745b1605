# SPDX-License-Identifier: Apache-2.0
"""From Pods and Deployments to assignments."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from lab import workloads
from lab.layout import PODS_PER_NODE, Layout
from mesh.config.objects import RawObject, make_object

LAYOUT = Layout(name="t", state=Path("/s"), node_names=("node1", "node2"))


class Draw:
    """Names in order, so that results are the same each time."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, length: int) -> str:
        return f"{next(self._numbers):0{length}x}"


def bare(name: str, node: str = "", **labels: str) -> RawObject:
    spec: dict[str, Any] = {"containers": [{"name": "c", "command": ["true"]}]}
    if node:
        spec["nodeName"] = node
    return make_object(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": spec,
        }
    )


def deployment(replicas: int = 2, command: str = "true") -> RawObject:
    return make_object(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "command": [command]}]},
                },
            },
        }
    )


class World:
    """Applies plans, as the manager does."""

    def __init__(self) -> None:
        self.pods: dict[workloads.Key, workloads.PodData] = {}
        self.draw = Draw()
        self.plan = workloads.Plan()

    def step(self, *objects: RawObject, ready: bool = False, leaving: Any = ()) -> None:
        everyone = frozenset(self.pods) if ready else frozenset()
        self.plan = workloads.plan(objects, self.pods, everyone, LAYOUT, self.draw, leaving)
        self.pods |= self.plan.write
        for key in self.plan.remove:
            del self.pods[key]

    def nodes(self) -> list[str]:
        return sorted(pod["spec"]["nodeName"] for pod in self.pods.values())


def test_pods_are_spread_over_the_nodes() -> None:
    world = World()
    world.step(deployment(4))
    assert world.nodes() == ["node1", "node1", "node2", "node2"]


def test_node_name_places_a_pod() -> None:
    world = World()
    world.step(bare("a", "node2"), bare("b", "node2"))
    assert world.nodes() == ["node2", "node2"]
    numbers = {workloads.number_of(pod) for pod in world.pods.values()}
    assert len(numbers) == 2


def test_an_unknown_node_is_said() -> None:
    world = World()
    world.step(bare("a", "node9"))
    assert world.pods == {}
    assert world.plan.problems == ["pod shop/a wants node node9; there are node1, node2"]


def test_a_full_node_is_said() -> None:
    world = World()
    world.step(*(bare(f"p{n}", "node1") for n in range(PODS_PER_NODE)))
    assert world.plan.problems == []
    world.step(*(bare(f"p{n}", "node1") for n in range(PODS_PER_NODE + 1)))
    assert world.plan.problems == [f"pod shop/p{PODS_PER_NODE}: node node1 has its {PODS_PER_NODE} pods"]


def test_a_plan_that_was_applied_is_empty() -> None:
    world = World()
    world.step(deployment(3), bare("a"))
    world.step(deployment(3), bare("a"))
    assert (world.plan.write, world.plan.remove) == ({}, set())


def test_labels_of_a_running_pod_change_and_nothing_else() -> None:
    world = World()
    world.step(bare("a", app="x"))
    before = world.pods["shop", "a"]
    world.step(bare("a", app="y"))
    after = world.pods["shop", "a"]
    assert after["metadata"]["labels"] == {"app": "y"}
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"] == before["spec"]


def test_a_deleted_assignment_comes_back_with_another_uid() -> None:
    world = World()
    world.step(bare("a"))
    old = world.pods.pop(("shop", "a"))
    world.step(bare("a"), leaving=[old])
    new = world.pods["shop", "a"]
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    same_node = new["spec"]["nodeName"] == old["spec"]["nodeName"]
    assert not same_node or workloads.number_of(new) != workloads.number_of(old), (
        "its address is not free yet"
    )


def test_scaling_down_keeps_those_that_serve() -> None:
    world = World()
    world.step(deployment(3))
    serving = sorted(world.pods)[2]
    plan = workloads.plan([deployment(1)], world.pods, frozenset({serving}), LAYOUT, world.draw)
    assert plan.remove == set(world.pods) - {serving}


def test_a_changed_template_replaces_pods_only_when_the_new_ones_are_ready() -> None:
    world = World()
    world.step(deployment(2))
    old = set(world.pods)
    world.step(deployment(2, command="false"))
    assert old < set(world.pods)
    assert len(world.pods) == 4
    world.step(deployment(2, command="false"))
    assert len(world.pods) == 4
    world.step(deployment(2, command="false"), ready=True)
    assert len(world.pods) == 2
    assert not old & set(world.pods)


def test_what_is_no_longer_applied_goes() -> None:
    world = World()
    world.step(deployment(2), bare("a"))
    world.step(bare("a"))
    assert list(world.pods) == [("shop", "a")]


def test_pods_whose_namespaces_would_have_one_name_are_refused() -> None:
    world = World()
    one = bare("b-c")
    other = make_object({**one.data, "metadata": {"name": "c", "namespace": "shop-b"}})
    world.step(one, other)
    assert list(world.pods) == [("shop", "b-c")]
    assert world.plan.problems == [
        "pods shop-b/c and shop/b-c would share the network namespace's name; rename one"
    ]
