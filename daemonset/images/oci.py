#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a container image (OCI layout in a tar) that `ctr images import`, `podman load` and `skopeo` take.

Needs nothing but the standard library: no container engine, no registry, no root. The same
input gives the same bytes, as times and owners are not carried over.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEDIA = "application/vnd.oci.image."
CHUNK_BYTES = 1 << 20
COMPRESSION_LEVEL = 6


class ImageError(Exception):
    """The image cannot be written; says what is wrong with which input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, written out as a blob."""

    comment: str
    blob: Path
    digest: str
    """Of the blob, `sha256:HEX`."""
    diff_id: str
    """Of the tar inside, `sha256:HEX`."""
    size_bytes: int
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a container of the image is started with."""

    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    workdir: str = ""
    labels: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the `config` part of an image's configuration, without what is not set."""
        found: dict[str, Any] = {
            "Env": list(self.env),
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
            "WorkingDir": self.workdir,
            "Labels": self.labels,
        }
        return {key: value for key, value in found.items() if value}


def tree_entries(source: Path, target: str) -> Iterator[tuple[Path, str]]:
    """Yield every file below `source` with its name in the layer, in a fixed order, parents first."""
    target = target.strip("/")
    parents = target.split("/")[:-1]
    for depth in range(len(parents)):
        yield Path("/"), "/".join(parents[: depth + 1])
    if target:
        yield source, target
    if not source.is_dir() or source.is_symlink():
        return
    for top, directories, files in os.walk(source):
        directories.sort()
        relative = Path(top).relative_to(source)
        for name in sorted(directories + files):
            yield Path(top) / name, str(Path(target) / relative / name)


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0
    return info


def write_tree(trees: list[tuple[Path, str]], destination: Path) -> None:
    """Write a tar of several trees, each at its target path."""
    seen: set[str] = set()
    with tarfile.open(destination, "w", format=tarfile.PAX_FORMAT) as tar:
        for source, target in trees:
            if not source.exists():
                raise ImageError(f"{source} does not exist")
            for path, name in tree_entries(source, target):
                if name not in seen:
                    seen.add(name)
                    tar.add(path, name, recursive=False, filter=_anonymous)


def compress(tar: Path, blob: Path, comment: str) -> Layer:
    """Turn a tar into a gzipped blob, reading it once."""
    inner, outer = hashlib.sha256(), hashlib.sha256()
    with tar.open("rb") as source, blob.open("wb") as sink:
        zipped = gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION_LEVEL, fileobj=sink, mtime=0)
        while chunk := source.read(CHUNK_BYTES):
            inner.update(chunk)
            zipped.write(chunk)
        zipped.close()
    with blob.open("rb") as written:
        while chunk := written.read(CHUNK_BYTES):
            outer.update(chunk)
    return Layer(
        comment=comment,
        blob=blob,
        digest=f"sha256:{outer.hexdigest()}",
        diff_id=f"sha256:{inner.hexdigest()}",
        size_bytes=blob.stat().st_size,
        content_bytes=tar.stat().st_size,
    )


def write_image(
    name: str, layers: list[Layer], settings: Settings, destination: Path, architecture: str = "amd64"
) -> str:
    """Write the image's tar beside the destination and rename it; return the manifest's digest."""
    configuration = {
        "architecture": architecture,
        "os": "linux",
        "config": settings.document(),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created_by": layer.comment} for layer in layers],
    }
    blobs: dict[str, bytes] = {}

    def put(document: dict[str, Any], media: str) -> dict[str, Any]:
        data = json.dumps(document, sort_keys=True).encode()
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": MEDIA + media, "digest": f"sha256:{digest}", "size": len(data)}

    config = put(configuration, "config.v1+json")
    manifest = put(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA + "manifest.v1+json",
            "config": config,
            "layers": [
                {
                    "mediaType": MEDIA + "layer.v1.tar+gzip",
                    "digest": layer.digest,
                    "size": layer.size_bytes,
                }
                for layer in layers
            ],
        },
        "manifest.v1+json",
    )
    reference = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = {"schemaVersion": 2, "manifests": [manifest | {"annotations": reference}]}
    beside = destination.with_name(f".{destination.name}.{os.getpid()}")
    with tarfile.open(beside, "w") as tar:
        _add_bytes(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add_bytes(tar, "index.json", json.dumps(index).encode())
        for digest, data in blobs.items():
            _add_bytes(tar, f"blobs/sha256/{digest}", data)
        for layer in layers:
            tar.add(layer.blob, f"blobs/sha256/{layer.digest[7:]}", filter=_anonymous)
    beside.rename(destination)
    return str(manifest["digest"])


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="oci.py", description="Write an image of files of this machine.")
    parser.add_argument("--name", required=True, help="REPOSITORY:TAG")
    parser.add_argument("--layer", action="append", default=[], type=Path, help="a tar, the first the lowest")
    parser.add_argument("--add", action="append", default=[], metavar="SOURCE=/PATH", help="one layer of all")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--entrypoint", action="append", default=[], metavar="ARGUMENT")
    parser.add_argument("out", type=Path)
    return parser


def _layers(tars: list[Path], trees: list[tuple[Path, str]], work: Path) -> list[Layer]:
    made = []
    for number, tar in enumerate(tars):
        made.append(compress(tar, work / f"{number}.gz", "a tar"))
    if trees:
        write_tree(trees, work / "files.tar")
        made.append(compress(work / "files.tar", work / "files.gz", "files of the machine that built it"))
    return made


def main() -> int:
    """Write an image of tars and files."""
    arguments = _parser().parse_args()
    trees = [(Path(source), target) for source, _, target in (item.partition("=") for item in arguments.add)]
    settings = Settings(env=tuple(arguments.env), entrypoint=tuple(arguments.entrypoint))
    try:
        with tempfile.TemporaryDirectory(prefix=".oci-", dir=arguments.out.parent) as work:
            layers = _layers(arguments.layer, trees, Path(work))
            write_image(arguments.name, layers, settings, arguments.out)
    except (ImageError, OSError) as error:
        print(f"oci.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
