# SPDX-License-Identifier: Apache-2.0
"""Lookup tables of the store: virtual addresses, address ranges, hostnames, endpoints.

Each index maps one kind of key to the names that claim it, in the order in which
they came; who wins among several is the store's decision, not the index's.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from mesh.model.address import IPAddress, IPNetwork
from mesh.model.workload import NamespacedHostname

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=Hashable)


class MultiIndex(Generic[K, V]):
    """Key -> the values that claim it, oldest first; an empty key is dropped."""

    def __init__(self) -> None:
        self._values: dict[K, dict[V, None]] = {}

    def add(self, key: K, value: V) -> None:
        """Let `value` claim `key`; a second claim changes nothing."""
        self._values.setdefault(key, {})[value] = None

    def remove(self, key: K, value: V) -> None:
        """Take the claim back; absent claims are no error."""
        values = self._values.get(key)
        if values is None:
            return
        values.pop(value, None)
        if not values:
            del self._values[key]

    def get(self, key: K) -> tuple[V, ...]:
        """Return who claims `key`, possibly nobody."""
        return tuple(self._values.get(key, ()))

    def __len__(self) -> int:
        return len(self._values)


class RangeIndex:
    """Address ranges by longest prefix; a lookup costs one probe per prefix length in use."""

    def __init__(self) -> None:
        self._by_length: dict[tuple[str, int, int], MultiIndex[int, NamespacedHostname]] = {}

    def add(self, network: str, cidr: IPNetwork, key: NamespacedHostname) -> None:
        """Let `key` claim every address of `cidr` in `network`."""
        slot = (network, cidr.version, cidr.prefixlen)
        self._by_length.setdefault(slot, MultiIndex()).add(int(cidr.network_address), key)

    def remove(self, network: str, cidr: IPNetwork, key: NamespacedHostname) -> None:
        """Take the claim back; absent claims are no error."""
        slot = (network, cidr.version, cidr.prefixlen)
        index = self._by_length.get(slot)
        if index is None:
            return
        index.remove(int(cidr.network_address), key)
        if not len(index):
            del self._by_length[slot]

    def find(self, network: str, address: IPAddress) -> Iterator[tuple[NamespacedHostname, ...]]:
        """Yield the claimants of the ranges around `address`, the longest prefix first."""
        value, bits = int(address), address.max_prefixlen
        lengths = sorted(
            (
                length
                for net, version, length in self._by_length
                if (net, version) == (network, address.version)
            ),
            reverse=True,
        )
        for length in lengths:
            mask = ((1 << length) - 1) << (bits - length)
            claimants = self._by_length[network, address.version, length].get(value & mask)
            if claimants:
                yield claimants
