# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment: read once, every problem named with its remedy.

Takes mappings, never `os.environ` itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address


class ConfigError(ValueError):
    """A setting is missing or cannot be used (the operator's fault); the message names it and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenAddress:
    """Where a server of this process listens."""

    host: str
    port: int
    """0 picks a free port."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def drain_deadline(grace_period_s: float | None) -> float:
    """Return how long live connections may run on, from the pod's grace period; Istio's rule."""
    if grace_period_s is None:
        return 5.0
    return max(grace_period_s - 5 if grace_period_s > 10 else grace_period_s - 1, 1.0)


class Reader:
    """Takes settings from a mapping and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str = "") -> str:
        """Return a variable without the blanks around it."""
        return self._environ.get(name, "").strip() or default

    def required(self, name: str, what: str) -> str:
        """Return a variable; note a problem when it is not set: `what` it should be."""
        value = self.text(name)
        if not value:
            self.problems.append(f"{name} is not set; set it to {what}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """Return a number within its bounds, else note a problem."""
        raw = self.text(name)
        if not raw:
            return default
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            self.problems.append(
                f"{name}={raw!r} is not a number from {low:g} to {high:g}; unset it for {default:g}"
            )
            return default
        return value

    def address(self, name: str, default: ListenAddress) -> ListenAddress:
        """Return an `IP:PORT`, else note a problem."""
        raw = self.text(name)
        if not raw:
            return default
        host, _, port = raw.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        try:
            ip_address(host)
            number = int(port)
        except ValueError:
            number = -1
        if not 0 <= number < 65536:
            self.problems.append(f"{name}={raw!r} is not IP:PORT; unset it for {default}")
            return default
        return ListenAddress(host=host, port=number)

    def choice(self, name: str, default: str, options: tuple[str, ...]) -> str:
        """Return one of the options in lower case, else note a problem."""
        value = self.text(name, default).lower()
        if value not in options:
            self.problems.append(f"{name}={value!r} is none of {', '.join(options)}; unset it for {default}")
            return default
        return value

    def check(self) -> None:
        """Raise what was noted.

        Raises:
            ConfigError: lists every unusable variable, one a line.
        """
        if self.problems:
            raise ConfigError("\n".join(self.problems))
