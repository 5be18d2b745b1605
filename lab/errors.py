# SPDX-License-Identifier: Apache-2.0
"""Failures of a lab as a person meets them: a code, what failed, what to do, an exit code."""

from __future__ import annotations

import enum

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_NO_DATA = 4
EXIT_USAGE = 64
EXIT_INPUT = 65
EXIT_UNREACHABLE = 69
EXIT_TIMEOUT = 124


class Code(enum.Enum):
    """A message code with the exit code and the remedy; codes never change their meaning."""

    NOT_ROOT = ("AMB1001", EXIT_UNREACHABLE, "run the command as root (sudo): namespaces and cgroups need it")
    NO_CGROUP = ("AMB1002", EXIT_UNREACHABLE, "mount it: mount -t cgroup2 none /sys/fs/cgroup")
    NO_TOOL = ("AMB1003", EXIT_UNREACHABLE, "install it: apt-get install iproute2 nftables procps")
    BAD_INPUT = ("AMB1004", EXIT_INPUT, "correct the file and run the command again; nothing was changed")
    BAD_NAME = ("AMB1005", EXIT_USAGE, "use 1 to 20 lower-case letters and digits")
    ALREADY_UP = (
        "AMB1006",
        EXIT_ERROR,
        "use `ambit lab apply -f` to change it, or `ambit lab down` to end it first",
    )
    NOT_UP = ("AMB1007", EXIT_UNREACHABLE, "start it with `ambit lab up`")
    NO_ADDRESSES = ("AMB1008", EXIT_ERROR, "end another lab first (`ambit lab down --name NAME`)")
    COMMAND_FAILED = (
        "AMB1009",
        EXIT_ERROR,
        "see the message; `ambit lab down` removes what was made so far",
    )
    PORT_IN_USE = ("AMB1010", EXIT_ERROR, "stop the process that has the port (`ss -ltnp` names it)")
    NOT_READY = (
        "AMB1011",
        EXIT_TIMEOUT,
        "see `ambit lab logs` and `ambit lab status`; --timeout waits longer",
    )
    NOT_FOUND = ("AMB1012", EXIT_ERROR, "`ambit lab get KIND -A` lists what there is")
    NOT_RUNNING = ("AMB1013", EXIT_ERROR, "see `ambit lab logs` for why it ended")
    LEFTOVERS = ("AMB1014", EXIT_ERROR, "end what holds them and run `ambit lab down` again")
    PATH_TOO_LONG = ("AMB1015", EXIT_USAGE, "choose a shorter --state or --name")
    NO_COMMAND = ("AMB1016", EXIT_INPUT, "name the program in command: images are not pulled in a lab")
    NO_DATA = ("AMB1017", EXIT_NO_DATA, "`ambit lab get KIND -A` looks in all namespaces")
    USAGE = ("AMB1018", EXIT_USAGE, "see `ambit lab --help`")

    def __init__(self, code: str, exit_code: int, remedy: str) -> None:
        self.code = code
        self.exit_code = exit_code
        self.remedy = remedy

    def __str__(self) -> str:
        return self.code


class LabError(Exception):
    """Something a person asked for was not done; says what and why, and what to do next."""

    def __init__(self, code: Code, what: str, *, remedy: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.remedy = remedy or code.remedy

    def __str__(self) -> str:
        return f"{self.code}: {self.what}\n  what to do: {self.remedy}"
