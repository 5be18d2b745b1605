# SPDX-License-Identifier: Apache-2.0
"""xDS resources of addresses and L4 policies to store updates, alike for every proxy.

A resource that cannot be decoded is named with its reason; a policy among them is also
reported to the store as broken, so that what it might have denied is closed, not open.
"""

from __future__ import annotations

from mesh.model.policy import Authorization
from mesh.model.service import Service
from mesh.model.workload import Workload
from mesh.state.store import StateUpdate
from mesh.xds.decode import DecodeError, decode_address, decode_authorization
from mesh.xds.resource import ADDRESS_TYPE, AUTHORIZATION_TYPE, Rejection, Update


def decode_update(update: Update) -> tuple[StateUpdate, tuple[Rejection, ...]]:
    """Decode one response of these two types; others give an empty update."""
    if update.type_url == ADDRESS_TYPE:
        return _addresses(update)
    if update.type_url == AUTHORIZATION_TYPE:
        return _policies(update)
    return StateUpdate(), ()


def _addresses(update: Update) -> tuple[StateUpdate, tuple[Rejection, ...]]:
    workloads: list[Workload] = []
    services: list[Service] = []
    rejected: list[Rejection] = []
    for resource in update.upserted:
        try:
            value = decode_address(resource.value, resource.name)
        except DecodeError as error:
            rejected.append(Rejection(resource.name, error.reason))
            continue
        if isinstance(value, Workload):
            workloads.append(value)
        else:
            services.append(value)
    state = StateUpdate(
        workloads=tuple(workloads), services=tuple(services), removed_addresses=update.removed
    )
    return state, tuple(rejected)


def _policies(update: Update) -> tuple[StateUpdate, tuple[Rejection, ...]]:
    policies: list[Authorization] = []
    rejected: list[Rejection] = []
    for resource in update.upserted:
        try:
            policies.append(decode_authorization(resource.value, resource.name))
        except DecodeError as error:
            rejected.append(Rejection(resource.name, error.reason))
    state = StateUpdate(
        policies=tuple(policies),
        removed_policies=update.removed,
        broken_policies={rejection.name: rejection.reason for rejection in rejected},
    )
    return state, tuple(rejected)
