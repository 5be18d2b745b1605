# SPDX-License-Identifier: Apache-2.0
"""The catalogue, in two versions (VERSION)."""

from __future__ import annotations

import os

from http_app import Answer, serve

VERSION = os.environ["VERSION"]
PRODUCTS = {"lamp": 1900, "chair": 8900, "table": 24900}


def answer(path: str, body: bytes) -> Answer:
    """Return the catalogue; v2 has a currency."""
    del path, body
    extra = {"currency": "EUR"} if VERSION == "v2" else {}
    return {"version": VERSION, "products": PRODUCTS, **extra}


if __name__ == "__main__":
    serve(8080, answer)
