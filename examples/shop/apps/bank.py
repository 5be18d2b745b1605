# SPDX-License-Identifier: Apache-2.0
"""The payment API of somebody else: not in the mesh, reached as a ServiceEntry."""

from __future__ import annotations

import itertools

from http_app import Answer, serve

NUMBERS = itertools.count(1)


def answer(path: str, body: bytes) -> Answer:
    """Return a receipt."""
    del path, body
    return {"receipt": f"bank-{next(NUMBERS)}"}


if __name__ == "__main__":
    serve(8080, answer)
