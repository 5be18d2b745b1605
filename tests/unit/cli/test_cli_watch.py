# SPDX-License-Identifier: Apache-2.0
"""`-w` shows again until interrupted; words that are no verb; quick reading equals the exact one."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pytest

from cli import __main__ as main
from cli import status
from cli.target_lab import LabTarget, read_objects
from lab import manifests, store
from lab.layout import Layout


def test_a_watched_verb_is_shown_until_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    def show(_: argparse.Namespace) -> int:
        print("shown")
        return 0

    monkeypatch.setattr(time, "sleep", pause)
    monkeypatch.setattr(status, "run", show)
    assert main.main(["status", "-w", "5s"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("shown\n\nshown\n\nshown\n\n", "interrupted\n")
    assert pauses == [5.0, 5.0, 5.0]


def test_without_a_verb_there_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main([])
    assert end.value.code == 64
    assert "Why does this (not) work?" in capsys.readouterr().err


def test_a_verb_nearly_right_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(["chek"])
    assert end.value.code == 64
    assert "there is no verb chek; did you mean check?" in capsys.readouterr().err


OBJECTS = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: a, namespace: shop, labels: {on: "yes", n: "1"}}
spec:
  rules:
  - from: [{source: {namespaces: [x]}}]
"""


def test_quick_reading_gives_what_the_exact_one_does(tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(OBJECTS)
    layout = Layout(name="x", state=tmp_path / "state")
    store.apply_objects(layout, manifests.load([str(file)]))
    (layout.objects / "broken.yaml").write_text("a: [")
    quick = read_objects([layout.objects, layout.generated, layout.status]).objects
    exact = store.snapshot(layout).objects
    assert {key: item.data for key, item in quick.items()} == {key: item.data for key, item in exact.items()}
    target = LabTarget(layout)
    (policy,) = target.objects().of("AuthorizationPolicy")
    assert target.written(policy).line_of(("spec", "rules", 0)) == 11
    file.unlink()
    fallback = target.written(policy)
    assert (fallback.file, fallback.line_of(("spec", "rules", 0)) > 1) == (policy.file, True)
