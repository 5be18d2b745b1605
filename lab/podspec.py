# SPDX-License-Identifier: Apache-2.0
"""A container of a Pod as the specification that `container.py` runs; environment, user, mounts. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import waypoint
from lab.container import DEFAULT_CAPABILITIES
from lab.layout import CLUSTER_DOMAIN, DNS_IP, Layout

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOKEN_DIR = "/var/run/secrets/tokens"  # noqa: S105 - a place, no secret
_REFERENCE = re.compile(r"\$(\$)?\(([A-Za-z_][A-Za-z0-9_.-]*)\)")

Data = Mapping[str, str]
Lookup = Callable[[str, str], Data | None]
"""(kind, name) -> the decoded data of a ConfigMap or Secret of the pod's namespace; None: there is none."""


class PodSpecError(Exception):
    """A container cannot be started as written; says why. It is tried again when that changes."""


def decoded(kind: str, data: Mapping[str, Any]) -> dict[str, str]:
    """Return the data of a ConfigMap or Secret as text.

    Raises:
        PodSpecError: a Secret's data is not base64.
    """
    if kind == "ConfigMap":
        return {str(k): str(v) for k, v in (data.get("data") or {}).items()}
    found = {str(k): str(v) for k, v in (data.get("stringData") or {}).items()}
    for key, value in (data.get("data") or {}).items():
        try:
            found.setdefault(str(key), base64.b64decode(str(value), validate=True).decode())
        except ValueError as error:
            raise PodSpecError(f"Secret {data['metadata']['name']}: {key} is not base64 text") from error
    return found


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace $(NAME); unknown names stay, $$(NAME) is literal.

    Source: Kubernetes, container command and args.
    """
    return _REFERENCE.sub(
        lambda m: m[0][1:] if m[1] else env.get(m[2], m[0]),
        text,
    )


def environment(pod: Mapping[str, Any], container: Mapping[str, Any], lookup: Lookup) -> dict[str, str]:
    """Return a container's environment.

    Raises:
        PodSpecError: it refers to something that is not there.
    """
    env = {"PATH": PATH, "HOSTNAME": str(pod["metadata"]["name"]), "HOME": "/root"}
    for source in container.get("envFrom") or ():
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if field in source:
                data = _data(lookup, kind, source[field])
                env.update({str(source.get("prefix", "")) + key: value for key, value in data.items()})
    for entry in container.get("env") or ():
        name, value_from = str(entry["name"]), entry.get("valueFrom")
        if not value_from:
            env[name] = expand(str(entry.get("value", "")), env)
        elif "fieldRef" in value_from:
            env[name] = _field(pod, str(value_from["fieldRef"]["fieldPath"]))
        else:
            field, kind = (
                ("configMapKeyRef", "ConfigMap")
                if "configMapKeyRef" in value_from
                else ("secretKeyRef", "Secret")
            )
            reference = value_from.get(field)
            if not reference:
                raise PodSpecError(f"env {name}: valueFrom {', '.join(value_from)} is not known in a lab")
            data = _data(lookup, kind, reference)
            if reference["key"] in data:
                env[name] = data[reference["key"]]
            elif not reference.get("optional"):
                raise PodSpecError(f"env {name}: {kind} {reference['name']} has no key {reference['key']}")
    return env


def _data(lookup: Lookup, kind: str, reference: Mapping[str, Any]) -> Data:
    data = lookup(kind, str(reference["name"]))
    if data is None:
        if reference.get("optional"):
            return {}
        raise PodSpecError(f"{kind} {reference['name']} does not exist")
    return data


def _field(pod: Mapping[str, Any], path: str) -> str:
    """Return a field for the downward API; PodSpecError: the lab does not have it."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    fields = {
        "metadata.name": metadata.get("name"),
        "metadata.namespace": metadata.get("namespace"),
        "metadata.uid": metadata.get("uid"),
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "status.hostIP": status.get("hostIP"),
        "status.podIP": status.get("podIP"),
        "status.podIPs": ",".join(entry["ip"] for entry in status.get("podIPs") or ()),
    }
    if path in fields:
        return str(fields[path] or "")
    for name in ("labels", "annotations"):
        prefix = f"metadata.{name}['"
        if path.startswith(prefix) and path.endswith("']"):
            return str((metadata.get(name) or {}).get(path[len(prefix) : -2], ""))
    raise PodSpecError(f"fieldRef {path} is not known in a lab")


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Content of one volume that is made of ConfigMaps or Secrets."""

    volume: str
    files: Mapping[str, str]
    mode: int


def volume_files(pod: Mapping[str, Any], lookup: Lookup) -> list[Files]:
    """Return what to write for a pod's ConfigMap and Secret volumes.

    Raises:
        PodSpecError: one refers to something that is not there.
    """
    found: list[Files] = []
    for volume in pod["spec"].get("volumes") or ():
        for field, kind, name_field in (
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
        ):
            source = volume.get(field)
            if source is None:
                continue
            reference = {"name": source[name_field], "optional": source.get("optional")}
            data = _data(lookup, kind, reference)
            items = source.get("items")
            files = (
                {str(i["path"]): data[i["key"]] for i in items if i["key"] in data} if items else dict(data)
            )
            found.append(
                Files(volume=str(volume["name"]), files=files, mode=int(source.get("defaultMode", 0o644)))
            )
    return found


def _mounts(pod: Mapping[str, Any], container: Mapping[str, Any], directory: Path) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"source": str(directory / "resolv.conf"), "target": "/etc/resolv.conf", "file": True},
        {"source": str(directory / "hosts"), "target": "/etc/hosts", "file": True},
        {"source": str(directory / "secrets"), "target": f"/run{TOKEN_DIR[8:]}", "read_only": True},
    ]
    volumes = {str(v["name"]): v for v in pod["spec"].get("volumes") or ()}
    for mount in container.get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        source = directory / "volumes" / str(mount["name"])
        if "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
        elif waypoint.is_token(volume):
            source = directory / "secrets"
        if mount.get("subPath"):
            source /= str(mount["subPath"])
        target = str(mount["mountPath"])
        mounts.append(
            {
                "source": str(source),
                "target": target,
                "file": source.is_file(),
                "read_only": bool(mount.get("readOnly")) or "configMap" in volume or "secret" in volume,
            }
        )
    return [{"file": False, "read_only": False} | mount for mount in mounts]


def container_spec(
    pod: Mapping[str, Any], container: Mapping[str, Any], layout: Layout, lookup: Lookup
) -> dict[str, Any]:
    """Return the specification of one container.

    Raises:
        PodSpecError: it refers to something that is not there, or has no command.
    """
    metadata = pod["metadata"]
    directory = layout.pod_dir(metadata["namespace"], metadata["name"])
    env = environment(pod, container, lookup)
    argv = [expand(a, env) for a in [*(container.get("command") or ()), *(container.get("args") or ())]]
    if not argv:
        raise PodSpecError(f"container {container['name']} has no command")
    context = {**(pod["spec"].get("securityContext") or {}), **(container.get("securityContext") or {})}
    uid = context.get("runAsUser")
    name = str(container["name"])
    specification = {
        "argv": argv,
        "env": env,
        "cwd": str(container.get("workingDir", "/")),
        "hostname": str(pod["spec"].get("hostname") or metadata["name"])[:63],
        "netns": f"/run/netns/{layout.pod_netns(metadata['namespace'], metadata['name'])}",
        "cgroup": str(layout.kubepods(pod["spec"]["nodeName"]) / metadata["uid"]),
        "uid": uid,
        "gid": context.get("runAsGroup", uid),
        "groups": [int(g) for g in [*(context.get("supplementalGroups") or ()), context.get("fsGroup")] if g],
        "capabilities": sorted(_capabilities(context)),
        "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
        "mounts": _mounts(pod, container, directory),
        "covered": ["/sys/fs/bpf", *([] if _below_run(layout.state) else [str(layout.state)])],
        "read_only": [],
        "pid_file": str(directory / f"{name}.pid"),
        "exit_file": str(directory / f"{name}.exit"),
    }
    return waypoint.adapted(pod, specification)


def _below_run(path: Path) -> bool:
    return path.is_relative_to("/run") or path.is_relative_to("/tmp")  # noqa: S108 - covered anyway


def _capabilities(context: Mapping[str, Any]) -> set[str]:
    wanted = context.get("capabilities") or {}
    names = {str(name).removeprefix("CAP_") for name in wanted.get("drop") or ()}
    kept = set() if "ALL" in names else set(DEFAULT_CAPABILITIES) - names
    return kept | {str(name).removeprefix("CAP_") for name in wanted.get("add") or ()} - {"ALL"}


def resolv_conf(pod: Mapping[str, Any]) -> str:
    """Return a pod's resolv.conf.

    Source: Kubernetes, DNS for services and pods (dnsPolicy, dnsConfig).
    """
    spec = pod["spec"]
    namespace = pod["metadata"]["namespace"]
    config = spec.get("dnsConfig") or {}
    servers: Sequence[str] = config.get("nameservers") or ()
    searches: Sequence[str] = config.get("searches") or ()
    options = {o["name"]: o.get("value") for o in config.get("options") or ()}
    if spec.get("dnsPolicy") != "None":
        servers = [DNS_IP, *servers]
        searches = [f"{namespace}.svc.{CLUSTER_DOMAIN}", f"svc.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN, *searches]
        options = {"ndots": "5", **options}
    lines = [f"nameserver {server}" for server in servers[:3]]
    if searches:
        lines.insert(0, "search " + " ".join(searches))
    if options:
        lines.append("options " + " ".join(k if v is None else f"{k}:{v}" for k, v in options.items()))
    return "\n".join(lines) + "\n"


def hosts(pod: Mapping[str, Any], addresses: Sequence[str], more: Sequence[str] = ()) -> str:
    """Return a pod's hosts file."""
    name = pod["spec"].get("hostname") or pod["metadata"]["name"]
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
    lines += [f"{address} {name}" for address in addresses]
    for alias in pod["spec"].get("hostAliases") or ():
        lines.append(f"{alias['ip']} {' '.join(alias['hostnames'])}")
    lines += more
    return "\n".join(lines) + "\n"
