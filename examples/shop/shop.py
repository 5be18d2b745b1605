# SPDX-License-Identifier: Apache-2.0
"""The running shop as the demo drives it: `ambit lab` as a program, and looks into its namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NODES = ("node1", "node2")
COMMAND_TIMEOUT_S = 60.0
METRICS_URL = "http://127.0.0.1:15020/metrics"

T = TypeVar("T")


class ShopError(Exception):
    """A command failed; says which, and what it said."""


def _run(argv: list[str], timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, capture_output=True, text=True, check=False, timeout=timeout_s, cwd=REPOSITORY
    )


def eventually(look: Callable[[], T], timeout_s: float) -> T:
    """Look until what is seen is true, at most this long; return what was seen last."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


class Shop:
    """One lab with the shop in it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = Path("/run/ambit") / name

    def exists(self) -> bool:
        """Whether a lab of this name is up."""
        return (self.state / "lab.json").exists()

    def command(self, verb: str, rest: str = "") -> str:
        """Return the command line for a person."""
        return f".venv/bin/ambit lab {verb} --name {self.name} {rest}".rstrip()

    def up(self, timeout_s: int) -> None:
        """Start it; progress goes to stderr.

        Raises:
            ShopError: it does not come up in time.
        """
        files = [word for path in sorted(HERE.glob("*.yaml")) for word in ("-f", str(path))]
        argv = [sys.executable, "-m", "cli", "lab", "up", "--name", self.name, "--nodes", str(len(NODES))]
        done = subprocess.run([*argv, "--timeout", str(timeout_s), *files], cwd=REPOSITORY, check=False)
        if done.returncode:
            raise ShopError(
                f"expected the shop to come up within {timeout_s} s, "
                f"but `ambit lab up` ended with {done.returncode} (why: above). Next, to look at it:\n  "
                f"{self.command('up', '--nodes 2 -f examples/shop')} ; {self.command('status')}"
            )

    def down(self) -> None:
        """End it and remove everything of it."""
        argv = [sys.executable, "-m", "cli", "lab", "down", "--name", self.name]
        subprocess.run(argv, cwd=REPOSITORY, check=False, start_new_session=True)

    def lab(self, verb: str, *words: str) -> str:
        """Run `ambit lab VERB` and return its output.

        Raises:
            ShopError: it failed.
        """
        done = _run([sys.executable, "-m", "cli", "lab", verb, "--name", self.name, *words])
        if done.returncode:
            raise ShopError(f"`{self.command(verb, ' '.join(words))}` failed: {done.stderr.strip()}")
        return done.stdout

    def objects(self, kind: str) -> list[dict[str, Any]]:
        """Return all objects of a kind; none is no error."""
        done = _run(
            [sys.executable, "-m", "cli", "lab", "get", "--name", self.name, kind, "-A", "-o", "json"]
        )
        if done.returncode == 4:
            return []
        if done.returncode:
            raise ShopError(f"`{self.command('get', kind)}` failed: {done.stderr.strip()}")
        value = json.loads(done.stdout)
        return list(value["items"]) if value.get("kind") == "List" else [value]

    def pods(self, namespace: str, app: str = "", version: str = "") -> list[dict[str, Any]]:
        """Return the pods of a namespace, all or those with these labels."""
        return [
            pod
            for pod in self.objects("pods")
            if pod["metadata"]["namespace"] == namespace
            and app in ("", pod["metadata"]["labels"].get("app"))
            and version in ("", pod["metadata"]["labels"].get("version"))
        ]

    def pod(self, namespace: str, app: str, version: str = "") -> dict[str, Any]:
        """Return the one pod with these labels; ShopError: there is not one."""
        found = self.pods(namespace, app, version)
        if len(found) != 1:
            raise ShopError(f"expected one pod {namespace}/{app} {version}, but there are {len(found)}")
        return found[0]

    def execute(self, target: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod (NAMESPACE/NAME)."""
        return _run([sys.executable, "-m", "cli", "lab", "exec", "--name", self.name, target, "--", *argv])

    def curl(self, target: str, url: str, *options: str) -> tuple[int, str]:
        """Ask from a pod; return curl's exit code and what it got or said."""
        done = self.execute(target, "curl", "-sS", "-m", "5", *options, url)
        return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).strip()

    def in_netns(self, name: str, *argv: str) -> str:
        """Run a command in a namespace `ambit-LAB-NAME` and return its output; ShopError: it failed."""
        done = _run(["ip", "netns", "exec", f"ambit-{self.name}-{name}", *argv])
        if done.returncode:
            raise ShopError(f"`{' '.join(argv)}` in ambit-{self.name}-{name}: {done.stderr.strip()}")
        return done.stdout

    def access_lines(self, *wanted: str) -> Iterator[tuple[str, str]]:
        """Yield (node, line) of the ztunnels' access logs that hold all the words, latest first."""
        for node in NODES:
            path = self.state / "nodes" / node / "ztunnel.log"
            text = path.read_text(errors="replace") if path.exists() else ""
            for line in reversed(text.splitlines()):
                if "direction=" in line and all(word in line for word in wanted):
                    yield node, line

    def metrics(self, node: str) -> str:
        """Return what the node's ztunnel exposes on port 15020."""
        return self.in_netns(node, "curl", "-sS", "-m", "5", METRICS_URL)


def main_pid(shop: Shop, pod: dict[str, Any]) -> tuple[int, int]:
    """Return pid and start time (clock ticks since boot) of a pod's only container."""
    metadata = pod["metadata"]
    container = pod["spec"]["containers"][0]["name"]
    path = shop.state / "pods" / metadata["namespace"] / metadata["name"] / f"{container}.pid"
    pid = int(path.read_text())
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return pid, int(fields[19])


def pod_ip(pod: dict[str, Any]) -> str:
    """Return a pod's first address."""
    return str(pod["status"]["podIPs"][0]["ip"])


def full_name(pod: dict[str, Any]) -> str:
    """Return NAMESPACE/NAME."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
