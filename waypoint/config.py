# SPDX-License-Identifier: Apache-2.0
"""Everything that a waypoint is told from outside, as one frozen tree read once from the environment.

Nothing else in the package reads the environment. Names are those of
`docs/architecture/contracts.md`; each error names the variable and the remedy.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.config.environment import ListenAddress, Reader, drain_deadline
from mesh.telemetry.logging import LogFormat

HBONE_PORT = 15008


class AccessLog(enum.Enum):
    """Which requests leave a line."""

    ALL = "all"
    ERRORS = "errors"
    """Those that were denied, failed or answered 5xx."""
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one waypoint process."""

    pod: str
    namespace: str
    service_account: str
    node: str
    address: str
    """The pod's own address, for the controller's view of us."""
    ingress: bool
    """Serves clients outside the mesh, on the Gateway's own listeners, in place of HBONE."""
    gateway: str
    """Name of the Gateway in `namespace` that it serves."""
    xds_address: str
    """`host:port` or `https://host:port` of the controller."""
    xds_root_ca: Path
    xds_server_name: str
    """Name that the controller's certificate must have; empty: the host of its address."""
    ca_address: str
    ca_root_ca: Path
    ca_server_name: str
    auth_token: Path
    """Read again on each call: the token rotates."""
    trust_domain: str
    cluster_id: str
    network: str
    root_namespace: str
    admin: ListenAddress
    metrics: ListenAddress
    readiness: ListenAddress
    hbone_port: int
    log_level: str
    log_format: LogFormat
    access_log: AccessLog
    drain_deadline_s: float
    max_connections: int
    """HBONE connections; one more is closed at once."""
    max_upstream_connections: int
    max_pending: int
    """Requests that wait for a connection; one more is answered 503, flag UO."""
    connect_timeout_s: float
    secret_ttl_s: int
    max_series: int
    series_idle_s: float

    @property
    def identity(self) -> str:
        """The SPIFFE id that it serves and dials with."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"


def read_config(environ: Mapping[str, str]) -> Config:
    """Build the process's settings.

    Raises:
        ConfigError: lists every unusable variable, one a line.
    """
    reader = Reader(environ)
    grace = reader.text("TERMINATION_GRACE_PERIOD_SECONDS")
    namespace = reader.required("POD_NAMESPACE", "the namespace of this pod")
    config = Config(
        pod=reader.required("POD_NAME", "the name of this pod"),
        namespace=namespace,
        service_account=reader.required("SERVICE_ACCOUNT", "the service account of this pod"),
        node=reader.required("NODE_NAME", "the name of this node"),
        address=reader.text("INSTANCE_IP", "127.0.0.1"),
        ingress=reader.choice("GATEWAY_MODE", "waypoint", ("waypoint", "ingress")) == "ingress",
        gateway=reader.required("GATEWAY_NAME", "the Gateway that this waypoint is of"),
        xds_address=reader.required(
            "XDS_ADDRESS", "the controller, e.g. https://ambit-controller.istio-system.svc:15012"
        ),
        xds_root_ca=Path(
            reader.required("XDS_ROOT_CA", "the PEM file with the controller's root certificate")
        ),
        xds_server_name=reader.text("ALT_XDS_HOSTNAME"),
        ca_address=reader.text("CA_ADDRESS") or reader.text("XDS_ADDRESS"),
        ca_root_ca=Path(reader.text("CA_ROOT_CA") or reader.text("XDS_ROOT_CA")),
        ca_server_name=reader.text("ALT_CA_HOSTNAME"),
        auth_token=Path(reader.required("AUTH_TOKEN", "the file with this pod's service account token")),
        trust_domain=reader.text("TRUST_DOMAIN", "cluster.local"),
        cluster_id=reader.text("CLUSTER_ID", "Kubernetes"),
        network=reader.text("NETWORK"),
        root_namespace=reader.text("ROOT_NAMESPACE", "istio-system"),
        admin=reader.address("AMBIT_ADMIN_ADDR", ListenAddress(host="127.0.0.1", port=15000)),
        metrics=reader.address("AMBIT_METRICS_ADDR", ListenAddress(host="0.0.0.0", port=15020)),
        readiness=reader.address("AMBIT_READINESS_ADDR", ListenAddress(host="0.0.0.0", port=15021)),
        hbone_port=int(reader.number("AMBIT_HBONE_PORT", HBONE_PORT, 0, 65535)),
        log_level=reader.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "warn", "error")),
        log_format=LogFormat(reader.choice("LOG_FORMAT", "text", ("text", "json"))),
        access_log=AccessLog(reader.choice("AMBIT_ACCESS_LOG", "errors", ("all", "errors", "off"))),
        drain_deadline_s=drain_deadline(
            reader.number("TERMINATION_GRACE_PERIOD_SECONDS", 30, 1, 86400) if grace else None
        ),
        max_connections=int(reader.number("AMBIT_MAX_CONNECTIONS", 16384, 1, 1048576)),
        max_upstream_connections=int(reader.number("AMBIT_MAX_UPSTREAM_CONNECTIONS", 4096, 1, 1048576)),
        max_pending=int(reader.number("AMBIT_MAX_PENDING_REQUESTS", 1024, 1, 1048576)),
        connect_timeout_s=reader.number("AMBIT_CONNECT_TIMEOUT_S", 10, 0.1, 300),
        secret_ttl_s=int(reader.number("SECRET_TTL", 86400, 2, 31536000)),
        max_series=int(reader.number("AMBIT_MAX_SERIES", 10000, 1, 1000000)),
        series_idle_s=reader.number("AMBIT_SERIES_IDLE_S", 600, 1, 86400),
    )
    reader.check()
    return config
