# SPDX-License-Identifier: Apache-2.0
"""PeerAuthentication to DENY policies on peers without an identity, listed on workloads.

Effective modes are decided per workload, so that a more specific one can relax a wider one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controller.translate.fields import MAX_PORT, Fields, IllTypedError, age, selects, spec
from controller.translate.world import ISTIO_SECURITY, World
from mesh.config.objects import RawObject
from mesh.model.policy import Action, Authorization, Clause, Match, Scope, StringMatch, StringMatchKind

STATIC_STRICT = "istio_converted_static_strict"
CONVERTED_PREFIX = "converted_peer_authentication_"
NO_IDENTITY: Clause = (Match(not_principals=(StringMatch(kind=StringMatchKind.PRESENCE),)),)
"""Holds for a peer that has not proven who it is."""
_UNSET, _STRICT, _PERMISSIVE = "UNSET", "STRICT", "PERMISSIVE"
_MODES = (_UNSET, "DISABLE", _PERMISSIVE, _STRICT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Peer:
    namespace: str
    name: str
    selector: Mapping[str, str]
    mode: str
    ports: Mapping[int, str]
    unreadable: bool = False


class PeerModes:
    """The PeerAuthentications in force, by whom they are for; oldest first."""

    def __init__(self, world: World) -> None:
        self._root = world.options.root_namespace
        self._wide: dict[str, _Peer] = {}
        self._selecting: dict[str, list[_Peer]] = {}
        for obj in sorted(world.all(ISTIO_SECURITY, "PeerAuthentication"), key=age):
            try:
                peer = _read(obj, world)
            except IllTypedError as error:
                world.report(obj, error, "it is taken for STRICT until it can be read")
                peer = _unreadable(obj)
            if not peer.selector:
                # The oldest counts, but what cannot be read closes whatever its age.
                known = self._wide.setdefault(peer.namespace, peer)
                if peer.unreadable and not known.unreadable:
                    self._wide[peer.namespace] = peer
            elif peer.namespace != self._root:
                self._selecting.setdefault(peer.namespace, []).append(peer)

    def policy_for(self, namespace: str, labels: Mapping[str, str]) -> Authorization | None:
        """Return the policy that a workload has to list, if plaintext is refused on any port."""
        parent = _PERMISSIVE
        for scope in (self._root, namespace):
            wide = self._wide.get(scope)
            if wide is not None and wide.mode != _UNSET:
                parent = wide.mode
        for peer in self._selecting.get(namespace, []):
            if selects(peer.selector, labels):
                return self._converted(peer, parent)
        return self._static() if parent == _STRICT else None

    def _static(self) -> Authorization:
        return Authorization(
            name=STATIC_STRICT,
            namespace=self._root,
            scope=Scope.WORKLOAD_SELECTOR,
            action=Action.DENY,
            rules=((NO_IDENTITY,),),
        )

    def _converted(self, peer: _Peer, parent: str) -> Authorization | None:
        mode = parent if peer.mode == _UNSET else peer.mode
        others = sorted(port for port, own in peer.ports.items() if own not in (_UNSET, mode))
        if not others:
            return self._static() if mode == _STRICT else None
        # Ports that differ from the rest: excepted when that is strict, else the only strict ones.
        match = (
            Match(not_destination_ports=tuple(others))
            if mode == _STRICT
            else Match(destination_ports=tuple(others))
        )
        return Authorization(
            name=CONVERTED_PREFIX + peer.name,
            namespace=peer.namespace,
            scope=Scope.WORKLOAD_SELECTOR,
            action=Action.DENY,
            rules=((NO_IDENTITY, (match,)),),
        )


def _read(obj: RawObject, world: World) -> _Peer:
    fields = spec(obj, world.problems)
    selector = fields.child("selector")
    labels = selector.string_map("matchLabels")
    selector.finish()
    mode = _mode(fields.child("mtls"))
    ports = {}
    levels = fields.child("portLevelMtls")
    for key in levels.names():
        text = str(key)
        if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= MAX_PORT):
            raise levels.wrong(text, "is no port")
        ports[int(text)] = _mode(levels.child(key))
    fields.finish()
    if ports and not labels:
        fields.report("portLevelMtls", "has no effect without a selector")
        ports = {}
    if labels and obj.namespace == world.options.root_namespace:
        fields.report("selector", "a PeerAuthentication with a selector has no effect in the root namespace")
    return _Peer(namespace=obj.namespace, name=obj.name, selector=labels, mode=mode, ports=ports)


def _unreadable(obj: RawObject) -> _Peer:
    """Stand in for an object whose meaning is not clear: STRICT for whom it selects, if that can be read."""
    selector = obj.spec.get("selector")
    labels = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    readable = isinstance(labels, Mapping) and all(isinstance(value, str) for value in labels.values())
    return _Peer(
        namespace=obj.namespace,
        name=obj.name,
        selector={str(key): str(value) for key, value in labels.items()} if readable and labels else {},
        mode=_STRICT,
        ports={},
        unreadable=True,
    )


def _mode(fields: Fields) -> str:
    mode = fields.choice("mode", _MODES, _UNSET)
    fields.finish()
    if mode == "DISABLE":
        fields.report("mode", "DISABLE is taken for PERMISSIVE: captured pods always use mTLS")
        return _PERMISSIVE
    return mode
