# SPDX-License-Identifier: Apache-2.0
"""Create, attach, pin, replace and remove the programs and maps of a node, from bytecode, without bcc.

Everything here is all or nothing: a step that fails undoes those before it, and no program is ever detached
before its successor is in place. Pins outlive the process that made them.
"""

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bpf import abi, bpffs, syscall
from bpf.bytecode import Bytecode, Program
from bpf.errors import BpfError, LimitError, NotLoadedError, SchemaError
from bpf.syscall import Fd

_ZERO = bytes(4)
_LOOKUP = next(spec for spec in abi.PROGRAMS if spec.place is abi.Place.POD_NETNS)
_ATTACHED = tuple(spec for spec in abi.PROGRAMS if spec.place is not abi.Place.POD_NETNS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLookup:
    """The sk_lookup instance of one pod, as pinned."""

    netns_inode: int
    """0 once the network namespace is gone."""
    netns_cookie: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What `load` did."""

    created: bool
    """True if the maps are new, False if pinned ones were taken over."""
    replaced: tuple[str, ...]
    """Programs whose link was there and got new instructions."""
    attached: tuple[str, ...]
    """Programs that got a new link."""
    pods: tuple[str, ...]
    """Pod uids whose sk_lookup instance was replaced."""
    mounted: str
    """Where bpffs was mounted, empty if it was there."""


@dataclass(slots=True)
class _Plan:
    """Descriptors of one load: maps by name, programs by name."""

    maps: dict[str, int] = field(default_factory=dict)
    programs: dict[str, int] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    attached: list[str] = field(default_factory=list)


def load(
    root: Path,
    code: Bytecode,
    *,
    pods_cgroup: Path,
    node_cgroup: Path,
    schema: str,
    limits: abi.Limits | None = None,
) -> LoadReport:
    """Load, attach and pin everything, taking over what is pinned already.

    Args:
        root: directory on bpffs for the pins of this node; bpffs is mounted if absent.
        code: instructions to load.
        pods_cgroup: cgroup v2 directory above the node's pods.
        node_cgroup: cgroup v2 directory above everything on the node.
        schema: layout of this version (`sources.schema_hash`); `code` must have it too.
        limits: sizes of maps; defaults if absent.

    Raises:
        SchemaError: pins of another layout or size hold enrolled pods, or `code` has another layout.
        BpfError: any step failed; nothing has changed.
    """
    if code.schema != schema:
        raise SchemaError(
            f"bytecode has layout {code.schema[:12]}, this version has {schema[:12]}: "
            "run `python3 -m bpf build` again"
        )
    for cgroup in (pods_cgroup, node_cgroup):
        _check_cgroup(cgroup)
    existed = root.exists()
    mounted = bpffs.prepare(root)
    try:
        with bpffs.locked(root), contextlib.ExitStack() as descriptors, contextlib.ExitStack() as undo:
            report = _load_locked(
                root, code, pods_cgroup, node_cgroup, schema, limits or abi.Limits(), descriptors, undo
            )
            undo.pop_all()
    except BaseException:
        if not existed or mounted:
            with contextlib.suppress(OSError):
                bpffs.prune(root)
            bpffs.unmount_if_ours(root)
        raise
    return LoadReport(
        created=report[0],
        replaced=tuple(report[1].replaced),
        attached=tuple(report[1].attached),
        pods=report[2],
        mounted=str(mounted or ""),
    )


def _load_locked(
    root: Path,
    code: Bytecode,
    pods_cgroup: Path,
    node_cgroup: Path,
    schema: str,
    limits: abi.Limits,
    descriptors: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> tuple[bool, _Plan, tuple[str, ...]]:
    plan = _Plan()
    created = _maps(root, limits, schema, plan, descriptors, undo)
    for spec in abi.PROGRAMS:
        number = syscall.prog_load(
            spec.type, spec.attach, code.program(spec.name).link(plan.maps), f"ambit_{spec.name}"
        )
        descriptors.callback(os.close, number)
        plan.programs[spec.name] = number
    lookup = code.program(_LOOKUP.name)
    instances = [
        (uid, pin, _load_lookup(lookup, plan.maps, cookie, descriptors))
        for uid, (pin, cookie) in _pod_pins(root).items()
    ]
    _write_node(plan.maps["node"], pods_cgroup, undo)
    for spec in _ATTACHED:
        cgroup = node_cgroup if spec.place is abi.Place.NODE else pods_cgroup
        _attach(root, spec, cgroup, plan, descriptors, undo)
    for uid, pin, program in instances:
        _replace(pin, program, f"sk_lookup of pod {uid}", descriptors, undo)
    _store_lookup(plan.maps["lookup_code"], lookup, undo)
    # Last, since it cannot be undone: links that this version does not know, or that a killed load left.
    for pin in (root / "links").iterdir():
        if pin.name not in {spec.name for spec in _ATTACHED}:
            pin.unlink()
    return created, plan, tuple(uid for uid, _, _ in instances)


def _check_cgroup(path: Path) -> None:
    if not (path / "cgroup.procs").is_file():
        raise BpfError(f"{path} is no cgroup directory: name one on a cgroup2 mount (see /proc/mounts)")
    if not (path / "cgroup.controllers").is_file():
        raise BpfError(
            f"{path} is not on cgroup v2: on hybrid hosts use the directory under /sys/fs/cgroup/unified"
        )


def _cgroup_level(path: Path) -> int:
    """Return how deep a cgroup is in the hierarchy, as bpf_get_current_ancestor_cgroup_id counts."""
    best: tuple[int, str, str] = (-1, "", "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        inside, point = fields[3], fields[4]
        if "cgroup2" in fields and path.resolve().is_relative_to(point) and len(point) > best[0]:
            best = (len(point), inside, point)
    if best[0] < 0:
        raise BpfError(f"{path} is on no cgroup2 mount")
    below = path.resolve().relative_to(best[2]).parts
    return len([part for part in best[1].split("/") if part]) + len(below)


def _maps(
    root: Path,
    limits: abi.Limits,
    schema: str,
    plan: _Plan,
    descriptors: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> bool:
    """Open the pinned maps, or create and pin them; return whether they were created."""
    specs = abi.map_specs(limits)
    pinned = [spec for spec in specs if spec.pinned and bpffs.map_pin(root, spec.name).exists()]
    if pinned:
        fault = pins_fault(root, limits, schema)
        if not fault:
            for spec in specs:
                if spec.pinned:
                    plan.maps[spec.name] = syscall.get(bpffs.map_pin(root, spec.name))
                    descriptors.callback(os.close, plan.maps[spec.name])
            return False
        held = _holds(root)
        if held:
            raise SchemaError(
                f"pins in {root} do not fit this version ({fault}) and hold {held}: un-enrol them, or run "
                f"`python3 -m bpf unload --bpffs {root}`, and load again"
            )
        _remove_pins(root)
    for spec in specs:
        number = create_map(spec, plan.maps)
        descriptors.callback(os.close, number)
        plan.maps[spec.name] = number
    meta = abi.Meta(next_workload_id=1, records_quota=limits.records)
    meta.schema[:] = bytes.fromhex(schema)
    syscall.map_update(plan.maps["meta"], _ZERO, bytes(meta), "cannot write map meta")
    for spec in specs:
        if spec.pinned:
            path = bpffs.map_pin(root, spec.name)
            syscall.pin(plan.maps[spec.name], path)
            undo.callback(path.unlink)
    return True


def create_map(spec: abi.MapSpec, made: Mapping[str, int]) -> int:
    """Create one map; `made` holds the map that a map of maps is made of."""
    name = f"ambit_{spec.name}"
    key, value = ctypes.sizeof(spec.key), ctypes.sizeof(spec.value)
    if spec.type is abi.MapType.SK_STORAGE:
        btf = syscall.storage_btf(value)
        try:
            return syscall.map_create(spec.type, key, value, spec.entries, spec.flags, name, btf=btf)
        finally:
            os.close(btf[0])
    inner = made[spec.inner] if spec.inner else 0
    return syscall.map_create(spec.type, key, value, spec.entries, spec.flags, name, inner=inner)


def pins_fault(root: Path, limits: abi.Limits | None, schema: str) -> str:
    """Return why the pinned maps do not fit that layout and those sizes; empty if they do.

    With no limits, sizes are not compared: whoever opens pins takes them as they were loaded.
    """
    for spec in abi.map_specs(limits or abi.Limits()):
        if not spec.pinned:
            continue
        path = bpffs.map_pin(root, spec.name)
        if not path.exists():
            return f"map {spec.name} is missing"
        with Fd(syscall.get(path)) as fd:
            kind, key, value, entries, flags = syscall.map_shape(fd.number)
            if (kind, key, value) != (spec.type, ctypes.sizeof(spec.key), ctypes.sizeof(spec.value)):
                return f"map {spec.name} has another layout"
            if limits is not None and entries != spec.entries:
                return f"map {spec.name} holds {entries} entries, {spec.entries} are configured"
            if flags & abi.NO_PREALLOC != spec.flags:
                return f"map {spec.name} has other flags"
            if spec.name == "meta":
                meta = abi.Meta.from_buffer_copy(_must(fd.number, abi.Meta))
                if bytes(meta.schema).hex() != schema:
                    return f"pinned layout {bytes(meta.schema).hex()[:12]}, wanted {schema[:12]}"
                if limits is not None and meta.records_quota != limits.records:
                    return f"{meta.records_quota} records a pod are pinned, {limits.records} are configured"
    return ""


def _must(fd: int, kind: type[ctypes.Structure]) -> bytes:
    value = syscall.map_lookup(fd, _ZERO, ctypes.sizeof(kind))
    assert value is not None, "arrays have all their entries"
    return value


def _holds(root: Path) -> str:
    """Say what unloading these pins would take out of the mesh; empty if nothing."""
    pods = len(_pod_pins(root))
    if not pods and bpffs.map_pin(root, "pods").exists():
        with Fd(syscall.get(bpffs.map_pin(root, "pods"))) as fd:
            pods = sum(1 for _ in syscall.map_keys(fd.number, 8))
    return f"{pods} enrolled pods" if pods else ""


def _write_node(fd: int, pods_cgroup: Path, undo: contextlib.ExitStack) -> None:
    before = _must(fd, abi.Node)
    node = abi.Node.from_buffer_copy(before)
    node.pods_cgroup = pods_cgroup.stat().st_ino
    node.pods_level = _cgroup_level(pods_cgroup)
    syscall.map_update(fd, _ZERO, bytes(node), "cannot write map node")
    undo.callback(syscall.map_update, fd, _ZERO, before, "cannot restore map node")


def _store_lookup(fd: int, program: Program, undo: contextlib.ExitStack) -> None:
    data = program.encode()
    if len(data) > abi.LOOKUP_CODE_BYTES - 4:
        raise LimitError(
            f"sk_lookup takes {len(data)} bytes stored, {abi.LOOKUP_CODE_BYTES - 4} are reserved"
        )
    before = _must(fd, abi.LookupCode)
    value = struct.pack("=I", len(data)) + data
    syscall.map_update(fd, _ZERO, value.ljust(abi.LOOKUP_CODE_BYTES, b"\0"), "cannot store sk_lookup")
    undo.callback(syscall.map_update, fd, _ZERO, before, "cannot restore sk_lookup")


def _attach(
    root: Path,
    spec: abi.ProgramSpec,
    cgroup: Path,
    plan: _Plan,
    descriptors: contextlib.ExitStack,
    undo: contextlib.ExitStack,
) -> None:
    pin = bpffs.link_pin(root, spec.name)
    program = plan.programs[spec.name]
    if pin.exists():
        with Fd(syscall.get(pin)) as link:
            target = syscall.link_target(link.number)[1]
        if target == cgroup.stat().st_ino:
            _replace(pin, program, spec.name, descriptors, undo)
            plan.replaced.append(spec.name)
            return
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    descriptors.callback(os.close, directory)
    link_number = syscall.link_create(program, directory, spec.attach, f"{spec.name} to {cgroup}")
    descriptors.callback(os.close, link_number)
    _pin_over(pin, link_number, descriptors, undo)
    plan.attached.append(spec.name)


def _pin_over(pin: Path, link: int, descriptors: contextlib.ExitStack, undo: contextlib.ExitStack) -> None:
    """Pin a new link under a name that an older one may have; the older one goes only then."""
    if not pin.exists():
        syscall.pin(link, pin)
        undo.callback(pin.unlink)
        return
    older = syscall.get(pin)
    descriptors.callback(os.close, older)
    beside = pin.with_name(f"{pin.name}-new")
    beside.unlink(missing_ok=True)
    syscall.pin(link, beside)
    beside.rename(pin)

    def restore() -> None:
        pin.unlink()
        syscall.pin(older, pin)

    undo.callback(restore)


def _replace(
    pin: Path, program: int, what: str, descriptors: contextlib.ExitStack, undo: contextlib.ExitStack
) -> None:
    link = syscall.get(pin)
    descriptors.callback(os.close, link)
    old = syscall.program_by_id(syscall.link_target(link)[0])
    descriptors.callback(os.close, old)
    try:
        syscall.link_update(link, program, what)
    except BpfError:
        # A link whose namespace or cgroup is gone has nothing left to replace; its owner removes the pin.
        if syscall.link_target(link)[1] == 0:
            return
        raise
    undo.callback(syscall.link_update, link, old, what)


def _load_lookup(
    program: Program, maps: Mapping[str, int], cookie: int, descriptors: contextlib.ExitStack
) -> int:
    code = program.with_constant(abi.COOKIE_CONSTANT, cookie).link(maps)
    number = syscall.prog_load(_LOOKUP.type, _LOOKUP.attach, code, "ambit_sk_lookup")
    descriptors.callback(os.close, number)
    return number


def _pod_pins(root: Path) -> dict[str, tuple[Path, int]]:
    """Return uid -> (pin, cookie) of every pod's sk_lookup link."""
    pods = root / "pods"
    found: dict[str, tuple[Path, int]] = {}
    for directory in sorted(pods.iterdir()) if pods.is_dir() else ():
        for pin in directory.iterdir():
            _, _, cookie = pin.name.partition("lookup-")
            if cookie.isdigit():
                found[directory.name] = (pin, int(cookie))
    return found


def attach_pod_lookup(root: Path, *, uid: str, netns_fd: int, netns_cookie: int) -> None:
    """Give a pod's network namespace its sk_lookup instance, or replace the one it has, with no gap.

    Args:
        root: where `load` pinned.
        uid: the pod's uid; names the pin.
        netns_fd: descriptor of the network namespace.
        netns_cookie: its SO_NETNS_COOKIE, which becomes a constant of the instance.

    Raises:
        NotLoadedError: nothing is loaded there.
        BpfError: the kernel refused; the instance that was there is still in place.
    """
    directory = bpffs.pod_directory(root, uid)
    with bpffs.locked(root), contextlib.ExitStack() as descriptors, contextlib.ExitStack() as undo:
        maps: dict[str, int] = {}
        for spec in abi.map_specs(abi.Limits()):
            if spec.pinned:
                maps[spec.name] = _open_map(root, spec.name)
                descriptors.callback(os.close, maps[spec.name])
        stored = abi.LookupCode.from_buffer_copy(_must(maps["lookup_code"], abi.LookupCode))
        program = Program.decode(bytes(stored.data[: stored.length]))
        number = _load_lookup(program, maps, netns_cookie, descriptors)
        pin = directory / f"lookup-{netns_cookie}"
        if pin.exists():
            with Fd(syscall.get(pin)) as link:
                inode = syscall.link_target(link.number)[1]
            if inode == os.fstat(netns_fd).st_ino:
                _replace(pin, number, f"sk_lookup of pod {uid}", descriptors, undo)
                undo.pop_all()
                return
            pin.unlink()
        link_number = syscall.link_create(number, netns_fd, _LOOKUP.attach, f"sk_lookup to pod {uid}")
        descriptors.callback(os.close, link_number)
        directory.mkdir(exist_ok=True)
        syscall.pin(link_number, pin)
        for other in directory.iterdir():
            if other != pin:
                other.unlink()
        undo.pop_all()


def detach_pod_lookup(root: Path, uid: str) -> None:
    """Remove a pod's sk_lookup instance; it is no error if there is none."""
    directory = bpffs.pod_directory(root, uid)
    if not directory.is_dir():
        return
    for pin in directory.iterdir():
        pin.unlink()
    directory.rmdir()


def pod_lookups(root: Path) -> dict[str, PodLookup]:
    """Return uid -> instance of every pod that has one."""
    found: dict[str, PodLookup] = {}
    for uid, (pin, cookie) in _pod_pins(root).items():
        with Fd(syscall.get(pin)) as link:
            found[uid] = PodLookup(netns_inode=syscall.link_target(link.number)[1], netns_cookie=cookie)
    return found


def _open_map(root: Path, name: str) -> int:
    path = bpffs.map_pin(root, name)
    if not path.exists():
        raise NotLoadedError(
            f"map {name} is not pinned in {root}; run `python3 -m bpf load --bpffs {root} ...`"
        )
    return syscall.get(path)


def unload(root: Path) -> bool:
    """Remove every link, program and map pinned under `root`, and the mount if `load` made it.

    Returns: whether anything was there. Pods that were enrolled are from now on not captured.
    """
    if not root.is_dir() or not bpffs.is_bpffs(root):
        return False
    with bpffs.locked(root):
        there = _remove_pins(root)
        bpffs.prune(root)
    bpffs.unmount_if_ours(root)
    return there


def _remove_pins(root: Path) -> bool:
    """Unpin all: connect first, so that nothing is captured that nobody answers; maps last."""
    there = False
    for pin in (
        sorted((root / "links").iterdir(), key=lambda path: not path.name.startswith("connect"))
        if (root / "links").is_dir()
        else ()
    ):
        pin.unlink()
        there = True
    for directory in (root / "pods").iterdir() if (root / "pods").is_dir() else ():
        detach_pod_lookup(root, directory.name)
        there = True
    for pin in (root / "maps").iterdir() if (root / "maps").is_dir() else ():
        pin.unlink()
        there = True
    return there


def programs(root: Path) -> Iterator[tuple[str, int, str, int]]:
    """Yield (name, program id, tag, cgroup id) of every attached program; cgroup id 0: it is gone."""
    links = root / "links"
    for pin in sorted(links.iterdir()) if links.is_dir() else ():
        with Fd(syscall.get(pin)) as link:
            number, target = syscall.link_target(link.number)
        with Fd(syscall.program_by_id(number)) as program:
            identifier, tag = syscall.program_tag(program.number)
        yield pin.name, identifier, tag, target
