# SPDX-License-Identifier: Apache-2.0
"""`ambit install` and `ambit uninstall`: the manifests, applied in the right order, and waited for.

`--dry-run` prints what would be applied, for those who keep it in a repository.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from cli.codes import EXIT_OK, CliError, Code
from cli.facts import Facts
from cli.options import add_common, duration
from cli.output import plural, say
from cli.target import open_target
from cli.target_kube import SYSTEM, Kubectl, KubeTarget
from lab.view import MODE_LABEL

MANIFESTS = Path(__file__).resolve().parents[1] / "daemonset" / "manifests" / "kubernetes"
IMAGE = "ambit.local/ambit:dev"
"""What the manifests name until an image is given."""
DEFINITIONS = {
    "gateway-api.yaml": "gateways.gateway.networking.k8s.io",
    "istio.yaml": "authorizationpolicies.security.istio.io",
}
"""File of definitions -> a kind of it: where that is there, somebody else keeps them."""
PARTS = ("deployment/ambit-controller", "daemonset/ambit-node")
OLDEST = (1, 30)
"""Kubernetes: native sidecars, ValidatingAdmissionPolicy, the node's name in bound tokens."""
OLDEST_KERNEL = (6, 1)
DEFAULT_WAIT_S = 180.0


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options of either."""
    parser.add_argument("--dry-run", action="store_true", help="print the objects, change nothing")
    parser.add_argument("--image", metavar="REF", help=f"the image of all processes (default {IMAGE})")
    parser.add_argument(
        "--timeout", type=duration, default=DEFAULT_WAIT_S, metavar="DURATION", help="wait so long (3m)"
    )
    if parser.get_default("verb") == "uninstall":
        parser.add_argument("--force", action="store_true", help="while namespaces are still labelled, too")
    else:
        parser.add_argument(
            "--skip-crds", action="store_true", help="without definitions of Istio's and Gateway kinds"
        )
    add_common(parser, formats=())


def run(options: argparse.Namespace) -> int:
    """Do it."""
    if options.dry_run:
        print(_everything(options))
        return EXIT_OK
    target = open_target(options)
    if not isinstance(target, KubeTarget):
        raise CliError(
            Code.USAGE,
            f"{target.title} has the mesh already: `ambit lab up` starts it",
            remedy="name a cluster: --context NAME, or --kubeconfig FILE",
        )
    return _install(target, options) if options.verb == "install" else _uninstall(target, options)


def _everything(options: argparse.Namespace) -> str:
    """Return the text of all that would be applied; kubectl only renders, and asks no cluster."""
    kubectl = Kubectl("", None)
    if options.verb == "uninstall":
        return render(kubectl, MANIFESTS / "uninstall", options.image)
    parts = [] if options.skip_crds else [(MANIFESTS / "crds" / name).read_text() for name in DEFINITIONS]
    return "\n---\n".join([*parts, render(kubectl, MANIFESTS, options.image)])


def render(kubectl: Kubectl, directory: Path, image: str | None) -> str:
    """Build a kustomization, with another image if one is named."""
    text = kubectl.run("kustomize", str(directory))
    return text.replace(f"image: {IMAGE}", f"image: {image}") if image else text


def version_of(text: str) -> tuple[int, int]:
    """Read the first two numbers of `v1.35.4` or `6.18.0-1-cloud`; (0, 0): it is no version."""
    match = re.match(r"v?(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def too_old(nodes: Iterable[tuple[str, str, str]]) -> list[str]:
    """Say which nodes (name, kubelet's version, kernel) cannot run the mesh."""
    found = []
    for name, kubelet, kernel in nodes:
        if version_of(kubelet) < OLDEST:
            found.append(f"node {name} runs Kubernetes {kubelet}; 1.30 or newer is needed")
        if version_of(kernel) < OLDEST_KERNEL:
            found.append(f"node {name} has kernel {kernel}; 6.1 or newer is tried and known to work")
    return found


def _install(target: KubeTarget, options: argparse.Namespace) -> int:
    kubectl = target.kubectl
    infos = [(n.name, n.status.get("nodeInfo") or {}) for n in target.objects().of("Node")]
    for line in too_old((name, i.get("kubeletVersion", ""), i.get("kernelVersion", "")) for name, i in infos):
        say(f"beware: {line}")
    known = set(kubectl.run("api-resources", "--verbs=list", "-o", "name").split())
    for name, kind in DEFINITIONS.items():
        if options.skip_crds or kind in known:
            continue
        say(f"definitions of {name.removesuffix('.yaml')} ...")
        _apply(kubectl, (MANIFESTS / "crds" / name).read_text(), options.timeout)
    say("the mesh ...")
    _apply(kubectl, render(kubectl, MANIFESTS, options.image), options.timeout)
    for part in PARTS:
        say(f"waiting for {part} ...")
        _rolled_out(kubectl, part, options.timeout)
    say(f"the mesh runs on {plural(len(infos), 'node')}")
    enrol, check = target.command("enroll ns/NAMESPACE"), target.command("check")
    say(f"next: `{enrol}` brings pods in, `{check}` looks after all")
    return EXIT_OK


def _apply(kubectl: Kubectl, text: str, timeout_s: float) -> None:
    words = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    kubectl.run(*words, text=text, timeout_s=timeout_s)


def _rolled_out(kubectl: Kubectl, part: str, timeout_s: float) -> None:
    words = ("-n", SYSTEM, "rollout", "status", part, f"--timeout={timeout_s:.0f}s")
    try:
        kubectl.run(*words, timeout_s=timeout_s + 10)
    except CliError as error:
        raise CliError(
            Code.TIMEOUT,
            f"{part} is not ready after {timeout_s:.0f} s",
            remedy=f"`kubectl -n {SYSTEM} get pods` and `kubectl -n {SYSTEM} describe {part}` say why",
        ) from error


def _uninstall(target: KubeTarget, options: argparse.Namespace) -> int:
    """Take the mesh off the nodes first: what is left there lets no new pod start."""
    kubectl = target.kubectl
    labelled = [n.name for n in target.objects().of("Namespace") if n.labels.get(MODE_LABEL) == "ambient"]
    enrolled = sum(pod.enrolled for pod in Facts(target).pods())
    if labelled and not options.force:
        raise CliError(
            Code.STILL_USED,
            f"{plural(enrolled, 'pod')} of {', '.join(labelled)} would leave the mesh and talk in plaintext",
            remedy=f"`{target.command(f'unenroll ns/{labelled[0]}')}` first, or --force",
        )
    cleanup = render(kubectl, MANIFESTS / "uninstall", options.image or _image(target))
    say("taking the mesh off the nodes ...")
    kubectl.run(
        "-n", SYSTEM, "delete", "daemonset", "ambit-node", "--ignore-not-found", timeout_s=options.timeout
    )
    _apply(kubectl, cleanup, options.timeout)
    _rolled_out(kubectl, "daemonset/ambit-cleanup", options.timeout)
    say("nothing of it is left on any node; deleting its objects ...")
    for text in (cleanup, render(kubectl, MANIFESTS, None)):
        kubectl.run("delete", "--ignore-not-found", "-f", "-", text=text, timeout_s=options.timeout)
    say("the mesh is gone; definitions of Istio's and Gateway kinds, and their objects, are kept")
    return EXIT_OK


def _image(target: KubeTarget) -> str | None:
    """Return the image that runs, which the nodes have."""
    for pod in target.objects().of("Pod"):
        if pod.namespace == SYSTEM and pod.labels.get("app") == "ambit-node":
            return str(pod.spec["containers"][0]["image"])
    return None
