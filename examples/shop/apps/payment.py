# SPDX-License-Identifier: Apache-2.0
"""Payments, made through an API outside the mesh (BANK_URL); it learns amounts, no items."""

from __future__ import annotations

import json
import os

from http_app import Answer, call, serve

BANK_URL = os.environ["BANK_URL"]


def answer(path: str, body: bytes) -> Answer:
    """Charge {"order", "cents"} and return the bank's receipt."""
    del path
    wanted = json.loads(body or b"{}")
    charged = call(BANK_URL, {"cents": int(wanted.get("cents", 0))})
    return {"receipt": f"{wanted.get('order', 0)}-{charged['receipt']}"}


if __name__ == "__main__":
    serve(8080, answer)
