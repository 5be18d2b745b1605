# SPDX-License-Identifier: Apache-2.0
"""A lab's beginning and end: all made in order with its progress told, all removed and proven gone."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lab import cgroup, manifests, network, shell, token, view
from lab.daemons import REPOSITORY, STOP_GRACE_S
from lab.errors import Code, LabError
from lab.layout import MAX_NODES, XDS_PORT, Layout, check_name, check_paths, load_layout
from lab.process import Process, start_ticks
from lab.store import apply_objects

Say = Callable[[str], None]
IP_FREEBIND = 15
"""Allows to bind an address that the machine does not have (linux/in.h)."""


@contextlib.contextmanager
def _step(say: Say, what: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    say(f"{what} ({time.monotonic() - began:.1f} s)")


def check_machine() -> Path:
    """Check what a lab needs of the machine and return the v2 mount.

    Raises:
        LabError: something is missing; names it.
    """
    shell.require_root()
    shell.require_tools()
    return cgroup.find_v2(Path("/proc/self/mounts").read_text())


def up(
    *, name: str, state: Path, files: Sequence[str], nodes: int, mesh: bool, timeout_s: float, say: Say
) -> Layout:
    """Start a lab and wait until all its pods run, and are meshed as labelled.

    Raises:
        LabError: a check failed (nothing was made), or a part did not come up in time
            (what is there stays, to be looked at).
    """
    check_name(name)
    if not 1 <= nodes <= MAX_NODES:
        raise LabError(Code.USAGE, f"--nodes {nodes} is not from 1 to {MAX_NODES}")
    mount = check_machine()
    objects = manifests.load(files)
    _check_leftovers(name, state, mount)
    layout = Layout(
        name=name,
        state=state,
        node_names=tuple(f"node{n + 1}" for n in range(nodes)),
        mesh=mesh,
        cgroup_mount=mount,
    )
    check_paths(layout)
    with network.slot_lock():
        layout = _with_slot(layout)
        if mesh:
            _check_ports(layout)
        with _step(say, f"{nodes} node{'s' * (nodes > 1)} linked"):
            _make(layout)
    apply_objects(layout, objects)
    start_manager(layout)
    view.wait_up(layout, timeout_s=timeout_s, say=say)
    return layout


def _with_slot(layout: Layout) -> Layout:
    return Layout(
        name=layout.name,
        state=layout.state,
        slot=network.free_slot(network.machine_links()),
        node_names=layout.node_names,
        mesh=layout.mesh,
        cgroup_mount=layout.cgroup_mount,
    )


def _check_leftovers(name: str, state: Path, mount: Path) -> None:
    """Refuse to start over a lab that lives; remove what a dead one left."""
    layout = Layout(name=name, state=state, cgroup_mount=mount)
    if (state / "lab.json").exists() and cgroup.members(layout.cgroup):
        raise LabError(Code.ALREADY_UP, f"lab {name} is up already ({state})")
    if state.exists() and any(state.iterdir()) and not _is_lab(state):
        raise LabError(
            Code.USAGE, f"{state} is not empty and holds no lab", remedy="name another directory in --state"
        )
    down(name=name, state=state, say=lambda _: None)


def _check_ports(layout: Layout) -> None:
    """Check that nothing else serves the controller's ports."""
    addresses = [("0.0.0.0", XDS_PORT), layout.admin_address]
    for host, port in addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.setsockopt(socket.SOL_IP, IP_FREEBIND, 1)
            try:
                # Against all addresses only: the lab's own do not exist yet, other labs serve theirs.
                probe.bind(("198.18.255.254" if host == "0.0.0.0" else host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise LabError(Code.PORT_IN_USE, f"port {port} of {host} is in use") from error


def _make(layout: Layout) -> None:
    layout.state.mkdir(parents=True, exist_ok=True)
    layout.state.chmod(0o700)
    layout.save()
    for directory in (layout.objects, layout.status, layout.generated, layout.assigned):
        directory.mkdir(exist_ok=True)
    cgroup.make(layout.cgroup / "system")
    for node in layout.node_names:
        layout.node_dir(node).mkdir(parents=True, exist_ok=True)
        (layout.assigned / node).mkdir(exist_ok=True)
        cgroup.make(layout.kubepods(node) / "ztunnel")
        cgroup.make(layout.node_cgroup(node) / "system")
    token.make_signer(layout.state / "tokens")
    network.make_network(layout)


def start_manager(layout: Layout) -> None:
    """Start the manager, unless it runs."""
    record = layout.state / "manager.pid"
    if Process.find(record) is not None:
        return
    env = {
        k: v
        for k, v in os.environ.items()
        if k in ("PATH", "HOME", "LANG", "LC_ALL", "LOG_LEVEL", "LOG_FORMAT")
    }
    Process.spawn(
        [sys.executable, "-m", "lab.manager", str(layout.state)],
        record=record,
        log=layout.state / "manager.log",
        env=env | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        cwd=REPOSITORY,
        cgroup=layout.cgroup / "system",
    )


def down(*, name: str, state: Path, say: Say) -> bool:
    """End a lab and remove everything of it; works on what is left of a killed one, too.

    Returns whether there was anything.

    Raises:
        LabError: something could not be removed; names it.
    """
    check_name(name)
    mount = check_machine()
    try:
        layout = load_layout(state)
    except LabError:
        layout = Layout(name=name, state=state, cgroup_mount=mount)
    ours = _is_lab(state)
    present = ours or layout.cgroup.exists() or bool(network.namespaces(f"ambit-{name}-"))
    with contextlib.suppress(FileNotFoundError):
        present = present or any((Path("/sys/fs/bpf/ambit") / name).iterdir())
    if not present:
        return False
    _stop_programs(layout, say)
    if layout.mesh:
        _unload(layout, say)
    with _step(say, "links and namespaces removed"):
        network.remove_network(name)
        cgroup.remove(layout.cgroup)
    with contextlib.suppress(OSError):
        layout.cgroup.parent.rmdir()  # Another lab may be there.
    if ours:
        shutil.rmtree(state)
    _prove(layout)
    return True


def _is_lab(state: Path) -> bool:
    """Whether a directory is a lab's, also if lab.json is lost: what is not is never removed."""
    return (state / "lab.json").exists() or all(
        (state / d).is_dir() for d in ("assigned", "objects", "tokens")
    )


def _stop_programs(layout: Layout, say: Say) -> None:
    """End the manager, then everything; programs get no time to mourn, what they leave is removed below."""
    with _step(say, "processes ended"):
        manager = Process.find(layout.state / "manager.pid")
        if manager is not None:
            manager.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_GRACE_S
            while manager.alive and time.monotonic() < deadline:
                time.sleep(0.02)
        for record in sorted((layout.state / "nodes").glob("*/kubelet.pid")):
            kubelet = Process.find(record)
            if kubelet is not None:
                kubelet.signal(signal.SIGKILL)
        _terminate(cgroup.members(layout.cgroup))
        cgroup.kill(layout.cgroup)


def _terminate(pids: list[int]) -> None:
    """Give programs a moment to end by themselves, so that databases close their files."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 1.0
    while time.monotonic() < deadline and any(start_ticks(pid) for pid in pids):
        time.sleep(0.02)


def _unload(layout: Layout, say: Say) -> None:
    """Remove programs, maps and links of every node."""
    root = Path("/sys/fs/bpf/ambit") / layout.name
    nodes = sorted(root.iterdir()) if root.exists() else []
    for directory in nodes:
        with _step(say, f"capture removed from {directory.name}"):
            done = subprocess.run(
                ["/usr/bin/python3", "-m", "bpf", "unload", "--bpffs", str(directory)],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            if done.returncode not in (0, 69):
                raise LabError(Code.LEFTOVERS, f"{directory}: {done.stderr.strip() or done.stdout.strip()}")
    for directory in (root, root.parent):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _prove(layout: Layout) -> None:
    left = [str(layout.cgroup)] if layout.cgroup.exists() else []
    left += network.namespaces(f"ambit-{layout.name}-")
    pins = Path("/sys/fs/bpf/ambit") / layout.name
    left += [str(pins)] if pins.exists() else []
    if left:
        raise LabError(Code.LEFTOVERS, f"lab {layout.name} left {', '.join(left)}")
