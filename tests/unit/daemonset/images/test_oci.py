# SPDX-License-Identifier: Apache-2.0
"""The image's tar: what is in it, that its digests hold, and that the same input gives the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from daemonset.images import oci


class Image:
    """A written image, read back as a runtime does."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as tar:
            self.files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
        self.reference = json.loads(self.files["index.json"])["manifests"][0]
        self.manifest = self.document(self.reference)
        self.config = self.document(self.manifest["config"])

    def blob(self, descriptor: dict[str, Any]) -> bytes:
        data = self.files["blobs/sha256/" + descriptor["digest"].removeprefix("sha256:")]
        assert len(data) == descriptor["size"]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
        return data

    def document(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads(self.blob(descriptor)))

    def layer(self, number: int) -> bytes:
        return gzip.decompress(self.blob(self.manifest["layers"][number]))


def tree(root: Path) -> Path:
    (root / "b" / "deep").mkdir(parents=True)
    (root / "b" / "deep" / "file").write_text("deep")
    (root / "a").write_text("a")
    (root / "link").symlink_to("a")
    (root / "a").chmod(0o755)
    return root


def write(root: Path, name: str) -> Path:
    tar, blob, out = (root / f"{name}.{kind}" for kind in ("tar", "gz", "image"))
    oci.write_tree([(tree(root / name), "/opt/x")], tar)
    layer = oci.compress(tar, blob, "a tree")
    settings = oci.Settings(env=("A=b",), entrypoint=("/run",), workdir="/opt")
    oci.write_image("ambit.local/x:1", [layer], settings, out)
    return out


def test_a_runtime_finds_the_image_by_name(tmp_path: Path) -> None:
    image = Image(write(tmp_path, "one"))
    annotations = image.reference["annotations"]
    assert annotations["io.containerd.image.name"] == "ambit.local/x:1"
    assert annotations["org.opencontainers.image.ref.name"] == "1"
    assert json.loads(image.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}


def test_the_configuration_names_each_layer_by_its_content(tmp_path: Path) -> None:
    image = Image(write(tmp_path, "one"))
    inner = "sha256:" + hashlib.sha256(image.layer(0)).hexdigest()
    assert image.config["rootfs"] == {"type": "layers", "diff_ids": [inner]}
    assert image.config["history"] == [{"created_by": "a tree"}]
    assert image.config["config"] == {"Env": ["A=b"], "Entrypoint": ["/run"], "WorkingDir": "/opt"}


def test_files_belong_to_root_and_parents_come_first(tmp_path: Path) -> None:
    image = Image(write(tmp_path, "one"))
    with tarfile.open(fileobj=io.BytesIO(image.layer(0))) as tar:
        members = {member.name: member for member in tar}
    names = ["opt", "opt/x", "opt/x/a", "opt/x/b", "opt/x/link", "opt/x/b/deep", "opt/x/b/deep/file"]
    assert list(members) == names
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members.values()} == {(0, 0, "", 0)}
    assert members["opt/x/a"].mode == 0o755
    assert members["opt/x/link"].linkname == "a"


def test_the_same_files_give_the_same_image(tmp_path: Path) -> None:
    first = write(tmp_path, "one")
    os.utime(tmp_path / "one" / "a", (1, 1))
    assert Image(first).reference["digest"] == Image(write(tmp_path, "two")).reference["digest"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(oci.ImageError, match="absent does not exist"):
        oci.write_tree([(tmp_path / "absent", "/x")], tmp_path / "tar")
