# SPDX-License-Identifier: Apache-2.0
"""Finding a pod's processes by the names of cgroups, on a made-up tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemonset import cgroup

UID = "0c1f-22"


@pytest.mark.parametrize(
    "path",
    [f"{UID}", f"burstable/pod{UID}", "kubepods-besteffort.slice/kubepods-besteffort-pod0c1f_22.slice"],
)
def test_pods_are_found_under_each_driver(tmp_path: Path, path: str) -> None:
    container = tmp_path / path / "cri-containerd-1.scope"
    container.mkdir(parents=True)
    (tmp_path / path / "cgroup.procs").write_text("")
    (container / "cgroup.procs").write_text("41\n42\n0\n")
    assert cgroup.pod_directory(tmp_path, UID) == tmp_path / path
    assert cgroup.pod_pids(tmp_path, UID, proc=tmp_path / "none") == [41, 42]


@pytest.mark.parametrize("name", ["0c1f-2", "x0c1f-22", "pod0c1f-223", "pod0c1f_22.slice"])
def test_other_names_are_other_pods(name: str) -> None:
    assert not cgroup.is_pod_directory(name, UID)


def test_a_pod_deeper_than_the_limit_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "a/b/c/d" / UID).mkdir(parents=True)
    assert cgroup.pod_directory(tmp_path, UID) is not None
    (tmp_path / "deep/a/b/c/d/e" / UID).mkdir(parents=True)
    assert cgroup.pod_directory(tmp_path / "deep", UID) is None


def test_on_a_v1_host_processes_are_found_by_their_own_cgroup_lines(tmp_path: Path) -> None:
    for pid, line in (("7", f"4:memory:/kubepods/pod{UID}/abc"), ("8", "0::/system"), ("self", "")):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cgroup").write_text(line + "\n")
    root = tmp_path / "v2"
    root.mkdir()
    assert cgroup.pod_pids(root, UID, proc=tmp_path / "proc") == [7]


def test_the_v2_path_is_the_line_of_hierarchy_zero(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("4:memory:/m\n0::/ambit/x\n")
    assert cgroup.v2_path(7, tmp_path) == "/ambit/x"
    assert cgroup.v2_path(8, tmp_path) is None


def test_the_v2_mount_is_found_on_hybrid_hosts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "cgroup /sys/fs/cgroup/pids cgroup rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    )
    assert cgroup.v2_mount(mounts) == Path("/sys/fs/cgroup/unified")
    mounts.write_text("proc /proc proc rw 0 0\n")
    assert cgroup.v2_mount(mounts) is None


def test_resolv_conf_is_read_bounded_and_only_from_a_regular_file(tmp_path: Path) -> None:
    etc = tmp_path / "7" / "root" / "etc"
    etc.mkdir(parents=True)
    assert cgroup.resolv_conf_of(7, tmp_path) is None
    (etc / "resolv.conf").write_text("nameserver 10.0.0.1\n" + "#" * 2 * cgroup.MAX_RESOLV_CONF_BYTES)
    text = cgroup.resolv_conf_of(7, tmp_path)
    assert text is not None
    assert len(text) == cgroup.MAX_RESOLV_CONF_BYTES
    (etc / "resolv.conf").unlink()
    (etc / "resolv.conf").symlink_to("/dev/zero")
    assert cgroup.resolv_conf_of(7, tmp_path) is None
    (etc / "resolv.conf").unlink()
    (etc / "resolv.conf").mkdir()
    assert cgroup.resolv_conf_of(7, tmp_path) is None


def test_a_process_of_a_pod_is_known_by_its_v1_groups(tmp_path: Path) -> None:
    of_pod = f"4:memory:/kubepods/burstable/pod{UID}/c0ffee"
    for pid, lines in (("7", [of_pod, "0::/"]), ("8", [of_pod, "0::/"]), ("9", ["4:memory:/", "0::/"])):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cgroup").write_text("\n".join(lines) + "\n")
    assert cgroup.v1_group(7, UID, tmp_path) == of_pod
    assert cgroup.v1_group(9, UID, tmp_path) is None
    assert cgroup.v1_group(10, UID, tmp_path) is None
    assert sorted(cgroup.pids_of_v1(of_pod, tmp_path)) == [7, 8]


def test_the_v2_line_proves_nothing_about_the_pod(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(f"0::/pod{UID}\n")
    assert cgroup.v1_group(7, UID, tmp_path) is None
