# SPDX-License-Identifier: Apache-2.0
"""What the user gives to a lab: files read, and every problem named by file and line before anything runs."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lab.container import CAPABILITIES
from lab.errors import Code, LabError
from mesh.config.objects import RawObject, parse_documents
from mesh.config.source import SUFFIXES

UNSUPPORTED = {
    "StatefulSet": "use a Deployment",
    "DaemonSet": "use one Pod per node, placed by spec.nodeName",
    "ReplicaSet": "use a Deployment",
    "Job": "use a Pod with restartPolicy: Never",
    "CronJob": "use a Pod with restartPolicy: Never",
    "Ingress": "use a Gateway",
}
VOLUME_TYPES = frozenset({"emptyDir", "configMap", "secret", "hostPath", "projected"})


def load(paths: Iterable[str]) -> list[RawObject]:
    """Read files and directories (all YAML below them); later objects may not repeat earlier ones.

    Raises:
        LabError: lists every problem, one a line.
    """
    objects: list[RawObject] = []
    problems: list[str] = []
    for file in _files(paths, problems):
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            problems.append(f"{file}: cannot be read: {reason}")
            continue
        found, rejections = parse_documents(text, str(file))
        objects += [_rooted(item, file.parent) for item in found]
        problems += [str(rejection) for rejection in rejections]
    problems += check(objects)
    if problems:
        raise LabError(Code.BAD_INPUT, "the input has problems:\n  " + "\n  ".join(problems))
    return objects


def _rooted(item: RawObject, directory: Path) -> RawObject:
    """Take relative hostPaths from the directory of their file; Kubernetes knows absolute ones only."""
    data = copy.deepcopy(dict(item.data))
    relative = [
        volume["hostPath"]
        for _, spec in pod_specs(dataclasses.replace(item, data=data))
        for volume in spec.get("volumes") or ()
        if isinstance(volume, Mapping)
        and isinstance(volume.get("hostPath"), Mapping)
        and not str(volume["hostPath"].get("path", "/")).startswith("/")
    ]
    for host_path in relative:
        host_path["path"] = os.path.abspath(directory / str(host_path["path"]))
    return dataclasses.replace(item, data=data) if relative else item


def _files(paths: Iterable[str], problems: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in paths:
        path = Path(name)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.name[0] != ".")
            if not files:
                problems.append(f"{path}: has no {', '.join(SUFFIXES)} file")
            found += files
        elif path.exists():
            found.append(path)
        else:
            problems.append(f"{path}: does not exist")
    return found


def check(objects: Iterable[RawObject]) -> list[str]:
    """Return what is wrong with objects, each as FILE:LINE: reason; pure."""
    problems: list[str] = []
    seen: dict[object, RawObject] = {}
    for item in objects:
        where = f"{item.file}:{item.line}"
        if item.key in seen:
            other = seen[item.key]
            problems.append(f"{where}: {item.key} is also in {other.file}:{other.line}")
        seen[item.key] = item
        if item.kind in UNSUPPORTED:
            problems.append(f"{where}: a lab does not run {item.kind}; {UNSUPPORTED[item.kind]}")
        for path, spec in pod_specs(item):
            problems += [
                f"{item.file}:{item.line_of((*path, *step))}: {item.key}: {reason}"
                for step, reason in _pod_problems(spec)
            ]
        if item.kind == "Deployment":
            problems += [f"{where}: {item.key}: {reason}" for reason in _deployment_problems(item)]
    return problems


def pod_specs(item: RawObject) -> list[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    """Return where an object has pod specs, and these."""
    if item.kind == "Pod":
        return [(("spec",), item.spec)]
    if item.kind == "Deployment":
        template = item.spec.get("template")
        spec = template.get("spec") if isinstance(template, Mapping) else None
        return [(("spec", "template", "spec"), spec if isinstance(spec, Mapping) else {})]
    return []


def _deployment_problems(item: RawObject) -> list[str]:
    selector = item.spec.get("selector")
    wanted = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    if not isinstance(wanted, Mapping) or not wanted:
        return ["spec.selector.matchLabels is missing"]
    template = item.spec.get("template")
    metadata = template.get("metadata") if isinstance(template, Mapping) else None
    labels = (metadata.get("labels") if isinstance(metadata, Mapping) else None) or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return ["spec.selector does not match the labels of spec.template"]
    replicas = item.spec.get("replicas", 1)
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 0:
        return [f"spec.replicas is {replicas!r}, no number of at least 0"]
    return []


Problem = tuple[tuple[str | int, ...], str]


def _pod_problems(spec: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    containers = spec.get("containers")
    if not isinstance(containers, list) or not containers:
        return [(("containers",), "has no containers")]
    if spec.get("hostNetwork") is True:
        problems.append((("hostNetwork",), "hostNetwork pods do not run in a lab"))
    names: set[str] = set()
    volumes = _volumes(spec, problems)
    for field in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(field) or ()):
            path: tuple[str | int, ...] = (field, index)
            if not isinstance(container, Mapping) or not isinstance(container.get("name"), str):
                problems.append((path, "a container has no name"))
                continue
            name = str(container["name"])
            if name in names:
                problems.append((path, f"two containers are named {name}"))
            names.add(name)
            problems += [((*path, *step), why) for step, why in _container_problems(container, volumes)]
    return problems


def _volumes(spec: Mapping[str, Any], problems: list[Problem]) -> set[str]:
    names: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or ()):
        path = ("volumes", index)
        if not isinstance(volume, Mapping) or not isinstance(volume.get("name"), str):
            problems.append((path, "a volume has no name"))
            continue
        names.add(str(volume["name"]))
        if not VOLUME_TYPES & volume.keys():
            kinds = ", ".join(sorted(volume.keys() - {"name"})) or "none"
            problems.append(
                (
                    path,
                    f"volume {volume['name']} is of a kind ({kinds}) that a lab does not have; use emptyDir",
                )
            )
    return names


def _container_problems(container: Mapping[str, Any], volumes: set[str]) -> list[Problem]:
    name = container["name"]
    problems: list[Problem] = []
    for field in ("command", "args"):
        value = container.get(field)
        if value is not None and not (isinstance(value, list) and all(isinstance(v, str) for v in value)):
            problems.append(((field,), f"container {name}: {field} is no list of strings"))
    if not container.get("command"):
        problems.append(
            (("name",), f"container {name} has no command; {Code.NO_COMMAND.remedy} ({Code.NO_COMMAND.code})")
        )
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        if not isinstance(mount, Mapping) or mount.get("name") not in volumes:
            problems.append(
                (("volumeMounts", index), f"container {name} mounts a volume that the pod has not")
            )
        elif not str(mount.get("mountPath", "")).startswith("/"):
            problems.append((("volumeMounts", index), f"container {name}: mountPath is not absolute"))
    context = container.get("securityContext")
    wanted = context.get("capabilities") if isinstance(context, Mapping) else None
    for name_ in [*((wanted or {}).get("add") or ()), *((wanted or {}).get("drop") or ())]:
        if name_ != "ALL" and str(name_).removeprefix("CAP_") not in CAPABILITIES:
            problems.append((("securityContext",), f"container {name}: capability {name_!r} is not known"))
    return problems


class _Dumper(yaml.CSafeDumper):
    """Plain YAML without anchors: the readers refuse merged aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(data: Mapping[str, Any]) -> str:
    """Return an object as YAML, keys in the order given."""
    return str(yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, default_flow_style=False))


def object_path(directory: Path, kind: str, namespace: str, name: str) -> Path:
    """Return where an object's file is; cluster-scoped ones have no namespace."""
    return directory / kind / (namespace or "_") / f"{name}.yaml"
