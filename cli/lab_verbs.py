# SPDX-License-Identifier: Apache-2.0
"""The verbs that read and change a lab that is up."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import daemons, lifecycle, manifests, shell, store, view
from lab.errors import Code, LabError
from lab.layout import Layout, load_layout
from mesh.config.objects import CLUSTER_SCOPED, RawObject
from mesh.config.source import Snapshot

POLL_S = 0.1


def _lab(options: argparse.Namespace) -> Layout:
    shell.require_root()
    return load_layout(options.state)


def _key(text: str) -> tuple[str, str]:
    namespace, slash, name = text.partition("/")
    return (namespace, name) if slash else ("default", namespace)


def _print_results(results: Sequence[tuple[str, str]]) -> None:
    for what, result in results:
        print(f"{what} {result}")


def apply(options: argparse.Namespace) -> int:
    """Apply files, all or none."""
    layout = _lab(options)
    _print_results(store.apply_objects(layout, manifests.load(options.files)))
    lifecycle.start_manager(layout)
    return 0


def delete(options: argparse.Namespace) -> int:
    """Delete the objects of files."""
    layout = _lab(options)
    results = store.delete_objects(layout, manifests.load(options.files))
    _print_results(results)
    return 0 if all(result == "deleted" for _, result in results) else 1


def get(options: argparse.Namespace) -> int:
    """Show objects."""
    layout = _lab(options)
    found = store.snapshot(layout)
    kind = store.kind_named(options.kind, {item.kind for item in found.objects.values()})
    every = options.all_namespaces or kind in CLUSTER_SCOPED
    namespace, name = options.namespace, options.object
    if name and "/" in name:
        namespace, name = _key(name)
    items = [i for i in found.of(kind) if (every or i.namespace == namespace) and name in (None, i.name)]
    if not items:
        where = "" if every else f" in namespace {namespace}"
        raise LabError(
            Code.NOT_FOUND if name else Code.NO_DATA, f"no {kind}{f' {name}' if name else ''}{where}"
        )
    print(_format(kind, items, found, options.output, single=name is not None))
    return 0


def _format(kind: str, items: Sequence[RawObject], found: Snapshot, output: str, *, single: bool) -> str:
    if output in ("table", "wide"):
        headers, rows = view.columns(kind, items, found, wide=output == "wide")
        return view.table(headers, rows)
    data: dict[str, Any] = {"apiVersion": "v1", "kind": "List", "items": [dict(i.data) for i in items]}
    if single and len(items) == 1:
        data = dict(items[0].data)
    return json.dumps(data, indent=2, default=str) if output == "json" else manifests.dump(data).rstrip()


def status(options: argparse.Namespace) -> int:
    """Show programs, pods, and what is missing; 1 when something is."""
    layout = _lab(options)
    found = store.snapshot(layout)
    lacking = view.missing(layout, found)
    rows = view.daemons(layout)
    if options.output in ("json", "yaml"):
        data = {
            "apiVersion": "ambit.io/v1alpha1",
            "kind": "LabStatus",
            "name": layout.name,
            "mesh": layout.mesh,
            "processes": rows,
            "pods": [dict(item.data) for item in found.of("Pod")],
            "missing": [str(item) for item in lacking],
        }
        print(
            json.dumps(data, indent=2, default=str)
            if options.output == "json"
            else manifests.dump(data).rstrip()
        )
        return 1 if lacking else 0
    states = [
        (str(r["name"]), "runs" if r["running"] else "down", str(r["pid"] or "-"), str(r["restarts"]))
        for r in rows
    ]
    print(view.table(("PROCESS", "STATE", "PID", "RESTARTS"), states))
    pods = found.of("Pod")
    if pods:
        headers, lines = view.columns("Pod", pods, found, wide=options.output == "wide")
        print("\n" + view.table(headers, lines))
    for item in lacking:
        print(f"missing: {item}", file=sys.stderr)
    return 1 if lacking else 0


def _pod(layout: Layout, text: str) -> RawObject:
    namespace, name = _key(text)
    for item in store.snapshot(layout).of("Pod"):
        if (item.namespace, item.name) == (namespace, name) and item.metadata.get("uid"):
            return item
    raise LabError(Code.NOT_FOUND, f"pod {namespace}/{name} does not exist")


def _container(pod: RawObject, wanted: str | None) -> str:
    names = [str(c["name"]) for c in (*(pod.spec.get("initContainers") or ()), *pod.spec["containers"])]
    if wanted is None:
        return str(pod.spec["containers"][0]["name"])
    if wanted not in names:
        raise LabError(
            Code.NOT_FOUND,
            f"pod {pod.namespace}/{pod.name} has no container {wanted}",
            remedy=f"its containers are {', '.join(names)}",
        )
    return wanted


PARTS = ("manager", "controller", "agent", "ztunnel", "kubelet")


def logs(options: argparse.Namespace) -> int:
    """Print a log, and follow it if asked."""
    layout = _lab(options)
    part, _, node = options.target.partition("@")
    if part in PARTS:
        paths = _part_logs(layout, part, node)
    else:
        pod = _pod(layout, options.target)
        directory = layout.pod_dir(pod.namespace, pod.name)
        paths = [directory / f"{_container(pod, options.container)}.log"]
    for path in paths:
        if len(paths) > 1:
            print(f"==> {path}", file=sys.stderr)
        text = path.read_text(errors="replace") if path.exists() else ""
        lines = text.splitlines()
        for line in lines if options.tail < 0 else lines[len(lines) - min(options.tail, len(lines)) :]:
            print(line)
    if options.follow:
        _follow(paths[-1])
    return 0


def _part_logs(layout: Layout, part: str, node: str) -> list[Path]:
    if part in ("manager", "controller"):
        return [layout.state / f"{part}.log"]
    if node and node not in layout.node_names:
        raise LabError(
            Code.NOT_FOUND, f"there is no node {node}", remedy=f"nodes are {', '.join(layout.node_names)}"
        )
    return [layout.node_dir(name) / f"{part}.log" for name in ([node] if node else layout.node_names)]


def _follow(path: Path) -> None:
    with path.open(errors="replace") as file:
        file.seek(0, 2)
        while path.exists():
            if line := file.readline():
                print(line, end="", flush=True)
            else:
                time.sleep(POLL_S)


def wait(options: argparse.Namespace) -> int:
    """Wait for a condition."""
    layout = _lab(options)
    if options.target is None and options.condition == "ready":
        view.wait_up(layout, timeout_s=options.timeout, say=lambda _: None)
        return 0
    if options.target is None:
        raise LabError(Code.USAGE, f"--for {options.condition} needs a pod", remedy="name it: NS/POD")
    deadline = time.monotonic() + options.timeout
    while why := _not_yet(layout, options.target, options.condition):
        if time.monotonic() > deadline:
            raise LabError(
                Code.NOT_READY,
                f"{options.target} is not {options.condition} after {options.timeout:g} s: {why}",
            )
        time.sleep(POLL_S)
    return 0


def _not_yet(layout: Layout, target: str, condition: str) -> str:
    """Say why a condition does not hold; empty: it does. A Deployment's name stands for its pods."""
    namespace, name = _key(target)
    found = store.snapshot(layout)
    pods = [
        i
        for i in found.of("Pod")
        if i.namespace == namespace
        and (i.name == name or any(o.get("name") == name for o in i.metadata.get("ownerReferences") or ()))
    ]
    if condition == "deleted":
        return "it exists" if pods else ""
    if not pods:
        return "it does not exist"
    captured = view.enrolled(found)
    for pod in pods:
        inside = str(pod.metadata.get("uid")) in captured
        if condition == "ready" and (why := view.why_not_ready(pod)):
            return why
        if condition in ("enrolled", "unenrolled") and inside != (condition == "enrolled"):
            return f"{pod.name} is {'in' if inside else 'not in'} the mesh"
    return ""


def execute(options: argparse.Namespace) -> int:
    """Run a command in a pod and return its exit code."""
    import os
    import subprocess

    layout = _lab(options)
    if not options.command:
        raise LabError(Code.USAGE, "no command given", remedy="ambit lab exec NS/POD -- CMD...")
    pod = _pod(layout, options.target)
    name = _container(pod, options.container)
    path = layout.pod_dir(pod.namespace, pod.name) / f"{name}.spec.json"
    try:
        spec = json.loads(path.read_text())
        alive = Path(f"/proc/{int(Path(spec['pid_file']).read_text())}").exists()
    except (OSError, ValueError):
        alive = False
    if not alive:
        raise LabError(Code.NOT_RUNNING, f"container {name} of pod {options.target} does not run")
    spec["argv"] = options.command
    if "TERM" in os.environ:
        spec["env"]["TERM"] = os.environ["TERM"]
    with tempfile.NamedTemporaryFile("w", prefix="ambit-exec-", suffix=".json") as file:
        json.dump(spec, file)
        file.flush()
        program = str(Path(manifests.__file__).with_name("container.py"))
        child = subprocess.Popen(["/usr/bin/python3", "-I", "-S", program, "enter", file.name])
        while True:
            try:
                code = child.wait()
                return 128 - code if code < 0 else code
            except KeyboardInterrupt:
                continue  # The program in the pod got it as well, and decides.


def label(options: argparse.Namespace) -> int:
    """Set and remove labels."""
    layout = _lab(options)
    kind = store.kind_named(options.kind, ())
    namespace, name = options.namespace, options.object
    if "/" in name:
        namespace, name = _key(name)
    store.set_labels(layout, kind, namespace, name, options.labels)
    print(f"{kind} {name} labelled")
    return 0


def scale(options: argparse.Namespace) -> int:
    """Scale a Deployment."""
    namespace, name = _key(options.object)
    store.scale(_lab(options), namespace, name, options.replicas)
    print(f"Deployment {namespace}/{name} scaled to {options.replicas}")
    return 0


def restart(options: argparse.Namespace) -> int:
    """Restart a pod or a part."""
    layout = _lab(options)
    if options.part == "pod":
        if not options.object:
            raise LabError(Code.USAGE, "no pod named", remedy="ambit lab restart pod NS/POD")
        store.restart_pod(layout, *_key(options.object))
        print(f"pod {options.object} restarts")
        return 0
    wanted = options.part if options.part == "controller" else f"{options.part}@{options.object or ''}"
    chosen = [
        p
        for p in daemons.programs(layout)
        if p.name == wanted or (not options.object and p.name.startswith(wanted))
    ]
    if not chosen:
        raise LabError(
            Code.NOT_FOUND,
            f"the lab has no {wanted.rstrip('@')}",
            remedy="`ambit lab status` lists its parts",
        )
    for program in chosen:
        if not daemons.restart(program, force=options.force):
            raise LabError(Code.NOT_RUNNING, f"{program.name} does not run", remedy=f"see {program.log}")
        print(f"{program.name} restarts")
    return 0
