# SPDX-License-Identifier: Apache-2.0
"""The sources here that are not Python: their own tests and linters."""

from __future__ import annotations

import shutil

import pytest

from tests.k8s.bed import ROOT, ok, run

PLUGIN = ROOT / "daemonset" / "cni_plugin"
GO = (PLUGIN, ROOT / "tests" / "k8s" / "kube", ROOT / "tests" / "k8s" / "coredns")
SCRIPTS = ROOT / "tests" / "k8s"


def test_the_cni_plugin_passes_its_own_tests() -> None:
    ok(run("go", "-C", str(PLUGIN), "vet", "./..."))
    ok(run("go", "-C", str(PLUGIN), "test", "./...", timeout_s=110))


def test_go_is_formatted() -> None:
    assert ok(run("gofmt", "-l", *map(str, GO))) == ""


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shell_scripts_have_no_findings() -> None:
    scripts = [SCRIPTS / "cluster", SCRIPTS / "kube" / "pin", *sorted((SCRIPTS / "lib").iterdir())]
    ok(run("shellcheck", "-x", *map(str, scripts)))
