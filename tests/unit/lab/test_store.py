# SPDX-License-Identifier: Apache-2.0
"""Applied objects remember where they were written, as long as that file says the same."""

from __future__ import annotations

from pathlib import Path

from lab import manifests, store
from lab.layout import Layout
from mesh.config.objects import RawObject

TEXT = """# two policies
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: shop}
spec: {}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: b, namespace: shop}
spec:
  rules:
  - from: [{source: {namespaces: [x]}}]
"""


def apply(tmp_path: Path, text: str = TEXT) -> tuple[Layout, list[str]]:
    file = tmp_path / "policies.yaml"
    file.write_text(text)
    layout = Layout(name="x", state=tmp_path / "state")
    return layout, [result for _, result in store.apply_objects(layout, manifests.load([str(file)]))]


def named(layout: Layout, name: str) -> RawObject:
    (found,) = [item for item in store.snapshot(layout).of("AuthorizationPolicy") if item.name == name]
    return found


def written(layout: Layout, name: str) -> RawObject:
    item = named(layout, name)
    return store.written(item, Path(item.file))


def test_the_line_is_that_of_the_file_that_was_applied(tmp_path: Path) -> None:
    layout, results = apply(tmp_path)
    assert results == ["created", "created"]
    found = written(layout, "b")
    assert (found.file, found.line_of(("spec", "rules", 0))) == (str(tmp_path / "policies.yaml"), 12)


def test_a_file_that_has_changed_or_is_gone_is_not_named(tmp_path: Path) -> None:
    layout, _ = apply(tmp_path)
    applied = named(layout, "b")
    (tmp_path / "policies.yaml").write_text(TEXT.replace("[x]", "[y]"))
    assert store.written(applied, Path(applied.file)) is applied
    (tmp_path / "policies.yaml").unlink()
    assert store.written(applied, Path(applied.file)) is applied


def test_moving_an_object_is_no_change_of_it(tmp_path: Path) -> None:
    apply(tmp_path)
    layout, results = apply(tmp_path, "# more lines\n# above\n" + TEXT)
    assert results == ["unchanged", "unchanged"]
    assert written(layout, "a").line == 4
    _, results = apply(tmp_path, TEXT.replace("[x]", "[z]"))
    assert results == ["unchanged", "configured"]
