# SPDX-License-Identifier: Apache-2.0
"""Files that survive the agent, and the objects that the controller reads."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
import yaml

from daemonset import store
from daemonset.store import EnrollmentFiles, PodFiles, Remembered

POD = Remembered(
    uid="u1",
    namespace="shop",
    name="web",
    service_account="web",
    netns_path="/run/netns/x",
    cookie=4105,
    workload_id=3,
    addresses=(ip_address("10.1.0.5"), ip_address("fd00::5")),
    resolvers=(ip_address("10.96.0.10"),),
)


def test_a_pods_file_comes_back_as_it_was(tmp_path: Path) -> None:
    files = PodFiles(tmp_path)
    assert files.load() == {}
    files.save(POD)
    assert files.load() == {"u1": POD}
    files.remove("u1")
    files.remove("u1")
    assert files.load() == {}


def test_an_unreadable_file_does_not_hide_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = PodFiles(tmp_path)
    files.save(POD)
    (tmp_path / "pods" / "bad.json").write_text('{"uid": "u2"}')
    (tmp_path / "pods" / "worse.json").write_text("{")
    assert files.load() == {"u1": POD}
    assert "bad.json" in caplog.text
    assert "worse.json" in caplog.text


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"uid": "u"}', "{", store.encode(POD).replace("4105", '"x"')]
)
def test_what_is_no_pods_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        store.decode(text)


async def test_a_captured_pod_is_published_as_the_contract_says(tmp_path: Path) -> None:
    files = EnrollmentFiles(tmp_path, "n1")
    await files.publish(POD, point_to_point=True)
    path = tmp_path / "Enrollment" / "shop" / "web.yaml"
    assert yaml.safe_load(path.read_text()) == {
        "apiVersion": "ambit.io/v1alpha1",
        "kind": "Enrollment",
        "metadata": {
            "namespace": "shop",
            "name": "web",
            "annotations": {"ambient.istio.io/redirection": "enabled"},
        },
        "podUid": "u1",
        "node": "n1",
        "addresses": ["10.1.0.5", "fd00::5"],
        "pointToPoint": True,
    }
    assert [p.name for p in path.parent.iterdir()] == ["web.yaml"]
    assert files.published() == {"u1": ("shop", "web")}
    assert EnrollmentFiles(tmp_path, "n2").published() == {}
    assert await files.fetch() == files.published()
    assert set(await files.recall(["u1", "u9"])) == {"u1"}


async def test_a_successor_of_the_name_is_not_withdrawn(tmp_path: Path) -> None:
    files = EnrollmentFiles(tmp_path, "n1")
    await files.publish(replace(POD, uid="u2"), point_to_point=True)
    await files.withdraw("shop", "web", "u1")
    assert files.published() == {"u2": ("shop", "web")}
    await files.withdraw("shop", "web", "u2")
    await files.withdraw("shop", "web", "u2")
    assert files.published() == {}


async def test_without_a_status_directory_nothing_is_published() -> None:
    files = EnrollmentFiles(None, "n1")
    await files.publish(POD, point_to_point=False)
    await files.withdraw("shop", "web", "u1")
    assert files.published() == {}
