# SPDX-License-Identifier: Apache-2.0
"""Loading, replacing and removing: all or nothing, never a gap, nothing left behind."""

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from bpf import __main__ as command
from bpf import abi, bpffs, load, sources, syscall
from bpf.bytecode import Bytecode, Program
from bpf.errors import BpfError, NotLoadedError, SchemaError
from bpf.maps import NodeMaps
from tests.bpf.node import PYTHON, REPOSITORY, Node, Pod, Worker, bpf_command, ip
from tests.support.eventually import eventually
from tests.support.unprivileged import UNPRIVILEGED

ATTACHED = {spec.name for spec in abi.PROGRAMS} - {"sk_lookup"}


def tags(node: Node) -> dict[str, str]:
    return {name: tag for name, _, tag, _ in load.programs(node.bpffs)}


def link_ids(node: Node) -> dict[str, int]:
    found = {}
    for pin in sorted((node.bpffs / "links").iterdir()):
        with syscall.Fd(syscall.get(pin)) as link:
            found[pin.name] = int.from_bytes(syscall.info(link.number)[4:8], "little")
    return found


def broken(code: Bytecode, name: str) -> Bytecode:
    """The same, with one program that the verifier refuses: it returns what was never set."""
    programs = tuple(
        Program(name=name, code=bytes.fromhex("bf500000000000009500000000000000"), maps=())
        if program.name == name
        else program
        for program in code.programs
    )
    return Bytecode(schema=code.schema, source=code.source, compiler=code.compiler, programs=programs)


class TestReplay:
    def test_stored_bytecode_gives_the_instructions_that_bcc_itself_loads(
        self, node: Node, bytecode: Path
    ) -> None:
        done = subprocess.run(
            [PYTHON, "tests/bpf/bcc_tags.py"],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        theirs = json.loads(done.stdout)
        assert json.loads(bytecode.read_text())["source"] == theirs["source"]
        ours = tags(node)
        lookup = theirs["tags"].pop("sk_lookup")
        assert ours == theirs["tags"]
        assert ours.keys() == ATTACHED
        assert lookup_template_tag(node, bytecode) == lookup

    def test_compiling_at_load_and_replaying_give_the_same_programs(self, bare: Node, bytecode: Path) -> None:
        bare.load()
        compiled = tags(bare)
        bare.load("--bytecode", bytecode)
        assert tags(bare) == compiled

    def test_building_twice_gives_the_same_file(self, bytecode: Path, tmp_path: Path) -> None:
        bpf_command("build", "--out", tmp_path / "again.json")
        assert (tmp_path / "again.json").read_bytes() == bytecode.read_bytes()

    def test_stored_bytecode_needs_no_bcc(self, bare: Node, bytecode: Path, tmp_path: Path) -> None:
        (tmp_path / "bcc.py").write_text("raise ImportError('no bcc here')\n")
        command = [PYTHON, "-m", "bpf", "load", "--bpffs", str(bare.bpffs)]
        command += ["--pods-cgroup", str(bare.pods_cgroup), "--node-cgroup", str(bare.cgroup)]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert "python3-bpfcc" in done.stderr
        assert not bare.bpffs.exists(), "nothing is half done"
        done = subprocess.run(
            [*command, "--bytecode", str(bytecode)],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    def test_bytecode_stored_beside_the_sources_is_used_only_if_it_is_of_these(
        self,
        bytecode: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(command, "STORED", tmp_path / "stored.json")
        monkeypatch.setattr(command, "_compile", lambda: None)
        assert command._bytecode(None) is None, "none is stored: compile"
        (tmp_path / "stored.json").write_bytes(bytecode.read_bytes())
        assert command._bytecode(None) == Bytecode.decode(bytecode.read_bytes())
        monkeypatch.setattr(sources, "source_hash", lambda: "00")
        assert command._bytecode(None) is None
        assert "of other sources" in capsys.readouterr().err

    def test_bytecode_of_another_layout_is_refused(self, bare: Node, code: Bytecode) -> None:
        with pytest.raises(SchemaError, match="build"):
            bare.load_here(code, schema="00" * 32)
        assert not bare.bpffs.exists()


def lookup_template_tag(node: Node, bytecode: Path) -> str:
    program = Bytecode.decode(bytecode.read_bytes()).program("sk_lookup")
    maps = {
        spec.name: syscall.get(bpffs.map_pin(node.bpffs, spec.name))
        for spec in abi.map_specs(abi.Limits())
        if spec.pinned
    }
    number = syscall.prog_load(
        abi.ProgramType.SK_LOOKUP, abi.AttachType.SK_LOOKUP, program.link(maps), "template"
    )
    tag = syscall.program_tag(number)[1]
    for fd in (number, *maps.values()):
        os.close(fd)
    return tag


class TestTakeOver:
    def test_second_load_replaces_programs_in_place(self, node: Node, pod: Pod, bytecode: Path) -> None:
        links, programs = link_ids(node), {name: number for name, number, _, _ in load.programs(node.bpffs)}
        report = node.load("--bytecode", bytecode)
        assert report["created"] is False
        assert report["attached"] == []
        assert set(report["replaced"]) == set(links)
        assert report["pods"] == [pod.uid]
        assert link_ids(node) == links, "the links are the same"
        after = {name: number for name, number, _, _ in load.programs(node.bpffs)}
        assert all(after[name] != programs[name] for name in programs), "the programs are new"
        assert node.maps.pods().keys() == {pod.cookie}

    def test_no_connect_escapes_or_fails_while_programs_are_replaced(
        self, node: Node, pod: Pod, ztunnel: Worker, app: Worker, bytecode: Path
    ) -> None:
        outside = node.pod("b")
        server = outside.worker()
        server.run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
        app.run(
            "done, tally = False, {}\n"
            "def dial():\n"
            "    while not done:\n"
            f"        got = attempt({outside.ipv4!r}, 8080)\n"
            "        name = got['data'] if isinstance(got, dict) else got\n"
            "        tally[name] = tally.get(name, 0) + 1\n"
            "thread = threading.Thread(target=dial); thread.start()\n"
        )
        for _ in range(3):
            node.load("--bytecode", bytecode)
        tally = app.run("done = True; thread.join(); result = tally")
        assert tally.keys() == {"outbound"}
        assert tally["outbound"] > 20
        assert server.run("result = got") == []

    def test_workload_ids_survive_and_are_never_given_twice(self, node: Node, bytecode: Path) -> None:
        first = [node.maps.allocate_workload_id() for _ in range(3)]
        node.load("--bytecode", bytecode)
        second = [node.reopen().allocate_workload_id() for _ in range(3)]
        assert first + second == [1, 2, 3, 4, 5, 6]

    def test_programs_move_to_another_cgroup_when_told_so(self, node: Node, bytecode: Path) -> None:
        elsewhere = node.cgroup / "elsewhere"
        elsewhere.mkdir()
        try:
            report = bpf_command(
                "load",
                "--bpffs",
                node.bpffs,
                "--pods-cgroup",
                elsewhere,
                "--node-cgroup",
                node.cgroup,
                "--bytecode",
                bytecode,
            )
            assert report["replaced"] == ["probe", "probe_connect4", "probe_connect6"]
            targets = {name: target for name, _, _, target in load.programs(node.bpffs)}
            assert targets["connect4"] == elsewhere.stat().st_ino
            assert targets["probe"] == node.cgroup.stat().st_ino
            assert set(targets) == ATTACHED
        finally:
            load.unload(node.bpffs)
            elsewhere.rmdir()

    def test_agent_may_die_and_capture_goes_on(
        self, node: Node, pod: Pod, ztunnel: Worker, app: Worker
    ) -> None:
        """Nothing that captures belongs to a process: descriptors of this one are closed first."""
        node.maps.close()
        assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"
        node.reopen()


class TestAllOrNothing:
    @pytest.mark.parametrize("name", ["sockops", "connect6", "sk_lookup"])
    def test_first_load_that_fails_leaves_nothing(self, bare: Node, code: Bytecode, name: str) -> None:
        with pytest.raises(BpfError, match=f"refuses program ambit_{name}"):
            bare.load_here(broken(code, name))
        assert not bare.bpffs.exists()

    @pytest.mark.parametrize("failing", range(12))
    def test_attach_that_fails_undoes_those_before_it(
        self, bare: Node, code: Bytecode, monkeypatch: pytest.MonkeyPatch, failing: int
    ) -> None:
        real, calls = syscall.link_create, []

        def link_create(program: int, target: int, attach: int, what: str) -> int:
            calls.append(what)
            if len(calls) > failing:
                raise BpfError(f"cannot attach {what}: planted")
            return real(program, target, attach, what)

        monkeypatch.setattr(syscall, "link_create", link_create)
        with pytest.raises(BpfError, match="planted"):
            bare.load_here(code)
        assert not bare.bpffs.exists()

    @pytest.mark.parametrize("failing", [0, 5, 12])
    def test_replacement_that_fails_restores_every_program(
        self,
        node: Node,
        pod: Pod,
        ztunnel: Worker,
        app: Worker,
        code: Bytecode,
        monkeypatch: pytest.MonkeyPatch,
        failing: int,
    ) -> None:
        before = sorted(load.programs(node.bpffs))
        lookups = load.pod_lookups(node.bpffs)
        real, calls = syscall.link_update, []

        def link_update(link: int, program: int, what: str) -> None:
            calls.append(what)
            if len(calls) == failing + 1:
                raise BpfError(f"cannot replace {what}: planted")
            real(link, program, what)

        monkeypatch.setattr(syscall, "link_update", link_update)
        with pytest.raises(BpfError, match="planted"):
            node.load_here(code)
        assert sorted(load.programs(node.bpffs)) == before
        assert load.pod_lookups(node.bpffs) == lookups
        assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound"

    def test_enrolment_that_fails_leaves_no_address(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pod = node.pod("a")
        record = pod.record()
        real = syscall.map_update

        def map_update(fd: int, key: bytes, value: bytes, what: str, flags: int = 0) -> None:
            if what.endswith("pods"):
                raise BpfError("planted")
            real(fd, key, value, what, flags)

        monkeypatch.setattr(syscall, "map_update", map_update)
        with pytest.raises(BpfError, match="planted"):
            node.maps.enroll(record)
        fill = node.maps.fill()
        assert (fill["pods"][0], fill["addresses"][0], node.maps.records()) == (0, 0, {})

    def test_no_descriptor_stays_open(self, bare: Node, code: Bytecode) -> None:
        def opened() -> int:
            return len(os.listdir("/proc/self/fd"))

        before = opened()
        with pytest.raises(BpfError):
            bare.load_here(broken(code, "connect6"))
        assert opened() == before
        bare.load_here(code)
        bare.load_here(code)
        maps = NodeMaps.open(bare.bpffs)
        maps.counters()
        maps.fill()
        maps.close()
        assert opened() == before
        pod = bare.pod("a")
        assert bare.maps
        held = opened()
        pod.enroll()
        pod.attach_lookup()
        bare.maps.sweep()
        load.pod_lookups(bare.bpffs)
        pod.unenroll()
        assert opened() == held

    def test_two_loaders_at_once_both_succeed(self, bare: Node, bytecode: Path, tmp_path: Path) -> None:
        """On a host without bpffs, too: it is mounted once."""
        bare.bpffs = tmp_path / "pins"
        threads_failed: list[BaseException] = []

        def one() -> None:
            try:
                bare.load("--bytecode", bytecode)
            except BaseException as error:  # noqa: BLE001 - shown by the assertion
                threads_failed.append(error)

        threads = [threading.Thread(target=one) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert threads_failed == []
        assert Path("/proc/self/mounts").read_text().count(f" {bare.bpffs} bpf ") == 1
        assert set(tags(bare)) == ATTACHED

    def test_loader_killed_anywhere_is_made_good_by_the_next(
        self, bare: Node, code: Bytecode, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every pin is a point to die at: what is pinned by then must not stop the next load."""

        class Killed(BaseException):
            pass

        real_pin, real_unlink = syscall.pin, Path.unlink
        for after in range(0, 25, 3):
            count = 0

            def pin(fd: int, path: Path, after: int = after) -> None:
                nonlocal count
                if count == after:
                    monkeypatch.setattr(Path, "unlink", lambda *a, **k: None)  # a dead process undoes nothing
                    raise Killed
                count += 1
                real_pin(fd, path)

            monkeypatch.setattr(syscall, "pin", pin)
            with pytest.raises((Killed, OSError)):
                bare.load_here(code)
            monkeypatch.setattr(Path, "unlink", real_unlink)
            monkeypatch.setattr(syscall, "pin", real_pin)
            bare.load_here(code)
            assert set(tags(bare)) == ATTACHED
            load.unload(bare.bpffs)

    def test_links_that_this_version_does_not_know_go_with_the_next_load(
        self, node: Node, code: Bytecode
    ) -> None:
        links = node.bpffs / "links"
        with syscall.Fd(syscall.get(links / "connect4")) as link:
            syscall.pin(link.number, links / "connect4-new")
        node.load_here(code)
        assert {pin.name for pin in links.iterdir()} == ATTACHED


class TestSchema:
    def test_other_layout_without_pods_is_made_anew(self, node: Node, bytecode: Path) -> None:
        spoil_schema(node)
        with pytest.raises(SchemaError, match="python3 -m bpf load"):
            NodeMaps.open(node.bpffs)
        assert node.load("--bytecode", bytecode)["created"] is True
        NodeMaps.open(node.bpffs).close()

    def test_other_layout_with_pods_is_refused_by_name(
        self, node: Node, pod: Pod, ztunnel: Worker, app: Worker, bytecode: Path
    ) -> None:
        spoil_schema(node)
        refused = node.load("--bytecode", bytecode, expect=1)
        assert refused["error"] == "SchemaError"
        assert "1 enrolled pods" in refused["message"]
        assert "unload" in refused["message"]
        assert app.call("attempt", "192.0.2.7", 80)["data"] == "outbound", "what was loaded works on"

    def test_other_sizes_are_refused_by_name(self, node: Node, pod: Pod, bytecode: Path) -> None:
        refused = node.load("--bytecode", bytecode, "--max-records", "77", expect=1)
        assert "8192 records a pod are pinned, 77 are configured" in refused["message"]

    def test_pins_that_are_incomplete_are_made_anew(self, node: Node, bytecode: Path) -> None:
        bpffs.map_pin(node.bpffs, "slots").unlink()
        assert node.load("--bytecode", bytecode)["created"] is True

    def test_limits_are_those_that_were_loaded(self, bare: Node, bytecode: Path) -> None:
        bare.load("--bytecode", bytecode, "--max-pods", "5", "--max-records", "6", "--max-probes", "7")
        assert bare.maps.limits == abi.Limits(pods=5, records=6, probes=7)
        assert bare.maps.fill()["pods"] == (0, 5)


def spoil_schema(node: Node) -> None:
    with syscall.Fd(syscall.get(bpffs.map_pin(node.bpffs, "meta"))) as fd:
        value = syscall.map_lookup(fd.number, bytes(4), 48)
        assert value is not None
        syscall.map_update(fd.number, bytes(4), bytes([value[0] ^ 1]) + value[1:], "spoil")


class TestRemoval:
    def test_unload_leaves_no_pin_program_map_or_link(self, node: Node, pod: Pod, ztunnel: Worker) -> None:
        numbers = [number for _, number, _, _ in load.programs(node.bpffs)]
        with syscall.Fd(syscall.get(bpffs.map_pin(node.bpffs, "pods"))) as fd:
            map_id = int.from_bytes(syscall.info(fd.number)[4:8], "little")
        node.maps.close()
        assert bpf_command("unload", "--bpffs", node.bpffs)["removed"] is True
        assert not node.bpffs.exists()
        for number in numbers:
            eventually(lambda number=number: gone(syscall.program_by_id, number))
        eventually(lambda: gone(syscall.map_by_id, map_id))
        assert bpf_command("unload", "--bpffs", node.bpffs)["removed"] is False, "again is no error"
        node._maps = None

    def test_after_unload_a_pod_talks_as_if_never_enrolled(self, node: Node, pod: Pod, app: Worker) -> None:
        outside = node.pod("b")
        outside.worker().run("got = []; serve(listen('0.0.0.0', 8080), 'plain', got)")
        assert app.call("attempt", outside.ipv4, 8080) == "ECONNREFUSED"
        node.maps.close()
        node._maps = None
        load.unload(node.bpffs)
        assert app.call("attempt", outside.ipv4, 8080)["data"] == "plain"

    def test_bpffs_is_mounted_if_absent_and_only_then_unmounted(
        self, bare: Node, bytecode: Path, tmp_path: Path
    ) -> None:
        root = tmp_path / "pins"
        bare.bpffs = root
        report = bare.load("--bytecode", bytecode)
        assert report["mounted"] == str(root)
        assert root.is_mount()
        bpf_command("unload", "--bpffs", root)
        assert not root.is_mount()

    def test_mount_of_somebody_else_stays(self, bare: Node, bytecode: Path, tmp_path: Path) -> None:
        point = tmp_path / "theirs"
        point.mkdir()
        subprocess.run(["mount", "-t", "bpf", "bpf", point], check=True)
        try:
            bare.bpffs = point / "ours"
            assert bare.load("--bytecode", bytecode)["mounted"] == ""
            bpf_command("unload", "--bpffs", bare.bpffs)
            assert point.is_mount()
            assert not bare.bpffs.exists()
        finally:
            subprocess.run(["umount", point], check=True)

    def test_pins_of_another_node_on_the_same_mount_stay(self, node: Node, bytecode: Path) -> None:
        second = Node()
        try:
            second.start()
            second.load("--bytecode", bytecode)
        finally:
            second.close()
        assert tags(node)


def gone(open_by_id: Any, number: int) -> bool:
    try:
        os.close(open_by_id(number))
    except BpfError:
        return True
    return False


class TestPodLookup:
    def test_attach_again_replaces_in_place(self, node: Node, pod: Pod) -> None:
        pin = next((node.bpffs / "pods" / pod.uid).iterdir())
        with syscall.Fd(syscall.get(pin)) as link:
            before = syscall.info(link.number)[:12]
            pod.attach_lookup()
            after = syscall.info(link.number)[:12]
        assert before[:8] == after[:8], "the same link"
        assert before[8:] != after[8:], "another program"
        assert len(list((node.bpffs / "pods" / pod.uid).iterdir())) == 1

    def test_lookups_are_listed_with_namespace_and_cookie(self, node: Node, pod: Pod) -> None:
        inode = Path(f"/run/netns/{pod.netns}").stat().st_ino
        assert load.pod_lookups(node.bpffs) == {
            pod.uid: load.PodLookup(netns_inode=inode, netns_cookie=pod.cookie)
        }

    def test_detach_leaves_no_pin_and_is_no_error_again(self, node: Node, pod: Pod) -> None:
        load.detach_pod_lookup(node.bpffs, pod.uid)
        load.detach_pod_lookup(node.bpffs, pod.uid)
        assert load.pod_lookups(node.bpffs) == {}

    def test_dead_namespace_is_listed_as_such_and_does_not_stop_a_load(
        self, node: Node, bytecode: Path
    ) -> None:
        pod = node.pod("z")
        pod.enroll()
        ip("netns", "del", pod.netns)
        eventually(lambda: load.pod_lookups(node.bpffs)[pod.uid].netns_inode == 0)
        node.load("--bytecode", bytecode)
        ip("netns", "add", pod.netns)

    def test_uid_that_is_no_name_is_refused(self, node: Node) -> None:
        with pytest.raises(BpfError, match="cannot name a pin"):
            load.detach_pod_lookup(node.bpffs, "../links")

    def test_nothing_loaded_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(NotLoadedError, match="python3 -m bpf load"):
            load.attach_pod_lookup(tmp_path / "none", uid="a", netns_fd=0, netns_cookie=1)

    def test_attach_under_load_does_not_stop_arriving_connections(
        self, node: Node, pod: Pod, ztunnel: Worker
    ) -> None:
        peer = node.pod("b").worker()
        done = threading.Event()

        def again() -> None:
            while not done.is_set():
                pod.attach_lookup()

        thread = threading.Thread(target=again)
        thread.start()
        try:
            got = peer.run(f"result = [attempt({pod.ipv4!r}, 80) for _ in range(300)]")
        finally:
            done.set()
            thread.join()
        assert {one["data"] if isinstance(one, dict) else one for one in got} == {"inbound"}


class TestCommand:
    def test_status_shows_programs_pods_fill_and_counters(self, node: Node, pod: Pod) -> None:
        found = bpf_command("status", "--bpffs", node.bpffs, "-o", "json")
        assert {item["name"] for item in found["programs"]} == {spec.name for spec in abi.PROGRAMS} - {
            "sk_lookup"
        }
        assert found["pods"][str(pod.cookie)]["addresses"] == [pod.ipv4, pod.ipv6]
        assert found["lookups"][pod.uid]["netns_cookie"] == pod.cookie
        assert found["fill"]["pods"] == [1, 1024]
        assert set(found["counters"]) == {counter.name.lower() for counter in abi.Counter}

    def test_status_names_a_program_that_is_not_attached(self, node: Node) -> None:
        (node.bpffs / "links" / "connect6").unlink()
        found = bpf_command("status", "--bpffs", node.bpffs, "-o", "json", expect=2)
        assert found["missing"] == ["connect6"]

    def test_status_of_nothing_is_69(self, tmp_path: Path) -> None:
        assert bpf_command("status", "--bpffs", tmp_path, expect=69)["error"] == "NotLoadedError"

    def test_wrong_usage_is_64(self) -> None:
        done = subprocess.run([PYTHON, "-m", "bpf", "load"], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 64
        assert "--bpffs" in done.stderr

    @pytest.mark.parametrize("directory", ["/tmp", "/sys/fs/cgroup/cpu"])
    def test_directory_that_is_no_cgroup_v2_is_named(self, bare: Node, directory: str) -> None:
        if not Path(directory).is_dir():
            pytest.skip(f"this host has no {directory}")
        refused = bpf_command(
            "load", "--bpffs", bare.bpffs, "--pods-cgroup", directory, "--node-cgroup", bare.cgroup, expect=1
        )
        assert directory in refused["message"]
        assert "cgroup" in refused["message"]

    def test_probe_finds_every_feature_here(self) -> None:
        found = bpf_command("probe", "-o", "json")
        assert set(found["features"].values()) == {"ok"}

    def test_probe_without_privilege_names_what_is_lacking(self) -> None:
        done = subprocess.run(
            [*UNPRIVILEGED, PYTHON, "-m", "bpf", "probe"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "needs root" in done.stderr

    def test_replay_holds_neither_bcc_nor_llvm(self, bare: Node, bytecode: Path) -> None:
        """Its memory shows it: 120 MB with bcc."""
        done = subprocess.run(
            [
                PYTHON,
                "-c",
                "import sys; from bpf.__main__ import main; code = main(sys.argv[1:]);"
                "text = open('/proc/self/status').read(); assert 'bcc' not in sys.modules;"
                "print(text.split('VmHWM:')[1].split()[0], file=sys.stderr); sys.exit(code)",
                "load",
                "--bpffs",
                str(bare.bpffs),
                "--pods-cgroup",
                str(bare.pods_cgroup),
                "--node-cgroup",
                str(bare.cgroup),
                "--bytecode",
                str(bytecode),
            ],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stderr.split()[-1]) < 40 * 1024, "kibibytes"
