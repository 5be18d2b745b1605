# SPDX-License-Identifier: Apache-2.0
"""What tests against real peers share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def file_fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor that can be told from others by its inode."""
    fd = os.open(tmp_path / "netns", os.O_CREAT | os.O_RDWR)
    yield fd
    os.close(fd)
