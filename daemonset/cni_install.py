# SPDX-License-Identifier: Apache-2.0
"""Puts the CNI plugin into the node's chain, and takes it out.

The plugin stays while no agent runs: pods then wait for the agent instead of starting
outside the mesh. The configuration is another program's, which may write it anew, so it
is looked at again and again; only our own entry in it is ever changed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from daemonset.config import Settings

_log = logging.getLogger("ambit.agent.cni")

PLUGIN = "ambit-cni"
ENDINGS = (".conflist", ".conf", ".json")
"""What runtimes read; the first file in the order of names is the one that counts."""
LOOK_S = 2.0
"""Between two looks; a pod that starts while our entry is lost is enrolled as one that runs already."""


class CniInstallError(Exception):
    """The chain cannot be changed; says why and what a person does."""


def chained(text: str, entry: dict[str, Any]) -> str | None:
    """Return a chain's configuration with `entry` as its last plugin; None: it is so already.

    Raises:
        CniInstallError: it is no chain.
    """
    value = _parse(text)
    others = [plugin for plugin in value["plugins"] if plugin.get("type") != PLUGIN]
    if [*others, entry] == value["plugins"]:
        return None
    return _format(value | {"plugins": [*others, entry]})


def unchained(text: str) -> str | None:
    """Return a chain's configuration without our plugin; None: it is not in it.

    Raises:
        CniInstallError: it is no chain.
    """
    value = _parse(text)
    others = [plugin for plugin in value["plugins"] if plugin.get("type") != PLUGIN]
    return None if others == value["plugins"] else _format(value | {"plugins": others})


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise CniInstallError(f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise CniInstallError("it is no JSON object")
    plugins = value.get("plugins")
    if not isinstance(plugins, list) or not all(isinstance(plugin, dict) for plugin in plugins):
        raise CniInstallError("it has no list of plugins; rewrite it as a .conflist")
    return value


def _format(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2) + "\n"


class CniInstaller:
    """Owns our entry in the chain and our file beside the other plugins."""

    def __init__(
        self, *, plugin: Path, binaries: Path, configurations: Path, socket: Path, excluded: Collection[str]
    ) -> None:
        """Create it.

        Args:
            plugin: the program, in the agent's image.
            binaries: the node's directory of plugins.
            configurations: the node's directory of configurations.
            socket: the agent's socket as the node sees it.
            excluded: namespaces whose pods do not wait for the agent.
        """
        self._plugin = plugin
        self._binaries = binaries
        self._configurations = configurations
        self._entry = {"type": PLUGIN, "socket": str(socket), "excludeNamespaces": sorted(excluded)}
        self._told = ""

    @classmethod
    def of(cls, settings: Settings) -> CniInstaller | None:
        """Return the installer for a node that is to have the plugin; None where none is asked for."""
        if settings.cni_bin_dir is None or settings.cni_conf_dir is None:
            return None
        return cls(
            plugin=settings.cni_plugin,
            binaries=settings.cni_bin_dir,
            configurations=settings.cni_conf_dir,
            socket=settings.cni_socket,
            excluded=settings.excluded_namespaces,
        )

    def install(self) -> bool:
        """Put plugin and entry in place; return whether anything was changed.

        Raises:
            CniInstallError: there is no chain, or what there is cannot be one.
            OSError: a directory cannot be written.
        """
        self._place()
        return self._change(self._first(), lambda text: chained(text, self._entry))

    def remove(self) -> list[str]:
        """Take our entry out of every chain, then the plugin away; return what was changed.

        Raises:
            OSError: a directory cannot be written.
        """
        changed = []
        for path in self._files():
            try:
                if self._change(path, unchained):
                    changed.append(f"entry in {path}")
            except CniInstallError:
                continue  # Not a chain, so we are not in it.
        target = self._binaries / PLUGIN
        if target.exists():
            target.unlink()
            changed.append(str(target))
        return changed

    async def run(self) -> None:
        """Look again and again; does not end."""
        while True:
            self._look()
            await asyncio.sleep(LOOK_S)

    def _look(self) -> None:
        try:
            if self.install():
                _log.info("the plugin is the last of the chain in %s", self._first())
            self._told = ""
        except (CniInstallError, OSError) as error:
            if str(error) != self._told:
                self._told = str(error)
                _log.warning("pods start without waiting for the mesh and are enrolled afterwards: %s", error)

    def _files(self) -> list[Path]:
        found = self._configurations.iterdir()
        return sorted(path for path in found if path.suffix in ENDINGS and not path.name.startswith("."))

    def _first(self) -> Path:
        files = self._files()
        if not files:
            raise CniInstallError(f"{self._configurations} has no configuration; install a CNI first")
        return files[0]

    def _place(self) -> None:
        target = self._binaries / PLUGIN
        if not target.exists() or target.read_bytes() != self._plugin.read_bytes():
            beside = target.with_name(f".{PLUGIN}.{os.getpid()}")
            shutil.copyfile(self._plugin, beside)
            beside.chmod(0o755)
            beside.rename(target)

    def _change(self, path: Path, change: Callable[[str], str | None]) -> bool:
        try:
            text = change(path.read_text())
        except CniInstallError as error:
            raise CniInstallError(f"{path}: {error}") from error
        if text is None:
            return False
        # Runtimes read files that end as configurations do: this one does not until it is whole.
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        beside.write_text(text)
        beside.chmod(path.stat().st_mode & 0o777)
        beside.rename(path)
        return True
