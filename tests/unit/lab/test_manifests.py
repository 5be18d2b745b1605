# SPDX-License-Identifier: Apache-2.0
"""What is wrong with input is named by file and line before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab import manifests
from lab.errors import Code, LabError

POD = """apiVersion: v1
kind: Pod
metadata: {name: a}
spec:
  containers:
  - name: c
"""


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(LabError) as error:
        manifests.load([str(path)])
    assert error.value.code is Code.BAD_INPUT
    assert error.value.code.exit_code == 65
    return error.value.what.replace(f"{path}:", "x:")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (POD, "x:6: Pod default/a: container c has no command"),
        (POD + "    command: run\n", "x:7: Pod default/a: container c: command is no list of strings"),
        (POD + "    command: [a]\n    volumeMounts: [{name: v}]\n", "mounts a volume that the pod has not"),
        (POD + "    command: [a]\n  hostNetwork: true\n", "x:8: Pod default/a: hostNetwork pods do not run"),
        (
            POD + "    command: [a]\n    securityContext: {capabilities: {add: [FLY]}}\n",
            "capability 'FLY' is not known",
        ),
        (POD + "    command: [a]\n  - name: c\n    command: [a]\n", "two containers are named c"),
        (POD + "    command: [a]\n  volumes: [{name: v, nfs: {}}]\n", "volume v is of a kind (nfs)"),
        ("apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: a}\n", "a lab does not run StatefulSet"),
        ("kind: [", "x:1: not YAML"),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {selector: {matchLabels: "
            "{app: a}}, template: {metadata: {labels: {app: b}}, spec: {containers: [{name: c, "
            "command: [a]}]}}}\n",
            "spec.selector does not match the labels",
        ),
    ],
)
def test_problems_by_line(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(tmp_path, text)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    assert len(refused(tmp_path, f"{POD}---\n{POD}").splitlines()) == 4


def test_the_same_object_twice_is_refused(tmp_path: Path) -> None:
    good = POD + "    command: [a]\n"
    assert "Pod default/a is also in x:1" in refused(tmp_path, f"{good}---\n{good}")


def test_a_path_that_is_not_there_is_named() -> None:
    with pytest.raises(LabError, match="/no/such: does not exist"):
        manifests.load(["/no/such"])


def test_a_directory_is_read_with_those_below(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text(POD + "    command: [a]\n")
    (tmp_path / "ignored.txt").write_text("kind: [")
    assert [item.name for item in manifests.load([str(tmp_path)])] == ["a"]


def test_a_relative_host_path_begins_at_its_file(tmp_path: Path) -> None:
    text = (
        POD
        + "    command: [a]\n"
        + "  volumes: [{name: v, hostPath: {path: ../b}}, {name: w, hostPath: {path: /s}}]\n"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text(text)
    (item,) = manifests.load([str(tmp_path / "sub")])
    assert [v["hostPath"]["path"] for v in item.spec["volumes"]] == [str(tmp_path / "b"), "/s"]


def test_a_directory_without_yaml_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"has no \.yaml"):
        manifests.load([str(tmp_path)])


def test_dumped_objects_have_no_anchors() -> None:
    shared = {"a": "b"}
    assert "&" not in manifests.dump({"x": shared, "y": shared})
