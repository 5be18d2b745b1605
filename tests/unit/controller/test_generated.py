# SPDX-License-Identifier: Apache-2.0
"""The directory that the controller writes: whole objects, no churn, nothing left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller.generated import Generated, stamped
from controller.translate.gateway import Status
from mesh.config.objects import RawObject, make_object
from mesh.config.source import DirectorySource

TIME = "2026-11-21T08:00:00Z"
NOW_S = 1795248000.0


def gateway(**status: Any) -> RawObject:
    data: dict[str, Any] = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": "shop"},
        "spec": {"gatewayClassName": "istio-waypoint"},
    }
    return make_object(data | ({"status": status} if status else {}))


def condition(status: str) -> dict[str, Any]:
    return {"type": "Programmed", "status": status, "reason": "r", "message": "m"}


def service() -> dict[str, Any]:
    shared = {"name": "wp", "namespace": "shop"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": shared, "spec": {"selector": shared}}


def test_objects_and_statuses_are_written_whole_and_read_back(tmp_path: Path) -> None:
    status = {"addresses": [{"type": "Hostname", "value": "h"}], "conditions": [condition("True")]}
    Generated(tmp_path).write([service()], [Status(obj=gateway(), status=status)], NOW_S)
    found = DirectorySource([tmp_path]).read()
    assert found.rejections == ()
    assert {key.kind for key in found.objects} == {"Service", "Gateway"}
    (read,) = found.of("Gateway")
    assert read.spec == gateway().spec
    assert read.status["conditions"][0]["lastTransitionTime"] == TIME
    # A controller that starts anew goes on with the address that it gave.
    again = Generated(tmp_path).with_statuses({gateway().key: gateway()})
    assert again[gateway().key].status["addresses"] == status["addresses"]


def test_a_status_of_the_object_itself_is_not_replaced(tmp_path: Path) -> None:
    generated = Generated(tmp_path)
    generated.write([], [Status(obj=gateway(), status={"addresses": []})], NOW_S)
    own = gateway(addresses=[1])
    assert generated.with_statuses({own.key: own})[own.key].status == {"addresses": [1]}


def test_a_gateway_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    generated = Generated(tmp_path)
    generated.write([service()], [Status(obj=gateway(), status={"addresses": [1]})], NOW_S)
    generated.write([], [], NOW_S)
    assert DirectorySource([tmp_path]).read().objects == {}
    assert generated.with_statuses({gateway().key: gateway()})[gateway().key].status == {}


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    generated = Generated(tmp_path)
    entry = Status(obj=gateway(), status={"conditions": [condition("True")]})
    generated.write([service()], [entry], NOW_S)
    before = {path: path.stat().st_ino for path in tmp_path.glob("*/*/*.yaml")}
    assert len(before) == 2
    generated.write([service()], [entry], NOW_S + 60)
    assert {path: path.stat().st_ino for path in tmp_path.glob("*/*/*.yaml")} == before


@pytest.mark.parametrize(("status", "expected"), [("True", TIME), ("False", "2026-11-21T08:01:00Z")])
def test_a_transition_is_a_change_of_the_status_alone(status: str, expected: str) -> None:
    first = stamped({"conditions": [condition("True")]}, {}, NOW_S)
    second = stamped({"conditions": [condition(status) | {"message": "new"}]}, first, NOW_S + 60)
    assert second["conditions"][0]["lastTransitionTime"] == expected


def test_a_directory_that_cannot_be_written_is_told_not_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "Service").write_text("a file where a directory should be")
    Generated(tmp_path).write([service()], [], NOW_S)
    assert "cannot be written" in caplog.text


def test_statuses_that_a_lab_writes_itself_are_left_to_it(tmp_path: Path) -> None:
    Generated(tmp_path).write([], [Status(obj=make_object(service()), status={"conditions": []})], NOW_S)
    assert not list(tmp_path.glob("*/*/*.yaml"))
