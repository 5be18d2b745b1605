# SPDX-License-Identifier: Apache-2.0
"""`ambit`: the verbs, told apart before anything heavy is imported."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

EXIT_USAGE = 64
EXIT_INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """An argparse parser whose usage errors end with 64, as sysexits has it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end."""
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


def build_parser() -> Parser:
    """Return the parser of the whole command."""
    from cli import lab

    parser = Parser(
        prog="ambit", description="An ambient service mesh: no sidecars, no iptables, no restarts."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    lab.add_verbs(verbs.add_parser("lab", help="a mesh on this machine, from Kubernetes YAML"))
    explain = verbs.add_parser("explain", help="what a message code means and what to do")
    explain.add_argument("code", metavar="CODE", nargs="?", help="AMBnnnn; none: list all")
    version = verbs.add_parser("version", help="print the version")
    version.add_argument("--short", action="store_true", help="only the number")
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
    """Parse the words; an optional last name may stand behind options, where argparse loses it."""
    parser = build_parser()
    options, rest = parser.parse_known_args(words)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "object", "") is None:
        options.object = rest[0]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words before and after the first `--`: what follows is another program's."""
    words = list(arguments)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def run(options: argparse.Namespace) -> int:
    """Dispatch parsed options."""
    if options.verb == "lab":
        from cli import lab

        return lab.run(options)
    from cli import about

    return about.explain(options.code) if options.verb == "explain" else about.version(short=options.short)


if __name__ == "__main__":
    sys.exit(main())
