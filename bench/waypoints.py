# SPDX-License-Identifier: Apache-2.0
"""Waypoints side by side: one client's end before and one application's end behind, HBONE on both.

Ours and Envoy do the same: terminate the tunnel, choose one of three routes with retries and a
timeout, tunnel to the application's node. Only the waypoint's own CPU and memory are counted.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from bench.subjects import Starter, Subject, SubjectError, direct, free_port, printed_port, process
from bench.waypoint_control import POD
from tests.support.envoy import connect_client, connect_terminator, envoy
from tests.support.pki import Leaf

HBONE_PORT = 15008
READY_S = 20.0
_FILTERS = "type.googleapis.com/envoy.extensions.filters"


@dataclass(frozen=True, kw_only=True)
class _Around:
    """What stands around a waypoint."""

    directory: Path
    xds_port: int
    ca_port: int
    app_address: str
    """Of each waypoint its own: HBONE is dialled at port 15008, which is fixed."""
    app_port: int


@contextlib.contextmanager
def _around(app: int, directory: Path, address: str) -> Iterator[_Around]:
    command = [sys.executable, "-m", "bench.waypoint_control", str(directory), address, str(app)]
    with process("the control plane", command, piped=True) as control:
        assert control.stdout is not None
        ports = control.stdout.readline().split()
        if len(ports) != 2:
            raise SubjectError(f"the control plane of the waypoint ended (code {control.poll()})")
        yield _Around(
            directory=directory,
            xds_port=int(ports[0]),
            ca_port=int(ports[1]),
            app_address=address,
            app_port=app,
        )


@contextlib.contextmanager
def _ends(around: _Around, hbone_port: int) -> Iterator[int]:
    """Run the client's and the application's end; yield the port to load."""
    node = [sys.executable, "-m", "bench.hbone_node"]
    inner = [
        *node,
        "in",
        str(around.directory / "app"),
        str(around.app_port),
        f"{around.app_address}:{HBONE_PORT}",
    ]
    outer = [*node, "out", str(around.directory / "client"), str(hbone_port)]
    with process("the application's end", inner, piped=True) as first:
        printed_port(first)
        with process("the client's end", outer, piped=True) as second:
            yield printed_port(second)


@contextlib.contextmanager
def ours(app: int, directory: Path) -> Iterator[Subject]:
    """`python -m waypoint` as it is deployed."""
    with _around(app, directory, "127.0.0.3") as around:
        hbone, metrics, ready = free_port(), free_port(), free_port()
        roots = str(directory / "roots.pem")
        environment = {
            **os.environ,
            **POD,
            "GATEWAY_NAME": "waypoint",
            "INSTANCE_IP": "127.0.0.4",
            "XDS_ADDRESS": f"localhost:{around.xds_port}",
            "XDS_ROOT_CA": roots,
            "CA_ADDRESS": f"localhost:{around.ca_port}",
            "CA_ROOT_CA": roots,
            "AUTH_TOKEN": str(directory / "token"),
            "AMBIT_HBONE_PORT": str(hbone),
            "AMBIT_ADMIN_ADDR": f"127.0.0.1:{free_port()}",
            "AMBIT_METRICS_ADDR": f"127.0.0.1:{metrics}",
            "AMBIT_READINESS_ADDR": f"127.0.0.1:{ready}",
        }
        with process("our waypoint", [sys.executable, "-m", "waypoint"], env=environment) as running:
            _wait_ready(f"http://127.0.0.1:{ready}/healthz/ready", running)
            with _ends(around, hbone) as port:
                yield Subject(name="ambit-waypoint", port=port, pids=(running.pid,))


@contextlib.contextmanager
def envoys(app: int, directory: Path) -> Iterator[Subject]:
    """Envoy, configured as Istio configures it: three listeners chained inside one process."""
    with _around(app, directory, "127.0.0.5") as around:
        leaf = _leaf(directory / "waypoint")
        terminate, _ = connect_terminator(leaf, directory, port=0)
        _, hbone = connect_client(leaf, directory, authority="", port=HBONE_PORT)
        hbone["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"][
            "address"
        ] = around.app_address
        clusters = [_internal_cluster("app", "main"), _internal_cluster("endpoint", "originate"), hbone]
        originate = {
            "@type": f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "originate",
            "cluster": "hbone",
            "tunneling_config": {"hostname": f"{around.app_address}:{around.app_port}"},
        }
        listeners = [
            terminate,
            _internal_listener("main", _http_manager()),
            _internal_listener("originate", {"name": "tcp", "typed_config": originate}),
        ]
        more = {
            "bootstrap_extensions": [
                {
                    "name": "envoy.bootstrap.internal_listener",
                    "typed_config": {
                        "@type": "type.googleapis.com/"
                        "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
                    },
                }
            ]
        }
        with (
            envoy(directory / "envoy", listeners=listeners, clusters=clusters, more=more) as running,
            _ends(around, running.port("in")) as port,
        ):
            yield Subject(name="envoy-waypoint", port=port, pids=(running.process.pid,))


def _leaf(directory: Path) -> Leaf:
    chain = (directory / "leaf.crt").read_bytes()
    return Leaf(
        certificate=x509.load_pem_x509_certificate(chain),
        chain_pem=(chain,),
        key_pem=(directory / "leaf.key").read_bytes(),
        roots_pem=(directory / "leaf-ca.crt").read_bytes(),
    )


def _internal_cluster(name: str, listener: str) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": listener}}}}
    return {
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _internal_listener(name: str, network_filter: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "internal_listener": {}, "filter_chains": [{"filters": [network_filter]}]}


def _http_manager() -> dict[str, Any]:
    retry = {"retry_on": "connect-failure,reset,gateway-error", "num_retries": 2}
    routes = [
        {
            "match": {"path_separated_prefix": path} if path != "/" else {"prefix": "/"},
            "route": {"cluster": "endpoint", "timeout": "15s", "retry_policy": retry},
        }
        for path in ("/a", "/b", "/")
    ]
    manager = {
        "@type": f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "main",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{_FILTERS}.http.router.v3.Router"}},
        ],
    }
    return {"name": "hcm", "typed_config": manager}


def _wait_ready(url: str, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and running.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.05)
    raise SubjectError(f"our waypoint is not ready after {READY_S:g} s (code {running.poll()})")


WAYPOINTS: Mapping[str, Starter] = {"direct": direct, "ambit-waypoint": ours, "envoy-waypoint": envoys}
