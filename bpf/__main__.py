# SPDX-License-Identifier: Apache-2.0
"""The loader's command line: `python3 -m bpf load|unload|status|probe|build`.

Runs under the system's interpreter, where bcc is. One JSON line on stdout, prose on stderr. Exit codes: 0 ok,
1 error, 2 check failed, 64 usage, 69 nothing loaded.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from bpf import abi, features, hooks, load, sources
from bpf.bytecode import Bytecode
from bpf.errors import BpfError, KernelError, NotLoadedError
from bpf.maps import NodeMaps

STORED = Path(__file__).parent / "bytecode" / f"ambit-{sys.byteorder}.json"
"""Where an image without LLVM has its bytecode (`build --out`); `load` prefers it to compiling."""
EXIT_OK, EXIT_ERROR, EXIT_CHECK, EXIT_USAGE, EXIT_UNREACHABLE = 0, 1, 2, 64, 69


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> "None":  # type: ignore[override]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python3 -m bpf", description="Load and look after the capture programs of this node."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    defaults = abi.Limits()

    one = commands.add_parser(
        "load", help="compile or read, check, load, attach, pin; take over what is pinned"
    )
    one.add_argument("--bpffs", type=Path, required=True, help="directory for the pins")
    one.add_argument("--pods-cgroup", type=Path, required=True, help="cgroup v2 directory above the pods")
    one.add_argument(
        "--node-cgroup", type=Path, required=True, help="cgroup v2 directory above all of the node"
    )
    one.add_argument(
        "--bytecode",
        type=Path,
        help=f"load what `build` wrote; default {STORED.name} in bpf/bytecode, else compile",
    )
    one.add_argument("--max-pods", type=_positive, default=defaults.pods, help="default %(default)s")
    one.add_argument(
        "--max-records", type=_positive, default=defaults.records, help="a pod; default %(default)s"
    )
    one.add_argument("--max-probes", type=_positive, default=defaults.probes, help="default %(default)s")

    one = commands.add_parser("unload", help="remove every link, program and map, and our mount of bpffs")
    one.add_argument("--bpffs", type=Path, required=True)

    one = commands.add_parser("status", help="what is loaded, how full it is, what it counted")
    one.add_argument("--bpffs", type=Path, required=True)
    one.add_argument("--pods-cgroup", type=Path, help="also list programs of others that run for its sockets")
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")

    one = commands.add_parser("probe", help="load a stub of each feature that the programs need")
    one.add_argument("-o", "--output", choices=("text", "json"), default="text")

    one = commands.add_parser("build", help="compile and store the bytecode for images without LLVM")
    one.add_argument("--out", type=Path, required=True)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = {"load": _load, "unload": _unload, "status": _status, "probe": _probe, "build": _build}[
            options.command
        ](options)
    except NotLoadedError as error:
        return _fail(error, EXIT_UNREACHABLE)
    except (BpfError, OSError) as error:
        return _fail(error, EXIT_ERROR)
    return code


def _fail(error: Exception, code: int) -> int:
    print(f"bpf: {error}", file=sys.stderr)
    print(json.dumps({"ok": False, "error": type(error).__name__, "message": str(error)}))
    return code


def _bytecode(path: Path | None) -> Bytecode:
    """Read the file that was named, else what is stored beside the sources and is of these, else compile."""
    if path is not None:
        return Bytecode.decode(path.read_bytes())
    if STORED.is_file():
        stored = Bytecode.decode(STORED.read_bytes())
        if stored.source == sources.source_hash():
            return stored
        print(f"bpf: {STORED} is of other sources and is not used", file=sys.stderr)
    return _compile()


def _compile() -> Bytecode:
    # Only here: whoever loads stored bytecode has no bcc, and nothing but load and build may pull in LLVM.
    from bpf.compile import compile_all

    return compile_all()


def _load(options: argparse.Namespace) -> int:
    code = _bytecode(options.bytecode)
    try:
        report = load.load(
            options.bpffs,
            code,
            pods_cgroup=options.pods_cgroup,
            node_cgroup=options.node_cgroup,
            schema=sources.schema_hash(),
            limits=abi.Limits(pods=options.max_pods, records=options.max_records, probes=options.max_probes),
        )
    except KernelError as error:
        raise KernelError(_lacks(error)) from error
    print(
        json.dumps(
            {
                "ok": True,
                "created": report.created,
                "replaced": report.replaced,
                "attached": report.attached,
                "pods": report.pods,
                "mounted": report.mounted,
                "compiler": code.compiler,
                "source": code.source,
            }
        )
    )
    return EXIT_OK


def _lacks(error: BpfError) -> str:
    """Say what the kernel lacks, where that is why it refused."""
    absent = features.missing()
    if not absent:
        return str(error)
    return f"this kernel lacks {', '.join(absent)} (`python3 -m bpf probe` tries each): {error}"


def _unload(options: argparse.Namespace) -> int:
    print(json.dumps({"ok": True, "removed": load.unload(options.bpffs)}))
    return EXIT_OK


def _status(options: argparse.Namespace) -> int:
    maps = NodeMaps.open(options.bpffs)
    attached = [
        {"name": name, "program": number, "tag": tag, "cgroup": cgroup}
        for name, number, tag, cgroup in load.programs(options.bpffs)
    ]
    wanted = {spec.name for spec in abi.PROGRAMS if spec.place is not abi.Place.POD_NETNS}
    missing = sorted(wanted - {str(item["name"]) for item in attached if item["cgroup"]})
    pods = {
        str(cookie): {
            "workload_id": pod.workload_id,
            "addresses": [str(address) for address in pod.addresses],
        }
        for cookie, pod in maps.pods().items()
    }
    lookups = {
        uid: {"netns_inode": item.netns_inode, "netns_cookie": item.netns_cookie}
        for uid, item in load.pod_lookups(options.bpffs).items()
    }
    report = {
        "ok": not missing,
        "programs": attached,
        "missing": missing,
        "pods": pods,
        "lookups": lookups,
        "fill": maps.fill(),
        "counters": maps.counters(),
    }
    maps.close()
    if options.pods_cgroup is not None:
        report["neighbours"] = [
            {
                "hook": item.hook.name.lower(),
                "program": item.program,
                "name": item.name,
                "earlier": item.earlier,
            }
            for item in hooks.neighbours(options.bpffs, options.pods_cgroup)
        ]
    if options.output == "json":
        print(json.dumps(report))
    else:
        for item in attached:
            print(f"program {item['name']:<13} id {item['program']} tag {item['tag']}")
        for name in missing:
            print(f"program {name:<13} NOT ATTACHED: run load again")
        for item in report.get("neighbours", ()):  # type: ignore[attr-defined]
            order = "BEFORE ours: it may hide destinations" if item["earlier"] else "after ours"
            print(f"another program at {item['hook']}: {item['name']} (id {item['program']}) runs {order}")
        print(f"pods {len(pods)}, sk_lookup instances {len(lookups)}")
        for name, (entries, capacity) in sorted(report["fill"].items()):  # type: ignore[attr-defined]
            print(f"map {name:<10} {entries} of {capacity}")
        for name, number in report["counters"].items():  # type: ignore[attr-defined]
            print(f"counter {name:<16} {number}")
    return EXIT_CHECK if missing else EXIT_OK


def _probe(options: argparse.Namespace) -> int:
    found = features.probe()
    absent = {name: reason for name, reason in found.items() if reason}
    if options.output == "json":
        print(
            json.dumps(
                {"ok": not absent, "features": {name: reason or "ok" for name, reason in found.items()}}
            )
        )
    else:
        for name, reason in found.items():
            print(f"{name:<51} {reason or 'ok'}")
    for name, reason in absent.items():
        print(f"bpf: this kernel lacks {name}: {reason}", file=sys.stderr)
    return EXIT_CHECK if absent else EXIT_OK


def _build(options: argparse.Namespace) -> int:
    code = _compile()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    beside = options.out.with_name(options.out.name + ".new")
    beside.write_bytes(code.encode())
    os.replace(beside, options.out)
    print(json.dumps({"ok": True, "out": str(options.out), "source": code.source, "compiler": code.compiler}))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
