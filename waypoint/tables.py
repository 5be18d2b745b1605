# SPDX-License-Identifier: Apache-2.0
"""What a waypoint knows: the mesh's services, the routes to them and the policies that guard them.

No I/O and no clock. What cannot be decoded is refused by name; a policy among it closes what
it might have guarded, a route table among it keeps its last good version.
"""

from __future__ import annotations

from collections.abc import Mapping

from mesh.authz.http import HttpPolicies
from mesh.model.destination import DestinationPolicy
from mesh.model.http_policy import HttpAuthorization
from mesh.model.provider import Authoriser
from mesh.model.route import RouteTable
from mesh.model.service import Service
from mesh.model.stream import StreamTable
from mesh.model.telemetry import Observed, TelemetryPolicy, observe
from mesh.model.token import RequestAuthentication
from mesh.model.workload import GatewayAddress, NamespacedHostname, Workload
from mesh.state.store import StateUpdate, Store
from mesh.xds.decode import DecodeError
from mesh.xds.destinations import (
    DESTINATION_TYPE,
    ENDPOINT_LABELS_TYPE,
    decode_destination_policy,
    decode_endpoint_labels,
)
from mesh.xds.gateways import GATEWAY_TYPE, decode_gateway
from mesh.xds.http_policy import HTTP_AUTHORIZATION_TYPE, decode_http_authorization
from mesh.xds.providers import AUTHORISER_TYPE, decode_authoriser
from mesh.xds.request_authentication import (
    REQUEST_AUTHENTICATION_TYPE,
    decode_request_authentication,
)
from mesh.xds.resource import ADDRESS_TYPE, Rejection, Update
from mesh.xds.routes import ROUTE_TABLE_TYPE, decode_route_table
from mesh.xds.streams import STREAM_TABLE_TYPE, decode_stream_table
from mesh.xds.telemetry import TELEMETRY_TYPE, decode_telemetry
from mesh.xds.updates import decode_update
from waypoint.cluster.budget import Budget
from waypoint.filters.tokens import Authentication
from waypoint.routing.front import Front
from waypoint.routing.match import RouteMatcher

TYPES = (
    ADDRESS_TYPE,
    HTTP_AUTHORIZATION_TYPE,
    AUTHORISER_TYPE,
    REQUEST_AUTHENTICATION_TYPE,
    TELEMETRY_TYPE,
    ENDPOINT_LABELS_TYPE,
    DESTINATION_TYPE,
    ROUTE_TABLE_TYPE,
    STREAM_TABLE_TYPE,
    GATEWAY_TYPE,
)
"""Type URLs that a waypoint asks for."""
_Place = tuple[NamespacedHostname, int, str]
_NO_LABELS: Mapping[str, str] = {}


class Guard:
    """The policies in force for one destination."""

    __slots__ = ("policies", "unusable")

    def __init__(self, policies: HttpPolicies, unusable: str) -> None:
        self.policies = policies
        self.unusable = unusable
        """Why no verdict can be given (a policy could not be decoded); empty: none."""


class Tables:
    """The whole state of a waypoint; one writer (`apply`), any number of readers on the same loop."""

    def __init__(
        self, *, namespace: str, gateway: str, network: str, root_namespace: str, ingress: bool = False
    ) -> None:
        """Build empty tables of the Gateway `namespace/gateway`, a waypoint or an ingress gateway."""
        self.front: Front | None = None
        """What an ingress gateway serves; None: it is not known yet, or this is a waypoint."""
        self._ingress = ingress
        self.store = Store(network=network, root_namespace=root_namespace)
        self.namespace = namespace
        self.gateway = f"{namespace}/{gateway}"
        self._root = root_namespace
        self._places: dict[str, _Place] = {}
        self._matchers: dict[_Place, RouteMatcher] = {}
        self._budgets: dict[_Place, Budget] = {}
        self._streams: dict[_Place, StreamTable] = {}
        self._stream_places: dict[str, _Place] = {}
        self._destinations: dict[tuple[NamespacedHostname, str], DestinationPolicy] = {}
        self._destination_names: dict[str, tuple[NamespacedHostname, str]] = {}
        self._labels: dict[str, Mapping[str, str]] = {}
        self._touched: set[NamespacedHostname] = set()
        self._policies: dict[str, HttpAuthorization] = {}
        self._broken: dict[str, str] = {}
        self._authentications: dict[str, RequestAuthentication] = {}
        self._broken_authentications: dict[str, str] = {}
        self._authentications_of: dict[NamespacedHostname | None, Authentication | None] = {}
        self._providers: dict[str, Authoriser] = {}
        self._telemetry: dict[str, TelemetryPolicy] = {}
        self._observed: dict[NamespacedHostname | None, Observed] = {}
        self._guards: dict[NamespacedHostname | None, Guard] = {}

    # --- writes

    def apply(self, update: Update) -> tuple[Rejection, ...]:
        """Take over one response of one type; return what was not taken, and why."""
        if update.type_url == ADDRESS_TYPE:
            state, rejections = decode_update(update)
            self._touch_members(state)
            self.store.apply(state)
            return rejections
        self._guards.clear()
        self._authentications_of.clear()
        self._observed.clear()
        take, drop = {
            HTTP_AUTHORIZATION_TYPE: (self._take_policy, self._drop_policy),
            ROUTE_TABLE_TYPE: (self._take_routes, self._drop_routes),
            STREAM_TABLE_TYPE: (self._take_stream, self._drop_stream),
            AUTHORISER_TYPE: (self._take_provider, self._drop_provider),
            TELEMETRY_TYPE: (self._take_telemetry, self._drop_telemetry),
            REQUEST_AUTHENTICATION_TYPE: (self._take_authentication, self._drop_authentication),
            DESTINATION_TYPE: (self._take_destination, self._drop_destination),
            ENDPOINT_LABELS_TYPE: (self._take_labels, self._drop_labels),
            GATEWAY_TYPE: (self._take_gateway, self._drop_gateway),
        }[update.type_url]
        rejected = []
        for name in update.removed:
            drop(name)
        for resource in update.upserted:
            try:
                take(resource.name, resource.value)
            except (DecodeError, ValueError) as error:
                rejected.append(Rejection(resource.name, str(error)))
                if update.type_url == HTTP_AUTHORIZATION_TYPE and resource.name not in self._policies:
                    self._broken[resource.name] = str(error)
                if update.type_url == REQUEST_AUTHENTICATION_TYPE:
                    self._broken_authentications.setdefault(resource.name, str(error))
        return tuple(rejected)

    def _touch_members(self, state: StateUpdate) -> None:
        """Note the services whose endpoints an update may change; call it before the update is applied."""
        for workload in state.workloads:
            self._touch_services_of(workload.uid)
            self._touched.update(workload.services)
        self._touched.update(service.key for service in state.services)
        for name in state.removed_addresses:
            self._touch_services_of(name)
            if name.count("/") == 1:
                namespace, _, hostname = name.partition("/")
                self._touched.add(NamespacedHostname(namespace=namespace, hostname=hostname))

    def _touch_services_of(self, uid: str) -> None:
        known = self.store.workloads.get(uid)
        if known is not None:
            self._touched.update(known.services)

    def take_touched(self) -> frozenset[NamespacedHostname]:
        """Return the services whose endpoints or policies may have changed since the last call."""
        touched = frozenset(self._touched)
        self._touched.clear()
        return touched

    def _take_gateway(self, name: str, value: bytes) -> None:
        if self._ingress and name == self.gateway:
            self.front = Front(decode_gateway(value))

    def _drop_gateway(self, name: str) -> None:
        if name == self.gateway:
            self.front = None

    def _take_policy(self, name: str, value: bytes) -> None:
        self._policies[name] = decode_http_authorization(value)
        self._broken.pop(name, None)

    def _drop_policy(self, name: str) -> None:
        self._broken.pop(name, None)
        self._policies.pop(name, None)

    def _take_routes(self, name: str, value: bytes) -> None:
        table = decode_route_table(value)
        matcher = RouteMatcher(table)
        place = (table.service, table.port, table.client_namespace)
        budget = self._budgets.get(place)
        self._drop_routes(name)
        self._places[name] = place
        self._matchers[place] = matcher
        if table.retry_budget is not None:
            # One that stays the same keeps what it has counted.
            same = budget is not None and budget.policy == table.retry_budget
            self._budgets[place] = budget if same and budget is not None else Budget(table.retry_budget)

    def _drop_routes(self, name: str) -> None:
        place = self._places.pop(name, None)
        if place is not None:
            self._matchers.pop(place, None)
            self._budgets.pop(place, None)

    def _take_stream(self, name: str, value: bytes) -> None:
        table = decode_stream_table(value)
        self._drop_stream(name)
        place = (table.service, table.port, table.client_namespace)
        self._stream_places[name] = place
        self._streams[place] = table

    def _drop_stream(self, name: str) -> None:
        place = self._stream_places.pop(name, None)
        if place is not None:
            self._streams.pop(place, None)

    def _take_destination(self, name: str, value: bytes) -> None:
        policy = decode_destination_policy(value)
        self._drop_destination(name)
        place = (policy.service, policy.client_namespace)
        self._destination_names[name] = place
        self._destinations[place] = policy
        self._touched.add(policy.service)

    def _drop_destination(self, name: str) -> None:
        place = self._destination_names.pop(name, None)
        if place is not None:
            self._destinations.pop(place, None)
            self._touched.add(place[0])

    def _take_labels(self, name: str, value: bytes) -> None:
        self._labels[name] = dict(decode_endpoint_labels(value).labels)
        self._touch_services_of(name)

    def _drop_labels(self, name: str) -> None:
        self._labels.pop(name, None)
        self._touch_services_of(name)

    def _take_provider(self, name: str, value: bytes) -> None:
        self._providers[name] = decode_authoriser(value)

    def _take_authentication(self, name: str, value: bytes) -> None:
        self._authentications[name] = decode_request_authentication(value)
        self._broken_authentications.pop(name, None)

    def _drop_authentication(self, name: str) -> None:
        self._authentications.pop(name, None)
        self._broken_authentications.pop(name, None)

    def _drop_provider(self, name: str) -> None:
        self._providers.pop(name, None)

    def _take_telemetry(self, name: str, value: bytes) -> None:
        self._telemetry[name] = decode_telemetry(value)

    def _drop_telemetry(self, name: str) -> None:
        self._telemetry.pop(name, None)

    # --- reads

    def provider(self, name: str) -> Authoriser | None:
        """Find an external authoriser by the name that policies use."""
        return self._providers.get(name)

    def routes(self, service: NamespacedHostname, port: int, client_namespace: str) -> RouteMatcher | None:
        """Find the routes of a service port, those for clients of one namespace first; None: it has none."""
        matchers = self._matchers
        if not matchers:
            return None
        for scope in (client_namespace, "") if client_namespace else ("",):
            found = matchers.get((service, port, scope)) or matchers.get((service, 0, scope))
            if found is not None:
                return found
        return None

    def stream(self, service: NamespacedHostname, port: int, client_namespace: str) -> StreamTable | None:
        """Find who shares the connections to a service port that are not HTTP; None: the service alone."""
        if not self._streams:
            return None
        for scope in (client_namespace, "") if client_namespace else ("",):
            for number in (port, 0):
                if (service, number, scope) in self._streams:
                    return self._streams[service, number, scope]
        return None

    def route_budget(self, service: NamespacedHostname, port: int, client_namespace: str) -> Budget | None:
        """Find the retry budget of the routes of a service port; None: they have none."""
        if not self._budgets:
            return None
        for scope in (client_namespace, "") if client_namespace else ("",):
            for number in (port, 0):
                if (service, number, scope) in self._matchers:
                    return self._budgets.get((service, number, scope))
        return None

    def destination(self, service: NamespacedHostname) -> DestinationPolicy | None:
        """Find the policy of a service, that for this waypoint's namespace first; None: it has none."""
        own = self._destinations.get((service, self.namespace))
        return own if own is not None else self._destinations.get((service, ""))

    def labels(self, uid: str) -> Mapping[str, str]:
        """Return the labels of a workload that some policy asks for."""
        return self._labels.get(uid, _NO_LABELS)

    def guard(self, service: NamespacedHostname | None) -> Guard:
        """Find the policies for a service, or (None) for what is addressed without one."""
        known = self._guards.get(service)
        if known is None:
            broken = [
                f"policy {name} cannot be read: {why}" for name, why in self._near(self._broken, service)
            ]
            policies = [p for p in self._policies.values() if self._applies(p, service)]
            known = self._guards[service] = Guard(HttpPolicies(policies), "; ".join(broken))
        return known

    def authentication(self, service: NamespacedHostname | None) -> Authentication | None:
        """Find the token rules for a service, or (None) for what is addressed without one."""
        if not self._authentications and not self._broken_authentications:
            return None
        if service not in self._authentications_of:
            self._authentications_of[service] = self._authentication(service)
        return self._authentications_of[service]

    def _authentication(self, service: NamespacedHostname | None) -> Authentication | None:
        found = [a for _, a in sorted(self._authentications.items()) if self._applies(a, service)]
        broken = self._near(self._broken_authentications, service)
        problems = [f"RequestAuthentication {name} cannot be read: {why}" for name, why in broken]
        problems += [f"RequestAuthentication {a.key}: {a.problem}" for a in found if a.problem]
        if not found and not problems:
            return None
        return Authentication(
            rules=tuple(rule for authentication in found for rule in authentication.rules),
            problem="; ".join(problems),
            names=tuple(authentication.key for authentication in found),
        )

    def observed(self, service: NamespacedHostname | None) -> Observed:
        """Return what is traced, logged and counted of a service, or (None) of what has none."""
        known = self._observed.get(service)
        if known is None:
            policies = self._telemetry.values()
            known = observe(policies, gateway=self.gateway, service=service, root=self._root)
            self._observed[service] = known
        return known

    def _near(self, broken: Mapping[str, str], service: NamespacedHostname | None) -> list[tuple[str, str]]:
        """Return those broken objects that might be for a service: of its namespace, ours, or the root."""
        near = {self.namespace, self._root, *([service.namespace] if service is not None else ())}
        return [(name, why) for name, why in broken.items() if name.partition("/")[0] in near]

    def _applies(
        self, policy: HttpAuthorization | RequestAuthentication, service: NamespacedHostname | None
    ) -> bool:
        if service is not None and service in policy.services:
            return True
        return self.gateway in policy.waypoints or ("*" in policy.waypoints and not self._ingress)

    def serves(self, target: Service | Workload) -> bool:
        """Whether a service or workload names this waypoint as its own, its canary included.

        The Gateway decides, not this pod's place behind it: a pod that ends serves to the last.
        """
        if target.waypoint is not None and self._is_ours(target.waypoint):
            return True
        return isinstance(target, Service) and any(
            self._is_ours(weighted.destination) for weighted in target.weighted_waypoints
        )

    def waypoint_of(self, service: Service) -> Service | None:
        """Find the Service of a service's waypoint."""
        if service.waypoint is None:
            return None
        destination = service.waypoint.destination
        if isinstance(destination, NamespacedHostname):
            return self.store.services.get(destination)
        return self.store.find_service(destination.address, self.namespace)

    def _is_ours(self, waypoint: GatewayAddress) -> bool:
        destination = waypoint.destination
        if isinstance(destination, NamespacedHostname):
            name = destination.hostname.partition(".")[0]
            return f"{destination.namespace}/{name}" == self.gateway
        service = self.store.find_service(destination.address, self.namespace)
        return service is not None and f"{service.namespace}/{service.name}" == self.gateway

    def tables(self) -> list[RouteTable]:
        """List the routes in force, for the admin port."""
        return [matcher.table for matcher in self._matchers.values()]

    def destinations(self) -> list[DestinationPolicy]:
        """List the destination policies in force, for the admin port."""
        return list(self._destinations.values())

    def policies(self) -> list[HttpAuthorization]:
        """List the policies in force, for the admin port."""
        return list(self._policies.values())

    def telemetry(self) -> list[TelemetryPolicy]:
        """List what is said of traces, logs and metrics, for the admin port."""
        return list(self._telemetry.values())

    @property
    def broken(self) -> dict[str, str]:
        """Policies that could not be decoded, and why."""
        return dict(self._broken)

    def service(self, key: NamespacedHostname) -> Service | None:
        """Find a service by its key."""
        return self.store.services.get(key)
