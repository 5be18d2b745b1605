# SPDX-License-Identifier: Apache-2.0
"""The agent's settings: read from the environment once, checked, then passed on by part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from daemonset.codes import Code
from daemonset.pods import NEVER
from mesh.model.address import IPAddress, parse_ip

MAX_SOCKET_PATH = 107
"""Bytes of a unix socket's path (sun_path without its end)."""


class SettingError(ValueError):
    """A setting is absent or malformed; names the variable and what it takes."""

    code = Code.BAD_SETTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one agent runs with; paths are absolute."""

    node: str
    zds_socket: Path
    cni_socket: Path
    bpffs: Path
    """Directory of this node's pins."""
    pods_cgroup: Path
    """v2 directory above the pods."""
    node_cgroup: Path
    """v2 directory above everything on the node."""
    ztunnel_cgroup: Path
    """A ZDS peer must run in this v2 directory or below."""
    objects: tuple[Path, ...]
    """Directories of Kubernetes YAML; later ones win. None: the API of a cluster."""
    kubeconfig: Path | None = None
    """Of that cluster; None: the pod's service account."""
    run_dir: Path
    """The agent's own files: lock, one file per enrolled pod."""
    status_dir: Path | None
    """Where Enrollment objects are published; None: nobody reads them."""
    cluster_dns: tuple[IPAddress, ...] = ()
    bpf_python: Path = Path("/usr/bin/python3")
    admin_host: str = "127.0.0.1"
    admin_port: int = 15016
    metrics_host: str = "0.0.0.0"
    metrics_port: int = 15017
    pod_uid: str | None = None
    """Of the agent's own pod, where ztunnel is a container of it too; None: not a pod."""
    cni_bin_dir: Path | None = None
    """The node's directory of CNI plugins; None: the plugin is not installed."""
    cni_conf_dir: Path | None = None
    """The node's directory of CNI configurations; None as above."""
    cni_plugin: Path = Path("/opt/ambit/bin/ambit-cni")
    """The plugin in the agent's image."""
    kubelet_tgid: int = 0
    """Thread group whose connects are probes, on hosts where cgroups do not tell; 0: by cgroup."""
    excluded_namespaces: frozenset[str] = frozenset({"istio-system", "kube-system"})
    load_timeout_s: float = 60.0
    """For the loader process: compiling takes under a second, on an overloaded node many."""
    cni_timeout_s: float = 30.0
    """For one ADD, below the runtimes' own limits of minutes."""
    ack_timeout_s: float = 5.0
    """For each of ztunnel's acknowledgements (Istio's ZDS deadline)."""
    unenroll_grace_s: float = 1.0
    """Between withdrawing a running pod and releasing it: a push to every peer takes less."""
    plaintext_deadline_s: float = 3600.0
    """How long connections from before capture may go on in plain, STRICT or not; infinity: until they end.

    Long enough for a transfer to finish, and an end, so that STRICT comes to hold for all there is.
    """
    recovery_timeout_s: float = 5.0
    """For recovered pods to be found again before ztunnel may connect."""
    log_level: str = "info"
    log_format: str = "text"

    def describe(self) -> dict[str, str]:
        """Return every setting as text, for the log and the admin page; there are no secrets."""
        return {f.name: str(getattr(self, f.name)) for f in fields(self)}


def parse(environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingError: a variable is absent or malformed.
    """
    read = _Reader(environment)
    pods_cgroup = read.path("AMBIT_PODS_CGROUP")
    admin_host, admin_port = read.address("AMBIT_AGENT_ADDR", "127.0.0.1:15016")
    metrics_host, metrics_port = read.address("AMBIT_AGENT_METRICS_ADDR", "0.0.0.0:15017")
    status_dir = environment.get("AMBIT_STATUS_DIR")
    objects = environment.get("AMBIT_OBJECTS")
    if objects == "":
        raise SettingError(
            "AMBIT_OBJECTS is empty: it names the directories of Kubernetes YAML, colon-separated; "
            "on a cluster it is not set at all"
        )
    return Settings(
        node=read.text("NODE_NAME"),
        zds_socket=read.socket("INPOD_UDS"),
        cni_socket=read.socket("AMBIT_CNI_UDS"),
        bpffs=read.path("AMBIT_BPFFS"),
        pods_cgroup=pods_cgroup,
        node_cgroup=read.path("AMBIT_NODE_CGROUP"),
        ztunnel_cgroup=read.path("AMBIT_ZTUNNEL_CGROUP", str(pods_cgroup / "ztunnel")),
        objects=tuple(Path(part) for part in (objects or "").split(":") if part),
        kubeconfig=read.path("AMBIT_KUBECONFIG") if environment.get("AMBIT_KUBECONFIG") else None,
        run_dir=read.path("AMBIT_RUN_DIR"),
        status_dir=read.path("AMBIT_STATUS_DIR") if status_dir else None,
        cluster_dns=read.addresses("AMBIT_CLUSTER_DNS"),
        bpf_python=read.path("AMBIT_BPF_PYTHON", "/usr/bin/python3"),
        admin_host=admin_host,
        admin_port=admin_port,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        pod_uid=environment.get("POD_UID") or None,
        cni_bin_dir=read.optional_path("AMBIT_CNI_BIN_DIR"),
        cni_conf_dir=read.optional_path("AMBIT_CNI_CONF_DIR"),
        cni_plugin=read.path("AMBIT_CNI_PLUGIN", "/opt/ambit/bin/ambit-cni"),
        kubelet_tgid=int(read.seconds("AMBIT_KUBELET_TGID", 0)),
        excluded_namespaces=read.names("AMBIT_EXCLUDED_NAMESPACES", "istio-system,kube-system"),
        load_timeout_s=read.seconds("AMBIT_LOAD_TIMEOUT_S", 60.0),
        cni_timeout_s=read.seconds("AMBIT_CNI_TIMEOUT_S", 30.0),
        ack_timeout_s=read.seconds("AMBIT_ACK_TIMEOUT_S", 5.0),
        unenroll_grace_s=read.seconds("AMBIT_UNENROLL_GRACE_S", 1.0),
        plaintext_deadline_s=read.seconds_or_never("AMBIT_PLAINTEXT_DEADLINE_S", 3600.0),
        recovery_timeout_s=read.seconds("AMBIT_RECOVERY_TIMEOUT_S", 5.0),
        log_level=environment.get("LOG_LEVEL", "info"),
        log_format=read.choice("LOG_FORMAT", "text", ("text", "json")),
    )


class _Reader:
    """Typed look-ups that fail by the variable's name."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environment.get(name) or default
        if not value:
            raise SettingError(f"{name} is not set")
        return value

    def path(self, name: str, default: str | None = None) -> Path:
        path = Path(self.text(name, default))
        if not path.is_absolute():
            raise SettingError(f"{name}={path} is no absolute path")
        return path

    def optional_path(self, name: str) -> Path | None:
        return self.path(name) if self._environment.get(name) else None

    def socket(self, name: str) -> Path:
        path = self.path(name)
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise SettingError(f"{name}={path} is longer than the {MAX_SOCKET_PATH} bytes of a socket's path")
        return path

    def seconds(self, name: str, default: float) -> float:
        text = self._environment.get(name)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise SettingError(f"{name}={text!r} is no number of at least 0")
        return value

    def seconds_or_never(self, name: str, default: float) -> float:
        return float("inf") if self._environment.get(name) == NEVER else self.seconds(name, default)

    def address(self, name: str, default: str) -> tuple[str, int]:
        text = self.text(name, default)
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdigit() or int(port) > 65535:
            raise SettingError(f"{name}={text!r} is not HOST:PORT")
        return host, int(port)

    def addresses(self, name: str) -> tuple[IPAddress, ...]:
        found = []
        for part in self._environment.get(name, "").split(","):
            if not part.strip():
                continue
            try:
                found.append(parse_ip(part.strip()))
            except ValueError as error:
                raise SettingError(f"{name}: {error}") from error
        return tuple(found)

    def names(self, name: str, default: str) -> frozenset[str]:
        text = self._environment.get(name, default)
        return frozenset(part.strip() for part in text.split(",") if part.strip())

    def choice(self, name: str, default: str, values: tuple[str, ...]) -> str:
        value = self._environment.get(name) or default
        if value not in values:
            raise SettingError(f"{name}={value!r} is none of {', '.join(values)}")
        return value
