# SPDX-License-Identifier: Apache-2.0
"""Directories as snapshots: later ones win, bad documents keep the last good version."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from mesh.config.objects import ObjectKey
from mesh.config.source import DirectorySource, Snapshot


def pod(name: str, image: str = "a", extra: str = "") -> str:
    return f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{image: {image}}}\n{extra}"


def key(name: str) -> ObjectKey:
    return ObjectKey("", "Pod", "default", name)


def put(path: Path, text: str) -> None:
    """Write beside and rename, as every writer of such a directory does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    beside.write_text(text)
    beside.rename(path)


def images(snapshot: Snapshot) -> dict[str, str]:
    return {item.name: str(item.spec["image"]) for item in snapshot.of("Pod")}


def test_later_directories_win(tmp_path: Path) -> None:
    put(tmp_path / "a" / "p.yaml", pod("x", "first") + "---\n" + pod("y", "first"))
    put(tmp_path / "b" / "deep" / "p.yml", pod("x", "second"))
    source = DirectorySource([tmp_path / "a", tmp_path / "b"])
    assert images(source.read()) == {"x": "second", "y": "first"}
    (tmp_path / "b" / "deep" / "p.yml").unlink()
    assert images(source.read()) == {"x": "first", "y": "first"}


def test_an_object_that_turns_bad_stays_as_it_was(tmp_path: Path) -> None:
    source = DirectorySource([tmp_path])
    put(tmp_path / "p.yaml", pod("x", "1") + "---\n" + pod("y", "1"))
    source.read()
    put(tmp_path / "p.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: 5\n---\n" + pod("y", "2"))
    snapshot = source.read()
    assert images(snapshot) == {"x": "1", "y": "2"}
    assert snapshot.rejections[0].key == key("x")
    put(tmp_path / "p.yaml", pod("y", "2"))
    assert images(source.read()) == {"y": "2"}


def test_a_file_that_is_no_yaml_any_more_keeps_all_its_objects(tmp_path: Path) -> None:
    source = DirectorySource([tmp_path])
    put(tmp_path / "p.yaml", pod("x", "1") + "---\n" + pod("y", "1"))
    source.read()
    put(tmp_path / "p.yaml", pod("x", "2") + "---\n{{{")
    assert images(source.read()) == {"x": "2", "y": "1"}
    (tmp_path / "p.yaml").unlink()
    assert images(source.read()) == {}


def test_the_same_object_twice_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "a.yaml", pod("x", "1"))
    put(tmp_path / "b.yaml", pod("x", "2"))
    snapshot = DirectorySource([tmp_path]).read()
    assert images(snapshot) == {"x": "1"}
    assert "is also in" in snapshot.rejections[0].reason


def test_what_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "dir.yaml").mkdir()
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    snapshot = DirectorySource([tmp_path]).read()
    assert [rejection.reason for rejection in snapshot.rejections] == ["not UTF-8 text"]


def test_a_change_is_seen_and_one_that_changes_nothing_is_not(tmp_path: Path) -> None:
    async def run() -> list[dict[str, str]]:
        seen: list[dict[str, str]] = []
        watch = DirectorySource([tmp_path / "new"]).watch()
        async with asyncio.timeout(20):
            seen.append(images(await anext(watch)))
            put(tmp_path / "new" / "a.yaml", pod("x", "1"))
            seen.append(images(await anext(watch)))
            os.utime(tmp_path / "new" / "a.yaml")
            put(tmp_path / "new" / "b.yaml", pod("y", "1"))
            seen.append(images(await anext(watch)))
        await watch.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(run()) == [{}, {"x": "1"}, {"x": "1", "y": "1"}]
