# SPDX-License-Identifier: Apache-2.0
"""`python -m bench`: every load on every subject, round after round, in one run on one machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from bench.loads import LOADS, raise_file_limit
from bench.stats import OutputError, Results, describe
from bench.subjects import SUBJECTS, Starter, Subject, SubjectError, application, peer
from bench.waypoints import WAYPOINTS

EX_ERROR, EX_USAGE, EX_UNAVAILABLE = 1, 64, 69
OUT = Path(__file__).parent / "out"
GROUPS = {"tunnel": (SUBJECTS, "envoy"), "waypoint": (WAYPOINTS, "envoy-waypoint")}
"""What is compared with each other, and the subject that ratios are to."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        print(f"bench: {message}", file=sys.stderr)
        sys.exit(EX_USAGE)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; ends the process with 64 if it is not valid."""
    parser = _Parser(prog="python -m bench", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=list(LOADS), metavar="LOAD", help=f"one of {', '.join(LOADS)}")
    add("--group", action="append", choices=list(GROUPS), help="what is compared; all if none is named")
    names = sorted({name for subjects, _ in GROUPS.values() for name in subjects})
    add("--subject", action="append", choices=names, metavar="SUBJECT", help=f"one of {', '.join(names)}")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another proxy between the client and the application, see bench/subjects.py",
    )
    add("--rounds", type=int, default=3)
    add("--seconds", type=int, default=2, help="of each load in each round")
    found = parser.parse_args(arguments)
    if found.rounds < 1 or found.seconds < 1:
        parser.error("--rounds and --seconds must be at least 1")
    for entry in found.peer:
        name, equals, command = entry.partition("=")
        if not (name and equals and command) or name in names:
            parser.error(f"--peer {entry!r} is not NAME=COMMAND with a name of its own")
    return found


def main(arguments: list[str]) -> int:
    """Measure, print the table and write bench/out/."""
    options = parse(arguments)
    lacking = [tool for tool in ("wrk", "nginx") if shutil.which(tool) is None]
    if lacking:
        print(f"bench: {' and '.join(lacking)} missing; run tools/bootstrap dev", file=sys.stderr)
        return EX_UNAVAILABLE
    raise_file_limit()
    results = {name: Results() for name in options.group or GROUPS}
    try:
        for group in results:
            _compare(group, options, results[group])
    except (SubjectError, OutputError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return EX_ERROR
    _report(results, options)
    return 0


def _compare(group: str, options: argparse.Namespace, results: Results) -> None:
    known, _ = GROUPS[group]
    wanted = options.subject or known
    starters: dict[str, Starter] = {name: start for name, start in known.items() if name in wanted}
    for entry in options.peer:
        name, _, command = entry.partition("=")
        starters[name] = peer(name, command)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        app = stack.enter_context(application(_directory(scratch, "app")))
        subjects = [
            stack.enter_context(start(app, _directory(scratch, name))) for name, start in starters.items()
        ]
        _run(subjects, options, results)
        stack.close()


def _directory(scratch: str, name: str) -> Path:
    path = Path(scratch, name)
    path.mkdir()
    Path(scratch).chmod(0o755)
    return path


def _run(subjects: list[Subject], options: argparse.Namespace, results: Results) -> None:
    """Interleave: what disturbs the machine for a while disturbs every subject."""
    for index in range(options.rounds):
        for load in options.only or LOADS:
            if load == "idle" and index:
                continue  # Processes keep what they once took: only the first look is one at rest.
            for subject in subjects[index % len(subjects) :] + subjects[: index % len(subjects)]:
                print(
                    f"round {index + 1}/{options.rounds} {load} {subject.name}", file=sys.stderr, flush=True
                )
                LOADS[load](subject, options.seconds, results)


def _report(results: dict[str, Results], options: argparse.Namespace) -> None:
    OUT.mkdir(exist_ok=True)
    entries = [
        {**series.as_json(), "load": f"{group} {series.load}"}
        for group, found in results.items()
        for series in found
    ]
    (OUT / "results.json").write_text(json.dumps(entries, indent=1) + "\n")
    machine = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}",
        "run": f"{options.rounds} interleaved rounds of {options.seconds} s, medians (lowest-highest)",
        "load average at the end": " ".join(f"{value:.1f}" for value in os.getloadavg()),
    }
    tables = "\n\n".join(
        f"### {group}\n\n{found.table(GROUPS[group][1])}\n\n"
        f"A figure behind an x is the ratio to {GROUPS[group][1]}."
        for group, found in results.items()
    )
    text = f"{describe(machine)}\n\n{tables}\n"
    (OUT / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
