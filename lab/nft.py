# SPDX-License-Identifier: Apache-2.0
"""Kernel services of a node, for pods outside the mesh: ClusterIPs to ready endpoints, as text for nft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.layout import POD_RANGE, POD_RANGE6, SERVICE_NET, SERVICE_NET6

TABLE = "ambit_services"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """One port of one ClusterIP and where it leads."""

    vip: str
    port: int
    protocol: str
    """`tcp` or `udp`."""
    endpoints: tuple[tuple[str, int], ...]
    """Ready ones, of the family of `vip`; none: connections are refused."""


def ruleset(forwards: Sequence[Forward]) -> str:
    """Return the whole table; `nft -f` replaces the old one in a transaction."""
    nat: list[str] = []
    reject: list[str] = []
    own: dict[str, set[str]] = {"ip": set(), "ip6": set()}
    for item in sorted(forwards, key=lambda f: (f.vip, f.protocol, f.port)):
        family = "ip6" if ":" in item.vip else "ip"
        match = f"{family} daddr {item.vip} {item.protocol} dport {item.port}"
        if not item.endpoints:
            verdict = "reject with tcp reset" if item.protocol == "tcp" else "reject"
            reject.append(f"    {match} {verdict}")
            continue
        own[family].update(f"{address} . {address}" for address, _ in item.endpoints)
        nat.append(f"    {match} {_target(family, item.endpoints)}")
    # A ClusterIP's other ports are nobody's: without this they would run round the fabric.
    reject.append(f"    ip daddr {SERVICE_NET}.0.0/16 fib daddr type != local reject")
    reject.append(f"    ip6 daddr {SERVICE_NET6}/112 fib daddr type != local reject")
    hairpin = [
        f"    ct status dnat {family} saddr . {family} daddr {{ {', '.join(sorted(pairs))} }} masquerade"
        for family, pairs in own.items()
        if pairs
    ]
    return "\n".join(
        [
            f"table inet {TABLE} {{}}",
            f"delete table inet {TABLE}",
            f"table inet {TABLE} {{",
            "  chain services {",
            *nat,
            "  }",
            "  chain prerouting { type nat hook prerouting priority -100; jump services; }",
            "  chain output { type nat hook output priority -100; jump services; }",
            "  chain unserved {",
            *reject,
            "  }",
            "  chain forward { type filter hook forward priority 0; jump unserved; }",
            "  chain filter_output { type filter hook output priority 0; jump unserved; }",
            "  chain postrouting {",
            "    type nat hook postrouting priority 100;",
            *hairpin,
            f'    oifname "up0" ip saddr {POD_RANGE} masquerade',
            f'    oifname "up0" ip6 saddr {POD_RANGE6} masquerade',
            "  }",
            "}",
            "",
        ]
    )


def _target(family: str, endpoints: tuple[tuple[str, int], ...]) -> str:
    if len(endpoints) == 1:
        address, port = endpoints[0]
        host = f"[{address}]" if family == "ip6" else address
        return f"dnat {family} to {host}:{port}"
    entries = ", ".join(f"{n} : {address} . {port}" for n, (address, port) in enumerate(endpoints))
    return f"dnat {family} to numgen random mod {len(endpoints)} map {{ {entries} }}"
