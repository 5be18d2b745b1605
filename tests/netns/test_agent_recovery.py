# SPDX-License-Identifier: Apache-2.0
"""The node agent and what happens to it: kill -9, a lost ztunnel, strangers, cleanup, bad starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent_bed import REPOSITORY, Bed, Pod, ask, inside, sh

from tests.support.eventually import eventually
from tests.support.unprivileged import UNPRIVILEGED

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and BPF"),
]


@pytest.fixture
def bed() -> Iterator[Bed]:
    made = Bed()
    try:
        yield made
    finally:
        made.close()


def enrolled_pair(bed: Bed) -> tuple[Pod, Pod]:
    bed.start()
    web, client = Pod(bed, "web"), Pod(bed, "client")
    for pod in (web, client):
        bed.write(pod.object())
    for pod in (web, client):
        bed.wait_enrolled(pod)
    return web, client


def kill(bed: Bed, process: subprocess.Popen[bytes] | None) -> None:
    assert process is not None
    bed.stop(process, signal.SIGKILL)


def nothing_left_in(bed: Bed, pod: Pod) -> None:
    space = f"--net=/run/netns/{pod.netns}"
    for family in ("-4", "-6"):
        assert "fwmark" not in sh("nsenter", space, "ip", family, "rule")
        assert sh("nsenter", space, "ip", family, "route", "show", "table", "100", check=False) == ""
    accept = inside(pod.netns, lambda: Path("/proc/sys/net/ipv4/tcp_fwmark_accept").read_text())
    assert accept.strip() == "0"


def test_a_killed_agent_leaves_pods_captured_and_its_successor_takes_them_over(bed: Bed) -> None:
    web, client = enrolled_pair(bed)
    ids = {pod.uid: bed.pod_state(pod)["workload_id"] for pod in (web, client)}
    kill(bed, bed.agent)

    assert bed.enrollment(web) is not None
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("ztunnel inbound")
    assert client.call(web.ip, 8080) == f"ztunnel outbound {web.ip}:8080 from {client.ip}"

    messages = len(bed.zds_log())
    bed.start_agent()
    for pod in (web, client):
        assert bed.wait_enrolled(pod)["workload_id"] == ids[pod.uid]
    since = bed.zds_log()[messages:]
    snapshot = [entry["kind"] for entry in since].index("snapshot_sent")
    assert {entry["uid"] for entry in since[:snapshot]} == {web.uid, client.uid}
    assert not [entry for entry in since if entry["kind"] == "del"]
    assert client.call(web.ip, 8080).startswith("ztunnel outbound")

    # What it took over it can also let go of.
    bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
    eventually(lambda: bed.pod_state(web).get("state") == "ignored")
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("app web")
    nothing_left_in(bed, web)


def test_what_changed_while_no_agent_ran_is_caught_up_with(bed: Bed) -> None:
    web, client = enrolled_pair(bed)
    late = Pod(bed, "late")
    kill(bed, bed.agent)
    bed.write(web.object(labels={"istio.io/dataplane-mode": "none"}))
    client.stop()
    (bed.directory / "status/Pod/shop/client.yaml").unlink()
    bed.write(late.object())

    bed.start_agent()
    bed.wait_enrolled(late)
    eventually(lambda: bed.pod_state(web).get("state") == "ignored")
    eventually(lambda: not bed.pod_state(client))
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("app web")
    assert bed.enrollment(web) is None
    assert bed.enrollment(client) is None
    assert sorted(p.name for p in (bed.bpffs / "pods").iterdir()) == [late.uid]
    nothing_left_in(bed, web)


def test_a_pod_that_cannot_be_found_again_stays_captured_and_ztunnel_keeps_it(bed: Bed) -> None:
    """Its namespace is no longer where the CNI said, and none of its processes can be told to be its own."""
    bed.start()
    web = Pod(bed, "web", run=False)
    bed.write(web.object(started=False))
    assert bed.cni("ADD", web)["result"] == "enrolled"
    bed.write(web.object())
    web.start()
    kill(bed, bed.agent)
    kept = f"{web.netns}-kept"
    sh("mv", f"/run/netns/{web.netns}", f"/run/netns/{kept}", check=False)
    holder = web.process
    assert holder is not None
    # Out of the pod's cgroup, so that the agent finds neither the path nor a process.
    sh("ip", "netns", "attach", kept, str(holder.pid))
    sh("umount", f"/run/netns/{web.netns}", check=False)
    Path(f"/run/netns/{web.netns}").unlink(missing_ok=True)
    (bed.system / "cgroup.procs").write_text(str(holder.pid))
    bed.netns_names.append(kept)

    messages = len(bed.zds_log())
    bed.start_agent()
    eventually(lambda: len(bed.zds_log()) > messages + 1)
    assert {"kind": "keep", "uid": web.uid} in bed.zds_log()[messages:]
    row = eventually(lambda: bed.pod_state(web) if bed.pod_state(web).get("code") else None)
    assert row["code"] == "AMB2101"
    assert row["captured"] is True
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("ztunnel inbound")

    # Found again, it is enrolled as before.
    (web.cgroup / "cgroup.procs").write_text(str(holder.pid))
    bed.wait_enrolled(web)


def test_without_ztunnel_enrolled_pods_are_refused_and_never_plain(bed: Bed) -> None:
    web, client = enrolled_pair(bed)
    kill(bed, bed.ztunnel)
    eventually(lambda: bed.agent_state("/healthz/ready") == "waits for ztunnel")
    assert inside(bed.node, lambda: ask(web.ip, 8080)) in ("refused", "timeout")
    assert inside(bed.node, lambda: ask(web.ip6, 8080)) in ("refused", "timeout")
    assert client.call(web.ip, 8080) in ("refused", "timeout")
    assert client.call("192.0.2.1", 80) in ("refused", "timeout")
    assert "waits for ztunnel" in bed.pod_state(web)["reason"]
    assert bed.pod_state(web)["captured"] is True

    bed.start_ztunnel()
    for pod in (web, client):
        bed.wait_enrolled(pod)
    assert client.call(web.ip, 8080).startswith("ztunnel outbound")
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("ztunnel inbound")


def test_before_ztunnel_comes_a_running_pod_stays_as_it_is_and_a_starting_one_is_refused(bed: Bed) -> None:
    bed.start_agent(AMBIT_CNI_TIMEOUT_S="1")
    running, starting = Pod(bed, "running"), Pod(bed, "starting", run=False)
    bed.write(running.object())
    bed.write(starting.object(started=False))
    answer = bed.cni("ADD", starting)
    assert (answer["result"], answer["code"]) == ("error", "AMB2303")
    assert "ztunnel" in answer["reason"]
    starting.start()  # It must not be, but if it is, nothing of it passes in plain.
    assert inside(bed.node, lambda: ask(starting.ip, 8080)) in ("refused", "timeout")
    assert starting.call(running.ip, 8080) in ("refused", "timeout")
    assert inside(bed.node, lambda: ask(running.ip, 8080)).startswith("app running")
    assert bed.enrollment(starting) is None
    bed.start_ztunnel()
    bed.wait_enrolled(running)
    bed.wait_enrolled(starting)


def test_pins_that_were_removed_behind_its_back_are_made_again_capture_first(bed: Bed) -> None:
    web, client = enrolled_pair(bed)
    kill(bed, bed.agent)
    unloaded = subprocess.run(
        ["/usr/bin/python3", "-m", "bpf", "unload", "--bpffs", str(bed.bpffs)],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    assert unloaded.returncode == 0, unloaded.stderr
    assert inside(bed.node, lambda: ask(web.ip, 8080)).startswith("app web")
    bed.start_agent()
    bed.wait_enrolled(web)
    bed.wait_enrolled(client)


STRANGER = """
import array, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.settimeout(5)
try:
    s.connect(sys.argv[1])
    s.send(bytes([8, 1]))
    data, control, _, _ = s.recvmsg(1024, socket.CMSG_SPACE(64))
except OSError as error:
    data, control = type(error).__name__.encode(), []
print(data, len(control))
"""


def test_a_stranger_on_the_zds_socket_gets_nothing(bed: Bed) -> None:
    web, _ = enrolled_pair(bed)
    path = bed.settings["INPOD_UDS"]
    assert oct(Path(path).stat().st_mode & 0o777) == "0o600"
    # Root, but of another cgroup than ztunnel's: another daemon of the node, or a pod's process.
    for cgroup in (bed.system, web.cgroup):
        process = bed.popen(sys.executable, "-c", STRANGER, path, cgroup=cgroup, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=20)
        assert out.decode().strip() in ("b'' 0", "b'ConnectionResetError' 0", "b'BrokenPipeError' 0")
    # In ztunnel's cgroup, but not root.
    process = bed.popen(
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        STRANGER,
        path,
        cgroup=bed.ztunnel_cgroup,
        stdout=subprocess.PIPE,
    )
    out, _ = process.communicate(timeout=20)
    assert out.decode().strip() == "b'PermissionError' 0"
    assert "refused a connection" in bed.log("agent.log")
    metrics = bed.agent_state("/metrics")
    assert "ambit_agent_zds_refused_total 2.0" in metrics
    assert 'ambit_agent_pods{state="enrolled"} 2.0' in metrics
    # ztunnel's own session is as it was.
    assert bed.agent_state("/ztunnel")[0]["pods"] == 2
    assert bed.agent_state("/maps")["maps"]["ztunnels"]["entries"] == 1


def test_a_stranger_on_the_cni_socket_gets_nothing(bed: Bed) -> None:
    bed.start_agent()
    path = bed.settings["AMBIT_CNI_UDS"]
    assert oct(Path(path).stat().st_mode & 0o777) == "0o600"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(5)
        link.connect(path)
        reader = link.makefile()
        for line in (b"{}\n", b"not json\n"):
            link.sendall(line)
            assert json.loads(reader.readline())["code"] == "AMB2301"
        link.sendall(b"x" * 70000 + b"\n")
        assert json.loads(reader.readline())["code"] == "AMB2301"
        assert reader.readline() == ""


def test_cleanup_after_a_kill_leaves_nothing(bed: Bed) -> None:
    web, client = enrolled_pair(bed)
    refused = bed.cleanup()
    assert refused.returncode == 69
    assert f"pid {agent_pid(bed)}" in refused.stderr
    kill(bed, bed.agent)
    kill(bed, bed.ztunnel)
    done = bed.cleanup()
    assert done.returncode == 0, done.stderr
    for pod in (web, client):
        nothing_left_in(bed, pod)
        assert bed.enrollment(pod) is None
        assert inside(bed.node, lambda p=pod: ask(p.ip, 8080)).startswith(f"app {pod.name}")  # type: ignore[misc]
        assert client.call(pod.ip, 8080).startswith(f"app {pod.name}")
    assert not bed.bpffs.exists()
    assert not list((bed.directory / "agent").rglob("*"))
    assert not list(bed.directory.glob("*.sock"))
    assert attached_below(bed.cgroup) == []
    again = bed.cleanup()
    assert again.returncode == 0, again.stderr


def agent_pid(bed: Bed) -> int:
    return int((bed.directory / "agent" / "agent.lock").read_text())


def attached_below(cgroup: Path) -> list[str]:
    """Return the programs that are attached to cgroups of the bed, as the kernel tells bpftool."""
    trees = [str(path) for path in [cgroup, *cgroup.rglob("*")] if path.is_dir()]
    found = []
    for tree in trees:
        listed = json.loads(sh("bpftool", "-j", "cgroup", "show", tree).strip() or "[]")
        found += [entry["attach_type"] for entry in listed]
    return found


def test_a_second_agent_does_not_start(bed: Bed) -> None:
    bed.start_agent()
    assert bed.agent is not None
    second = start_once(bed)
    assert second.returncode == 69
    assert f"pid {agent_pid(bed)}" in second.stderr
    assert "AMB2205" in second.stderr
    assert bed.agent.poll() is None
    assert Path(bed.settings["INPOD_UDS"]).is_socket()
    # Asked to stop, it stops and takes its sockets along.
    assert bed.stop(bed.agent) == 0
    assert not Path(bed.settings["INPOD_UDS"]).exists()
    assert not Path(bed.settings["AMBIT_CNI_UDS"]).exists()


def start_once(bed: Bed, *prefix: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run an agent that is expected to end by itself."""
    return subprocess.run(
        ["nsenter", f"--net=/run/netns/{bed.node}", *prefix, sys.executable, "-m", "daemonset"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | bed.settings | settings,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("settings", "exit_code", "code", "words"),
    [
        ({"NODE_NAME": ""}, 65, "AMB2206", "NODE_NAME"),
        ({"AMBIT_BPF_PYTHON": "/nonexistent/python"}, 69, "AMB2203", "/nonexistent/python"),
        ({"AMBIT_BPF_PYTHON": "/bin/false"}, 1, "AMB2201", "bpf load"),
        ({"AMBIT_AGENT_ADDR": "192.0.2.7:15016"}, 69, "AMB2206", "192.0.2.7"),
        ({"AMBIT_ZTUNNEL_CGROUP": "/tmp"}, 69, "AMB2210", "cgroup v2"),
        ({"AMBIT_OBJECTS": ""}, 65, "AMB2206", "AMBIT_OBJECTS"),
        ({"LOG_LEVEL": "loud"}, 65, "AMB2206", "loud"),
    ],
)
def test_a_start_that_cannot_be_says_why_and_leaves_no_socket(
    bed: Bed, settings: dict[str, str], exit_code: int, code: str, words: str
) -> None:
    ended = start_once(bed, **settings)
    assert ended.returncode == exit_code, ended.stderr
    assert code in ended.stderr
    assert words in ended.stderr
    assert not list(bed.directory.glob("*.sock"))


def test_an_address_in_use_is_named(bed: Bed) -> None:
    taken = inside(bed.node, lambda: socket.create_server(("127.0.0.1", 15016)))
    with taken:
        ended = start_once(bed)
    assert ended.returncode == 69, ended.stderr
    assert "AMB2209" in ended.stderr
    assert "127.0.0.1:15016" in ended.stderr
    assert not list(bed.directory.glob("*.sock"))


def test_without_root_it_says_so(bed: Bed) -> None:
    ended = start_once(bed, *UNPRIVILEGED)
    assert ended.returncode == 1, ended.stderr
    assert "AMB2207" in ended.stderr
    assert "root" in ended.stderr


def test_an_unknown_command_is_answered_with_the_usage(bed: Bed) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "daemonset", "destroy"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 64
    assert "usage: python -m daemonset [cleanup]" in ended.stderr
    assert ended.stdout == ""


def test_a_missing_cgroup_is_named(bed: Bed) -> None:
    ended = start_once(bed, AMBIT_PODS_CGROUP=str(bed.cgroup / "absent"))
    assert ended.returncode != 0
    assert "absent" in ended.stderr
    assert not bed.bpffs.exists()


def test_a_descriptor_is_not_leaked_by_many_moves(bed: Bed) -> None:
    """Ten times out and in: the agent's open files are as many as before."""
    bed.start()
    web = Pod(bed, "web")
    bed.write(web.object())
    bed.wait_enrolled(web)
    before = len(os.listdir(f"/proc/{agent_pid(bed)}/fd"))
    for _ in range(10):
        assert bed.cni("DEL", web)["result"] == "removed"
        assert bed.cni("ADD", web)["result"] == "enrolled"
    eventually(lambda: len(os.listdir(f"/proc/{agent_pid(bed)}/fd")) <= before)
