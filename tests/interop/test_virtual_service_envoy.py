# SPDX-License-Identifier: Apache-2.0
"""VirtualServices against a real Envoy: the same requests matched, rewritten, redirected alike.

Envoy gets what istiod makes of the http routes (pilot/pkg/networking/core/route/route.go
TranslateRoute, written anew here from the YAML), we what our translator makes of them. The
VirtualServices are drawn from small pools, always the same ones.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from controller.translate.types import Options
from controller.translate.virtual_service import translate_virtual_services
from controller.translate.world import World
from mesh.config.objects import make_object
from tests.support.dialects import REVIEWS, SERVICES
from tests.support.envoy import Config, envoy
from waypoint.http.message import Framing, RequestHead
from waypoint.routing.match import RouteMatcher
from waypoint.routing.plan import Forward, plan_request

CASES = 150
REQUESTS = 14
SEEN = ("x-t", "x-u")
Draw = random.Random
Asked = tuple[str, str, tuple[tuple[str, str], ...]]
"""Method, path with query, headers."""


# --- drawing


def text_match(draw: Draw) -> dict[str, Any]:
    return draw.choice(
        [
            {"exact": "1"},
            {"exact": "aa"},
            {"prefix": "1"},
            {"regex": "1.*"},
            {"regex": ".*"},
            {"regex": "[a1]+"},
            {"regex": "*"},
            {},
        ]
    )


def path_match(draw: Draw) -> dict[str, Any]:
    return draw.choice(
        [
            {"exact": "/a"},
            {"exact": "/A/b"},
            {"exact": "/"},
            {"prefix": "/a"},
            {"prefix": "/a/"},
            {"prefix": "/A"},
            {"prefix": "/"},
            {"regex": "/a.*"},
            {"regex": "/[ab]/[^/]+"},
            {"regex": "/A/(b|c)"},
        ]
    )


def match(draw: Draw) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if draw.random() < 0.8:
        made["uri"] = path_match(draw)
        if draw.random() < 0.3:
            made["ignoreUriCase"] = True
    if draw.random() < 0.2:
        made["method"] = draw.choice([{"exact": "POST"}, {"regex": "GET|PUT"}, {"prefix": "P"}])
    if draw.random() < 0.3:
        made["headers"] = {draw.choice(["x-t", "X-U"]): text_match(draw)}
    if draw.random() < 0.3:
        made["withoutHeaders"] = {draw.choice(["X-T", "x-u"]): text_match(draw)}
    if draw.random() < 0.3:
        made["queryParams"] = {"q": text_match(draw)}
    return made


def operations(draw: Draw) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if draw.random() < 0.5:
        made["set"] = {draw.choice(["X-T", "x-u"]): "set"}
    if draw.random() < 0.5:
        made["add"] = {draw.choice(["x-t", "X-U"]): "add"}
    if draw.random() < 0.5:
        made["remove"] = [draw.choice(["x-t", "X-U"])]
    return made


def route(draw: Draw) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if draw.random() < 0.85:
        made["match"] = [match(draw) for _ in range(draw.choice([1, 1, 2]))]
    kind = draw.random()
    if kind < 0.15:
        made["directResponse"] = {"status": draw.choice([200, 418])}
        return made
    if kind < 0.35:
        made["redirect"] = draw.choice(
            [
                {"uri": "/new"},
                {"authority": "n.example"},
                {"authority": "n.example", "scheme": "https", "redirectCode": 307},
                {"scheme": "https", "redirectCode": 308},
                {"uri": "/new", "port": 8080},
                {"authority": "n.example", "port": 443, "scheme": "https"},
            ]
        )
        return made
    made["route"] = [{"destination": {"host": "reviews"}}]
    if draw.random() < 0.5:
        made["rewrite"] = draw.choice(
            [
                {"uri": "/n"},
                {"uri": "/"},
                {"uri": "/n/"},
                {"authority": "r.example"},
                {"uri": "/n", "authority": "r.example"},
                {"uriRegexRewrite": {"match": "^/a", "rewrite": "/x"}},
                {"uriRegexRewrite": {"match": r"/(\w)/(\w)", "rewrite": r"/\2/\1"}},
                {"uriRegexRewrite": {"match": "[ab]", "rewrite": r"<\0>"}},
            ]
        )
    if draw.random() < 0.5:
        made["headers"] = {"request": operations(draw)}
    if draw.random() < 0.3:
        made["route"][0]["headers"] = {"request": operations(draw)}
    if draw.random() < 0.3:
        # Weighted, though all requests go to the first.
        made["route"][0]["weight"] = 100
        made["route"].append({"destination": {"host": "ratings"}, "weight": 0})
    return made


def request(draw: Draw) -> Asked:
    path = draw.choice(["/", "/a", "/A", "/ab", "/a/", "/a/b", "/A/b", "/A/c", "/b/x", "/b/a/b"])
    query = draw.choice(["", "", "?q=1", "?q=", "?q=aa&q=1", "?r=1", "?"])
    headers = [(name, draw.choice(["1", "12", "aa", "", "2"])) for name in SEEN if draw.random() < 0.5]
    return draw.choice(["GET", "GET", "POST", "PUT"]), path + query, tuple(headers)


# --- as istiod has it


def envoy_text(wanted: dict[str, Any]) -> Config:
    if not wanted or wanted == {"regex": "*"}:
        return {"present_match": True}
    ((kind, value),) = wanted.items()
    return {"string_match": {"safe_regex": {"regex": value}} if kind == "regex" else {kind: value}}


def envoy_match(wanted: dict[str, Any]) -> Config:
    made: Config = {"prefix": "/", "case_sensitive": not wanted.get("ignoreUriCase", False), "headers": []}
    if uri := wanted.get("uri"):
        del made["prefix"]
        ((kind, value),) = uri.items()
        made |= (
            {"path": value}
            if kind == "exact"
            else {"prefix": value}
            if kind == "prefix"
            else {"safe_regex": {"regex": value}}
        )
    for name, value in wanted.get("headers", {}).items():
        made["headers"].append({"name": name, **envoy_text(value)})
    for name, value in wanted.get("withoutHeaders", {}).items():
        inverted = {"name": name, "invert_match": True, **envoy_text(value)}
        if "present_match" not in inverted:
            inverted["treat_missing_header_as_empty"] = True
        made["headers"].append(inverted)
    if "method" in wanted:
        made["headers"].append({"name": ":method", **envoy_text(wanted["method"])})
    made["query_parameters"] = [
        {"name": name, **envoy_text(value)} for name, value in wanted.get("queryParams", {}).items()
    ]
    return made


def envoy_headers(wanted: dict[str, Any]) -> tuple[list[Config], list[str]]:
    added = [
        {"header": {"key": name, "value": value}, "append_action": action}
        for kind, action in (("set", "OVERWRITE_IF_EXISTS_OR_ADD"), ("add", "APPEND_IF_EXISTS_OR_ADD"))
        for name, value in wanted.get(kind, {}).items()
    ]
    return added, wanted.get("remove", [])


def envoy_action(wanted: dict[str, Any]) -> Config:
    if "directResponse" in wanted:
        return {"direct_response": {"status": wanted["directResponse"]["status"]}}
    if target := wanted.get("redirect"):
        codes = {301: "MOVED_PERMANENTLY", 307: "TEMPORARY_REDIRECT", 308: "PERMANENT_REDIRECT"}
        made = {"response_code": codes[target.get("redirectCode", 301)]}
        made |= {"host_redirect": target["authority"]} if "authority" in target else {}
        made |= {"scheme_redirect": target["scheme"]} if "scheme" in target else {}
        made |= {"path_redirect": target["uri"]} if "uri" in target else {}
        if "port" in target and target["port"] != {"https": 443}.get(target.get("scheme", ""), 80):
            made["port_redirect"] = target["port"]
        return {"redirect": made}
    action: Config = {}
    rewrite = wanted.get("rewrite", {})
    if "uri" in rewrite:
        action["prefix_rewrite"] = rewrite["uri"]
    if pattern := rewrite.get("uriRegexRewrite"):
        action["regex_rewrite"] = {"pattern": {"regex": pattern["match"]}, "substitution": pattern["rewrite"]}
    if "authority" in rewrite:
        action["host_rewrite_literal"] = rewrite["authority"]
    added, removed = envoy_headers(wanted.get("headers", {}).get("request", {}))
    more, less = envoy_headers(wanted["route"][0].get("headers", {}).get("request", {}))
    if len(wanted["route"]) > 1:
        own = {"request_headers_to_add": more, "request_headers_to_remove": less}
        action["weighted_clusters"] = {"clusters": [{"name": "echo", "weight": 100, **own}]}
        more, less = [], []
    else:
        action["cluster"] = "echo"
    return {
        "route": action,
        "request_headers_to_add": added + more,
        "request_headers_to_remove": [*removed, *less],
    }


def envoy_routes(http: list[dict[str, Any]]) -> list[Config]:
    return [
        {"match": envoy_match(wanted), **envoy_action(entry)}
        for entry in http
        for wanted in entry.get("match") or [{}]
    ]


@contextmanager
def upstream() -> Iterator[int]:
    """Serve: answer every request with its own path, authority and headers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def reply(self) -> None:
            headers = {n: ",".join(self.headers.get_all(n, [])) for n in SEEN if n in self.headers}
            # Not self.path: the library folds slashes at its beginning.
            body = json.dumps([self.requestline.split(" ")[1], self.headers["host"], headers]).encode()
            self.send_response(299)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = reply  # noqa: N815 - names of the library

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def listener(cases: list[list[dict[str, Any]]]) -> Config:
    hosts = [
        {"name": f"c{number}", "domains": [f"c{number}.test"], "routes": envoy_routes(http)}
        for number, http in enumerate(cases)
    ]
    filters = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{filters}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "normalize_path": True,
        "route_config": {"virtual_hosts": hosts},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{filters}.http.router.v3.Router"}}],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {
        "name": "in",
        "address": address,
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }


def cluster(port: int) -> Config:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": "echo",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "echo",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def by_envoy(connection: http.client.HTTPConnection, host: str, asked: Asked) -> Any:
    method, path, headers = asked
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in [("host", host), *headers, ("content-length", "0")]:
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    if response.status == 299:
        return json.loads(body)
    # A query that is there but empty is not kept in our redirects.
    return [response.status, response.getheader("location", "").removesuffix("?")]


# --- as we have it


def matcher(http: list[dict[str, Any]]) -> RouteMatcher:
    obj = make_object(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": "v", "namespace": "app"},
            "spec": {"hosts": ["reviews"], "http": http},
        }
    )
    world = World({obj.key: obj}, Options())
    table = translate_virtual_services(world, SERVICES, {}).routes[REVIEWS]
    assert world.problems == []
    return RouteMatcher(table)


def by_us(made: RouteMatcher, host: str, asked: Asked) -> Any:
    method, path, headers = asked
    head = RequestHead(
        method=method, target=path, authority=host, headers=list(headers), framing=Framing.NONE
    )
    plan = plan_request(head, service=made.table.service, port=80, matcher=made, random=lambda: 0.0)
    if isinstance(plan, Forward):
        fields = {name: value for name, value in plan.head.headers if name in SEEN}
        return [plan.head.target, plan.head.authority, fields]
    return [plan.status, dict(plan.headers).get("location", "")]


@pytest.mark.timeout(120)
def test_we_and_envoy_do_the_same_with_the_same_requests(tmp_path: Path) -> None:
    draw = random.Random(20261121)
    cases = [[route(draw) for _ in range(draw.choice([1, 2, 3]))] for _ in range(CASES)]
    differ = []
    with upstream() as port, envoy(tmp_path, listeners=[listener(cases)], clusters=[cluster(port)]) as other:
        connection = http.client.HTTPConnection("127.0.0.1", other.port("in"), timeout=10)
        for number, written in enumerate(cases):
            made, host = matcher(written), f"c{number}.test"
            for _ in range(REQUESTS):
                asked = request(draw)
                theirs, ours = by_envoy(connection, host, asked), by_us(made, host, asked)
                if theirs != ours:
                    differ.append(f"{json.dumps(written)}\n  {asked}\n  Envoy {theirs}\n  we    {ours}")
        connection.close()
    assert not differ, f"{len(differ)} of {CASES * REQUESTS}:\n" + "\n".join(differ[:5])
