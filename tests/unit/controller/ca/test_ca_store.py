# SPDX-License-Identifier: Apache-2.0
"""The authority's files: made once, kept, and refused when they are not what they should be."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controller.ca.issue import ROOT_TTL, new_authority
from controller.ca.store import BUNDLE, CERTIFICATE, KEY, OTHERS, StoreError, open_authority

NOW_S = time.time()


def test_a_root_is_made_once_and_its_key_is_private(tmp_path: Path) -> None:
    first = open_authority(tmp_path / "ca", "cluster.local", NOW_S)
    second = open_authority(tmp_path / "ca", "cluster.local", NOW_S)
    assert first.certificate == second.certificate
    assert (tmp_path / "ca" / KEY).stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "ca" / BUNDLE).read_bytes() == first.root_pem


def test_a_root_that_only_is_trusted_stands_in_the_bundle(tmp_path: Path) -> None:
    other = new_authority("cluster.local", NOW_S)
    (tmp_path / OTHERS).write_bytes(other.root_pem)
    made = open_authority(tmp_path, "cluster.local", NOW_S)
    assert (tmp_path / BUNDLE).read_bytes() == made.root_pem + other.root_pem


@pytest.mark.parametrize("lacking", [KEY, CERTIFICATE])
def test_half_a_pair_is_refused_and_not_replaced(tmp_path: Path, lacking: str) -> None:
    open_authority(tmp_path, "cluster.local", NOW_S)
    (tmp_path / lacking).unlink()
    with pytest.raises(StoreError, match=lacking):
        open_authority(tmp_path, "cluster.local", NOW_S)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    open_authority(tmp_path, "cluster.local", NOW_S)
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(StoreError, match="chmod 600"):
        open_authority(tmp_path, "cluster.local", NOW_S)


def test_an_expired_root_is_refused(tmp_path: Path) -> None:
    open_authority(tmp_path, "cluster.local", NOW_S)
    with pytest.raises(StoreError, match="expired"):
        open_authority(tmp_path, "cluster.local", NOW_S + ROOT_TTL.total_seconds() + 10)


def test_files_that_are_no_pem_are_refused(tmp_path: Path) -> None:
    open_authority(tmp_path, "cluster.local", NOW_S)
    (tmp_path / CERTIFICATE).write_text("nonsense")
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_authority(tmp_path, "cluster.local", NOW_S)
