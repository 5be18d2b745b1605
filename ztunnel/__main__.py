# SPDX-License-Identifier: Apache-2.0
"""`python -m ztunnel`: reads the environment, runs the supervisor, answers with an exit code."""

from __future__ import annotations

import os
import sys

import uvloop

from mesh.config.environment import ConfigError
from mesh.telemetry.log_queue import BoundedLogHandler
from mesh.telemetry.logging import configure
from ztunnel.app import App
from ztunnel.config import Config, read_config
from ztunnel.netns import NamespaceError, PodNamespace
from ztunnel.worker import raise_file_limit

EX_ERROR = 1
EX_USAGE = 64


async def _run(config: Config) -> None:
    await App(config, os.environ).run()


def main() -> int:
    """Run one ztunnel until it is told to end."""
    try:
        config = read_config(os.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"ztunnel: {line}", file=sys.stderr)
        print("ztunnel: every setting is described in docs/architecture/contracts.md", file=sys.stderr)
        return EX_USAGE
    try:
        PodNamespace.own().close()
    except NamespaceError as error:
        print(f"ztunnel: {error.strerror}; run it as root or grant the capability", file=sys.stderr)
        return EX_ERROR
    log = BoundedLogHandler(sys.stderr)
    configure(level=config.data_plane.log_level, log_format=config.data_plane.log_format, handler=log)
    raise_file_limit()
    try:
        uvloop.run(_run(config))
    except OSError as error:
        log.close()
        print(f"ztunnel: {error.strerror or error}", file=sys.stderr)
        return EX_ERROR
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
