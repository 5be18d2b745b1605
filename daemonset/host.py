# SPDX-License-Identifier: Apache-2.0
"""Where a Kubernetes node keeps its pods' cgroups, so that one manifest serves every kind of node.

Only settings that are absent are filled in; nothing is made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from daemonset import cgroup

PODS = ("kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods")
"""Names below the v2 mount: of the systemd driver, the cgroupfs driver, and both with a `--cgroup-root`."""
KUBELET = "kubelet"


def complete(
    environment: Mapping[str, str],
    *,
    mount: Path | None,
    is_directory: Callable[[Path], bool] = Path.is_dir,
    find_pod: Callable[[Path, str], Path | None] = cgroup.pod_directory,
    find_kubelet: Callable[[], int] | None = None,
) -> dict[str, str]:
    """Return the agent's environment with the cgroups of this node filled in.

    Args:
        environment: as the process has it.
        mount: where cgroup v2 is; None: nowhere, and nothing is filled in.
        is_directory: whether a path is one.
        find_pod: the cgroup of a pod below another, by uid.
        find_kubelet: the kubelet's thread group, 0 when it is not seen.
    """
    found = dict(environment)
    if mount is None:
        return found
    pods = next((mount / name for name in PODS if is_directory(mount / name)), mount)
    found.setdefault("AMBIT_NODE_CGROUP", str(mount))
    if "AMBIT_PODS_CGROUP" not in found:
        found["AMBIT_PODS_CGROUP"] = str(pods)
        if pods == mount:
            # The runtime keeps to v1, so pods and the kubelet share the v2 root: it is known by its id.
            found.setdefault("AMBIT_KUBELET_TGID", str((find_kubelet or kubelet_tgid)()))
    uid = found.get("POD_UID")
    if uid and "AMBIT_ZTUNNEL_CGROUP" not in found:
        own = find_pod(Path(found["AMBIT_PODS_CGROUP"]), uid)
        if own is not None:
            # ztunnel is a container of the agent's own pod.
            found["AMBIT_ZTUNNEL_CGROUP"] = str(own)
    return found


def kubelet_tgid(proc: Path = Path("/proc")) -> int:
    """Return the thread group of the node's kubelet; 0 when none is seen (no hostPID)."""
    for entry in sorted(proc.iterdir()):
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == KUBELET:
                return int(entry.name)
        except OSError:
            continue  # It ended.
    return 0
