# SPDX-License-Identifier: Apache-2.0
"""Settings from the environment, and the error for each that is wrong."""

from __future__ import annotations

from ipaddress import ip_address
from math import inf
from pathlib import Path

import pytest

from daemonset import config
from daemonset.cni_install import CniInstaller

FULL = {
    "NODE_NAME": "n1",
    "INPOD_UDS": "/run/ambit/zds.sock",
    "AMBIT_CNI_UDS": "/run/ambit/cni.sock",
    "AMBIT_BPFFS": "/sys/fs/bpf/ambit/demo/n1",
    "AMBIT_PODS_CGROUP": "/sys/fs/cgroup/unified/ambit/demo/n1/kubepods",
    "AMBIT_NODE_CGROUP": "/sys/fs/cgroup/unified/ambit/demo/n1",
    "AMBIT_OBJECTS": "/run/ambit/demo/objects:/run/ambit/demo/status",
    "AMBIT_RUN_DIR": "/run/ambit/demo/nodes/n1/agent",
}


def test_the_contract_is_enough_and_defaults_fill_the_rest() -> None:
    settings = config.parse(FULL)
    assert settings.objects == (Path("/run/ambit/demo/objects"), Path("/run/ambit/demo/status"))
    assert settings.ztunnel_cgroup == Path(FULL["AMBIT_PODS_CGROUP"]) / "ztunnel"
    assert (settings.admin_host, settings.admin_port) == ("127.0.0.1", 15016)
    assert (settings.metrics_host, settings.metrics_port) == ("0.0.0.0", 15017)
    assert settings.status_dir is None
    assert settings.bpf_python == Path("/usr/bin/python3")
    assert settings.describe()["node"] == "n1"


def test_what_is_given_is_taken() -> None:
    settings = config.parse(
        FULL
        | {
            "AMBIT_STATUS_DIR": "/s",
            "AMBIT_AGENT_ADDR": "[::1]:0",
            "AMBIT_CLUSTER_DNS": "10.96.0.10, fd00::a",
            "AMBIT_EXCLUDED_NAMESPACES": "",
            "AMBIT_ACK_TIMEOUT_S": "0.5",
            "LOG_FORMAT": "json",
        }
    )
    assert settings.status_dir == Path("/s")
    assert (settings.admin_host, settings.admin_port) == ("::1", 0)
    assert settings.cluster_dns == (ip_address("10.96.0.10"), ip_address("fd00::a"))
    assert settings.excluded_namespaces == frozenset()
    assert settings.ack_timeout_s == 0.5
    assert settings.log_format == "json"


@pytest.mark.parametrize(("text", "seconds"), [("", 3600), ("0", 0), ("0.5", 0.5), ("never", inf)])
def test_a_plaintext_deadline_is_finite_unless_told_otherwise(text: str, seconds: float) -> None:
    settings = config.parse(FULL | {"AMBIT_PLAINTEXT_DEADLINE_S": text})
    assert settings.plaintext_deadline_s == seconds


def test_without_directories_the_objects_are_a_clusters() -> None:
    environment = {k: v for k, v in FULL.items() if k != "AMBIT_OBJECTS"}
    assert config.parse(environment).objects == ()
    assert config.parse(environment).kubeconfig is None
    settings = config.parse({**environment, "AMBIT_KUBECONFIG": "/etc/agent.kubeconfig"})
    assert settings.kubeconfig == Path("/etc/agent.kubeconfig")
    with pytest.raises(config.SettingError, match="AMBIT_OBJECTS is empty"):
        config.parse({**environment, "AMBIT_OBJECTS": ""})


@pytest.mark.parametrize("name", sorted(FULL.keys() - {"AMBIT_OBJECTS"}))
def test_each_required_setting_is_missed_by_name(name: str) -> None:
    with pytest.raises(config.SettingError, match=name):
        config.parse({k: v for k, v in FULL.items() if k != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AMBIT_BPFFS", "relative"),
        ("INPOD_UDS", "/" + "x" * config.MAX_SOCKET_PATH),
        ("AMBIT_AGENT_ADDR", "15016"),
        ("AMBIT_AGENT_ADDR", "localhost:http"),
        ("AMBIT_AGENT_ADDR", "localhost:65536"),
        ("AMBIT_CLUSTER_DNS", "dns.local"),
        ("AMBIT_CNI_TIMEOUT_S", "-1"),
        ("AMBIT_CNI_TIMEOUT_S", "nan"),
        ("AMBIT_CNI_TIMEOUT_S", "inf"),
        ("AMBIT_CNI_TIMEOUT_S", "soon"),
        ("LOG_FORMAT", "xml"),
    ],
)
def test_a_malformed_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(config.SettingError, match=name):
        config.parse(FULL | {name: value})


def test_a_socket_path_of_the_limit_is_taken() -> None:
    path = "/" + "x" * (config.MAX_SOCKET_PATH - 1)
    assert str(config.parse(FULL | {"INPOD_UDS": path}).zds_socket) == path


def test_the_cni_plugin_is_installed_where_both_directories_are_named() -> None:
    both = {"AMBIT_CNI_BIN_DIR": "/host/opt/cni/bin", "AMBIT_CNI_CONF_DIR": "/host/etc/cni/net.d"}
    assert CniInstaller.of(config.parse(FULL | both)) is not None
    for name in both:
        assert CniInstaller.of(config.parse(FULL | {k: v for k, v in both.items() if k != name})) is None
        with pytest.raises(config.SettingError, match=name):
            config.parse(FULL | both | {name: "relative"})
