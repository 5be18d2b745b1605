# SPDX-License-Identifier: Apache-2.0
"""`ambit explain` and `ambit version`: their options."""

from __future__ import annotations

import argparse

from cli import about


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    if parser.get_default("verb") == "version":
        parser.add_argument("--short", action="store_true", help="only the number")
        return
    parser.add_argument("code", metavar="CODE", nargs="?", help="AMBnnnn; none: list all")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    if options.verb == "version":
        return about.version(short=options.short)
    return about.explain(options.code)
