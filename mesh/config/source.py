# SPDX-License-Identifier: Apache-2.0
"""Directories of YAML as one set of objects, followed as files change.

A snapshot is whole: what a rename or an editor's several writes change together
arrives together. A document that turns bad leaves the last good version of its object
in force, until the file is mended or removed.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from watchfiles import awatch

from mesh.config.objects import ObjectKey, RawObject, Rejection, parse_documents

SUFFIXES = (".yaml", ".yml", ".json")
DEBOUNCE_MS = 100
"""Changes that follow each other closer than this come in one snapshot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that is in force, and what was refused."""

    objects: Mapping[ObjectKey, RawObject]
    rejections: tuple[Rejection, ...] = ()

    def of(self, *kinds: str) -> list[RawObject]:
        """List the objects of these kinds, by namespace and name."""
        found = [item for item in self.objects.values() if item.kind in kinds]
        return sorted(found, key=lambda item: (item.kind, item.namespace, item.name))


class ObjectSource(Protocol):
    """Where objects come from: directories, or an API server (`mesh.config.kubernetes`)."""

    def watch(self) -> AsyncIterator[Snapshot]:
        """Yield everything that is in force, whole, and again after each change."""
        ...


@dataclass(slots=True)
class _File:
    stamp: tuple[int, int, int]
    objects: list[RawObject]
    rejections: list[Rejection]


class DirectorySource:
    """One owner of several directories; entries of later ones win over those of earlier ones.

    `read` is a plain function of the disk and the last good versions; `watch` calls it.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._directories = tuple(Path(directory) for directory in directories)
        self._files: dict[Path, _File] = {}
        self._good: dict[Path, dict[ObjectKey, RawObject]] = {}

    async def watch(self) -> AsyncIterator[Snapshot]:
        """Yield a snapshot at once and after each change; missing directories are created.

        Raises:
            OSError: a directory can be neither read nor made; names it.
        """
        for directory in self._directories:
            directory.mkdir(parents=True, exist_ok=True)
        yield (last := self.read())
        unsure = True
        async for change in awatch(
            *self._directories, debounce=DEBOUNCE_MS, step=20, yield_on_timeout=True, rust_timeout=1000
        ):
            # What changed between the first read and the start of the watch was seen by neither.
            if not change and not unsure:
                continue
            unsure = False
            current = self.read()
            if current != last:
                yield (last := current)

    def read(self) -> Snapshot:
        """Read what changed since the last call and return everything in force."""
        objects: dict[ObjectKey, RawObject] = {}
        rejections: list[Rejection] = []
        present: set[Path] = set()
        for directory in self._directories:
            seen: dict[ObjectKey, RawObject] = {}
            for path in _files(directory):
                present.add(path)
                file = self._load(path)
                if file is None:
                    continue
                rejections += file.rejections
                for item in self._in_force(path, file):
                    other = seen.get(item.key)
                    if other is not None:
                        reason = f"{item.key} is also in {other.file}:{other.line}; this one is ignored"
                        rejections.append(
                            Rejection(file=item.file, line=item.line, reason=reason, key=item.key)
                        )
                        continue
                    seen[item.key] = item
            objects.update(seen)
        for gone in self._files.keys() - present:
            del self._files[gone]
            self._good.pop(gone, None)
        return Snapshot(objects=objects, rejections=tuple(rejections))

    def _in_force(self, path: Path, file: _File) -> Iterable[RawObject]:
        """Return the file's objects, with the last good version of those that were refused."""
        good = {item.key: item for item in file.objects}
        before = self._good.get(path, {})
        refused = [rejection.key for rejection in file.rejections]
        if None in refused:
            # It cannot be told which object the bad document was: none that stood here is dropped.
            good = {**before, **good}
        for key in refused:
            if key is not None and key in before and key not in good:
                good[key] = before[key]
        self._good[path] = good
        # Duplicates within one file stay to be reported.
        return [
            *file.objects,
            *(item for key, item in good.items() if all(o.key != key for o in file.objects)),
        ]

    def _load(self, path: Path) -> _File | None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._files.get(path)
            if known is not None and known.stamp == stamp:
                return known
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None  # Renamed away between listing and reading; its own change follows.
        except (OSError, UnicodeDecodeError) as error:
            reason = (
                f"cannot be read: {error.strerror or error}"
                if isinstance(error, OSError)
                else "not UTF-8 text"
            )
            return _File((0, 0, 0), [], [Rejection(file=str(path), line=1, reason=reason)])
        objects, rejections = parse_documents(text, str(path))
        loaded = _File(stamp, objects, rejections)
        self._files[path] = loaded
        return loaded


def _files(directory: Path) -> list[Path]:
    """List the YAML files below a directory by name; hidden ones are being written."""
    found: list[Path] = []
    for root, directories, names in os.walk(directory):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        found.extend(
            Path(root) / name for name in sorted(names) if name.endswith(SUFFIXES) and name[0] != "."
        )
    return found
