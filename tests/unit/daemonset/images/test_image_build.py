# SPDX-License-Identifier: Apache-2.0
"""How the image is put together: what is made again, and that the Dockerfile says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from daemonset.images import build

DOCKERFILE = (Path(build.__file__).parent / "Dockerfile").read_text()


class Maker:
    """Makes a layer of one file, and counts."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, work: Path) -> Path:
        self.made += 1
        tar = work / "tar"
        tar.write_bytes(b"content")
        return tar


def test_a_layer_is_made_once_for_what_it_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    make = Maker()
    first = build.cached("system-1", "a layer", make)
    assert build.cached("system-1", "a layer", make) == first
    assert make.made == 1
    assert first.blob.exists()
    build.cached("system-2", "a layer", make)
    assert make.made == 2


def test_a_layer_whose_making_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)

    def fail(work: Path) -> Path:
        (work / "half").write_text("half")
        raise build.ImageError("no network")

    with pytest.raises(build.ImageError, match="no network"):
        build.cached("system-1", "a layer", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_fails_is_quoted() -> None:
    with pytest.raises(build.ImageError, match="ended with 3:\nwhy"):
        build.run("sh", "-c", "echo why >&2; exit 3")
    with pytest.raises(build.ImageError, match="no-such-program is not installed"):
        build.run("no-such-program")


def test_the_key_of_a_layer_tells_parts_apart() -> None:
    assert build.digest("ab", "c") != build.digest("a", "bc")


def test_the_dockerfile_installs_the_same_packages() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    (installed,) = re.findall(r"--no-install-recommends ([^\\]+)\\", final)
    assert set(installed.split()) == set(build.PACKAGES)


def test_the_dockerfile_has_the_same_source_and_settings() -> None:
    copied = set(re.findall(r"^COPY (\w+) /opt/ambit/\1$", DOCKERFILE, re.MULTILINE))
    assert copied - {"LICENSES"} == set(build.SOURCES)
    for pair in build.SETTINGS.env:
        assert pair in DOCKERFILE
    assert str(list(build.SETTINGS.entrypoint)).replace("'", '"') in DOCKERFILE
    assert build.SITE in DOCKERFILE
