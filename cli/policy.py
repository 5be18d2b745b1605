# SPDX-License-Identifier: Apache-2.0
"""`ambit policy suggest` and `ambit policy try`: policies from what happened, and before anything happens.

Both read recorded connections: the nodes' access logs, or what `ambit flows -o json` wrote.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from cli.codes import EXIT_CHECK, EXIT_NO_DATA, EXIT_OK
from cli.facts import Facts
from cli.flow_log import Flow
from cli.flows import logged, moment, read_flows, time_of
from cli.options import add_common
from cli.output import Cell, Screen, document, dump, plural, say, table
from cli.replay import Change, Replay, World, changed, recorded, replay
from cli.suggest import Suggestion, deny_rest, justification, merge_same, policy_of, suggest
from cli.target import Target, open_target


def add(parser: argparse.ArgumentParser) -> None:
    """Declare both verbs."""
    verbs = parser.add_subparsers(
        dest="policy_verb", metavar="VERB", required=True, parser_class=type(parser)
    )
    text = "least-privilege AuthorizationPolicies from recorded connections"
    first = verbs.add_parser("suggest", help=text, description=f"{text[0].upper()}{text[1:]}.")
    first.add_argument("-n", "--namespace", metavar="NS", help="only for destinations of this namespace")
    first.add_argument(
        "--deny-rest",
        action="store_true",
        help="and one that allows nothing else in each of their namespaces",
    )
    first.add_argument(
        "--except",
        dest="unwanted",
        action="append",
        default=[],
        metavar="TEXT",
        help="leave callers out whose identity holds this text; repeatable",
    )
    text = "judge recorded connections by changed objects, before applying them"
    second = verbs.add_parser("try", help=text, description=f"{text[0].upper()}{text[1:]}.")
    second.add_argument(
        "-f",
        dest="files",
        action="append",
        default=[],
        metavar="FILE|DIR|-",
        help="objects to apply; repeatable",
    )
    second.add_argument(
        "--delete", action="append", default=[], metavar="FILE|DIR", help="objects to delete; repeatable"
    )
    for one, formats in ((first, ("yaml", "json")), (second, ("table", "json", "yaml"))):
        one.add_argument(
            "--since", type=moment, metavar="DURATION|TIME", help="only connections not older (1h)"
        )
        one.add_argument("--input-file", metavar="FILE", help="connections of `flows -o json`; - is stdin")
        add_common(one, formats=formats)


def run(options: argparse.Namespace) -> int:
    """Run one of both."""
    target = open_target(options)
    flows = read_flows(options.input_file) if options.input_file else logged(target)
    wanted = [flow for flow in flows if options.since is None or time_of(flow) >= options.since]
    return (
        _suggest(options, target, wanted)
        if options.policy_verb == "suggest"
        else _try(options, target, wanted)
    )


def _suggest(options: argparse.Namespace, target: Target, flows: list[Flow]) -> int:
    """Print policies with what justifies them; 4 when nothing was recorded."""
    wanted = [f for f in flows if not any(text in f.get("src.identity") for text in options.unwanted)]
    found = suggest(wanted, Facts(target).pods())
    targets = [t for t in merge_same(found.targets) if options.namespace in (None, t.namespace)]
    _tell(found)
    if not targets:
        say("no connection with an identity was recorded: make the traffic that is wanted first")
        return EXIT_NO_DATA
    policies = [policy_of(one) for one in targets]
    rest = [deny_rest(name) for name in sorted({t.namespace for t in targets})] if options.deny_rest else []
    if options.output == "json":
        print(dump({"apiVersion": "v1", "kind": "List", "items": [*policies, *rest]}, "json"))
        return EXIT_OK
    texts = []
    for one, policy in zip(targets, policies, strict=True):
        comments = "".join(f"# {line}\n" for line in justification(one))
        texts.append(comments + dump(policy, "yaml"))
    texts += ["# Pods that no other policy names take nothing.\n" + dump(policy, "yaml") for policy in rest]
    print("\n---\n".join(texts))
    count = plural(len(policies) + len(rest), "policy", "policies")
    say(f"\n{count}; `{target.command('policy try -f FILE')}` says what they would change")
    return EXIT_OK


def _tell(found: Suggestion) -> None:
    for line in found.nameless:
        say(f"not allowed, as it came without an identity (enrol the caller): {line}")
    for line in found.unknown:
        say(f"left out, as it does not run any more: {line}")


def _try(options: argparse.Namespace, target: Target, flows: list[Flow]) -> int:
    """Print what would change; 2 when something would be denied that is not now."""
    from cli.lint import lint, read

    applied, rejections = read(options.files)
    deleted, _ = read(options.delete)
    objects = target.objects().objects
    for problem in lint(applied, rejections, objects):
        say(str(problem))
    result = replay(recorded(flows), World(objects), World(changed(objects, applied, deleted)))
    if options.output in ("json", "yaml"):
        print(dump(_document(result), options.output))
    else:
        _show(result, Screen.of(sys.stdout, options.color), no_headers=options.no_headers)
    for name in result.skipped:
        say(f"not judged, as it does not run any more: {name}")
    if not result.judged:
        say("no connection was recorded that could be judged")
        return EXIT_NO_DATA
    return EXIT_CHECK if any(not change.allowed for change in result.changes) else EXIT_OK


def _show(result: Replay, screen: Screen, *, no_headers: bool) -> None:
    if not result.changes:
        if result.judged:
            print(f"nothing changes for the {plural(result.judged, 'recorded connection')}")
        return
    # One caller over both address families is one line.
    lines: dict[tuple[object, ...], tuple[Change, int, str]] = {}
    for change in result.changes:
        asked = change.asked
        key = (change.allowed, asked.identity, asked.source, asked.destination, asked.port)
        _, times, last = lines.get(key, (change, 0, ""))
        lines[key] = (change, times + change.count, max(last, change.last))
    rows = [
        (
            Cell("newly allowed", "yellow") if change.allowed else Cell("newly denied", "red"),
            change.asked.identity or f"{change.asked.source} in plaintext",
            f"{change.asked.destination}:{change.asked.port}",
            str(times),
            last[11:19],
            _short(change),
        )
        for change, times, last in lines.values()
    ]
    titles = ("VERDICT", "CALLER", "DESTINATION", "TIMES", "LAST", "WHY")
    print(table(() if no_headers else titles, rows, screen))


def _short(change: Change) -> str:
    """Keep of the reason what the line does not say already."""
    return change.why.partition(";")[0].partition(" spiffe:")[0].partition(" a peer without")[0]


def _document(result: Replay) -> dict[str, Any]:
    return document(
        "PolicyTrial",
        judged=result.judged,
        items=[
            {
                "verdict": "allowed" if change.allowed else "denied",
                "identity": change.asked.identity,
                "source": change.asked.source,
                "sourceIp": change.asked.source_ip,
                "destination": change.asked.destination,
                "port": change.asked.port,
                "count": change.count,
                "last": change.last,
                "why": change.why,
            }
            for change in result.changes
        ],
    )
