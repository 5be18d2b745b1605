# SPDX-License-Identifier: Apache-2.0
"""Orders, kept in PostgreSQL and paid through the payment program."""

from __future__ import annotations

import json

import psycopg
from http_app import Answer, UpstreamError, call, serve

DATABASE = "host=postgres dbname=postgres user=postgres connect_timeout=5 sslmode=disable gssencmode=disable"
TABLE = "CREATE TABLE IF NOT EXISTS orders (id serial PRIMARY KEY, item text NOT NULL, receipt text)"


def _insert(item: str) -> int:
    try:
        with psycopg.connect(DATABASE) as connection:
            connection.execute("SELECT pg_advisory_xact_lock(1)")
            connection.execute(TABLE)
            row = connection.execute("INSERT INTO orders (item) VALUES (%s) RETURNING id", (item,)).fetchone()
    except psycopg.Error as error:
        raise UpstreamError(f"postgres: {error}") from error
    if row is None:
        raise UpstreamError("postgres returned no number")
    return int(row[0])


def answer(path: str, body: bytes) -> Answer:
    """Store the order of {"item"}; /order also pays it."""
    item = str(json.loads(body or b"{}").get("item", ""))
    number = _insert(item)
    if path.rstrip("/").endswith("/note"):
        return {"order": number}
    paid = call("http://payment/pay", {"order": number, "cents": 1900})
    return {"order": number, "receipt": paid["receipt"]}


if __name__ == "__main__":
    serve(8080, answer)
