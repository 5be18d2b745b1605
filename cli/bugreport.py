# SPDX-License-Identifier: Apache-2.0
"""`ambit bugreport`: one archive with what is needed to find a fault, and nothing secret in it."""

from __future__ import annotations

import argparse
import io
import json
import platform
import re
import tarfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cli.check import report
from cli.codes import EXIT_OK, CliError, Code
from cli.facts import Facts
from cli.options import add_common
from cli.output import plural, say, size
from cli.target import CONTROLLER, Part, Target, open_target
from mesh.runtime.version import VERSION

LOG_LINES = 5000
REDACTED = "(left out)"
SECRET = re.compile(r"pass(word|wd)?|secret|token|credential|api_?key|private", re.IGNORECASE)
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
NODE_PATHS = {
    "ztunnel": ("/config_dump", "/connections", "/status"),
    "ztunnel-metrics": ("/metrics",),
    "agent": ("/pods", "/ztunnel", "/maps", "/config"),
}
CONTROLLER_PATHS = ("/debug/registry", "/debug/problems", "/debug/proxies", "/debug/config", "/metrics")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--file", type=Path, metavar="FILE", help="where to write it (default: here, named by time)"
    )
    add_common(parser, formats=())


def run(options: argparse.Namespace) -> int:
    """Write the archive and say what is in it."""
    target = open_target(options)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"ambit-bugreport-{target.title.replace(' ', '-')}-{stamp}"
    path: Path = options.file or Path(f"{name}.tar.gz")
    missing: list[str] = []
    count = 0
    try:
        with tarfile.open(path, "w:gz") as archive:
            for member, make in _members(target).items():
                try:
                    text = make()
                except CliError as error:
                    missing.append(f"{member}: {error.what}")
                    continue
                _write(archive, f"{name}/{member}", text)
                count += 1
            _write(archive, f"{name}/missing.txt", "\n".join(missing) + "\n" if missing else "nothing\n")
    except OSError as error:
        raise CliError(Code.BAD_INPUT, f"{path} cannot be written: {error.strerror}") from error
    say(f"{path}: {plural(count, 'file')}, {size(path.stat().st_size)}")
    say(
        "Left out: data of Secrets, and values of variables that sound secret. In it: names, addresses, logs."
    )
    for line in missing:
        say(f"not in it: {line}")
    print(path)
    return EXIT_OK


def _write(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
    archive.addfile(info, io.BytesIO(data))


def _members(target: Target) -> dict[str, Callable[[], str]]:
    """Return file name -> what makes its text."""

    def get(part: Part, path: str) -> Callable[[], str]:
        return lambda: target.request(part, path).text + "\n"

    def log(part: Part) -> Callable[[], str]:
        return lambda: "\n".join(target.log(part, lines=LOG_LINES)) + "\n"

    members: dict[str, Callable[[], str]] = {
        "version.json": lambda: _json({"ambit": VERSION, "kernel": platform.release(), "mesh": target.title}),
        "check.json": lambda: _json(report(Facts(target))),
        "programs.json": lambda: _json([vars_of(p) for p in target.programs()]),
        "objects.json": lambda: _json([redact(dict(o.data)) for o in target.objects().objects.values()]),
        "controller/log.txt": log(CONTROLLER),
    }
    for path in CONTROLLER_PATHS:
        members[f"controller{path.replace('/debug', '')}.txt"] = get(CONTROLLER, path)
    for node in target.nodes():
        for name, paths in NODE_PATHS.items():
            for path in paths:
                members[f"{node}/{name}{path}.txt"] = get(Part(name, node), path)
        for name in ("ztunnel", "agent", "kubelet"):
            members[f"{node}/{name}/log.txt"] = log(Part(name, node))
        members[f"{node}/bpf.json"] = lambda node=node: _json(dict(target.bpf(("status",), node)))  # type: ignore[misc]
    return members


def vars_of(program: Any) -> dict[str, Any]:
    """Return a program's fields."""
    return {name: getattr(program, name) for name in ("name", "running", "restarts", "why")}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def redact(value: Any, *, secret: bool = False) -> Any:
    """Return an object without what may be secret: data of Secrets, variables and fields that sound so."""
    if isinstance(value, Mapping):
        whole = value.get("kind") == "Secret"
        named = isinstance(value.get("name"), str) and bool(SECRET.search(str(value["name"])))
        found = {}
        for key, entry in value.items():
            hide = (
                secret
                or (whole and key in ("data", "stringData"))
                or (named and key == "value")
                or key == APPLIED
                or (isinstance(entry, str) and bool(SECRET.search(str(key))))
            )
            # Names of secrets are no secrets: a volume's secretName says where to look.
            hide = hide and key not in ("secretName", "name", "kind", "type")
            found[key] = REDACTED if hide and not isinstance(entry, Mapping) else redact(entry, secret=hide)
        return found
    if isinstance(value, list):
        return [redact(entry, secret=secret) for entry in value]
    return REDACTED if secret else value
