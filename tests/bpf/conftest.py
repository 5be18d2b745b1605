# SPDX-License-Identifier: Apache-2.0
"""The node on which the tests of the capture programs run; root only."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.bytecode import Bytecode
from tests.bpf.node import Node, Pod, Worker, bpf_command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root: network namespaces and BPF"))


@pytest.fixture(scope="session")
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `build` writes: compiled once for all tests."""
    path = tmp_path_factory.mktemp("bytecode") / "ambit.json"
    bpf_command("build", "--out", path)
    return path


@pytest.fixture
def bare(bytecode: Path) -> Iterator[Node]:
    """A node with cgroups and a namespace, and nothing loaded."""
    node = Node()
    try:
        node.start()
        yield node
    finally:
        node.close()


@pytest.fixture(scope="session")
def code(bytecode: Path) -> Bytecode:
    """The same, read."""
    return Bytecode.decode(bytecode.read_bytes())


@pytest.fixture
def node(bare: Node, code: Bytecode) -> Node:
    """A node with everything loaded."""
    bare.load_here(code)
    return bare


@pytest.fixture
def pod(node: Node) -> Pod:
    """An enrolled pod with no ztunnel yet."""
    pod = node.pod("a")
    pod.enroll()
    return pod


@pytest.fixture
def ztunnel(pod: Pod) -> Worker:
    """A ztunnel's listeners in the pod."""
    return pod.ztunnel()


@pytest.fixture
def app(pod: Pod) -> Worker:
    """A process of the pod."""
    return pod.worker()
