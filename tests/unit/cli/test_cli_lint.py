# SPDX-License-Identifier: Apache-2.0
"""`lint`: the translators' findings by file and line, exit codes, input that cannot be read."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from cli import __main__ as main

GOOD = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  rules:
  - from: [{source: {namespaces: [a]}}]
"""
WRONG = GOOD.replace("from", "frm")
UNUSED = """
apiVersion: networking.istio.io/v1
kind: EnvoyFilter
metadata: {name: x, namespace: shop}
"""


def lint(tmp_path: Path, text: str, *words: str) -> int:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return main.main(["lint", "-f", str(path), *words])


def test_nothing_to_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(tmp_path, GOOD) == 0
    assert capsys.readouterr() == ("", "1 object: nothing to say\n")


def test_a_field_that_is_wrong_is_named_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(tmp_path, WRONG) == 2
    out = capsys.readouterr().out
    assert out.startswith(f"{tmp_path}/x.yaml:7: error: AuthorizationPolicy shop/p: spec.rules[0].frm: ")
    assert out.endswith("(AMB3114)\n")


def test_warnings_count_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(tmp_path, UNUSED) == 0
    assert lint(tmp_path, UNUSED, "--fail-on", "warning") == 3
    assert "x.yaml:3: warning: EnvoyFilter shop/x: kind" in capsys.readouterr().out


def test_text_that_is_no_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(tmp_path, GOOD + "---\na: [", "-o", "json") == 2
    (item,) = json.loads(capsys.readouterr().out)["items"]
    assert (item["code"], item["severity"]) == ("AMB3113", "error")


def test_an_object_that_is_there_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lint(tmp_path, GOOD + "---" + GOOD) == 0
    assert "x.yaml:9: warning: AuthorizationPolicy shop/p: is also in" in capsys.readouterr().out


def test_directories_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yml").write_text(WRONG)
    assert main.main(["lint", "-f", str(tmp_path)]) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO(WRONG))
    assert main.main(["lint", "-f", "-"]) == 2
    assert "stdin:7: error" in capsys.readouterr().out


def test_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["lint", "-f", str(tmp_path / "none.yaml")]) == 65
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert main.main(["lint", "-f", str(tmp_path / "bytes.yaml")]) == 65
    assert "not UTF-8 text" in capsys.readouterr().err


CANARY = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.20, ports: [{port: 80}]}
---
apiVersion: split.smi-spec.io/v1alpha1
kind: TrafficSplit
metadata: {name: web, namespace: shop}
spec: {service: web, backends: [{service: web, weight: 900m}]}
"""


def test_what_routes_come_to_is_said_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = "requests to shop/web.shop.svc.cluster.local, port 80:"
    lint(tmp_path, CANARY)
    assert place not in capsys.readouterr().out
    lint(tmp_path, CANARY, "--explain")
    assert capsys.readouterr().out.startswith(
        f"{place}\n  1. any: to shop/web.shop.svc.cluster.local:80\n       from TrafficSplit/shop/web#0\n"
    )
    lint(tmp_path, CANARY, "--explain", "-o", "json")
    assert json.loads(capsys.readouterr().out)["explained"][0] == place
