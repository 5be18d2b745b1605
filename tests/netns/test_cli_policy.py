# SPDX-License-Identifier: Apache-2.0
"""Policies suggested from a lab's traffic: tried, applied, and then the wanted callers get through only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab_bed import MANIFEST, REPOSITORY, STRICT, Lab

from tests.support.eventually import eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
    pytest.mark.timeout(240),
]

LAB = Lab("clipolicy")
CALLS = 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("policy")
    (directory / "shop.yaml").write_text(MANIFEST)
    try:
        LAB.ambit("up", "-f", str(directory / "shop.yaml"), "--nodes", "2")
        yield directory
    finally:
        LAB.run("down")


def ambit(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *words, "--lab", LAB.name],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=REPOSITORY,
    )


def test_what_is_suggested_keeps_the_wanted_and_denies_the_rest(lab: Path) -> None:
    assert LAB.call("friend") == LAB.call("snoop") == LAB.call("outsider") == "got"
    eventually(lambda: ambit("flows", "--from", "snoop").returncode == 0, "the calls are in the logs")
    done = ambit("policy", "suggest", "-n", "shop", "--except", "sa/snoop", "--deny-rest")
    assert done.returncode == 0, done.stderr
    assert "it came without an identity" in done.stderr
    path = lab / "suggested.yaml"
    path.write_text(done.stdout)

    tried = ambit("policy", "try", "-f", str(path), "-o", "json")
    assert tried.returncode == 2
    changes = {item["source"]: item["verdict"] for item in json.loads(tried.stdout)["items"]}
    assert changes == {"shop/snoop": "denied", "shop/outsider": "denied"}

    LAB.ambit("apply", "-f", str(path))
    try:
        eventually(lambda: LAB.call("snoop") == "refused", "the policies are in force")
        assert [LAB.call("friend") for _ in range(CALLS)] == ["got"] * CALLS
        assert LAB.call("outsider") == "refused"
        assert ambit("check", "--fail-on", "warning").returncode == 0
        again = ambit("policy", "try", "--delete", str(path), "-o", "json")
        allowed = {
            item["source"] for item in json.loads(again.stdout)["items"] if item["verdict"] == "allowed"
        }
        assert (again.returncode, allowed) == (0, {"shop/snoop", "shop/outsider"})
    finally:
        LAB.ambit("delete", "-f", str(path))


def test_strict_is_tried_before_it_is_made(lab: Path) -> None:
    eventually(lambda: LAB.call("outsider") == "got", "no policy is in force")
    path = lab / "strict.yaml"
    path.write_text(STRICT)
    tried = ambit("policy", "try", "-f", str(path))
    assert tried.returncode == 2
    assert "shop/outsider in plaintext" in tried.stdout
    assert "sa/friend" not in tried.stdout
