# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from bpf import abi, sources

HERE = Path(sources.__file__).parent


def test_unit_holds_every_program_once_and_no_include_of_ours() -> None:
    text = sources.unit()
    assert '#include "' not in text
    for spec in abi.PROGRAMS:
        assert text.count(f"\nint {spec.name}(struct ") == 1


def test_every_source_file_belongs_to_a_program() -> None:
    assert {path.stem for path in (HERE / "progs").glob("*.c")} == {spec.source for spec in abi.PROGRAMS}


def test_one_source_file_a_program_type_or_hook_family() -> None:
    for source in {spec.source for spec in abi.PROGRAMS}:
        assert len({spec.type for spec in abi.PROGRAMS if spec.source == source}) == 1


@pytest.mark.parametrize("path", sorted(HERE.glob("*/*.[ch]")), ids=lambda path: path.name)
def test_c_files_bear_the_dual_licence(path: Path) -> None:
    assert path.read_text().startswith("/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */\n")


def test_schema_hash_ignores_comments_and_blanks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = copy_to(tmp_path, monkeypatch)
    header = tmp_path / "include/ambit_abi.h"
    header.write_text(
        "/* another\n comment */\n" + header.read_text().replace("\tu32 flags;", "\tu32   flags;")
    )
    assert sources.schema_hash() == before


def test_schema_hash_changes_with_a_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = copy_to(tmp_path, monkeypatch)
    header = tmp_path / "include/ambit_abi.h"
    header.write_text(header.read_text().replace("u32 resolver_count;", "u32 resolvers_used;"))
    assert sources.schema_hash() != before


def test_source_hash_changes_with_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy_to(tmp_path, monkeypatch)
    before = sources.source_hash()
    program = tmp_path / "progs/connect.c"
    program.write_text(program.read_text() + "\n")
    assert sources.source_hash() != before


def copy_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in ("include", "progs", "shim"):
        (tmp_path / name).mkdir()
        for path in (HERE / name).glob("*.[ch]"):
            (tmp_path / name / path.name).write_text(path.read_text())
    monkeypatch.setattr(sources, "_HERE", tmp_path)
    return sources.schema_hash()
