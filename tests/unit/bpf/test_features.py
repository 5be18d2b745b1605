# SPDX-License-Identifier: Apache-2.0
from bpf import abi, features, load, syscall
from bpf.errors import BpfError


def test_every_program_type_and_attach_type_is_tried() -> None:
    tried = {(stub.type, stub.attach) for stub in features._stubs()}
    assert {(spec.type, spec.attach) for spec in abi.PROGRAMS} <= tried


def test_stubs_end_with_exit_and_have_names_of_their_own() -> None:
    stubs = features._stubs()
    assert len({stub.name for stub in stubs}) == len(stubs)
    assert all(stub.code[-8] == 0x95 and len(stub.code) % 8 == 0 for stub in stubs)


def test_what_the_kernel_refuses_is_named_with_its_reason(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(kind: int, attach: int, code: bytes, name: str) -> int:
        raise BpfError("no such thing")

    def no_map(spec: abi.MapSpec, made: dict[str, int]) -> int:
        raise BpfError("no such map")

    monkeypatch.setattr(syscall, "prog_load", refuse)
    monkeypatch.setattr(load, "create_map", no_map)
    found = features.probe()
    assert found["program sk_lookup"] == "no such thing"
    assert found["map accepted"] == "no such map"
    assert all(found.values())


def test_map_whose_inner_map_is_absent_says_so(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(syscall, "map_create", lambda *a, **k: (_ for _ in ()).throw(BpfError("refused")))
    monkeypatch.setattr(syscall, "storage_btf", lambda size: (_ for _ in ()).throw(BpfError("refused")))
    made: dict[str, int] = {}
    outer = next(spec for spec in abi.map_specs(abi.Limits()) if spec.inner)
    assert "records_of_pod" in features._keep(made, outer)
