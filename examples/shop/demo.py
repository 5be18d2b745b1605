# SPDX-License-Identifier: Apache-2.0
"""The demo: a shop of real programs on two nodes in the mesh, and what it does, proven by measuring it.

`make demo` runs it. Every line on stdout is one measurement of this run; progress goes to
stderr. On a terminal it stays up afterwards until Ctrl-C; with --once, or without a
terminal, it takes the lab down and exits 0 (all proven) or 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import proofs
from shop import Shop, ShopError
from wire import CaptureError

HERE = Path(__file__).resolve().parent
UP_TIMEOUT_S = 120


def say(text: str) -> None:
    """Tell progress."""
    print(text, file=sys.stderr, flush=True)


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--once", action="store_true", help="take the lab down at the end, exit 0 or 1")
    parser.add_argument("--name", default="demo", help="the lab's name (default demo)")
    parser.add_argument(
        "--timeout",
        type=int,
        default=UP_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the shop may take to come up, on a slow machine longer (default %(default)s)",
    )
    return parser.parse_args(argv)


def _prove(shop: Shop, directory: Path) -> list[proofs.Proof]:
    """Run all proofs in order and print each as it is known; one that breaks off counts as failed."""
    results: list[proofs.Proof] = []
    for name, prove in proofs.ALL:
        say(f"... {name}")
        try:
            found = prove(shop, directory)
        except (
            ShopError,
            CaptureError,
            OSError,
            subprocess.SubprocessError,
            LookupError,
            ValueError,
        ) as error:
            found = [
                proofs.Proof(
                    name=name,
                    good=False,
                    expected="a measurement",
                    seen=f"{type(error).__name__}: {error}",
                    then=shop.command("status"),
                )
            ]
        for proof in found:
            print(proof.text(), flush=True)
        results += found
    return results


def _stay(shop: Shop) -> None:
    say(
        f"""
The shop stays up for a look around:
  {shop.command("status")}
  {shop.command("exec", "shop/shopper -- curl -s http://web/product")}
  {shop.command("exec", "shop/snoop -- curl -s http://payment/pay")}
  {shop.command("logs", "ztunnel@node1")}
Ctrl-C ends it and removes everything; from elsewhere: {shop.command("down")}"""
    )
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()


@contextlib.contextmanager
def _lab(shop: Shop, timeout_s: int) -> Iterator[None]:
    try:
        shop.up(timeout_s)
        yield
    finally:
        # A second Ctrl-C must not leave half a lab.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        shop.down()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: list[str]) -> int:
    """Run the demo and return its exit code."""
    options = _options(argv)
    once = options.once or not (sys.stdin.isatty() and sys.stdout.isatty())
    # A closed terminal must not leave the lab behind either.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    shop = Shop(options.name)
    if os.geteuid() != 0:
        say("the demo makes network namespaces and loads BPF: run it as root (sudo make demo)")
        return 1
    if shop.exists():
        say(f"a lab {options.name} is up already; end it: {shop.command('down')}, or give another --name")
        return 1
    try:
        with _lab(shop, options.timeout), tempfile.TemporaryDirectory(prefix="ambit-demo-") as directory:
            results = _prove(shop, Path(directory))
            failed = [proof.name for proof in results if not proof.good]
            (print if not failed else say)(
                f"\nAll {len(results)} proofs hold."
                if not failed
                else f"\n{len(failed)} of {len(results)} proofs failed: {', '.join(failed)}"
            )
            sys.stdout.flush()
            if failed and once:
                say("`make demo` on a terminal stays up, so that the commands above can be run")
            if not once:
                _stay(shop)
            return 1 if failed else 0
    except ShopError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; everything of the lab was removed")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
