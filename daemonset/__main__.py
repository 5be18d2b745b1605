# SPDX-License-Identifier: Apache-2.0
"""`python -m daemonset` runs the node agent; `python -m daemonset cleanup` removes it from the node."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys

import uvloop

from daemonset import cgroup, host
from daemonset.app import Agent
from daemonset.cleanup import Cleanup
from daemonset.codes import Code
from daemonset.config import SettingError, Settings, parse
from daemonset.lock import AgentLock, StartError
from mesh.runtime.clock import SystemClock
from mesh.telemetry.logging import LogFormat, configure

_log = logging.getLogger("ambit.agent")

USAGE = """usage: python -m daemonset [cleanup]
Runs the node agent, or removes all that it left on the node. Settings come from the environment:
NODE_NAME, INPOD_UDS, AMBIT_CNI_UDS, AMBIT_BPFFS, AMBIT_PODS_CGROUP, AMBIT_NODE_CGROUP, AMBIT_RUN_DIR, and
AMBIT_OBJECTS where no cluster is; see docs/architecture/contracts.md for these and the optional ones."""
EXIT_USAGE = 64
EXIT_BAD_INPUT = 65


async def _run(settings: Settings) -> int:
    agent = Agent(settings, SystemClock())
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_stop, stop)
    try:
        await agent.start()
        _log.info("node agent of %s runs", settings.node)
        await agent.run(stop)
        _log.info("stopping; enrolled pods stay captured")
    except StartError as error:
        _log.error("cannot run: %s; %s [%s]", error.reason, error.code.remedy, error.code)
        return error.exit_code
    finally:
        await agent.close()
    return 0


def _asked_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(1)  # A second signal ends at once.
    stop.set()


async def _cleanup(settings: Settings) -> int:
    if os.geteuid() != 0:
        _log.error("cleanup is not root; %s [%s]", Code.NOT_ROOT.remedy, Code.NOT_ROOT)
        return 1
    try:
        lock = AgentLock(settings.run_dir)
    except StartError as error:
        _log.error("%s; %s [%s]", error.reason, error.code.remedy, error.code)
        return error.exit_code
    cleanup = Cleanup(settings)
    clean = await cleanup.run()
    lock.remove()
    for what in cleanup.removed:
        _log.info("removed: %s", what)
    for problem in cleanup.problems:
        _log.error("still there: %s", problem)
    return 0 if clean else 1


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    if arguments not in ([], ["cleanup"]):
        print(USAGE, file=sys.stderr)
        return EXIT_USAGE
    try:
        settings = parse(host.complete(os.environ, mount=cgroup.v2_mount()))
        configure(level=settings.log_level, log_format=LogFormat(settings.log_format))
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # It tells of every file change.
    except SettingError as error:
        print(f"{error}; {error.code.remedy} [{error.code}]", file=sys.stderr)
        return EXIT_BAD_INPUT
    except ValueError as error:
        print(f"LOG_LEVEL: {error} [{Code.BAD_SETTING}]", file=sys.stderr)
        return EXIT_BAD_INPUT
    return uvloop.run(_cleanup(settings) if arguments else _run(settings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
