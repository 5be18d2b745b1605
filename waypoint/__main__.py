# SPDX-License-Identifier: Apache-2.0
"""`python -m waypoint`: reads the environment, runs one waypoint, answers with an exit code."""

from __future__ import annotations

import gc
import os
import resource
import sys

import uvloop

from mesh.config.environment import ConfigError
from mesh.net.allocator import keep_buffers
from mesh.telemetry.log_queue import BoundedLogHandler
from mesh.telemetry.logging import configure
from waypoint.app import App
from waypoint.config import Config, read_config

EX_ERROR = 1
EX_USAGE = 64
GC_OBJECTS = 20_000
"""New containers after which the youngest are looked through; a request makes a few dozen."""


async def _run(config: Config) -> None:
    await App(config).run()


def main() -> int:
    """Run one waypoint until it is told to end."""
    try:
        config = read_config(os.environ)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"waypoint: {line}", file=sys.stderr)
        print("waypoint: every setting is described in docs/architecture/contracts.md", file=sys.stderr)
        return EX_USAGE
    log = BoundedLogHandler(sys.stderr)
    configure(level=config.log_level, log_format=config.log_format, handler=log)
    keep_buffers()
    gc.set_threshold(GC_OBJECTS, 20, 20)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        uvloop.run(_run(config))
    except OSError as error:
        log.close()
        print(f"waypoint: {error.strerror or error}", file=sys.stderr)
        return EX_ERROR
    log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
