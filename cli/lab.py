# SPDX-License-Identifier: Apache-2.0
"""`ambit lab`: the verbs of a lab, their options, and what they print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULT_NAME = "ambit"
DEFAULT_TIMEOUT_S = 120.0
FORMATS = ("table", "wide", "json", "yaml")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verbs."""
    verbs = parser.add_subparsers(dest="lab_verb", metavar="VERB", required=True, parser_class=type(parser))

    def verb(name: str, about: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=about, description=about)
        added.add_argument("--name", default=DEFAULT_NAME, help=f"the lab (default {DEFAULT_NAME})")
        added.add_argument("--state", type=Path, help="its directory (default /run/ambit/NAME)")
        return added

    up = verb("up", "start nodes, the mesh and the pods of Kubernetes YAML, and wait until they serve")
    up.add_argument(
        "-f", dest="files", action="append", default=[], metavar="FILE|DIR", help="YAML; repeatable"
    )
    up.add_argument("--nodes", type=int, default=1, metavar="N")
    up.add_argument("--no-mesh", action="store_true", help="without controller, agents and ztunnels")
    up.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS")
    verb("down", "end the lab and remove everything of it")
    for name in ("apply", "delete"):
        added = verb(name, f"{name} the objects of files")
        added.add_argument("-f", dest="files", action="append", required=True, metavar="FILE|DIR")
    _add_reading(verb)
    _add_changing(verb)


def _add_reading(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    get = verb("get", "show objects with their status")
    get.add_argument("kind", metavar="KIND")
    get.add_argument("object", metavar="NAME", nargs="?")
    get.add_argument("-n", "--namespace", default="default")
    get.add_argument("-A", "--all-namespaces", action="store_true")
    get.add_argument("-o", "--output", choices=FORMATS, default="table")
    status = verb("status", "show what runs and what is missing")
    status.add_argument("-o", "--output", choices=FORMATS, default="table")
    logs = verb(
        "logs", "show the log of a pod (NS/POD) or of a part (controller, agent, ztunnel, kubelet, manager)"
    )
    logs.add_argument("target", metavar="NS/POD|PART[@NODE]")
    logs.add_argument("-c", "--container")
    logs.add_argument("--tail", type=int, default=-1, metavar="LINES", help="only the last lines")
    logs.add_argument("-f", "--follow", action="store_true")
    wait = verb("wait", "wait for pods (all, or NS/POD), or a Deployment's, to be as asked")
    wait.add_argument("target", metavar="NS/POD", nargs="?")
    wait.add_argument(
        "--for", dest="condition", choices=("ready", "enrolled", "unenrolled", "deleted"), default="ready"
    )
    wait.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT_S, metavar="SECONDS")


def _add_changing(verb: Callable[[str, str], argparse.ArgumentParser]) -> None:
    run = verb("exec", "run a command inside a pod: exec NS/POD [-c CONTAINER] -- CMD...")
    run.add_argument("target", metavar="NS/POD")
    run.add_argument("-c", "--container")
    label = verb("label", "set (KEY=VALUE) or remove (KEY-) labels")
    label.add_argument("kind", metavar="KIND")
    label.add_argument("object", metavar="NAME")
    label.add_argument("labels", metavar="KEY=VALUE|KEY-", nargs="+")
    label.add_argument("-n", "--namespace", default="default")
    scale = verb("scale", "set the number of a Deployment's pods")
    scale.add_argument("object", metavar="NS/DEPLOYMENT")
    scale.add_argument("--replicas", type=int, required=True)
    restart = verb(
        "restart", "restart a pod (pod NS/POD) or a part (controller | agent|ztunnel|kubelet [NODE])"
    )
    restart.add_argument("part", choices=("pod", "controller", "agent", "ztunnel", "kubelet"))
    restart.add_argument("object", metavar="NS/POD|NODE", nargs="?")
    restart.add_argument("--force", action="store_true", help="SIGKILL instead of SIGTERM")


def say(text: str) -> None:
    """Tell progress."""
    print(text, file=sys.stderr, flush=True)


def run(options: argparse.Namespace) -> int:
    """Run a verb and return its exit code."""
    from cli import lab_verbs
    from lab.errors import LabError
    from lab.layout import check_name

    try:
        check_name(options.name)
        options.state = (options.state or Path("/run/ambit") / options.name).absolute()
        verbs: dict[str, Callable[[argparse.Namespace], int]] = {
            "up": _up,
            "down": _down,
            "apply": lab_verbs.apply,
            "delete": lab_verbs.delete,
            "get": lab_verbs.get,
            "status": lab_verbs.status,
            "logs": lab_verbs.logs,
            "wait": lab_verbs.wait,
            "exec": lab_verbs.execute,
            "label": lab_verbs.label,
            "scale": lab_verbs.scale,
            "restart": lab_verbs.restart,
        }
        return verbs[options.lab_verb](options)
    except LabError as error:
        say(str(error))
        return error.code.exit_code
    except PermissionError as error:
        from lab.errors import Code

        if os.geteuid() == 0:
            raise
        say(str(LabError(Code.NOT_ROOT, f"{error.filename} cannot be read")))
        return Code.NOT_ROOT.exit_code


def _up(options: argparse.Namespace) -> int:
    from lab import lifecycle

    layout = lifecycle.up(
        name=options.name,
        state=options.state,
        files=options.files,
        nodes=options.nodes,
        mesh=not options.no_mesh,
        timeout_s=options.timeout,
        say=say,
    )
    say(f"lab {layout.name} is up; `ambit lab down{_name(options)}` ends it")
    return 0


def _name(options: Any) -> str:
    return "" if options.name == DEFAULT_NAME else f" --name {options.name}"


def _down(options: argparse.Namespace) -> int:
    from lab import lifecycle

    was = lifecycle.down(name=options.name, state=options.state, say=say)
    say(f"lab {options.name} is gone" if was else f"there is no lab {options.name}")
    return 0
