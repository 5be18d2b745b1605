# SPDX-License-Identifier: Apache-2.0
import contextlib
from pathlib import Path

import pytest

from bpf import abi, load, syscall
from bpf.bytecode import Bytecode, Program
from bpf.errors import BpfError, LimitError, SchemaError

EMPTY = Bytecode(schema="aa", source="bb", compiler="cc", programs=())


def test_bytecode_of_another_layout_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="layout aa, this version has bb"):
        load.load(tmp_path / "pins", EMPTY, pods_cgroup=tmp_path, node_cgroup=tmp_path, schema="bb")
    assert not (tmp_path / "pins").exists()


def test_directory_that_is_no_cgroup_is_named(tmp_path: Path) -> None:
    with pytest.raises(BpfError, match="is no cgroup directory"):
        load.load(tmp_path / "pins", EMPTY, pods_cgroup=tmp_path, node_cgroup=tmp_path, schema="aa")


def test_cgroup_v1_is_told_from_v2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").touch()
    with pytest.raises(BpfError, match="not on cgroup v2"):
        load.load(tmp_path / "pins", EMPTY, pods_cgroup=tmp_path, node_cgroup=tmp_path, schema="aa")


def test_pods_pins_are_found_by_their_name(tmp_path: Path) -> None:
    for name in ("a/lookup-77", "b/lookup-18446744073709551615", "c/other", "d/lookup-x"):
        (tmp_path / "pods" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pods" / name).touch()
    assert load._pod_pins(tmp_path) == {
        "a": (tmp_path / "pods/a/lookup-77", 77),
        "b": (tmp_path / "pods/b/lookup-18446744073709551615", 2**64 - 1),
    }


def test_nothing_pinned_is_no_pods(tmp_path: Path) -> None:
    assert load._pod_pins(tmp_path) == {}
    assert load.pod_lookups(tmp_path) == {}
    assert list(load.programs(tmp_path)) == []


def test_unload_of_what_is_not_there_removes_nothing(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "connect4").touch()
    assert load.unload(tmp_path) is False
    assert (tmp_path / "links" / "connect4").exists(), "a directory that is no bpffs is not ours"


def test_sk_lookup_too_long_to_store_is_refused_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_must", lambda fd, kind: b"")
    long = Program(name="sk_lookup", code=bytes(abi.LOOKUP_CODE_BYTES), maps=())
    with contextlib.ExitStack() as undo, pytest.raises(LimitError, match="65532 are reserved"):
        load._store_lookup(0, long, undo)


def test_socket_storage_gets_type_information_and_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    seen: dict[str, object] = {}

    def map_create(*arguments: object, **named: object) -> int:
        seen.update(named)
        return 5

    monkeypatch.setattr(syscall, "storage_btf", lambda size: (9, 1, 3))
    monkeypatch.setattr(syscall, "map_create", map_create)
    monkeypatch.setattr(load.os, "close", closed.append)
    spec = next(s for s in abi.map_specs(abi.Limits()) if s.type is abi.MapType.SK_STORAGE)
    assert load.create_map(spec, {}) == 5
    assert (seen["btf"], closed) == ((9, 1, 3), [9])
