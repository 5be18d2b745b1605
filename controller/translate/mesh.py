# SPDX-License-Identifier: Apache-2.0
"""All objects to all that ztunnels are told: workloads, services and L4 policies.

Pure: equal objects give an equal mesh. An object that cannot be read costs itself only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.translate.pods import translate_pods
from controller.translate.types import Options, Problem
from controller.translate.world import World
from mesh.config.objects import ObjectKey, RawObject
from mesh.model.policy import Authorization
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname, Workload

__all__ = ["Mesh", "Options", "Problem", "translate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """What is served: workloads by uid, services by key, policies by `namespace/name`."""

    workloads: Mapping[str, Workload]
    services: Mapping[NamespacedHostname, Service]
    policies: Mapping[str, Authorization]
    problems: tuple[Problem, ...]


def translate(objects: Mapping[ObjectKey, RawObject], options: Options) -> Mesh:
    """Translate a snapshot of the cluster; never raises for what the objects hold."""
    world = World(objects, options)
    instances = translate_pods(world)
    return Mesh(
        workloads={instance.workload.uid: instance.workload for instance in instances},
        services={},
        policies={},
        problems=tuple(world.problems),
    )
