# SPDX-License-Identifier: Apache-2.0
"""Everything that a ztunnel is told from outside, as one frozen tree read once from the environment.

Nothing else in the package reads the environment. Names are those of
`docs/architecture/contracts.md`; each error names the variable and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mesh.config.environment import ListenAddress, Reader, drain_deadline
from mesh.telemetry.logging import LogFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlaneConfig:
    """What a worker needs to know; the supervisor passes it on unchanged."""

    node_name: str
    trust_domain: str = "cluster.local"
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    network: str = ""
    root_namespace: str = "istio-system"
    bpffs: Path | None = None
    """Directory of the node's BPF pins; None: no capture maps (listeners are reached some other way)."""
    log_level: str = "info"
    log_format: LogFormat = LogFormat.TEXT
    workload_wait_s: float = 5.0
    """How long a connection waits for its own workload to be known before it is closed."""
    connect_timeout_s: float = 10.0
    """TCP and TLS handshake with an upstream; Istio's value."""
    tunnel_timeout_s: float = 15.0
    """Answer to a CONNECT: the peer's own connect timeout and a margin."""
    certificate_wait_s: float = 5.0
    max_connections: int = 65536
    """Live connections per worker; one more is closed at once."""
    pool_idle_s: float = 300.0
    """An HBONE connection without tunnels is closed after this; Istio's value."""
    listen_backlog: int = 1024
    spoof_source: bool = True
    """Dial applications from the client's address (needs the pod's routing rule for mark 0x111)."""
    ipv6: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of the whole process."""

    data_plane: DataPlaneConfig
    inpod_uds: Path
    """ZDS socket of the node agent."""
    xds_address: str
    """`host:port` or `https://host:port` of the controller."""
    xds_root_ca: Path
    ca_address: str
    ca_root_ca: Path
    xds_server_name: str = ""
    """Name that the controller's certificate must have; empty: the host of its address."""
    ca_server_name: str = ""
    auth_token: Path
    """Read again on each call: the token rotates."""
    self_pod: tuple[str, str, str] | None = None
    """Name, namespace and service account of ztunnel's own pod: its metrics are then reachable over mTLS."""
    workers: int = 2
    worker_deadline_s: float = 30.0
    """A worker that says nothing for so long is killed and replaced; one large update may take seconds."""
    admin: ListenAddress
    metrics: ListenAddress
    readiness: ListenAddress
    drain_deadline_s: float = 5.0
    secret_ttl_s: int = 86400
    max_series: int = 10000
    """Series per metric; further label sets are counted in one overflow series."""
    series_idle_s: float = 600.0


def read_data_plane(environ: Mapping[str, str]) -> DataPlaneConfig:
    """Build a worker's settings.

    Raises:
        ConfigError: lists every unusable variable, one a line.
    """
    reader = Reader(environ)
    config = _data_plane(reader)
    reader.check()
    return config


def read_config(environ: Mapping[str, str]) -> Config:
    """Build the process's settings.

    Raises:
        ConfigError: lists every unusable variable, one a line.
    """
    reader = Reader(environ)
    grace = reader.text("TERMINATION_GRACE_PERIOD_SECONDS")
    _require_shared_mode(reader)
    config = Config(
        data_plane=_data_plane(reader),
        inpod_uds=Path(
            reader.required("INPOD_UDS", "the node agent's ZDS socket, e.g. /var/run/ztunnel/ztunnel.sock")
        ),
        xds_address=reader.required(
            "XDS_ADDRESS", "the controller, e.g. https://ambit-controller.istio-system.svc:15012"
        ),
        xds_root_ca=Path(
            reader.required("XDS_ROOT_CA", "the PEM file with the controller's root certificate")
        ),
        ca_address=reader.text("CA_ADDRESS") or reader.text("XDS_ADDRESS"),
        ca_root_ca=Path(reader.text("CA_ROOT_CA") or reader.text("XDS_ROOT_CA")),
        xds_server_name=reader.text("ALT_XDS_HOSTNAME"),
        ca_server_name=reader.text("ALT_CA_HOSTNAME"),
        auth_token=Path(reader.required("AUTH_TOKEN", "the file with this node's service account token")),
        self_pod=_self_pod(reader),
        workers=int(reader.number("AMBIT_WORKERS", 2, 1, 64)),
        worker_deadline_s=reader.number("AMBIT_WORKER_DEADLINE_S", 30, 2, 3600),
        admin=reader.address("AMBIT_ADMIN_ADDR", ListenAddress(host="127.0.0.1", port=15000)),
        metrics=reader.address("AMBIT_METRICS_ADDR", ListenAddress(host="0.0.0.0", port=15020)),
        readiness=reader.address("AMBIT_READINESS_ADDR", ListenAddress(host="0.0.0.0", port=15021)),
        drain_deadline_s=drain_deadline(
            reader.number("TERMINATION_GRACE_PERIOD_SECONDS", 30, 1, 86400) if grace else None
        ),
        secret_ttl_s=int(reader.number("SECRET_TTL", 86400, 2, 31536000)),
    )
    reader.check()
    return config


def _data_plane(reader: Reader) -> DataPlaneConfig:
    bpffs = reader.text("AMBIT_BPFFS")
    return DataPlaneConfig(
        node_name=reader.required("NODE_NAME", "the name of this node, as workloads carry it"),
        trust_domain=reader.text("TRUST_DOMAIN", "cluster.local"),
        cluster_id=reader.text("CLUSTER_ID", "Kubernetes"),
        cluster_domain=reader.text("CLUSTER_DOMAIN", "cluster.local"),
        network=reader.text("NETWORK"),
        root_namespace=reader.text("ROOT_NAMESPACE", "istio-system"),
        bpffs=Path(bpffs) if bpffs else None,
        log_level=reader.choice("LOG_LEVEL", "info", ("debug", "info", "warning", "warn", "error")),
        log_format=LogFormat(reader.choice("LOG_FORMAT", "text", ("text", "json"))),
        workload_wait_s=reader.number("AMBIT_WORKLOAD_WAIT_S", 5, 0, 300),
        max_connections=int(reader.number("AMBIT_MAX_CONNECTIONS", 65536, 1, 1048576)),
        spoof_source=reader.choice("ENABLE_ORIG_SRC", "true", ("true", "false")) == "true",
        ipv6=reader.choice("IPV6_ENABLED", "true", ("true", "false")) == "true",
    )


def _self_pod(reader: Reader) -> tuple[str, str, str] | None:
    name, namespace, account = (reader.text(n) for n in ("POD_NAME", "POD_NAMESPACE", "SERVICE_ACCOUNT"))
    return (name, namespace, account) if name and namespace and account else None


def _require_shared_mode(reader: Reader) -> None:
    mode = reader.text("PROXY_MODE", "shared").lower()
    if mode != "shared":
        reader.problems.append(
            f"PROXY_MODE={mode!r} is not offered (docs/adr/0003): one ztunnel serves all pods of a node; "
            "unset it and label the namespace or pod istio.io/dataplane-mode=ambient"
        )
