# SPDX-License-Identifier: Apache-2.0
"""`ambit lab` on a real kernel, without the mesh: pods, services, names, probes, and nothing left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.eventually import eventually
from tests.support.kernel import needs_nftables
from tests.support.unprivileged import UNPRIVILEGED

pytestmark = [
    pytest.mark.root,
    needs_nftables,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, network namespaces and cgroups"),
]

REPOSITORY = Path(__file__).resolve().parents[2]

MANIFEST = """
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: site, namespace: shop}
data:
  nginx.conf: |
    pid /tmp/nginx.pid;
    error_log stderr;
    events {}
    http {
      access_log off;
      client_body_temp_path /tmp/b; proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f;
      uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;
      server { listen 8080; listen [::]:8080; location / { return 200 "nginx $hostname $remote_addr\\n"; } }
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: nginx
        command: [/usr/sbin/nginx, -c, /tmp/site/nginx.conf, -g, "daemon off;"]
        ports: [{name: http, containerPort: 8080}]
        volumeMounts: [{name: site, mountPath: /tmp/site}]
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
      volumes: [{name: site, configMap: {name: site}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: files, namespace: shop, labels: {app: files}}
spec:
  nodeName: node2
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 65534}
  containers:
  - name: python
    command: [/usr/bin/python3, -m, http.server, "8000", --bind, "::", --directory, /tmp/data]
    workingDir: /tmp
    env:
    - {name: WHO, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    volumeMounts: [{name: data, mountPath: /tmp/data}]
    readinessProbe: {exec: {command: [test, -f, /tmp/data/ready]}, periodSeconds: 1, failureThreshold: 1}
  volumes: [{name: data, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: files, namespace: shop}
spec:
  selector: {app: files}
  ports: [{port: 80, targetPort: 8000}]
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec:
  nodeName: node1
  terminationGracePeriodSeconds: 1
  containers: [{name: c, command: [sleep, infinity]}]
"""


def ambit(*words: str, before: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*before, sys.executable, "-m", "cli", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        cwd=REPOSITORY,
        **options,
    )


class Lab:
    """One lab of a test's own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = Path("/run/ambit") / name

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        return ambit("lab", verb, "--name", self.name, *words)

    def check(self, verb: str, *words: str) -> str:
        done = self.run(verb, *words)
        assert done.returncode == 0, f"{verb} {words}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout

    def curl(self, url: str) -> str:
        done = self.run("exec", "shop/client", "--", "curl", "-sS", "-m", "5", url)
        return done.stdout.strip() if done.returncode == 0 else f"curl {done.returncode}"

    def get(self, kind: str, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.check("get", kind, name, "-n", "shop", "-o", "json"))
        return data

    def endpoints(self, service: str) -> set[str]:
        slices = json.loads(self.check("get", "endpointslices", "-n", "shop", "-o", "json"))["items"]
        return {
            endpoint["addresses"][0]
            for item in slices
            if item["metadata"]["labels"]["kubernetes.io/service-name"] == service
            for endpoint in item["endpoints"]
            if endpoint["conditions"]["ready"]
        }

    def leftovers(self) -> list[str]:
        """Whatever on the machine still bears the lab's name."""
        found = [str(p) for p in Path("/run/netns").glob(f"ambit-{self.name}-*")]
        found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/ambit/{self.name}")]
        links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
        found += [line for line in links.splitlines() if line.strip() == f"alias ambit-lab-{self.name}"]
        found += [str(p) for p in (self.state, Path("/sys/fs/bpf/ambit") / self.name) if p.exists()]
        for process in Path("/proc").glob("[0-9]*/cgroup"):
            try:
                # A zombie waits for the machine's init to take note.
                running = ") Z " not in process.with_name("stat").read_text()
                if running and f"/ambit/{self.name}/" in process.read_text():
                    found.append(str(process))
            except OSError:
                continue
        return found


@pytest.fixture
def empty(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab that is not up."""
    lab = Lab(f"t{os.getpid() % 100000}x{abs(hash(request.node.name)) % 10000}")
    try:
        yield lab
    finally:
        lab.run("down")
        assert lab.leftovers() == []


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two nodes with nginx, a Python server that is not ready yet, and a client."""
    lab = Lab(f"t{os.getpid() % 100000}shop")
    path = tmp_path_factory.mktemp("shop") / "shop.yaml"
    path.write_text(MANIFEST)
    try:
        # The file server becomes ready only when a test says so: `up` does not wait for it to.
        done = lab.run("up", "--nodes", "2", "--no-mesh", "-f", str(path), "--timeout", "12")
        assert done.returncode == 124, done.stderr
        assert "pod shop/files: container python: readiness: test exited with 1" in done.stderr
        lab.check("wait", "shop/web", "--timeout", "30")
        yield lab
    finally:
        lab.run("down")
        assert lab.leftovers() == []


def test_a_service_is_reached_by_name_and_balances_over_both_nodes(shop: Lab) -> None:
    answers = {shop.curl(f"http://{name}/").split()[1] for name in ("web", "web.shop.svc.cluster.local") * 8}
    assert len(answers) == 2
    vips = shop.get("service", "web")["spec"]["clusterIPs"]
    assert [":" in vip for vip in vips] == [False, True]
    for vip in vips:
        url = f"http://[{vip}]/" if ":" in vip else f"http://{vip}/"
        assert shop.curl(url).startswith("nginx web-")


def test_the_client_keeps_its_address_through_a_service(shop: Lab) -> None:
    address = shop.get("pod", "client")["status"]["podIP"]
    vip = shop.get("service", "web")["spec"]["clusterIP"]
    assert shop.curl(f"http://{vip}/").split()[2] == address


def test_readiness_gates_endpoints(shop: Lab) -> None:
    assert shop.endpoints("files") == set()
    assert shop.curl("http://files/") == "curl 7", "refused at once, as nobody serves"
    shop.check("exec", "shop/files", "--", "touch", "/tmp/data/ready")
    shop.check("wait", "shop/files", "--timeout", "20")
    eventually(lambda: len(shop.endpoints("files")) == 2, "one endpoint per family")
    eventually(lambda: "Directory listing" in shop.curl("http://files/"), "the kernel's rules follow")
    shop.check("exec", "shop/files", "--", "rm", "/tmp/data/ready")
    eventually(lambda: shop.endpoints("files") == set(), "endpoints are withdrawn")
    shop.check("exec", "shop/files", "--", "touch", "/tmp/data/ready")
    shop.check("wait", "--timeout", "20")


def test_a_container_has_its_own_world(shop: Lab) -> None:
    script = (
        "id -u; echo $WHO; pwd; ls /proc | grep -c '^[0-9]'; ls /sys/fs/bpf /run | grep -v secrets; hostname"
    )
    lines = shop.check("exec", "shop/files", "--", "sh", "-c", script).split("\n")
    assert lines[:3] == ["65534", "files", "/tmp"]
    assert int(lines[3]) < 10, "sees only its own processes"
    assert "files" in lines
    denied = shop.run("exec", "shop/client", "--", "ip", "addr", "add", "10.244.0.77/32", "dev", "eth0")
    assert denied.returncode != 0, "no NET_ADMIN"
    moved = shop.run("exec", "shop/client", "--", "sh", "-c", "echo 0 > /sys/fs/cgroup/unified/cgroup.procs")
    assert moved.returncode != 0, "cannot leave its cgroup"


def test_exec_passes_output_and_exit_code(shop: Lab) -> None:
    done = shop.run("exec", "shop/client", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert shop.run("exec", "shop/client", "--", "/no/such/program").returncode == 127
    absent = shop.run("exec", "shop/nobody", "--", "true")
    assert (absent.returncode, absent.stderr[:7]) == (1, "AMB1012")


def test_a_killed_program_is_started_again(shop: Lab) -> None:
    shop.check("exec", "shop/client", "--", "sh", "-c", "kill -9 2")

    def again() -> bool:
        status = shop.get("pod", "client")["status"]["containerStatuses"][0]
        return status["restartCount"] >= 1 and "running" in status["state"]

    eventually(again, "the container runs again")


def test_a_killed_kubelet_comes_back_and_adopts_its_pods(shop: Lab) -> None:
    before = shop.check("exec", "shop/client", "--", "sh", "-c", "stat -c %Y /proc/2")
    shop.check("restart", "kubelet", "node1", "--force")

    def back() -> bool:
        rows = json.loads(shop.run("status", "-o", "json").stdout)["processes"]
        (row,) = (row for row in rows if row["name"] == "kubelet@node1")
        return bool(row["running"]) and row["restarts"] >= 1

    eventually(back, "the kubelet runs again")
    # It reports and restarts what it adopted: the program is ended, and it sees that.
    restarts = shop.get("pod", "client")["status"]["containerStatuses"][0]["restartCount"]
    assert shop.check("exec", "shop/client", "--", "sh", "-c", "stat -c %Y /proc/2") == before
    shop.check("exec", "shop/client", "--", "sh", "-c", "kill -9 2")

    def seen() -> bool:
        status = shop.get("pod", "client")["status"]["containerStatuses"][0]
        return status["restartCount"] > restarts and "running" in status["state"]

    eventually(seen, "the adopted container's end is seen")


def test_scaling_and_labels(shop: Lab) -> None:
    shop.check("scale", "shop/web", "--replicas", "3")
    eventually(lambda: len(shop.endpoints("web")) == 6, "three endpoints a family")
    shop.check("scale", "shop/web", "--replicas", "2")
    eventually(lambda: len(shop.endpoints("web")) == 4, "two endpoints a family")
    uid = shop.get("pod", "client")["metadata"]["uid"]
    shop.check("label", "pod", "shop/client", "tier=front")
    eventually(lambda: shop.get("pod", "client")["metadata"].get("labels") == {"tier": "front"}, "labelled")
    shop.check("label", "pod", "shop/client", "tier-")
    eventually(lambda: not shop.get("pod", "client")["metadata"].get("labels"), "label removed")
    assert shop.get("pod", "client")["metadata"]["uid"] == uid


def test_logs_of_a_pod(shop: Lab) -> None:
    shop.curl(f"http://{shop.get('pod', 'files')['status']['podIP']}:8000/")
    (line,) = shop.check("logs", "shop/files", "--tail", "1").splitlines()
    assert '"GET / HTTP/1.1" 200' in line


def test_up_over_a_lab_that_is_up_says_so(shop: Lab) -> None:
    done = shop.run("up", "--no-mesh")
    assert done.returncode == 1
    assert "AMB1006" in done.stderr
    assert "ambit lab apply" in done.stderr


def test_down_after_everything_was_killed_leaves_nothing(empty: Lab, tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
        "spec: {containers: [{name: c, command: [sleep, infinity]}]}\n"
    )
    empty.check("up", "--no-mesh", "-f", str(path))
    for record in [*empty.state.glob("*.pid"), *empty.state.glob("nodes/*/kubelet.pid")]:
        os.kill(json.loads(record.read_text())["pid"], signal.SIGKILL)
    assert empty.leftovers() != []
    empty.check("down")
    assert empty.leftovers() == []
    assert empty.run("exec", "default/a", "--", "true").returncode == 69


def test_down_without_its_state_file_still_finds_everything(empty: Lab) -> None:
    empty.check("up", "--no-mesh")
    (empty.state / "lab.json").unlink()
    assert any("alias" in item for item in empty.leftovers())
    empty.check("down")
    assert empty.leftovers() == []


def test_a_directory_that_is_no_lab_is_not_touched(empty: Lab, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    done = empty.run("up", "--no-mesh", "--state", str(tmp_path))
    assert done.returncode == 64
    assert "is not empty and holds no lab" in done.stderr
    empty.check("down", "--state", str(tmp_path))
    assert (tmp_path / "precious").exists()


def test_up_over_leftovers_of_a_dead_lab_works(empty: Lab) -> None:
    empty.check("up", "--no-mesh")
    for pid in next(Path("/sys/fs/cgroup").glob(f"**/ambit/{empty.name}")).glob("**/cgroup.procs"):
        for word in pid.read_text().split():
            os.kill(int(word), signal.SIGKILL)
    eventually(lambda: not any("/proc/" in item for item in empty.leftovers()), "all processes are gone")
    empty.check("up", "--no-mesh")


def test_two_labs_live_side_by_side(empty: Lab) -> None:
    other = Lab(f"{empty.name}b")
    try:
        empty.check("up", "--no-mesh")
        other.check("up", "--no-mesh")
        other.check("down")
        assert other.leftovers() == []
        assert empty.run("status").returncode == 0
    finally:
        other.run("down")


def test_bad_input_changes_nothing(empty: Lab, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n")
    done = empty.run("up", "--no-mesh", "-f", str(path))
    assert done.returncode == 65
    assert f"{path}:6: Pod default/a: container c has no command" in done.stderr
    assert empty.leftovers() == []


def test_a_port_in_use_is_named(empty: Lab) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", 15012))
        taken.listen()
        done = empty.run("up")
    assert done.returncode == 1
    assert "AMB1010: port 15012" in done.stderr
    assert empty.leftovers() == []


def test_no_root_is_said(empty: Lab) -> None:
    done = ambit("lab", "up", "--name", empty.name, "--no-mesh", before=UNPRIVILEGED)
    assert (done.returncode, done.stderr[:7]) == (69, "AMB1001")


def test_no_cgroup_v2_is_said(empty: Lab) -> None:
    script = 'umount -l /sys/fs/cgroup/unified /sys/fs/cgroup 2>/dev/null; exec "$@"'
    done = subprocess.run(
        [
            *("unshare", "-m", "sh", "-c", script, "sh"),
            *(sys.executable, "-m", "cli", "lab", "up", "--name", empty.name),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=REPOSITORY,
    )
    assert (done.returncode, done.stderr[:7]) == (69, "AMB1002")
