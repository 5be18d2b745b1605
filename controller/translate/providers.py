# SPDX-License-Identifier: Apache-2.0
"""MeshConfig's extensionProviders to the authorisers that CUSTOM policies name.

Read from ConfigMap `istio` of the root namespace, key `mesh`, as Istio keeps it. A provider
that cannot be read is left out: policies that name it deny.
Source: istio.mesh.v1alpha1.MeshConfig.ExtensionProvider.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from controller.translate.fields import MAX_PORT, Fields, IllTypedError
from controller.translate.hosts import Hosts, resolve_host
from controller.translate.types import problem
from controller.translate.world import World
from mesh.model.provider import Authoriser, AuthoriserProtocol
from mesh.model.service import Service
from mesh.model.workload import NamespacedHostname

CONFIG_MAP = "istio"
KEY = "mesh"
DEFAULT_TIMEOUT_S = 600.0
_KINDS = {
    "envoyExtAuthzGrpc": AuthoriserProtocol.GRPC,
    "envoyExtAuthzHttp": AuthoriserProtocol.HTTP,
}
_CONSEQUENCE = "the provider is left out, so that policies that name it deny"


def translate_providers(
    world: World, services: Mapping[NamespacedHostname, Service]
) -> dict[str, Authoriser]:
    """Return the authorisers by name."""
    config = read_mesh_config(world)
    return {} if config is None else _read(world, config, Hosts(services))


def read_mesh_config(world: World) -> Fields | None:
    """Return the mesh's configuration; None: there is none that can be read."""
    obj = world.get("", "ConfigMap", world.options.root_namespace, CONFIG_MAP)
    if obj is None:
        return None
    data = obj.data.get("data")
    text = data.get(KEY, "") if isinstance(data, Mapping) else ""
    path = ("data", KEY)
    try:
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        world.problems.append(problem(obj, path, f"no YAML: {str(error).splitlines()[0]}", "error"))
        return None
    if not isinstance(config, Mapping):
        world.problems.append(problem(obj, path, "no mapping of MeshConfig's fields", "error"))
        return None
    return Fields(obj, world.problems, config, path)


def _read(world: World, mesh: Fields, hosts: Hosts) -> dict[str, Authoriser]:
    obj = mesh.obj
    found: dict[str, Authoriser] = {}
    try:
        entries = mesh.children("extensionProviders")
    except IllTypedError as error:
        world.report(obj, error, "no provider is known, so that CUSTOM policies deny")
        return {}
    for entry in entries:
        try:
            name = entry.text("name")
            kind = next((kind for kind in _KINDS if entry.has(kind)), None)
            if kind is None:
                continue  # Tracers and access logs: not asked about requests.
            found[name] = _authoriser(world, name, _KINDS[kind], entry.child(kind), hosts)
        except IllTypedError as error:
            world.report(obj, error, _CONSEQUENCE)
    return found


def _authoriser(
    world: World, name: str, protocol: AuthoriserProtocol, fields: Fields, hosts: Hosts
) -> Authoriser:
    service = find_service(world, fields, hosts)
    port = read_port(fields)
    if fields.has("includeRequestBodyInCheck"):
        raise fields.wrong("includeRequestBodyInCheck", "is not supported: bodies are never sent")
    authoriser = Authoriser(
        name=name,
        service=service,
        port=port,
        protocol=protocol,
        timeout_s=_seconds(fields),
        fail_open=fields.boolean("failOpen"),
        status_on_error=_status(fields),
        path_prefix=fields.text("pathPrefix"),
        request_headers=_names(
            (*fields.strings("includeHeadersInCheck"), *fields.strings("includeRequestHeadersInCheck"))
        ),
        additional_headers=tuple(
            (n.lower(), v) for n, v in fields.string_map("includeAdditionalHeadersInCheck").items()
        ),
        upstream_headers=_names(fields.strings("headersToUpstreamOnAllow")),
        denied_headers=_names(fields.strings("headersToDownstreamOnDeny")),
        allowed_headers=_names(fields.strings("headersToDownstreamOnAllow")),
    )
    fields.finish()
    return authoriser


def find_service(world: World, fields: Fields, hosts: Hosts) -> NamespacedHostname:
    """Return what a provider's `service` (`[namespace/]host`) means.

    Raises:
        IllTypedError: there is no such service.
    """
    reference = fields.text("service")
    namespace, _, host = reference.rpartition("/")
    host = resolve_host(host, namespace or world.options.root_namespace, world.options.cluster_domain)
    service = hosts.find(host, namespace or world.options.root_namespace)
    if service is None:
        raise fields.wrong("service", f"service {reference or '(none)'} is not known")
    return service.key


def read_port(fields: Fields) -> int:
    """Return a provider's `port`.

    Raises:
        IllTypedError: it is no port number.
    """
    # Istio's own examples write it as a string, which protobuf's JSON takes for a number.
    value = fields.number_or_name("port")
    text = str(value) if value is not None else ""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_PORT):
        raise fields.wrong("port", f"{text or '(none)'} is no port number")
    return int(text)


def _seconds(fields: Fields) -> float:
    found = fields.duration("timeout")
    return DEFAULT_TIMEOUT_S if found is None or found <= 0 else found


def _status(fields: Fields) -> int:
    text = fields.text("statusOnError", "403")
    if not (text.isascii() and text.isdigit() and 100 <= int(text) <= 599):
        raise fields.wrong("statusOnError", f"{text!r} is no HTTP status")
    return int(text)


def _names(values: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(value).lower() for value in values)
