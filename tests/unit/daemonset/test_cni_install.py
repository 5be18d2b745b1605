# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry in a chain that is another program's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemonset import cni_install
from daemonset.cni_install import CniInstaller, CniInstallError

ENTRY = {"type": "ambit-cni", "socket": "/run/ambit/cni.sock", "excludeNamespaces": ["kube-system"]}
CHAIN: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "ptp", "mtu": 1500}]}


def plugins(text: str) -> list[Any]:
    return list(json.loads(text)["plugins"])


def test_we_come_last_and_others_stay_as_they_are() -> None:
    text = cni_install.chained(json.dumps(CHAIN), ENTRY)
    assert text is not None
    assert json.loads(text) == CHAIN | {"plugins": [*CHAIN["plugins"], ENTRY]}
    assert cni_install.chained(text, ENTRY) is None


@pytest.mark.parametrize(
    "before",
    [
        [ENTRY | {"socket": "/old.sock"}, {"type": "ptp"}],
        [ENTRY, {"type": "ptp"}],
        [{"type": "ptp"}, ENTRY, ENTRY],
    ],
)
def test_an_entry_of_before_is_replaced(before: list[Any]) -> None:
    text = cni_install.chained(json.dumps(CHAIN | {"plugins": before}), ENTRY)
    assert text is not None
    assert plugins(text) == [{"type": "ptp"}, ENTRY]


def test_leaving_undoes_it() -> None:
    text = cni_install.chained(json.dumps(CHAIN), ENTRY)
    assert text is not None
    left = cni_install.unchained(text)
    assert left is not None
    assert json.loads(left) == CHAIN
    assert cni_install.unchained(left) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ('{"type":"ptp"}', "list of plugins"),
        ('{"plugins":[1]}', "list"),
    ],
)
def test_what_is_no_chain_is_refused(text: str, words: str) -> None:
    with pytest.raises(CniInstallError, match=words):
        cni_install.chained(text, ENTRY)


class Node:
    """Directories of a node, and an installer for them."""

    def __init__(self, root: Path) -> None:
        self.binaries, self.configurations = root / "bin", root / "net.d"
        self.binaries.mkdir()
        self.configurations.mkdir()
        self.image = root / "image"
        self.image.write_bytes(b"\x7fELF first")
        self.installer = CniInstaller(
            plugin=self.image,
            binaries=self.binaries,
            configurations=self.configurations,
            socket=Path("/run/ambit/cni.sock"),
            excluded=frozenset({"kube-system"}),
        )

    def configure(self, name: str, value: object = CHAIN) -> Path:
        path = self.configurations / name
        path.write_text(json.dumps(value))
        return path


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_the_first_configuration_is_the_one_that_counts(node: Node) -> None:
    second, first = node.configure("20-b.conflist"), node.configure("10-a.conflist")
    node.configure(".00-half.conflist")
    (node.configurations / "05-notes.txt").write_text("no configuration")
    assert node.installer.install()
    assert plugins(first.read_text())[-1] == ENTRY
    assert json.loads(second.read_text()) == CHAIN
    plugin = node.binaries / "ambit-cni"
    assert (plugin.read_bytes(), plugin.stat().st_mode & 0o777) == (b"\x7fELF first", 0o755)
    assert not node.installer.install()
    assert sorted(path.name for path in node.binaries.iterdir()) == ["ambit-cni"]


def test_a_configuration_that_is_written_anew_is_joined_again(node: Node) -> None:
    path = node.configure("10-a.conflist")
    node.installer.install()
    node.configure("10-a.conflist")
    assert node.installer.install()
    assert plugins(path.read_text())[-1] == ENTRY


def test_a_newer_plugin_replaces_the_older(node: Node) -> None:
    node.configure("10-a.conflist")
    node.installer.install()
    node.image.write_bytes(b"\x7fELF second")
    node.installer.install()
    assert (node.binaries / "ambit-cni").read_bytes() == b"\x7fELF second"


def test_a_node_without_a_chain_is_told_of(node: Node) -> None:
    with pytest.raises(CniInstallError, match="no configuration"):
        node.installer.install()
    node.configure("10-a.conf", {"type": "ptp"})
    with pytest.raises(CniInstallError, match=r"10-a\.conf: .*\.conflist"):
        node.installer.install()


def test_removal_leaves_what_was_there_before(node: Node) -> None:
    path, other = node.configure("10-a.conflist"), node.configure("20-b.conf", {"type": "ptp"})
    node.installer.install()
    assert node.installer.remove() == [f"entry in {path}", str(node.binaries / "ambit-cni")]
    assert json.loads(path.read_text()) == CHAIN
    assert json.loads(other.read_text()) == {"type": "ptp"}
    assert node.installer.remove() == []
    assert list(node.binaries.iterdir()) == []
