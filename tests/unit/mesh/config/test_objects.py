# SPDX-License-Identifier: Apache-2.0
"""Documents as people write them: what is taken, what is refused, where and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config.objects import MAX_DEPTH, MAX_FILE_BYTES, ObjectKey, make_object, parse_documents

POD = """apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: {app: web}
spec:
  containers:
  - name: nginx
    ports:
    - containerPort: 80
"""


def only(text: str, file: str = "a.yaml") -> tuple[int, str]:
    """Return line and reason of the only rejection of a text without objects."""
    objects, rejections = parse_documents(text, file)
    assert objects == []
    (rejection,) = rejections
    assert rejection.file == file
    return rejection.line, rejection.reason


def test_several_documents_each_with_its_line() -> None:
    objects, rejections = parse_documents(
        f"---\n{POD}---\n# nothing\n---\n{POD.replace('web', 'api')}", "a.yaml"
    )
    assert rejections == []
    assert [(item.key, item.line) for item in objects] == [
        (ObjectKey("", "Pod", "shop", "web"), 2),
        (ObjectKey("", "Pod", "shop", "api"), 16),
    ]
    assert objects[0].labels == {"app": "web"}


def test_the_line_of_a_field_or_of_its_nearest_ancestor() -> None:
    (pod,), _ = parse_documents(POD, "a.yaml")
    assert pod.line_of(("spec", "containers", 0, "ports", 0, "containerPort")) == 11
    assert pod.line_of(("spec", "containers", 0, "image")) == 9
    assert pod.line_of(("spec", "containers", 7)) == 8 + 1
    assert pod.line_of(()) == 1


def test_a_list_is_taken_apart() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a}}\n- 5\n"
    objects, rejections = parse_documents(text, "a.yaml")
    assert [(item.name, item.namespace, item.line) for item in objects] == [("a", "default", 4)]
    assert rejections[0].line == 5


def test_cluster_scoped_kinds_have_no_namespace() -> None:
    item = make_object({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "namespace": "y"}})
    assert item.key == ObjectKey("", "Namespace", "", "x")


def test_the_version_of_an_api_does_not_make_another_object() -> None:
    old, new = (
        make_object(
            {"apiVersion": f"networking.istio.io/{v}", "kind": "VirtualService", "metadata": {"name": "x"}}
        )
        for v in ("v1alpha3", "v1")
    )
    assert old.key == new.key


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a: [", 1, "not YAML"),
        ("x: 1\ny: : 2\n", 2, "not YAML"),
        ("5", 1, "not a Kubernetes object"),
        ("kind: Pod\nmetadata: {name: a}\n", 1, "apiVersion is missing"),
        ("apiVersion: v1\nmetadata: {name: a}\n", 1, "kind is missing"),
        ("apiVersion: v1\nkind: Pod\n", 1, "metadata is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {}\n", 1, "metadata.name is missing"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: 'A b'}\n", 1, "RFC 1123"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: '../x'}\n", 1, "RFC 1123"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {v: 1}}\n", 1, 'write it in quotes: "1"'),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: []\n", 1, "spec must be a mapping"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nkind: Pod\n", 4, "'kind' is given twice"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nd: 2026-02-30\n", 1, "not a Kubernetes value"),
        ("apiVersion: v1\n? [a]\n: 1\n", 2, "a key must be text"),
        ("x: !!python/object/apply:os.system [id]\n", 1, "not a Kubernetes value"),
        ("a: " + "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), 1, "nested deeper"),
    ],
)
def test_refusals_say_where_and_why(text: str, line: int, reason: str) -> None:
    at, why = only(text)
    assert at == line
    assert reason in why


def test_a_bad_document_costs_itself_only_and_its_object_is_known() -> None:
    bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad, labels: {v: 1}}\n"
    objects, (rejection,) = parse_documents(f"{bad}---\n{POD}", "a.yaml")
    assert [item.name for item in objects] == ["web"]
    assert rejection.key == ObjectKey("", "Pod", "default", "bad")


def test_a_file_over_the_limit_is_refused_whole() -> None:
    assert only(" " * (MAX_FILE_BYTES + 1))[1].startswith("the file exceeds")


@given(st.text(max_size=200))
def test_no_text_raises(text: str) -> None:
    objects, rejections = parse_documents(text, "x")
    assert all(rejection.reason for rejection in rejections)
    assert all(item.name for item in objects)
