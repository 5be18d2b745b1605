# SPDX-License-Identifier: Apache-2.0
"""`ambit completion bash|zsh|fish`: a script for the shell, which asks `ambit completion words` at each TAB.

What can follow is read from the parsers themselves, so that it cannot grow stale; names come
from the mesh, if one is up.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

from cli.codes import EXIT_OK, CliError

SCRIPTS = {
    "bash": """_ambit() {
  local IFS=$'\\n'
  COMPREPLY=($(ambit completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _ambit ambit
""",
    "zsh": """#compdef ambit
_ambit() {
  local -a found
  found=("${(@f)$(ambit completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
compdef _ambit ambit
""",
    "fish": """function __ambit_words
  set -l words (commandline -opc) (commandline -ct)
  ambit completion words -- $words[2..-1] 2>/dev/null
end
complete -c ambit -f -a '(__ambit_words)'
""",
}
NAMED = {
    "POD": ("pod",),
    "SRC": ("pod", "deployment"),
    "DST[:PORT]": ("service", "pod"),
    "POD|SVC": ("pod", "service"),
    "pod|service NAME": ("pod", "service"),
    "NODE": ("node",),
    "NS": ("namespace",),
    "NS/POD": ("pod",),
}
"""Metavar of an argument -> kinds whose names can stand there."""


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("shell", choices=[*SCRIPTS, "words"], help="print the script for this shell")


def run(options: argparse.Namespace) -> int:
    """Print the script, or (for the script) what can stand in place of the last word."""
    if options.shell != "words":
        print(SCRIPTS[options.shell], end="")
        return EXIT_OK
    words: list[str] = options.command or [""]
    for word in candidates(words[:-1], words[-1]):
        print(word)
    return EXIT_OK


def candidates(before: Sequence[str], begun: str) -> list[str]:
    """Return the words that can follow `before` and begin with `begun`."""
    from cli.__main__ import build_parser, modules

    if not before:
        return sorted(verb for verb in modules() if verb.startswith(begun))
    if before[0] not in modules():
        return []
    parser: argparse.ArgumentParser = build_parser(before[0])
    rest = list(before)
    while rest:
        inner = _subparser(parser, rest)
        if inner is None:
            break
        parser, rest = inner
    lab = before[before.index("--lab") + 1] if "--lab" in before[:-1] else None
    option = _option(parser, rest[-1]) if rest else None
    if option is not None and option.nargs != 0:
        found: Iterable[str] = _values(option, lab)
    elif begun.startswith("-"):
        found = (name for action in parser._actions for name in action.option_strings)
    else:
        found = _positionals(parser, lab)
    return sorted({word for word in found if word.startswith(begun)})


def _subparser(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.ArgumentParser, list[str]] | None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and words[0] in action.choices:
            return action.choices[words[0]], words[1:]
    return None


def _option(parser: argparse.ArgumentParser, word: str) -> argparse.Action | None:
    for action in parser._actions:
        if word in action.option_strings:
            return action
    return None


def _positionals(parser: argparse.ArgumentParser, lab: str | None) -> Iterable[str]:
    for action in parser._actions:
        if not action.option_strings:
            yield from _values(action, lab)


def _values(action: argparse.Action, lab: str | None) -> list[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    words = [word for word in metavar.partition(" ")[0].split("|") if word.islower()]
    return [*words, *_names(NAMED.get(metavar, ()), lab)]


def _names(kinds: Sequence[str], lab: str | None) -> list[str]:
    """Return names of the mesh; none where there is no mesh, or several."""
    if not kinds:
        return []
    from cli.target import open_target

    found: list[str] = []
    with contextlib.suppress(CliError, OSError):
        target = open_target(argparse.Namespace(lab=lab, state=None))
        if "node" in kinds:
            found += target.nodes()
        objects: Any = target.objects()
        if "namespace" in kinds:
            found += [item.name for item in objects.of("Namespace")]
        for kind, name in (("pod", "Pod"), ("service", "Service"), ("deployment", "Deployment")):
            if kind in kinds:
                found += [f"{item.namespace}/{item.name}" for item in objects.of(name)]
    return found
