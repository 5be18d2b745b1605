# SPDX-License-Identifier: Apache-2.0
"""`ambit`: the verbs, told apart before anything heavy is imported."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

EXIT_ERROR = 1
EXIT_USAGE = 64
EXIT_INTERRUPTED = 130

Group = tuple[tuple[str, str, str], ...]

VERBS: dict[str, Group] = {
    "Is all well?": (
        ("check", "cli.check", "see whether all is well, and what to do where it is not"),
        ("status", "cli.status", "nodes, control plane and pods at a glance"),
    ),
    "Why does this (not) work?": (
        ("why", "cli.why", "follow a connection hop by hop: what decides, and what mends it"),
    ),
    "Who talks to whom": (
        ("stat", "cli.stat", "golden metrics: success, rate, latency"),
        ("edges", "cli.edges", "who talks to whom, with which identity, over mutual TLS or not"),
        ("flows", "cli.flows", "connections that ended, filtered; follow, replay"),
        ("tap", "cli.flows", "connections of a pod as they end"),
    ),
    "What is in force": (
        ("authz", "cli.authz", "policies of a pod or service, where written, and who may call it"),
        ("routes", "cli.routes", "rules that waypoints have in force, in the order in which they are tried"),
        ("certs", "cli.certs", "certificates of every identity, and the root above them"),
        ("describe", "cli.describe", "all about one pod or service"),
        ("node", "cli.node", "what a node's ztunnel has been told, holds and does"),
    ),
    "Set it up": (
        ("install", "cli.install", "put the mesh on a cluster and wait until it runs"),
        ("uninstall", "cli.install", "take it off again, nodes first"),
        ("enroll", "cli.enroll", "bring a namespace, Deployment or pod into the mesh"),
        ("unenroll", "cli.enroll", "take it out again"),
        ("policy", "cli.policy", "policies from recorded connections; try a change before it is made"),
        ("lint", "cli.lint", "what the mesh would not honour in files, line by line"),
        ("lab", "cli.lab", "a mesh on this machine, from Kubernetes YAML"),
        ("waypoint", "cli.waypoint", "L7 proxies: make, list and delete them"),
    ),
    "About": (
        ("bugreport", "cli.bugreport", "one archive with what is needed to find a fault"),
        ("completion", "cli.completion", "a completion script for bash, zsh or fish"),
        ("explain", "cli.about_verbs", "what a message code means and what to do"),
        ("version", "cli.about_verbs", "print the version"),
    ),
}
"""Title of a group -> (verb, module, help). A module has `add(parser)` and `run(options)`; it is
imported only when its verb is used."""


class Parser(argparse.ArgumentParser):
    """An argparse parser whose usage errors end with 64, as sysexits has it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def modules() -> dict[str, str]:
    """Return verb -> module."""
    return {verb: module for group in VERBS.values() for verb, module, _ in group}


def _overview() -> str:
    lines: list[str] = []
    for title, group in VERBS.items():
        lines.append(f"\n{title}")
        lines += [f"  {verb:<13} {text}" for verb, _, text in group]
    return "\n".join(lines) + "\n\n`ambit VERB --help` tells more."


def build_parser(only: str | None = None) -> Parser:
    """Return the parser of the whole command, or with the options of one verb only."""
    parser = Parser(
        prog="ambit",
        usage="ambit VERB ...",
        description="An ambient service mesh: no sidecars, no iptables, no restarts.",
        epilog=_overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=Parser, help=argparse.SUPPRESS
    )
    for group in VERBS.values():
        for verb, module, text in group:
            added = verbs.add_parser(verb, prog=f"ambit {verb}", description=f"{text[0].upper()}{text[1:]}.")
            if only in (None, verb):
                added.set_defaults(verb=verb)
                importlib.import_module(module).add(added)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, inner = split_command(arguments)
    options = parse(command)
    options.command = inner
    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away; nothing more can be said on that descriptor.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words; optional last names may stand behind options, where argparse loses them."""
    verb = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser(verb if verb in modules() else "")
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(EXIT_USAGE)
    if verb and verb not in modules():
        parser.error(f"there is no verb {verb}{_nearest(verb)}")
    options, rest = parser.parse_known_args(words)
    if rest and not any(word.startswith("-") for word in rest):
        if len(rest) == 1 and getattr(options, "object", "") is None:
            options.object = rest[0]
            return options
        if isinstance(getattr(options, "names", None), list):
            options.names += rest
            return options
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _nearest(verb: str) -> str:
    import difflib

    close = difflib.get_close_matches(verb, modules(), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the first `--`: what follows is another program's."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def run(options: argparse.Namespace) -> int:
    """Dispatch parsed options; an error that a verb knows ends with its code."""
    from cli.codes import CliError

    verb = importlib.import_module(modules()[options.verb])
    try:
        if getattr(options, "watch", None) is None:
            code: int = verb.run(options)
            return code
        return _watch(verb.run, options)
    except CliError as error:
        print(error, file=sys.stderr)
        return error.code.exit_code


def _watch(show: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Show again and again until interrupted; on a terminal always at its top."""
    import time

    clear = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
    while True:
        print(clear, end="")
        show(options)
        print("" if clear else "\n", end="", flush=True)
        time.sleep(options.watch)


if __name__ == "__main__":
    sys.exit(main())
