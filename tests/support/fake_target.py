# SPDX-License-Identifier: Apache-2.0
"""A mesh of given objects and answers, for tests of verbs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.target import Answer, Listener, Part, Program, UnreachableError
from mesh.config.objects import RawObject, parse_documents
from mesh.config.source import Snapshot


@dataclass
class FakeTarget:
    """Answers what it was given; a part without an answer does not answer."""

    yaml: str = ""
    answers: dict[tuple[str, str], Any] = field(default_factory=dict)
    """(part, path) -> JSON value or Answer; the part as `ztunnel/node1`, or `controller`."""
    node_names: tuple[str, ...] = ("node1",)
    running: list[Program] = field(default_factory=list)
    bpf_report: Mapping[str, Any] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    open_ports: dict[str, frozenset[Listener]] = field(default_factory=dict)
    labelled: list[tuple[str, str, str, Sequence[str]]] = field(default_factory=list)
    applied: list[Mapping[str, Any]] = field(default_factory=list)
    deleted: list[tuple[str, str, str]] = field(default_factory=list)

    title = "lab fake"

    def fresh(self) -> FakeTarget:
        return self

    def command(self, words: str) -> str:
        return f"ambit {words}"

    def nodes(self) -> tuple[str, ...]:
        return self.node_names

    def objects(self) -> Snapshot:
        objects, rejections = parse_documents(self.yaml, "objects.yaml")
        assert not rejections, rejections
        return Snapshot(objects={item.key: item for item in objects})

    def written(self, raw: RawObject) -> RawObject:
        return raw

    def request(self, part: Part, path: str, *, method: str = "GET") -> Answer:
        name = f"{part.name}/{part.node}" if part.node else part.name
        try:
            answer = self.answers[name, path]
        except KeyError:
            raise UnreachableError(part, "Connection refused") from None
        return answer if isinstance(answer, Answer) else Answer(status=200, body=json.dumps(answer).encode())

    def metric_parts(self) -> list[Part]:
        return [Part("ztunnel-metrics", node) for node in self.node_names]

    def log(self, part: Part, *, lines: int) -> list[str]:
        return self.logs.get(f"{part.name}/{part.node}", [])[-lines:]

    def follow(self, parts: Sequence[Part]) -> Iterator[tuple[Part, str]]:
        yield from ()

    def programs(self) -> list[Program]:
        return self.running

    def bpf(self, words: Sequence[str], node: str = "") -> Mapping[str, Any]:
        return self.bpf_report

    def missing_cgroups(self) -> list[str]:
        return []

    def listening(self, namespace: str, pod: str) -> frozenset[Listener] | None:
        return self.open_ports.get(f"{namespace}/{pod}")

    def set_labels(self, kind: str, namespace: str, name: str, words: Sequence[str]) -> None:
        self.labelled.append((kind, namespace, name, tuple(words)))

    def apply(self, data: Mapping[str, Any]) -> str:
        self.applied.append(data)
        return "created"

    def delete(self, kind: str, namespace: str, name: str) -> bool:
        self.deleted.append((kind, namespace, name))
        return True


FAKE_KUBECTL = Path(__file__).with_name("fake_kubectl.py")
"""A program that stands for kubectl (see there)."""
