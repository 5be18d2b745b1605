# SPDX-License-Identifier: Apache-2.0
"""Which pods are enrolled, and the reason for each that is not."""

from __future__ import annotations

import copy
from ipaddress import ip_address
from math import inf
from typing import Any

import pytest

from daemonset import pods
from daemonset.codes import Code

POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web-0", "namespace": "shop", "uid": "u-1"},
    "spec": {"nodeName": "n1", "serviceAccountName": "web"},
    "status": {"phase": "Running", "podIP": "10.1.0.5", "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}]},
}
AMBIENT = {pods.MODE_LABEL: "ambient"}


def pod(**changes: Any) -> pods.Pod:
    """A pod with `section__field=value` changes."""
    data = copy.deepcopy(POD)
    for path, value in changes.items():
        section, key = path.split("__")
        data[section][key] = value
    return pods.parse_pod(data)


def decide(of: pods.Pod, namespace: dict[str, str] | None = None, **options: Any) -> pods.Decision:
    labels = AMBIENT if namespace is None else namespace
    return pods.decide(of, labels, node="n1", excluded_namespaces=frozenset({"kube-system"}), **options)


def test_a_pod_is_read_with_all_of_its_addresses() -> None:
    read = pod()
    assert read.key == "shop/web-0"
    assert read.service_account == "web"
    assert read.addresses == (ip_address("10.1.0.5"), ip_address("fd00::5"))


def test_the_single_address_field_is_enough() -> None:
    assert pod(status__podIPs=None).addresses == (ip_address("10.1.0.5"),)


def test_defaults_are_those_of_kubernetes() -> None:
    read = pods.parse_pod({"metadata": {"name": "a", "uid": "u"}})
    assert (read.namespace, read.service_account, read.phase) == ("default", "default", "Pending")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata__labels": ["a"]}, "metadata.labels"),
        ({"metadata__labels": {"a": 1}}, r"metadata.labels\[a\]"),
        ({"metadata__uid": 7}, "metadata.uid"),
        ({"metadata__uid": "../../etc/x"}, "metadata.uid"),
        ({"metadata__uid": "a" * 129}, "metadata.uid"),
        ({"metadata__annotations": {pods.DEADLINE_ANNOTATION: "soon"}}, "'soon'"),
        ({"metadata__annotations": {pods.DEADLINE_ANNOTATION: "-1"}}, "'-1'"),
        ({"status__podIPs": [{"ip": "10.1.0"}]}, "10.1.0"),
        ({"status__podIPs": "10.1.0.5"}, "status.podIPs"),
        ({"metadata__annotations": {pods.RESOLVERS_ANNOTATION: "dns"}}, "dns"),
    ],
)
def test_a_malformed_pod_is_rejected_by_field(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(pods.MalformedPodError, match=message):
        pod(**changes)


@pytest.mark.parametrize(
    "of", [pod(), pod(metadata__labels=AMBIENT), pod(metadata__deletionTimestamp="2026-01-01T00:00:00Z")]
)
def test_labelled_pods_are_enrolled(of: pods.Pod) -> None:
    assert decide(of) == pods.Enroll(pod=of)


def test_a_pod_label_is_enough_without_the_namespace() -> None:
    assert isinstance(decide(pod(metadata__labels=AMBIENT), {}), pods.Enroll)


@pytest.mark.parametrize(
    ("changes", "namespace", "code", "words"),
    [
        ({}, {}, Code.NOT_LABELLED, "no label"),
        ({"metadata__labels": {pods.MODE_LABEL: "none"}}, AMBIENT, Code.OPTED_OUT, "its own label"),
        ({}, {pods.MODE_LABEL: "none"}, Code.OPTED_OUT, "namespace shop"),
        ({"metadata__labels": {pods.MODE_LABEL: "Ambient"}}, AMBIENT, Code.UNKNOWN_MODE, "'Ambient'"),
        ({"spec__hostNetwork": True}, AMBIENT, Code.HOST_NETWORK, "hostNetwork"),
        ({"spec__nodeName": "n2"}, AMBIENT, Code.OTHER_NODE, "n2"),
        ({"spec__nodeName": None}, AMBIENT, Code.OTHER_NODE, "(none)"),
        ({"status__phase": "Succeeded"}, AMBIENT, Code.FINISHED, "Succeeded"),
        ({"status__phase": "Failed"}, AMBIENT, Code.FINISHED, "Failed"),
        ({"metadata__namespace": "kube-system"}, AMBIENT, Code.EXCLUDED_NAMESPACE, "kube-system"),
        ({"metadata__annotations": {pods.SIDECAR_ANNOTATION: "{}"}}, AMBIENT, Code.SIDECAR, "sidecar"),
        ({"metadata__annotations": {pods.MIRROR_ANNOTATION: "x"}}, AMBIENT, Code.STATIC_POD, "static pod"),
        ({"spec__runtimeClassName": "kata-qemu"}, AMBIENT, Code.RUNTIME, "kata-qemu"),
        ({"spec__runtimeClassName": "gVisor"}, AMBIENT, Code.RUNTIME, "gVisor"),
        ({"metadata__uid": None}, AMBIENT, Code.MALFORMED_POD, "metadata.uid"),
        ({"status__podIPs": None, "status__podIP": None}, AMBIENT, Code.NOT_STARTED, "no address"),
    ],
)
def test_each_ignored_pod_has_its_reason(
    changes: dict[str, Any], namespace: dict[str, str], code: Code, words: str
) -> None:
    decision = decide(pod(**changes), namespace)
    assert isinstance(decision, pods.Ignore)
    assert decision.code is code
    assert words in decision.reason


def test_a_starting_pod_needs_no_address_yet() -> None:
    starting = pod(status__podIPs=None, status__podIP=None, status__phase="Pending")
    assert isinstance(decide(starting, starting=True), pods.Enroll)


CLUSTER = (ip_address("10.96.0.10"),)
ONE = {"nameservers": ["1.1.1.1", "10.96.0.10", "1.0.0.1", "9.9.9.9"]}


@pytest.mark.parametrize(
    ("changes", "cluster", "expected"),
    [
        ({}, CLUSTER, ["10.96.0.10"]),
        ({}, (), None),
        (
            {"spec__dnsPolicy": "ClusterFirst", "spec__dnsConfig": ONE},
            CLUSTER,
            ["10.96.0.10", "1.1.1.1", "1.0.0.1"],
        ),
        ({"spec__dnsPolicy": "None", "spec__dnsConfig": ONE}, CLUSTER, ["1.1.1.1", "10.96.0.10", "1.0.0.1"]),
        ({"spec__dnsPolicy": "Default", "spec__dnsConfig": ONE}, CLUSTER, None),
        (
            {"metadata__annotations": {pods.RESOLVERS_ANNOTATION: "fd00::a, 10.0.0.2"}},
            (),
            ["fd00::a", "10.0.0.2"],
        ),
        ({"metadata__annotations": {pods.RESOLVERS_ANNOTATION: ""}}, CLUSTER, []),
    ],
)
def test_resolvers_are_what_the_kubelet_writes(
    changes: dict[str, Any], cluster: tuple[Any, ...], expected: list[str] | None
) -> None:
    found = pods.resolvers(pod(**changes), cluster)
    assert (found if found is None else [str(a) for a in found]) == expected


def test_a_plaintext_deadline_is_read_in_seconds() -> None:
    assert pod().plaintext_deadline_s is None
    assert pod(metadata__annotations={pods.DEADLINE_ANNOTATION: "0.5"}).plaintext_deadline_s == 0.5
    assert pod(metadata__annotations={pods.DEADLINE_ANNOTATION: "never"}).plaintext_deadline_s == inf


@pytest.mark.parametrize("text", ["", "soon", "-1", "inf", "nan"])
def test_a_plaintext_deadline_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(pods.MalformedPodError, match=r"neither a number of seconds nor `never`"):
        pod(metadata__annotations={pods.DEADLINE_ANNOTATION: text})


def test_resolv_conf_gives_three_servers_in_order_without_the_unusable() -> None:
    text = """# comment
search shop.svc.cluster.local
nameserver 10.96.0.10
nameserver fe80::1%eth0
nameserver nonsense
nameserver
nameserver 10.96.0.10
  nameserver ::ffff:10.0.0.2
nameserver 10.0.0.3
nameserver 10.0.0.4
"""
    assert [str(a) for a in pods.parse_resolv_conf(text)] == ["10.96.0.10", "10.0.0.2", "10.0.0.3"]
