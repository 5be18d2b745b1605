# SPDX-License-Identifier: Apache-2.0
"""Settings: defaults, every problem named at once, and the drain rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from mesh.config.environment import ConfigError, ListenAddress, drain_deadline
from mesh.telemetry.logging import LogFormat
from ztunnel.config import read_config, read_data_plane

GOOD = {
    "NODE_NAME": "n1",
    "INPOD_UDS": "/run/zds.sock",
    "XDS_ADDRESS": "https://localhost:15012",
    "XDS_ROOT_CA": "/ca/root.pem",
    "AUTH_TOKEN": "/token",
}


def test_what_is_not_said_has_istios_default() -> None:
    config = read_config(GOOD)
    assert config.data_plane.node_name == "n1"
    assert (config.ca_address, config.ca_root_ca) == ("https://localhost:15012", Path("/ca/root.pem"))
    assert str(config.admin) == "127.0.0.1:15000"
    assert (config.metrics.port, config.readiness.port) == (15020, 15021)
    assert (config.workers, config.drain_deadline_s, config.secret_ttl_s) == (2, 5.0, 86400)
    assert config.data_plane.bpffs is None


def test_everything_said_is_taken() -> None:
    config = read_config(
        GOOD
        | {
            "CA_ADDRESS": "ca:1",
            "CA_ROOT_CA": "/other.pem",
            "AMBIT_WORKERS": "4",
            "AMBIT_ADMIN_ADDR": "[::1]:1",
            "AMBIT_BPFFS": "/sys/fs/bpf/x",
            "LOG_FORMAT": "JSON",
            "LOG_LEVEL": "Debug",
            "TERMINATION_GRACE_PERIOD_SECONDS": "30",
            "AMBIT_WORKLOAD_WAIT_S": "0.5",
            "ENABLE_ORIG_SRC": "false",
        }
    )
    assert (config.ca_address, config.ca_root_ca, config.workers) == ("ca:1", Path("/other.pem"), 4)
    assert config.admin == ListenAddress(host="::1", port=1)
    assert str(config.admin) == "[::1]:1"
    assert config.drain_deadline_s == 25
    plane = config.data_plane
    assert (plane.log_format, plane.log_level) == (LogFormat.JSON, "debug")
    assert (plane.workload_wait_s, plane.spoof_source, plane.bpffs) == (0.5, False, Path("/sys/fs/bpf/x"))
    assert read_data_plane(GOOD | {"AMBIT_MAX_CONNECTIONS": "7"}).max_connections == 7


def test_every_problem_is_named_with_its_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(
            {
                "AMBIT_WORKERS": "0",
                "AMBIT_WORKER_DEADLINE_S": "1",
                "AMBIT_ADMIN_ADDR": "localhost:15000",
                "AMBIT_METRICS_ADDR": "127.0.0.1:99999",
                "LOG_LEVEL": "loud",
                "LOG_FORMAT": "xml",
                "SECRET_TTL": "never",
            }
        )
    lines = str(caught.value).splitlines()
    named = ["NODE_NAME", "LOG_LEVEL", "LOG_FORMAT", "INPOD_UDS", "XDS_ADDRESS", "XDS_ROOT_CA", "AUTH_TOKEN"]
    named += [
        "AMBIT_WORKERS",
        "AMBIT_WORKER_DEADLINE_S",
        "AMBIT_ADMIN_ADDR",
        "AMBIT_METRICS_ADDR",
        "SECRET_TTL",
    ]
    assert [line.partition("=")[0].partition(" ")[0] for line in lines] == named
    assert all("set it to" in line or "unset it" in line for line in lines)


def test_row_41_the_own_pod_is_served_only_when_it_is_named_in_full() -> None:
    named = GOOD | {"POD_NAME": "ztunnel-x", "POD_NAMESPACE": "istio-system"}
    assert read_config(named).self_pod is None
    assert read_config(named | {"SERVICE_ACCOUNT": "ztunnel"}).self_pod == (
        "ztunnel-x",
        "istio-system",
        "ztunnel",
    )


@pytest.mark.parametrize(
    ("grace", "deadline"), [(None, 5), (30, 25), (11, 6), (10, 9), (2, 1), (1, 1), (0.5, 1)]
)
def test_row_36_the_drain_deadline_follows_the_grace_period(grace: float | None, deadline: float) -> None:
    assert drain_deadline(grace) == deadline


def test_row_2_only_the_shared_mode_is_offered() -> None:
    assert read_config(GOOD | {"PROXY_MODE": "shared"}) == read_config(GOOD)
    with pytest.raises(ConfigError, match="PROXY_MODE='dedicated' is not offered") as refused:
        read_config(GOOD | {"PROXY_MODE": "dedicated"})
    assert "dataplane-mode=ambient" in str(refused.value)
