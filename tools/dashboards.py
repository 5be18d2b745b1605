# SPDX-License-Identifier: Apache-2.0
"""Grafana dashboards and Prometheus rules as code: `python -m tools.dashboards [--check]`.

Writes daemonset/manifests/grafana: dashboards/*.json, rules.yaml and provisioning. Every
expression is run against a live lab by tests/netns/test_dashboards.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import yaml
from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.builders.common import VizLegendOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from tools.panels import PAIR, PAIR_LEGEND, RATE, Panel, rated
from tools.panels_http import MESH_HTTP, SERVICE_HTTP, WAYPOINT
from tools.rules import RULES

OUT = Path(__file__).resolve().parents[1] / "daemonset" / "manifests" / "grafana"
_NODE = 'node=~"$node"'
_FROM = 'reporter="source"'
MESH = (
    Panel(
        title="Connections opened",
        unit="cps",
        queries=((PAIR_LEGEND, rated("istio_tcp_connections_opened_total", PAIR, _FROM)),),
        about="By caller and service, as the caller's node sees them.",
    ),
    Panel(
        title="Bytes to servers",
        unit="Bps",
        queries=((PAIR_LEGEND, rated("istio_tcp_received_bytes_total", PAIR, _FROM)),),
    ),
    Panel(
        title="Bytes to clients",
        unit="Bps",
        queries=((PAIR_LEGEND, rated("istio_tcp_sent_bytes_total", PAIR, _FROM)),),
    ),
    Panel(
        title="Connections by security",
        unit="cps",
        queries=(
            (
                "{{connection_security_policy}}",
                rated("istio_tcp_connections_opened_total", "connection_security_policy", _FROM),
            ),
        ),
        about="unknown is plaintext: one side is not in the mesh.",
    ),
    Panel(
        title="How connections end",
        unit="cps",
        queries=(("{{reporter}}: {{reason}}", rated("ambit_connections_ended_total", "reporter, reason")),),
    ),
    Panel(
        title="Success of connections",
        unit="percentunit",
        queries=(
            (
                "closed in order",
                f'sum(rate(ambit_connections_ended_total{{reason="complete"}}[{RATE}]))'
                f" / sum(rate(ambit_connections_ended_total[{RATE}]))",
            ),
        ),
    ),
)
SERVICE = (
    Panel(
        title="Connections by caller",
        unit="cps",
        queries=(
            (
                "{{source_workload_namespace}}/{{source_workload}}",
                rated(
                    "istio_tcp_connections_opened_total",
                    "source_workload, source_workload_namespace",
                    f'{_FROM},destination_service=~"$service"',
                ),
            ),
        ),
    ),
    Panel(
        title="Connections by workload that serves them",
        unit="cps",
        queries=(
            (
                "{{destination_workload}}",
                rated(
                    "istio_tcp_connections_opened_total",
                    "destination_workload",
                    f'{_FROM},destination_service=~"$service"',
                ),
            ),
        ),
    ),
    Panel(
        title="Bytes",
        unit="Bps",
        queries=tuple(
            (
                legend,
                f'sum(rate({metric}{{{_FROM},destination_service=~"$service"}}[{RATE}]))',
            )
            for legend, metric in (
                ("to the service", "istio_tcp_received_bytes_total"),
                ("from the service", "istio_tcp_sent_bytes_total"),
            )
        ),
    ),
    Panel(
        title="Identities of callers",
        unit="cps",
        queries=(
            (
                "{{source_principal}}",
                rated(
                    "istio_tcp_connections_opened_total",
                    "source_principal",
                    f'{_FROM},destination_service=~"$service"',
                ),
            ),
        ),
    ),
)
NODE = (
    Panel(
        title="Pods",
        unit="short",
        queries=(("{{node}} {{state}}", f"sum by (node, state) (ambit_agent_pods{{{_NODE}}})"),),
        about="Enrolled, on their way in or out, and left alone.",
    ),
    Panel(
        title="Capture",
        unit="cps",
        queries=(
            (
                "{{node}} {{reason}}",
                rated(
                    "ambit_bpf_events_total",
                    "node, reason",
                    f'{_NODE},reason=~"captured|to_outbound|to_hbone|to_inbound|probe_passed|dns_redirected"',
                ),
            ),
        ),
        about="Connections that the BPF programs redirected, by where.",
    ),
    Panel(
        title="Refused by capture",
        unit="cps",
        queries=(
            (
                "{{node}} {{reason}}",
                rated(
                    "ambit_bpf_events_total",
                    "node, reason",
                    f'{_NODE},reason=~"no_.*|.*_quota|foreign_source|non_tcp_denied|listener_full"',
                ),
            ),
        ),
        about="Anything here was closed on purpose; the agent's /maps page explains each reason.",
    ),
    Panel(
        title="BPF maps",
        unit="percentunit",
        queries=(
            (
                "{{node}} {{map}}",
                f"ambit_bpf_map_entries{{{_NODE}}} / ambit_bpf_map_capacity{{{_NODE}}}",
            ),
        ),
    ),
    Panel(
        title="Connections opened",
        unit="cps",
        queries=(
            (
                "{{node}} {{reporter}}",
                rated("istio_tcp_connections_opened_total", "node, reporter", _NODE),
            ),
        ),
    ),
    Panel(
        title="Bytes through the tunnel",
        unit="Bps",
        queries=(
            ("{{node}} received", rated("istio_tcp_received_bytes_total", "node", _NODE)),
            ("{{node}} sent", rated("istio_tcp_sent_bytes_total", "node", _NODE)),
        ),
    ),
    Panel(
        title="TLS handshakes, 99th percentile",
        unit="s",
        queries=(
            (
                "{{node}}",
                "histogram_quantile(0.99, sum by (node, le) "
                f"(rate(ambit_tunnel_handshake_seconds_bucket{{{_NODE}}}[{RATE}])))",
            ),
        ),
    ),
    Panel(
        title="CPU",
        unit="short",
        queries=(("{{node}} {{job}}", rated("process_cpu_seconds_total", "node, job", _NODE)),),
        about="Cores, of ztunnel's supervisor and of the agent.",
    ),
    Panel(
        title="Memory",
        unit="bytes",
        queries=(("{{node}} {{job}}", f"sum by (node, job) (process_resident_memory_bytes{{{_NODE}}})"),),
    ),
    Panel(
        title="DNS",
        unit="reqps",
        queries=(
            (
                "{{node}} {{request_query_type}}",
                rated("istio_dns_requests_total", "node, request_query_type", _NODE),
            ),
        ),
    ),
)
CONTROL_PLANE = (
    Panel(title="Connected proxies", unit="short", queries=(("proxies", "sum(pilot_xds)"),)),
    Panel(
        title="Pushes",
        unit="cps",
        queries=(("{{type}}", rated("pilot_xds_pushes_total", "type")),),
    ),
    Panel(
        title="From a change to its last response, 99th percentile",
        unit="s",
        queries=(
            (
                "99 %",
                f"histogram_quantile(0.99, sum by (le) (rate(pilot_proxy_convergence_time_bucket[{RATE}])))",
            ),
        ),
    ),
    Panel(
        title="Age of each node's configuration",
        unit="s",
        queries=(("{{node}}", "max by (node) (ambit_config_sync_age_seconds)"),),
        about="0 while connected; grows when the controller cannot be reached.",
    ),
    Panel(title="Objects", unit="short", queries=(("{{kind}}", "sum by (kind) (ambit_objects)"),)),
    Panel(title="Resources served", unit="short", queries=(("{{type}}", "sum by (type) (ambit_resources)"),)),
    Panel(
        title="Problems in the configuration",
        unit="short",
        queries=(("{{severity}}", "sum by (severity) (ambit_config_problems)"),),
    ),
    Panel(
        title="Certificates issued",
        unit="cps",
        queries=(("issued", f"sum(rate(citadel_server_success_cert_issuance_count_total[{RATE}]))"),),
    ),
)
SECURITY = (
    Panel(
        title="Plaintext into the mesh",
        unit="cps",
        queries=(
            (
                "{{source_workload}} to {{destination_workload}}",
                rated(
                    "istio_tcp_connections_opened_total",
                    "source_workload, destination_workload",
                    'reporter="destination",connection_security_policy!="mutual_tls"',
                ),
            ),
        ),
        about="Who would be refused under STRICT.",
    ),
    Panel(
        title="Denied",
        unit="cps",
        queries=(
            (
                "{{reporter}}: {{reason}}",
                rated("ambit_connections_ended_total", "reporter, reason", 'reason=~"policy_.*|identity_.*"'),
            ),
        ),
    ),
    Panel(
        title="Time to the end of certificates",
        unit="s",
        queries=(
            ("{{node}}", "min by (node) (ambit_cert_expiry_timestamp_seconds - time())"),
            ("root", "min(citadel_server_root_cert_expiry_timestamp - time())"),
        ),
    ),
)
DASHBOARDS = {
    "mesh": ("Ambit: Mesh", (*MESH_HTTP, *MESH), ()),
    "service": ("Ambit: Service", (*SERVICE_HTTP, *SERVICE), (("service", "destination_service"),)),
    "node": ("Ambit: Node", NODE, (("node", "node"),)),
    "waypoint": ("Ambit: Waypoint", WAYPOINT, (("service", "destination_service"),)),
    "control-plane": ("Ambit: Control plane", CONTROL_PLANE, ()),
    "security": ("Ambit: Security", SECURITY, ()),
}
PROVISIONING = {
    "apiVersion": 1,
    "providers": [
        {
            "name": "ambit",
            "folder": "Ambit",
            "type": "file",
            "options": {"path": "/var/lib/grafana/dashboards/ambit"},
        }
    ],
}


def expressions() -> Iterator[tuple[str, str]]:
    """Yield (where, PromQL) of every panel and rule."""
    for name, (_, panels, _) in DASHBOARDS.items():
        for panel in panels:
            for _, expression in panel.queries:
                yield f"{name}: {panel.title}", expression
    for group in RULES["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule.get('record') or rule['alert']}", rule["expr"]


def _build(name: str) -> str:
    title, panels, variables = DASHBOARDS[name]
    made = (
        dashboard.Dashboard(title).uid(f"ambit-{name}").tags(["ambit"]).refresh("30s").time("now-1h", "now")
    )
    made = made.with_variable(
        dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus")
    )
    for variable, label in variables:
        metric = {"service": "istio_tcp_connections_opened_total", "waypoint": "istio_requests_total"}.get(
            name, "ambit_agent_pods"
        )
        made = made.with_variable(
            dashboard.QueryVariable(variable)
            .datasource(_datasource())
            .query(f"label_values({metric}, {label})")
            .multi(True)
            .include_all(True)
            .all_value(".*")
        )
    for panel in panels:
        graph = (
            timeseries.Panel()
            .title(panel.title)
            .description(panel.about)
            .unit(panel.unit)
            .datasource(_datasource())
            .span(12)
            .height(8)
            .legend(
                VizLegendOptions()
                .display_mode(LegendDisplayMode.TABLE)
                .placement(LegendPlacement.BOTTOM)
                .calcs(["mean", "max"])
            )
        )
        for legend, expression in panel.queries:
            graph = graph.with_target(prometheus.Dataquery().expr(expression).legend_format(legend))
        made = made.with_panel(graph)
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _datasource() -> DataSourceRef:
    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def outputs() -> dict[Path, str]:
    """Return every file and its text."""
    made = {OUT / "dashboards" / f"{name}.json": _build(name) for name in DASHBOARDS}
    made[OUT / "rules.yaml"] = "# SPDX-License-Identifier: Apache-2.0\n" + yaml.safe_dump(
        RULES, sort_keys=False
    )
    made[OUT / "provisioning" / "dashboards" / "ambit.yaml"] = (
        "# SPDX-License-Identifier: Apache-2.0\n" + yaml.safe_dump(PROVISIONING, sort_keys=False)
    )
    return made


def main(arguments: list[str]) -> int:
    """Write the files, or with --check say which differ."""
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text() != text]
    if "--check" in arguments:
        for path in stale:
            print(f"{path} is stale; run python -m tools.dashboards", file=sys.stderr)
        return 1 if stale else 0
    for path, text in outputs().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
