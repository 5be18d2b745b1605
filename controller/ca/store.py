# SPDX-License-Identifier: Apache-2.0
"""The authority's files: `root-key.pem` (0600), `root-cert.pem`, `other-roots.pem`.

`root-cert.pem` is the trust bundle that proxies read; a root that is to be trusted but
signs no more (rotation) stands in `other-roots.pem`.
"""

from __future__ import annotations

import os
from pathlib import Path

from controller.ca.issue import Authority, key_pem, load_authority, new_authority

KEY, CERTIFICATE, BUNDLE, OTHERS = "root-key.pem", "signing-cert.pem", "root-cert.pem", "other-roots.pem"


class StoreError(Exception):
    """The authority's files cannot be used; names the file, and what to do."""


def open_authority(directory: Path, trust_domain: str, now_s: float) -> Authority:
    """Load the authority, or make one where there is none; writes the trust bundle.

    Raises:
        StoreError: the directory cannot be written, or what is in it is no authority.
    """
    key, certificate, others = directory / KEY, directory / CERTIFICATE, directory / OTHERS
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if key.exists() != certificate.exists():
            lacking = certificate if key.exists() else key
            raise StoreError(f"{lacking} is missing while its pair is there; restore it, or remove both")
        if not key.exists():
            made = new_authority(trust_domain, now_s)
            # The key last: without it the next start makes a new pair.
            write_file(certificate, made.root_pem, 0o644)
            write_file(key, key_pem(made), 0o600)
        if key.stat().st_mode & 0o077:
            raise StoreError(f"{key} can be read by others; chmod 600 {key}")
        extra = others.read_bytes() if others.exists() else b""
        authority = load_authority(certificate.read_bytes(), key.read_bytes(), extra)
        write_file(directory / BUNDLE, authority.bundle_pem, 0o644)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{directory}: {error}") from error
    if authority.certificate.not_valid_after_utc.timestamp() <= now_s:
        raise StoreError(f"{certificate} has expired; remove {key} and {certificate} for a new root")
    return authority


def write_file(path: Path, data: bytes, mode: int) -> None:
    """Write beside and rename, so that no reader sees half a file.

    Raises:
        OSError: the file cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        os.fchmod(descriptor, mode)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.rename(path)
