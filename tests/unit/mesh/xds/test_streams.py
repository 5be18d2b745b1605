# SPDX-License-Identifier: Apache-2.0
"""Stream tables survive the wire, and what is none is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.model.route import Backend
from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname
from mesh.xds.streams import decode_stream_table, encode_stream_table, stream_table_name

TEXT = st.text("abc/-.", min_size=1, max_size=6)
SERVICES = st.builds(NamespacedHostname, namespace=TEXT, hostname=TEXT)
TABLES = st.builds(
    StreamTable,
    service=SERVICES,
    port=st.integers(0, 65535),
    source=TEXT,
    backends=st.lists(
        st.builds(
            Backend,
            service=st.none() | SERVICES,
            port=st.integers(0, 65535),
            subset=TEXT,
            weight=st.integers(0, 1000),
            problem=TEXT,
        ),
        max_size=2,
    ).map(tuple),
    client_namespace=st.just("") | TEXT,
)


@given(TABLES)
def test_a_table_survives_the_wire(table: StreamTable) -> None:
    assert decode_stream_table(encode_stream_table(table)) == table


def test_the_name_is_that_of_the_place() -> None:
    service = NamespacedHostname(namespace="a", hostname="b.c")
    table = StreamTable(service=service, port=80, source="s", backends=())
    assert stream_table_name(table) == "a/b.c:80"
    assert stream_table_name(replace(table, client_namespace="n")) == "a/b.c:80@n"


@pytest.mark.parametrize(
    ("value", "reason"), [(b"\xff\xff\xff", "not a stream table"), (b"", "names its service")]
)
def test_what_is_no_table_is_refused(value: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        decode_stream_table(value)
