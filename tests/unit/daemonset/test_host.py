# SPDX-License-Identifier: Apache-2.0
"""Which cgroups the agent takes for the pods', the node's and ztunnel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemonset import host

UID = "0a1b2c3d-0000-4000-8000-000000000001"
V2 = Path("/sys/fs/cgroup")


def filled_in(environment: dict[str, str], *directories: str, pod: str | None = None) -> dict[str, str]:
    present = {V2 / name for name in directories}

    def find_pod(root: Path, uid: str) -> Path | None:
        return root / pod if pod is not None and uid == UID else None

    return host.complete(
        environment,
        mount=V2,
        is_directory=lambda path: path in present,
        find_pod=find_pod,
        find_kubelet=lambda: 4711,
    )


@pytest.mark.parametrize("name", host.PODS)
def test_the_pods_of_either_cgroup_driver_are_found(name: str) -> None:
    found = filled_in({}, name)
    assert found["AMBIT_PODS_CGROUP"] == str(V2 / name)
    assert found["AMBIT_NODE_CGROUP"] == str(V2)
    assert "AMBIT_KUBELET_TGID" not in found


def test_pods_in_the_root_need_the_kubelets_id() -> None:
    found = filled_in({})
    assert found["AMBIT_PODS_CGROUP"] == str(V2)
    assert found["AMBIT_KUBELET_TGID"] == "4711"


def test_ztunnel_is_in_the_agents_own_pod() -> None:
    found = filled_in({"POD_UID": UID}, "kubepods", pod=f"burstable/pod{UID}")
    assert found["AMBIT_ZTUNNEL_CGROUP"] == str(V2 / "kubepods" / "burstable" / f"pod{UID}")


def test_without_a_group_of_its_own_ztunnels_stays_the_default() -> None:
    assert "AMBIT_ZTUNNEL_CGROUP" not in filled_in({"POD_UID": UID}, "kubepods")


def test_what_is_set_stays() -> None:
    told = {
        "AMBIT_PODS_CGROUP": "/a/pods",
        "AMBIT_NODE_CGROUP": "/a",
        "AMBIT_ZTUNNEL_CGROUP": "/a/z",
        "POD_UID": UID,
    }
    assert filled_in(told, "kubepods", pod="elsewhere") == told


def test_without_cgroup_v2_nothing_is_made_up() -> None:
    assert host.complete({"NODE_NAME": "n1"}, mount=None) == {"NODE_NAME": "n1"}


def test_the_kubelet_is_found_by_name(tmp_path: Path) -> None:
    for pid, comm in (("1", "systemd"), ("812", "kubelet"), ("self", "kubelet")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(comm + "\n")
    assert host.kubelet_tgid(tmp_path) == 812


def test_without_a_kubelet_there_is_no_id(tmp_path: Path) -> None:
    assert host.kubelet_tgid(tmp_path) == 0
