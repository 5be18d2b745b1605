# SPDX-License-Identifier: Apache-2.0
"""Stream tables between model and wire; resource name `namespace/hostname:port[@client namespace]`."""

from __future__ import annotations

from google.protobuf.message import DecodeError as ProtobufError

from mesh.model.stream import StreamTable
from mesh.model.workload import NamespacedHostname
from mesh.proto import routes_pb2 as pb
from mesh.xds.routes import decode_backend, encode_backend

STREAM_TABLE_TYPE = "type.googleapis.com/ambit.mesh.v1.StreamTable"


def stream_table_name(table: StreamTable) -> str:
    """Return the table's resource name."""
    scope = f"@{table.client_namespace}" if table.client_namespace else ""
    return f"{table.service}:{table.port}{scope}"


def encode_stream_table(table: StreamTable) -> bytes:
    """Encode deterministically, so that equal tables have equal bytes and versions."""
    message = pb.StreamTable(
        namespace=table.service.namespace,
        hostname=table.service.hostname,
        port=table.port,
        source=table.source,
        backends=[encode_backend(backend) for backend in table.backends],
        client_namespace=table.client_namespace,
    )
    return message.SerializeToString(deterministic=True)


def decode_stream_table(value: bytes) -> StreamTable:
    """Decode one table.

    Raises:
        ValueError: the bytes are no table; whoever sent them is at fault, and the table in
            force stays.
    """
    message = pb.StreamTable()
    try:
        message.ParseFromString(value)
    except ProtobufError as error:
        raise ValueError(f"not a stream table: {error}") from error
    if not message.namespace or not message.hostname:
        raise ValueError("a stream table names its service")
    return StreamTable(
        service=NamespacedHostname(namespace=message.namespace, hostname=message.hostname),
        port=message.port,
        source=message.source,
        backends=tuple(decode_backend(backend) for backend in message.backends),
        client_namespace=message.client_namespace,
    )
