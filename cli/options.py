# SPDX-License-Identifier: Apache-2.0
"""Options that many verbs share, declared once so that they mean the same everywhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from cli.output import FORMATS

DEFAULT_WATCH_S = 2.0


def add_common(parser: argparse.ArgumentParser, *, formats: tuple[str, ...] = FORMATS) -> None:
    """Add which mesh is meant, and how the answer is written."""
    parser.add_argument(
        "--lab", metavar="NAME", help="the lab (default: $AMBIT_LAB, or the only one that is up)"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="the lab's directory")
    parser.add_argument("--context", metavar="NAME", help="a Kubernetes cluster: kubectl's context")
    parser.add_argument("--kubeconfig", type=Path, metavar="FILE", help="kubectl's configuration")
    if formats:
        parser.add_argument("-o", "--output", choices=formats, default=formats[0], help="how to write it")
    parser.add_argument(
        "--color", choices=("auto", "always", "never"), default="auto", help="default: on a terminal only"
    )
    parser.add_argument("--no-headers", action="store_true", help="leave the headers of tables out")


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add -w."""
    parser.add_argument(
        "-w",
        "--watch",
        type=duration,
        nargs="?",
        const=DEFAULT_WATCH_S,
        metavar="DURATION",
        help=f"show it again after so long (default {DEFAULT_WATCH_S:g}s), until interrupted",
    )


def add_namespace(parser: argparse.ArgumentParser) -> None:
    """Add -n and -A."""
    parser.add_argument("-n", "--namespace", metavar="NS", help="only this namespace")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace")


def duration(text: str) -> float:
    """Read `30s`, `5m`, `2h` or plain seconds.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    digits = text.rstrip("smhd")
    try:
        value = float(digits) * units[text[len(digits) :] or "s"]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 30s, 5m or 2h") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is negative")
    return value
