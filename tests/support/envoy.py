# SPDX-License-Identifier: Apache-2.0
"""A real Envoy as the other side: as HBONE client, as CONNECT terminator, and as a pair of both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.pki import Leaf

Config = dict[str, Any]
ENVOY = Path(sys.executable).with_name("envoy")
START_S = 30.0
_H2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_FILTERS = "type.googleapis.com/envoy.extensions.filters"
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"


class Envoy:
    """A running Envoy."""

    def __init__(self, process: subprocess.Popen[bytes], admin: str) -> None:
        self.process = process
        self.admin = admin

    def get(self, path: str) -> bytes:
        """Ask the admin port."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=5) as response:
            body: bytes = response.read()
            return body

    def port(self, listener: str) -> int:
        """Return the port that a listener got."""
        statuses = json.loads(self.get("/listeners?format=json"))["listener_statuses"]
        found = next(s for s in statuses if s["name"] == listener)
        return int(found["local_address"]["socket_address"]["port_value"])

    def stat(self, name: str) -> int:
        """Return one counter or gauge; 0 when it is not there."""
        stats = json.loads(self.get(f"/stats?format=json&filter={name}"))["stats"]
        return sum(int(s["value"]) for s in stats if s.get("name") == name)


@contextmanager
def envoy(
    directory: Path, *, listeners: list[Config], clusters: list[Config], more: Config | None = None
) -> Iterator[Envoy]:
    """Run Envoy until the block ends, `more` in its bootstrap; raises with its log when it is not ready."""
    directory.mkdir(parents=True, exist_ok=True)
    config, admin, log = directory / "envoy.json", directory / "admin", directory / "envoy.log"
    loopback = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    resources = {"listeners": listeners, "clusters": clusters}
    bootstrap = {"admin": {"address": loopback}, "static_resources": resources, **(more or {})}
    config.write_text(json.dumps(bootstrap))
    arguments = [str(ENVOY), "-c", str(config), "--admin-address-path", str(admin)]
    arguments += ["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=directory)
    try:
        yield Envoy(process, _wait_ready(process, admin, log))
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: subprocess.Popen[bytes], admin: Path, log: Path) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            address = admin.read_text().strip()
            with urllib.request.urlopen(f"http://{address}/ready", timeout=2) as response:
                if response.status == 200:
                    return address
        except OSError:
            # Not there yet.
            pass
        time.sleep(0.05)
    raise AssertionError(f"Envoy is not ready after {START_S} s:\n{log.read_text()[-4000:]}")


def connect_client(leaf: Leaf, directory: Path, *, authority: str, port: int) -> tuple[Config, Config]:
    """Return listener `out` and cluster: plain TCP in, CONNECT over HTTP/2 and mutual TLS out."""
    baggage = {"header": {"key": "baggage", "value": "k8s.pod.name=envoy"}}
    tunnel = {"hostname": authority, "headers_to_add": [baggage]}
    listener = _tcp_listener("out", "hbone", {"tunneling_config": tunnel})
    return listener, _cluster("hbone", port, http2=True, tls=("UpstreamTlsContext", leaf, directory))


def connect_terminator(leaf: Leaf, directory: Path, *, port: int) -> tuple[Config, Config]:
    """Return listener `in` and cluster: CONNECT over HTTP/2 and mutual TLS in, plain TCP to `port` out."""
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "app",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "codec_type": "HTTP2",
        "http2_protocol_options": {"allow_connect": True},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "stream_idle_timeout": "0s",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}},
        ],
    }
    chain = {
        "filters": [{"name": "hcm", "typed_config": manager}],
        "transport_socket": _tls("DownstreamTlsContext", leaf, directory),
    }
    return _listener("in", chain), _cluster("app", port)


def _listener(name: str, chain: Mapping[str, Any]) -> Config:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def _tcp_listener(name: str, cluster: str, more: Mapping[str, Any]) -> Config:
    proxy = {
        "@type": f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": name,
        "cluster": cluster,
        "idle_timeout": "0s",
        **more,
    }
    return _listener(name, {"filters": [{"name": "tcp", "typed_config": proxy}]})


def _cluster(
    name: str, port: int, *, http2: bool = False, tls: tuple[str, Leaf, Path] | None = None
) -> Config:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    cluster: Config = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
    if http2:
        options = {"@type": _H2, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        }
    if tls is not None:
        cluster["transport_socket"] = _tls(*tls)
    return cluster


def _tls(kind: str, leaf: Leaf, directory: Path) -> Config:
    certificate, key, roots = leaf.write(directory, kind)
    common = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {"certificate_chain": {"filename": str(certificate)}, "private_key": {"filename": str(key)}}
        ],
        "validation_context": {"trusted_ca": {"filename": str(roots)}},
        "alpn_protocols": ["h2"],
    }
    config: Config = {"@type": f"{_TLS}.{kind}", "common_tls_context": common}
    if kind == "DownstreamTlsContext":
        config["require_client_certificate"] = True
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}
