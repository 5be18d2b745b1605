# SPDX-License-Identifier: Apache-2.0
"""Runs one program as a container of a pod: its namespaces, cgroup, capabilities and user.

Standard library only and run as a script (`python3 -I -S container.py start|enter FILE`), so
that it starts in milliseconds. Three processes: the outer one, which the kubelet supervises
and which writes how the program ended; pid 1 of the container, which forwards signals and
reaps; the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 1 << 12, 1 << 14, 1 << 18
PR_SET_PDEATHSIG, PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
CAPABILITIES = {
    "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7,
    "SETPCAP": 8, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_CHROOT": 18,
    "SYS_PTRACE": 19, "SYS_ADMIN": 21, "SYS_RESOURCE": 24, "SYS_TIME": 25, "MKNOD": 27,
    "AUDIT_WRITE": 29, "SETFCAP": 31, "BPF": 39,
}  # fmt: skip
"""Names of linux/capability.h that a manifest may add or drop."""
DEFAULT_CAPABILITIES = frozenset(
    [
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "MKNOD",
        "NET_RAW",
        "SETGID",
        "SETUID",
        "SETFCAP",
        "SETPCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    ]
)
"""What containerd gives a container."""
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
START_FAILED = 128
"""Exit code of a program that could not be started, as container runtimes have it."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    arguments = [s.encode() if s else None for s in (source, target, kind)]
    _check(
        _libc.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None), f"mount on {target}"
    )


def _bind(source: str, target: str, *, read_only: bool = False) -> None:
    _mount(source, target, "", MS_BIND | MS_REC)
    if read_only:
        _mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _join_namespaces(spec: dict[str, Any]) -> None:
    with open(os.path.join(spec["cgroup"], "cgroup.procs"), "w") as file:
        file.write("0")
    descriptor = os.open(spec["netns"], os.O_RDONLY | os.O_CLOEXEC)
    _check(_libc.setns(descriptor, CLONE_NEWNET), f"enter {spec['netns']}")
    os.close(descriptor)
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID), "unshare")
    name = spec["hostname"].encode()
    _check(_libc.sethostname(name, len(name)), "sethostname")


def _open_tree(path: str) -> str:
    return f"/proc/self/fd/{os.open(path, os.O_PATH | os.O_CLOEXEC)}"


def _mount_files(spec: dict[str, Any]) -> None:
    """Give the container its own view: what it must not see goes, what it owns comes."""
    _mount("", "/", "", MS_REC | MS_PRIVATE)
    # Sources may lie below what is covered next: hold them by descriptor.
    mounts = [(_open_tree(m["source"]), m) for m in spec["mounts"]]
    _mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    for covered in spec["covered"]:
        if os.path.isdir(covered):
            _mount("tmpfs", covered, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=64k")
    _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")  # noqa: S108 - its own
    for path in spec["read_only"]:
        _bind(path, path, read_only=True)
    for source, mount in mounts:
        target = mount["target"]
        if not os.path.exists(target):
            if mount["file"]:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
            else:
                os.makedirs(target, exist_ok=True)
        _bind(source, target, read_only=mount["read_only"])


def _sysfs() -> None:
    """Show /proc of the container's own processes and /sys of its own network."""
    _mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    with contextlib.suppress(OSError):
        with open("/proc/self/mounts") as file:
            lines = file.read().splitlines()
        for line in lines:
            words = line.split()
            if words[2] in ("cgroup", "cgroup2"):
                with contextlib.suppress(OSError):
                    _mount("", words[1], "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def _drop(spec: dict[str, Any]) -> None:
    kept = {CAPABILITIES[name] for name in spec["capabilities"]}
    for number in range(64):
        if number not in kept and _libc.prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1:
            _check(_libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0), f"drop capability {number}")
    if spec["gid"] is not None:
        os.setgroups(spec["groups"])
        os.setgid(spec["gid"])
    if spec["uid"] is not None:
        os.setuid(spec["uid"])
    if spec["no_new_privileges"]:
        _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _exec(spec: dict[str, Any]) -> NoReturn:
    for number in (*FORWARDED, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        _drop(spec)
        os.chdir(spec["cwd"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 - an argument list
    except OSError as error:
        message = f"{spec['argv'][0]} cannot be started: {error.strerror or error}"
        print(message, file=sys.stderr, flush=True)
        os._exit(127 if error.errno == 2 else 126)


def _code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _pid1(spec: dict[str, Any]) -> NoReturn:
    """Be the container's first process: start the program, forward signals, reap orphans."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _sysfs()
    program = os.fork()
    if program == 0:
        os.setsid()
        _exec(spec)

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    while True:
        pid, status = os.wait()
        if pid == program:
            os._exit(_code(status))


def start(spec: dict[str, Any]) -> int:
    """Run the program to its end and return its exit code, which is also written to `exit_file`."""
    # Its files lie below what is covered in its own view.
    directory = os.open(os.path.dirname(spec["exit_file"]), os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _join_namespaces(spec)
        _mount_files(spec)
    except OSError as error:
        print(f"the container cannot be made: {error}", file=sys.stderr, flush=True)
        _finish(directory, spec, START_FAILED)
        return START_FAILED
    child = os.fork()
    if child == 0:
        try:
            _pid1(spec)
        except BaseException:  # noqa: BLE001 - a fork must never return into its parent's code
            traceback.print_exc()
            os._exit(START_FAILED)

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in FORWARDED:
        signal.signal(number, forward)
    _write(directory, spec["pid_file"], str(child))
    _, status = os.waitpid(child, 0)
    code = _code(status)
    _finish(directory, spec, code)
    return code


def _write(directory: int, path: str, text: str) -> None:
    name = os.path.basename(path)
    descriptor = os.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=directory)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)


def _finish(directory: int, spec: dict[str, Any], code: int) -> None:
    with contextlib.suppress(OSError):  # The pod's directory may be gone already.
        _write(directory, spec["exit_file"], str(code))


def _pass_on(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        # It may have ended, and been collected, as the signal arrived.
        os.kill(child, number)


def enter(spec: dict[str, Any]) -> int:
    """Run a program inside a running container and return its exit code."""
    with open(spec["pid_file"]) as file:
        pid = int(file.read())
    descriptor = os.pidfd_open(pid)
    with open(os.path.join(spec["cgroup"], "cgroup.procs"), "w") as file:
        file.write("0")
    kinds = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    _check(_libc.setns(descriptor, kinds), f"enter the container (pid {pid})")
    child = os.fork()
    if child == 0:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _exec(spec)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # A terminal sends these to the program as well.
    signal.signal(signal.SIGTERM, lambda number, _: _pass_on(child, number))
    _, status = os.waitpid(child, 0)
    return _code(status)


def main() -> int:
    """Run `start FILE` or `enter FILE`; the file holds the specification as JSON."""
    mode, path = sys.argv[1:3]
    with open(path) as file:
        spec: dict[str, Any] = json.load(file)
    return start(spec) if mode == "start" else enter(spec)


if __name__ == "__main__":
    sys.exit(main())
