# SPDX-License-Identifier: Apache-2.0
"""What is translated is followed, and the manifests give the right to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.kubernetes.kinds import PLURALS, kinds
from controller.translate.mesh import READ
from mesh.config.kube_store import Kind

ROLE = Path(__file__).parents[4] / "daemonset" / "manifests" / "kubernetes" / "controller-rbac.yaml"
NOT_OF_A_CLUSTER = {("ambit.io", "Enrollment")}
SAY_NOTHING = {("", kind) for kind in ("Secret", "ServiceAccount", "Endpoints", "Event")}
KINDS = kinds("istio-system")


def rules(kind: str) -> list[dict[str, Any]]:
    found = [item for item in yaml.safe_load_all(ROLE.read_text()) if item["kind"] == kind]
    return [rule for item in found for rule in item["rules"]]


def test_every_kind_that_is_translated_is_followed() -> None:
    assert {(kind.group, kind.kind) for kind in KINDS} >= READ - NOT_OF_A_CLUSTER - SAY_NOTHING


def test_no_kind_is_followed_twice_but_single_objects() -> None:
    paths = [(kind.path(kind.versions[0]), str(kind.selectors)) for kind in KINDS]
    assert len(paths) == len(set(paths))
    assert len(PLURALS) == len({(kind.group, kind.kind) for kind in KINDS})


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_manifests_give_the_right_to_follow(kind: Kind) -> None:
    name = kind.field_selector.removeprefix("metadata.name=")
    given = rules("Role") if kind.namespace else rules("ClusterRole")
    assert any(
        kind.group in rule["apiGroups"]
        and (kind.plural in rule["resources"] or "*" in rule["resources"])
        and {"list", "watch"} <= set(rule["verbs"])
        and ("resourceNames" not in rule or name in rule["resourceNames"])
        for rule in given
    )
