# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from bpf import bpffs
from bpf.errors import BpfError, NotLoadedError

ROOT = Path("/sys/fs/bpf/x")


@pytest.mark.parametrize("uid", ["0d9a4a4e-52a8-4c9c-9d3a-0b0f0d9a4a4e", "a", "a_b-1"])
def test_uid_names_a_directory(uid: str) -> None:
    assert bpffs.pod_directory(ROOT, uid) == ROOT / "pods" / uid


@pytest.mark.parametrize("uid", ["", ".", "..", "a/b", "a.b", "-a", "a" * 129, "a\n"])
def test_uid_that_is_no_name_is_refused(uid: str) -> None:
    with pytest.raises(BpfError, match="cannot name a pin"):
        bpffs.pod_directory(ROOT, uid)


def test_pins_have_no_dot_which_bpffs_forbids() -> None:
    for path in (
        bpffs.map_pin(ROOT, "pods"),
        bpffs.link_pin(ROOT, "connect4"),
        bpffs.pod_directory(ROOT, "a"),
    ):
        assert "." not in str(path.relative_to(ROOT))


def test_ordinary_directory_is_no_bpffs(tmp_path: Path) -> None:
    assert not bpffs.is_bpffs(tmp_path)
    assert not bpffs.is_bpffs(tmp_path / "absent" / "deeper")


def test_lock_of_nothing_says_how_to_load(tmp_path: Path) -> None:
    with pytest.raises(NotLoadedError, match="python3 -m bpf load"), bpffs.locked(tmp_path / "none"):
        pass


def test_prune_removes_empty_directories_only(tmp_path: Path) -> None:
    root = tmp_path / "kept" / "node"
    for name in ("maps", "links", "pods"):
        (root / name).mkdir(parents=True)
    (tmp_path / "kept" / "other").mkdir()
    bpffs.prune(root)
    assert not root.exists()
    assert (tmp_path / "kept" / "other").is_dir()


def test_prune_refuses_to_remove_what_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "node" / "maps" / "pods").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        bpffs.prune(tmp_path / "node")


def test_nothing_is_unmounted_without_our_mark(tmp_path: Path) -> None:
    assert bpffs.unmount_if_ours(tmp_path) is False
    assert bpffs.unmount_if_ours(tmp_path / "none") is False
