# SPDX-License-Identifier: Apache-2.0
"""Headers as the files have them now; channels themselves are met over gRPC in tests/interop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.identity.channel import headers, secure_channel


def test_headers_carry_the_token_of_now(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("one\n")
    assert headers(token, "c1") == (("clusterid", "c1"), ("authorization", "Bearer one"))
    token.write_text("two")
    assert headers(token, "c1")[1] == ("authorization", "Bearer two")
    assert headers(None, "c1") == (("clusterid", "c1"),)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        headers(tmp_path / "missing", "c1")
    with pytest.raises(FileNotFoundError, match="missing"):
        secure_channel("localhost:1", tmp_path / "missing")
    (tmp_path / "token").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="ascii"):
        headers(tmp_path / "token", "c1")


@pytest.mark.parametrize("module", ["mesh.identity.ca_client", "mesh.xds.client"])
@pytest.mark.parametrize(("given", "expected"), [(None, "NONE"), ("DEBUG", "DEBUG")])
def test_grpcs_own_log_is_off_before_grpc_is_there(module: str, given: str | None, expected: str) -> None:
    program = (
        "import builtins, os, sys\n"
        "real = builtins.__import__\n"
        "def note(name, *rest):\n"
        "    if name == 'grpc' and 'grpc' not in sys.modules:\n"
        "        print(os.environ.get('GRPC_VERBOSITY'))\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = note\n"
        f"import {module}\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"}
    if given is not None:
        environ["GRPC_VERBOSITY"] = given
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [expected]
