# SPDX-License-Identifier: Apache-2.0
"""Builds Ambit's image without a container engine, layer by layer as the Dockerfile beside it does.

Debian's packages come by mmdebstrap (root), Python's from the hash-pinned lock, the source from
this tree. The lower two layers are kept in a cache by a hash of what they are made of.
"""

from __future__ import annotations

import argparse
import compileall
import dataclasses
import hashlib
import inspect
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from daemonset.images.oci import ImageError, Layer, Settings, compress, write_image, write_tree

REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ambit" / "image"
NAME = "ambit.local/ambit:dev"
RELEASE = "bookworm"
PACKAGES = ("python3", "libstdc++6", "ca-certificates", "python3-bpfcc", "linux-libc-dev")
"""bcc's own dependency is LLVM; linux-libc-dev has the kernel's published structs."""
SLIM_PACKAGES = ("python3", "libstdc++6", "ca-certificates")
"""Enough where the image carries the programs compiled."""
UNUSED = ("doc", "man", "info", "locale", "lintian", "bash-completion", "pixmaps")
"""Below /usr/share: nothing reads these in a container."""
PYTHON = (3, 11)
PLATFORMS = (
    "manylinux_2_34_x86_64",
    "manylinux_2_28_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
HOME = "opt/ambit"
SITE = f"{HOME}/venv/lib/python{PYTHON[0]}.{PYTHON[1]}/site-packages"
SOURCES = ("mesh", "bpf", "ztunnel", "waypoint", "controller", "daemonset", "lab", "cli")
IGNORED = shutil.ignore_patterns("__pycache__", "images", "manifests", "cni_plugin", "*.pyc")
COMMAND_LINE = (
    "#!/opt/ambit/venv/bin/python\nimport sys\n\nfrom cli.__main__ import main\n\nsys.exit(main())\n"
)
SETTINGS = Settings(
    env=("PATH=/opt/ambit/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONUNBUFFERED=1", "LANG=C.UTF-8"),
    entrypoint=("/opt/ambit/venv/bin/python", "-m"),
    command=("cli", "--help"),
    workdir="/opt/ambit",
    labels={
        "org.opencontainers.image.title": "ambit",
        "org.opencontainers.image.licenses": "Apache-2.0 AND (GPL-2.0-only OR BSD-2-Clause)",
    },
)


def run(*command: str, env: Mapping[str, str] | None = None) -> None:
    """Run a program; its output is shown only when it fails.

    Raises:
        ImageError: it failed, or is not installed.
    """
    try:
        environment = {**os.environ, **(env or {})}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError as error:
        raise ImageError(
            f"{command[0]} is not installed (apt-get install {Path(command[0]).name})"
        ) from error
    if done.returncode != 0:
        raise ImageError(f"{' '.join(command[:3])}... ended with {done.returncode}:\n{done.stderr[-2000:]}")


def system_tar(work: Path, packages: tuple[str, ...]) -> Path:
    """Debian's packages, without its package manager."""
    tar = work / "system.tar"
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNUSED]
    run(
        "mmdebstrap",
        "--quiet",
        "--mode=root",
        "--variant=essential",
        f"--include={','.join(packages)}",
        *excluded,
        # Licences stay where Debian puts them.
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        "--customize-hook=rm -rf $1/var/cache/apt $1/var/lib/apt/lists $1/var/log/*",
        RELEASE,
        str(tar),
    )
    return tar


def packages_tar(work: Path) -> Path:
    """The virtual environment with the packages of the lock."""
    site = work / SITE
    site.mkdir(parents=True)
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    run(
        str(REPOSITORY / ".venv" / "bin" / "python"),
        *("-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--no-compile", "--no-deps"),
        *("--require-hashes", "--only-binary=:all:", *platforms, f"--python-version={PYTHON[0]}.{PYTHON[1]}"),
        *("--implementation=cp", f"--target={site}", f"--requirement={REPOSITORY / 'requirements.lock'}"),
    )
    shutil.rmtree(site / "bin", ignore_errors=True)
    environment = work / HOME / "venv"
    (environment / "bin").mkdir()
    (environment / "bin" / "python").symlink_to("/usr/bin/python3")
    (environment / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (site / "ambit.pth").write_text(f"/{HOME}\n")
    return _packed(work, work / "packages.tar")


def source_tar(work: Path, *, slim: bool) -> Path:
    """The source of every process, the command `ambit`, and the CNI plugin, which runs on the host."""
    home = work / HOME
    for package in SOURCES:
        shutil.copytree(REPOSITORY / package, home / package, ignore=IGNORED)
    plugin = home / "bin" / "ambit-cni"
    run(
        *("go", "build", "-C", str(REPOSITORY / "daemonset" / "cni_plugin")),
        *("-trimpath", "-ldflags=-s -w", "-o", str(plugin), "."),
        env={"CGO_ENABLED": "0"},
    )
    if slim:
        # bcc compiles on this machine, as root, what the agent then loads as it is.
        bytecode = home / "bpf" / "bytecode" / "ambit-little.json"
        bytecode.parent.mkdir(exist_ok=True)
        run(
            "/usr/bin/python3",
            "-m",
            "bpf",
            "build",
            "--out",
            str(bytecode),
            env={"PYTHONPATH": str(REPOSITORY)},
        )
    for licence in ("LICENSE", "LICENSES"):
        path = REPOSITORY / licence
        copy: Callable[..., object] = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, home / licence)
    command = home / "venv" / "bin" / "ambit"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND_LINE)
    command.chmod(0o755)
    return _packed(work, work / "source.tar")


def _packed(work: Path, tar: Path) -> Path:
    # Compiled once here, not at each start of each container; valid whatever the files' times are.
    compileall.compile_dir(
        work / HOME,
        quiet=2,
        stripdir=str(work),
        prependdir="/",
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    write_tree([(work / HOME, f"/{HOME}")], tar)
    return tar


def cached(key: str, comment: str, make: Callable[[Path], Path]) -> Layer:
    """Return a layer from the cache, or make it and put it there."""
    CACHE.mkdir(parents=True, exist_ok=True)
    blob, record = CACHE / f"{key}.tar.gz", CACHE / f"{key}.json"
    if record.exists():
        return Layer(**json.loads(record.read_text()) | {"blob": blob})
    with tempfile.TemporaryDirectory(prefix="ambit-image-", dir=CACHE) as directory:
        beside = Path(directory) / "blob"
        work = Path(directory) / "work"
        work.mkdir()
        layer = dataclasses.replace(compress(make(work), beside, comment), blob=blob)
        beside.rename(blob)
    record.write_text(json.dumps(dataclasses.asdict(layer) | {"blob": ""}))
    return layer


def digest(*parts: str | bytes) -> str:
    """Name a layer by what it is made of."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
        found.update(b"\0")
    return found.hexdigest()[:16]


def build(name: str, out: Path, *, slim: bool) -> list[Layer]:
    """Write the image; return its layers.

    Args:
        name: REPOSITORY:TAG.
        out: the tar.
        slim: carry the BPF programs compiled, without bcc and LLVM.

    Raises:
        ImageError: a layer cannot be made; says why.
    """
    if sys.version_info[:2] != PYTHON:
        raise ImageError(
            f"run this with Python {PYTHON[0]}.{PYTHON[1]}, as the image has: it compiles the modules"
        )
    lock = (REPOSITORY / "requirements.lock").read_bytes()
    debian = SLIM_PACKAGES if slim else PACKAGES
    system = cached(
        "system-" + digest(inspect.getsource(system_tar), *debian, *UNUSED),
        f"Debian {RELEASE}: {', '.join(debian)}",
        lambda work: system_tar(work, debian),
    )
    packages = cached(
        "packages-" + digest(inspect.getsource(packages_tar), inspect.getsource(_packed), lock),
        "packages of requirements.lock",
        packages_tar,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ambit-image-") as directory:
        work = Path(directory)
        source = compress(source_tar(work, slim=slim), work / "source.tar.gz", "source of Ambit")
        layers = [system, packages, source]
        print(f"{name} {write_image(name, layers, SETTINGS, out)}")
    return layers


def main() -> int:
    """Build the image and tell its layers' sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m daemonset.images.build", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--name", default=NAME)
    parser.add_argument("--out", type=Path, default=CACHE / "ambit.tar")
    parser.add_argument("--slim", action="store_true", help="BPF programs compiled here; no bcc, no LLVM")
    arguments = parser.parse_args()
    try:
        layers = build(arguments.name, arguments.out, slim=arguments.slim)
    except (ImageError, OSError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    for layer in layers:
        mib, content = layer.size_bytes / 2**20, layer.content_bytes / 2**20
        print(f"{mib:8.1f} MiB ({content:.1f} unpacked)  {layer.comment}")
    print(f"{arguments.out.stat().st_size / 2**20:8.1f} MiB  {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
