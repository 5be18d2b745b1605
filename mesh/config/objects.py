# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects as text: parsed one by one, so that a bad one costs itself only.

Knows the envelope (apiVersion, kind, metadata) and where in the file each field stands;
what the fields mean is the translators' business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

CLUSTER_SCOPED = frozenset(
    {
        "Namespace",
        "Node",
        "GatewayClass",
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "PersistentVolume",
        "PriorityClass",
        "StorageClass",
    }
)
"""Kinds without a namespace; a namespace on them is ignored, as the API server does."""
MAX_FILE_BYTES = 16 * 1024 * 1024
"""A larger file is refused whole."""
MAX_DEPTH = 64
"""Nesting of one document; deeper ones are refused."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

Path = tuple[str | int, ...]
"""Way to a field: keys and list indices."""


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """What makes two documents the same object; the version of the API does not."""

    group: str
    kind: str
    namespace: str
    """Empty: cluster-scoped."""
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {where}{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawObject:
    """One object as written; equal when its content is, wherever it stands."""

    api_version: str
    kind: str
    namespace: str
    """`default` where a namespaced object names none; empty: cluster-scoped."""
    name: str
    data: Mapping[str, Any]
    """The whole document."""
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)
    """Where the document begins, from 1; no file and 0: from an API server."""
    node: yaml.Node | None = field(default=None, compare=False, repr=False)

    @property
    def key(self) -> ObjectKey:
        """Its identity among all objects."""
        group, slash, _ = self.api_version.partition("/")
        return ObjectKey(group if slash else "", self.kind, self.namespace, self.name)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """`metadata`; always a mapping."""
        found: Mapping[str, Any] = self.data["metadata"]
        return found

    @property
    def labels(self) -> Mapping[str, str]:
        """Labels; empty where there are none."""
        return _strings(self.metadata.get("labels"))

    @property
    def annotations(self) -> Mapping[str, str]:
        """Annotations; empty where there are none."""
        return _strings(self.metadata.get("annotations"))

    @property
    def spec(self) -> Mapping[str, Any]:
        """`spec`; empty where there is none."""
        return _mapping(self.data.get("spec"))

    @property
    def status(self) -> Mapping[str, Any]:
        """`status`; empty where there is none."""
        return _mapping(self.data.get("status"))

    def line_of(self, path: Path) -> int:
        """Return the line of a field, or of its nearest ancestor that is in the file."""
        line, node = self.line, self.node
        for step in path:
            found = _child(node, step)
            if found is None:
                break
            node = found
            line = node.start_mark.line + 1
        return line


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """A document that was not taken: where, and why; its author is at fault."""

    file: str
    line: int
    reason: str
    key: ObjectKey | None = None
    """The object, where so much could be read: its last good version stays in force."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" if self.file else self.reason


class _RefusedError(Exception):
    """One document cannot be taken."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


def parse_documents(text: str, file: str) -> tuple[list[RawObject], list[Rejection]]:
    """Parse YAML (or JSON) documents; `List` objects are taken apart.

    A document that is not well-formed ends the file, as nothing after it can be told
    apart; one that is no object is refused alone. Never raises for what the text holds.
    """
    objects: list[RawObject] = []
    rejections: list[Rejection] = []
    if len(text) > MAX_FILE_BYTES:
        reason = f"the file exceeds {MAX_FILE_BYTES} bytes; split it"
        return [], [Rejection(file=file, line=1, reason=reason)]
    loader = yaml.CSafeLoader(text)
    try:
        for node in _documents(loader):
            try:
                _check_node(node, 0)
                data = _construct(loader, node)
                objects.extend(_objects(data, node, file))
            except _RefusedError as refused:
                key = _key_of(loader, node)
                rejections.append(Rejection(file=file, line=refused.line, reason=refused.reason, key=key))
    except yaml.YAMLError as error:
        # An end of file is reported one line behind the last.
        line = min(_line_of(error), text.count("\n") + 1)
        rejections.append(Rejection(file=file, line=line, reason=f"not YAML: {_problem_of(error)}"))
    except RecursionError:
        rejections.append(Rejection(file=file, line=1, reason=f"nested deeper than {MAX_DEPTH} levels"))
    finally:
        loader.dispose()
    return objects, rejections


def make_object(data: Mapping[str, Any], *, file: str = "", line: int = 0) -> RawObject:
    """Make an object of a decoded document.

    Raises:
        ValueError: the envelope is not valid; says what is missing.
    """
    try:
        return _object(data, None, file, line)
    except _RefusedError as refused:
        raise ValueError(refused.reason) from refused


def _documents(loader: yaml.CSafeLoader) -> Iterator[yaml.Node]:
    while loader.check_node():
        node = loader.get_node()
        if node is not None:
            yield node


def _check_node(node: yaml.Node, depth: int) -> None:
    """Refuse what PyYAML would take in silence: duplicate keys, merged aliases, deep nesting."""
    if depth > MAX_DEPTH:
        raise _RefusedError(node.start_mark.line + 1, f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _RefusedError(key.start_mark.line + 1, "a key must be text")
            if key.value in seen:
                raise _RefusedError(key.start_mark.line + 1, f"key {key.value!r} is given twice")
            seen.add(key.value)
            _check_node(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_node(value, depth + 1)


def _construct(loader: yaml.CSafeLoader, node: yaml.Node) -> Any:
    try:
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _RefusedError(_line_of(error), f"not a Kubernetes value: {_problem_of(error)}") from error
    except ValueError as error:
        # Such as the date 2026-02-30.
        raise _RefusedError(node.start_mark.line + 1, f"not a Kubernetes value: {error}") from error


def _objects(data: Any, node: yaml.Node, file: str) -> Iterator[RawObject]:
    line = node.start_mark.line + 1
    if data is None:
        return
    if (
        isinstance(data, dict)
        and str(data.get("kind", "")).endswith("List")
        and isinstance(data.get("items"), list)
    ):
        items = _child(node, "items")
        for index, item in enumerate(data["items"]):
            child = _child(items, index)
            yield _object(item, child, file, child.start_mark.line + 1 if child else line)
        return
    yield _object(data, node, file, line)


def _object(data: Any, node: yaml.Node | None, file: str, line: int) -> RawObject:
    if not isinstance(data, Mapping):
        raise _RefusedError(
            line, "not a Kubernetes object: a mapping with apiVersion, kind and metadata is needed"
        )
    for part in ("apiVersion", "kind"):
        if not isinstance(data.get(part), str) or not data[part]:
            raise _RefusedError(line, f"{part} is missing")
    metadata = data.get("metadata")
    if not isinstance(metadata, Mapping):
        raise _RefusedError(line, f"{data['kind']}: metadata is missing")
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        raise _RefusedError(line, f"{data['kind']}: metadata.name is missing")
    if _NAME.fullmatch(name) is None:
        raise _RefusedError(
            line, f"{data['kind']}: metadata.name {name[:100]!r} is not a DNS name (RFC 1123)"
        )
    for part in ("labels", "annotations"):
        _check_strings(data["kind"], name, part, metadata.get(part), line)
    for part in ("spec", "status"):
        if data.get(part) is not None and not isinstance(data[part], Mapping):
            raise _RefusedError(line, f"{data['kind']} {name}: {part} must be a mapping")
    namespace = "" if data["kind"] in CLUSTER_SCOPED else str(metadata.get("namespace") or "default")
    if namespace and _NAME.fullmatch(namespace) is None:
        raise _RefusedError(
            line, f"{data['kind']} {name}: namespace {namespace[:100]!r} is not a DNS name (RFC 1123)"
        )
    return RawObject(
        api_version=data["apiVersion"],
        kind=data["kind"],
        namespace=namespace,
        name=name,
        data=data,
        file=file,
        line=line,
        node=node,
    )


def _check_strings(kind: str, name: str, part: str, value: Any, line: int) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping):
        raise _RefusedError(line, f"{kind} {name}: metadata.{part} must be a mapping")
    for label, entry in value.items():
        if not isinstance(entry, str):
            raise _RefusedError(
                line, f'{kind} {name}: metadata.{part}[{label}] must be text; write it in quotes: "{entry}"'
            )


def _key_of(loader: yaml.CSafeLoader, node: yaml.Node) -> ObjectKey | None:
    """Read as much of a refused document as tells which object it meant to be."""
    kind, version = _scalar(_child(node, "kind")), _scalar(_child(node, "apiVersion"))
    metadata = _child(node, "metadata")
    name = _scalar(_child(metadata, "name"))
    if not (kind and version and name):
        return None
    namespace = "" if kind in CLUSTER_SCOPED else _scalar(_child(metadata, "namespace")) or "default"
    group, slash, _ = version.partition("/")
    return ObjectKey(group if slash else "", kind, namespace, name)


def _child(node: yaml.Node | None, step: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value == step:
                found: yaml.Node = value
                return found
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        item: yaml.Node = node.value[step]
        return item
    return None


def _scalar(node: yaml.Node | None) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else ""


def _line_of(error: yaml.YAMLError) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return mark.line + 1 if mark is not None else 1


def _problem_of(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or "unreadable")


def _strings(value: Any) -> Mapping[str, str]:
    return value if isinstance(value, Mapping) else {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
