# SPDX-License-Identifier: Apache-2.0
"""The command line: what is understood, what is refused, and with which exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import __main__ as main
from cli import about
from lab.errors import Code


def test_everything_after_two_dashes_is_another_programs() -> None:
    assert main.split_command(["lab", "exec", "a/b", "--", "x", "--", "-y"]) == (
        ["lab", "exec", "a/b"],
        ["x", "--", "-y"],
    )


def test_up_as_the_contract_has_it() -> None:
    text = "lab up -f a.yaml -f dir --nodes 2 --name x --state /s --no-mesh"
    options = main.parse(text.split())
    assert (options.files, options.nodes, options.name) == (["a.yaml", "dir"], 2, "x")
    assert (options.state, options.no_mesh) == (Path("/s"), True)


@pytest.mark.parametrize(
    "words",
    [
        "lab down",
        "lab exec ns/pod -c app",
        "lab apply -f x",
        "lab delete -f x",
        "lab get pod -n shop web -o yaml",
        "lab get pods -A -o json",
        "lab label namespace shop istio.io/dataplane-mode=ambient",
        "lab label pod shop/web istio.io/dataplane-mode-",
        "lab scale shop/web --replicas 3",
        "lab restart pod shop/web",
        "lab restart ztunnel node1",
        "lab restart controller",
        "lab logs ztunnel@node1 --tail 5",
        "lab wait shop/web --for enrolled",
        "lab status -o json",
        "explain AMB1001",
        "version --short",
    ],
)
def test_verbs_are_understood(words: str) -> None:
    assert main.parse(words.split()).verb == words.split()[0]


def test_a_name_behind_options_is_understood() -> None:
    options = main.parse(["lab", "get", "pod", "-n", "shop", "web", "-o", "yaml"])
    assert (options.kind, options.namespace, options.object) == ("pod", "shop", "web")
    assert main.parse(["lab", "restart", "pod", "--name", "x", "shop/web"]).object == "shop/web"


@pytest.mark.parametrize(
    "words", ["", "lab", "nonsense", "lab up --nodes x", "lab get", "lab apply", "lab up --foo"]
)
def test_usage_errors_end_with_64(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main.main(words.split())
    assert end.value.code == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert "--help" in err


def test_a_bad_name_ends_with_64(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["lab", "status", "--name", "No!"]) == 64
    assert "AMB1005" in capsys.readouterr().err


def test_explain_knows_every_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["explain", "amb1001"]) == 0
    assert "run the command as root" in capsys.readouterr().out
    assert main.main(["explain", "AMB2107"]) == 0
    assert "ztunnel" in capsys.readouterr().out
    assert main.main(["explain", "AMB9999"]) == 4


def test_codes_are_unique() -> None:
    codes = [code.code for code in Code]
    assert len(codes) == len(set(codes))
    assert set(codes) < set(about.catalogue())
    assert all(code.remedy for code in Code)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["version"]) == 0
    assert capsys.readouterr().out.startswith("ambit ")
